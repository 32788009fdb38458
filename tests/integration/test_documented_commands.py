"""Every command and program in README.md and docs/ runs as written, page by page, in a folder like the reader's.

Blocks of the language `console` are transcripts: lines that begin with `$ ` are commands, the rest is what they print.
A command whose transcript shows an error must print that error and exit with 2; a run of the paper's length is
interrupted once it has logged a step, and must exit with 130 (torchrun itself with 1). torchrun's processes are two,
whatever the page says. Blocks of the language `bash` are not run; they are listed here with the reason.

Blocks of the language `python` are one program a page, which runs after the page's commands. A block that imports a
package that is not installed is left out.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.runs import AnyProcess

from .conftest import TIMEOUT, Commands

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

#: More steps than a documented run that ends by itself has: the default is 400,000.
ENDLESS = 1000

README = ".ci/run runs this command of the README"
NETWORK = "downloads or uploads"
LONG = "downloads, and takes an hour"

LEARN = "minilm distill --teacher sentence-transformers/all-MiniLM-L6-v2 --student-config l3-h384"
REPOSITORY = ".ci/run runs it in the repository"
NOT_RUN = {
    'pip install ".[demo]"': README,
    "minilm demo": README,
    'pip install -e ".[test]"': README,
    "pytest -n 2": README,
    "pip install minilm-cli": NETWORK,
    'pip install "minilm-cli[evaluate]"': NETWORK,
    'pip install "minilm-cli[mteb,sentence-transformers]"': NETWORK,
    "minilm evaluate my-run/export/sentence-transformers --mteb STS12 --mteb Banking77Classification": NETWORK,
    "minilm tokenize wordnet.txt --tokenizer sentence-transformers/all-MiniLM-L6-v2 --max-length 128": LONG,
    f"{LEARN} --init teacher --steps 800 --batch-size 128 --lr 5e-4 --warmup-steps 80 --output from-layers": LONG,
    f"{LEARN} --init random --steps 800 --batch-size 128 --lr 5e-4 --warmup-steps 80 --output from-random": LONG,
    "minilm evaluate from-layers from-random truncated --task stsb --zero-shot": LONG,
    "minilm evaluate from-layers from-random truncated --task stsb --lr 5e-5 --lr 1e-4 --epochs 3 --seeds 3": LONG,
    "minilm evaluate from-layers from-random truncated --task sms.tsv --lr 5e-5 --lr 1e-4 --epochs 3 --seeds 3": LONG,
    "pip install torch --index-url https://download.pytorch.org/whl/cpu": NETWORK,
    "minilm tokenize hf://datasets/wikimedia/wikipedia:20231101.en/train --output wikipedia": NETWORK,
    "minilm export --push-to-hub NAME/REPOSITORY --private": NETWORK,
    "minilm export my-run --format hf --format onnx --output student --push-to-hub NAME/REPOSITORY": NETWORK,
    "hf auth login": NETWORK,
    'pip install "minilm-cli[sentence-transformers]"': NETWORK,
    'pip install "minilm-cli[onnx]"': NETWORK,
    'pip install -e ".[dev]"': REPOSITORY,
    "pip install pre-commit": NETWORK,
    "pre-commit install": NETWORK,
    "ruff check .": REPOSITORY,
    "ruff format --check .": REPOSITORY,
    'pytest -n 2 -m "not slow"': REPOSITORY,
    "mypy": REPOSITORY,
    "lint-imports": REPOSITORY,
    "python docs/generate.py": REPOSITORY,
    "mkdocs build --strict --config-file docs/mkdocs/mkdocs.yml": REPOSITORY,
    "mkdocs serve --config-file docs/mkdocs/mkdocs.yml": "serves until it is stopped",
    "python -m tests.benchmarks --output docs/figures/figures.json": "measures for half an hour",
    "python -m tests.benchmarks.page": REPOSITORY,
    "bash .ci/run": "runs these tests",
    'kill -USR1 "$(head -n 1 my-run/lock)"': "needs a run under way",
    "minilm resume my-run --set optimizer.lr=3e-4 --set training.precision=fp32": "needs a run that failed",
    "python -m tests.soak --kills 50": "takes minutes",
    "python -m tests.fuzz --minutes 60": "takes an hour",
    "torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 3 --rdzv-id distil-1 --rdzv-backend c10d"
    " --rdzv-endpoint node0:29500 -m minilm_cli distill --config distil.yaml --output /shared/runs/distil-1": (
        "needs two machines"
    ),
}

PROGRAMS_NOT_RUN = {
    "errors": "needs a run that failed",
    "index": "the name of the run has the date in it",
    "migration": "needs a pickle of another program",
}


@dataclass(frozen=True)
class Documented:
    """A command and its output, as its page shows them."""

    command: str
    output: tuple[str, ...]


def _blocks(page: Path, language: str) -> Iterator[str]:
    for block_language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if block_language == language:
            yield text


def _documented(page: Path) -> list[Documented]:
    documented = []
    for text in _blocks(page, "console"):
        command, output = "", list[str]()
        for line in text.replace("\\\n", "").splitlines():
            if not line.startswith("$ "):
                output.append(line)
                continue
            if command:
                documented.append(Documented(command, tuple(output)))
            command, output = line.removeprefix("$ "), []
        documented.append(Documented(command, tuple(output)))
    return documented


@pytest.fixture
def reader(minilm: Commands, tiny_teacher: Path, tiny_corpus: Path, tiny_student_config: Path) -> Commands:
    """A folder with the reader's files. transformers prefers a local folder to a model of that name on the Hub."""
    # Short lines, because the time of the documented batches depends on their lengths.
    lines = [" ".join(line.split()[:2]) for line in tiny_corpus.read_text(encoding="utf-8").splitlines()]
    (minilm.folder / "corpus.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copy(tiny_student_config, minilm.folder / "config.json")
    rows = "".join(f"{number % 2}\t{line}\n" for number, line in enumerate(lines[1:10] * 4))
    (minilm.folder / "reviews.tsv").write_text(f"label\ttext\n{rows}", encoding="utf-8")
    pairs = "".join(f"{number / 50:.2f}\t{line} of\tthe {line}\n" for number, line in enumerate(lines[1:10] * 5))
    (minilm.folder / "pairs.tsv").write_text(f"score\tsentence1\tsentence2\n{pairs}", encoding="utf-8")
    for name in ("bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"):
        shutil.copytree(tiny_teacher, minilm.folder / name)
    return minilm


@pytest.mark.parametrize("page", [page for page in PAGES if _documented(page)], ids=lambda page: page.stem)
def test_commands_run_as_documented(page: Path, reader: Commands) -> None:
    for documented in _documented(page):
        errors = [line for line in documented.output if line.startswith("Error: ")]
        status, printed = _run(documented.command, reader)
        transcript = f"{documented.command}\n{printed}"
        for error in errors:
            assert error in printed.splitlines(), transcript
        assert status == (2 if errors else 0), transcript
    if page.stem not in PROGRAMS_NOT_RUN and (program := _program(page)):
        done = reader(program=("-c", program))
        assert done.returncode == 0, done.stderr


def _program(page: Path) -> str:
    """The blocks of Python of a page that can be imported here."""
    return "\n".join(block for block in _blocks(page, "python") if all(map(find_spec, _imported(block))))


def _imported(block: str) -> Iterator[str]:
    for statement in ast.walk(ast.parse(block)):
        if isinstance(statement, ast.Import):
            yield from (name.name for name in statement.names)
        if isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module.partition(".")[0]


def _run(command: str, minilm: Commands) -> tuple[int, str]:
    """Exit status (0 for a run of the paper's length that was interrupted properly) and output."""
    before = _lines_of_endless_runs(minilm.folder)
    interrupted = False
    with (minilm.folder / ".output").open("w+", encoding="utf-8") as output:
        process = _start(command, minilm, output.fileno())
        end = time.monotonic() + TIMEOUT
        while process.poll() is None:
            assert time.monotonic() < end, command
            now = _lines_of_endless_runs(minilm.folder)
            if not interrupted and any(lines > before.get(run, 0) for run, lines in now.items()):
                process.send_signal(signal.SIGINT)
                interrupted = True
            time.sleep(0.05)
        output.seek(0)
        printed = output.read()
    status = process.wait()
    if interrupted:
        by_torchrun = command.startswith("torchrun")
        assert status == (1 if by_torchrun else 128 + signal.SIGINT), f"{command}\n{printed}"
        said, *_ = printed.split("Traceback (most recent call last)")  # torchrun's, after which the message is repeated
        assert said.count("a checkpoint is saved") == 1, printed
        return 0, printed
    return status, printed


def _start(command: str, minilm: Commands, output: int) -> AnyProcess:
    """Start a command, in bash if it needs a shell or is not minilm or torchrun."""
    program, *words = shlex.split(command.replace("--nproc-per-node 8", "--nproc-per-node 2"))
    programs = {"minilm": ("-m", "minilm_cli"), "torchrun": ("-m", "tests.torchrun")}
    if program in programs and "|" not in words:
        return minilm.start(*words, program=programs[program], stdout=output, stderr=output)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "-c", command],
        cwd=minilm.folder,
        env=os.environ | {"PATH": path, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        text=True,
    )


def _lines_of_endless_runs(folder: Path) -> dict[Path, int]:
    """The number of logged steps of each run that would not end."""
    lines = {}
    for place, _, names in os.walk(folder):  # which skips folders that are removed meanwhile
        file = Path(place, "metrics.jsonl")
        if file.name not in names:
            continue
        settings = json.loads(file.with_name("settings.json").read_text(encoding="utf-8"))
        if settings["training"]["steps"] > ENDLESS:
            lines[file] = file.read_text(encoding="utf-8").count('"grad_norm"')
    return lines


def test_commands_that_are_not_run_are_listed() -> None:
    blocks = (re.sub(r"\s*\\\n\s*", " ", text) for page in PAGES for text in _blocks(page, "bash"))
    commands = {line for text in blocks for line in text.splitlines() if line}
    assert commands == set(NOT_RUN)


def test_programs_that_are_not_run_exist() -> None:
    assert PROGRAMS_NOT_RUN.keys() <= {page.stem for page in PAGES if any(_blocks(page, "python"))}


def test_every_block_has_a_known_language() -> None:
    for page in PAGES:
        languages = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)[::2]
        assert set(languages) <= {"bash", "bibtex", "console", "json", "mermaid", "python", "text", "yaml"}, page
