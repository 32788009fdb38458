"""What goes to stdout, what to stderr, and how it looks where nobody watches."""

from __future__ import annotations

import errno
import io
import json
import sys
import time
from pathlib import Path

import pytest

from minilm_cli.base.errors import MinilmError
from minilm_cli.cli import console
from minilm_cli.cli.console import PLAIN_INTERVAL, Console
from minilm_cli.training import run
from minilm_cli.training.run import RunReport

from .conftest import Minilm

TOKENIZE = ("tokenize", "corpus.txt", "--tokenizer", "teacher", "--force", "--workers", "1")
DISTILL = (
    *("distill", "--teacher", "teacher", "--student-config", "config.json", "--steps", "3", "--batch-size", "4"),
    *("--eval-fraction", "0.05", "--log-every", "1"),
)


@pytest.mark.usefixtures("workplace")
def test_stdout_is_the_path_of_the_tokens(minilm: Minilm) -> None:
    outcome = minilm(*TOKENIZE)
    assert (outcome.status, outcome.out) == (0, "tokens\n")
    assert "Tokenised into tokens" in outcome.err


@pytest.mark.usefixtures("workplace")
def test_tokenize_ends_with_a_table_of_what_became_of_the_lines(minilm: Minilm) -> None:
    outcome = minilm(*TOKENIZE, "--max-length", "32")
    found = dict(line.strip().rsplit(maxsplit=1) for line in outcome.err.splitlines()[1:])
    manifest = json.loads(Path("tokens/manifest.json").read_text(encoding="utf-8"))
    assert (found["lines"], found["blank lines skipped"]) == ("200", "20")
    assert int(found["lines split"]) > 0
    assert found["lines dropped"] == "0"
    assert int(found["sequences"]) == manifest["sequences"]
    assert int(found["tokens"].replace(",", "")) == manifest["tokens"]
    assert found["longest"] == "32"
    assert "tokens per second" in found


@pytest.mark.usefixtures("workplace")
def test_tokenize_as_json_is_one_object(minilm: Minilm) -> None:
    outcome = minilm(*TOKENIZE, "--json")
    facts = json.loads(outcome.out)
    assert outcome.out.count("\n") == 1
    assert facts["path"] == "tokens"
    assert (facts["lines"], facts["blank_lines_skipped"]) == (200, 20)
    assert facts["tokens"] > facts["sequences"] > 0


@pytest.mark.usefixtures("workplace")
def test_stdout_of_a_run_is_its_path_and_then_that_of_its_export(minilm: Minilm) -> None:
    distilled = minilm(*DISTILL)
    folder = Path(distilled.out.removesuffix("\n"))
    assert distilled.status == 0, distilled.err
    assert distilled.out.count("\n") == 1
    assert folder.parent == Path("runs")
    assert folder.name.startswith("l2-h24-from-teacher-")
    assert (folder / "settings.json").is_file()
    assert "minilm export" in distilled.err
    exported = minilm("export")
    assert exported.out == f"{folder}/export/hf\n"
    assert "loaded back" in exported.err
    resumed = minilm("resume")
    assert (resumed.status, resumed.out) == (0, f"{folder}\n")
    assert "is finished: 3 steps" in resumed.err


def test_a_run_whose_metrics_are_gone_tells_what_it_knows(minilm: Minilm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "distill", lambda *_, **__: RunReport(Path("runs/new"), 6, {}))
    outcome = minilm("distill", "--teacher", "teacher", "--student-config", "config.json")
    assert (outcome.status, outcome.out) == (0, "runs/new\n")
    assert "Trained 6 steps.\n" in outcome.err


@pytest.mark.usefixtures("workplace")
def test_json_of_distill_resume_and_export_is_one_object_each(minilm: Minilm) -> None:
    distilled, resumed, exported = (
        minilm(*words, "--json") for words in ((*DISTILL, "-o", "run"), ("resume", "run"), ("export", "run"))
    )
    for outcome in (distilled, resumed, exported):
        assert outcome.status == 0, outcome.err
        assert outcome.out.count("\n") == 1
    facts = json.loads(distilled.out)
    last = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()][-2:]
    assert (facts["path"], facts["step"]) == ("run", 3)
    assert (facts["loss"], facts["eval_loss"]) == (last[0]["loss"], last[1]["eval_loss"])
    assert facts["loss_qq"] == last[0]["loss_qq"]
    assert json.loads(resumed.out) == facts
    assert json.loads(exported.out)["path"] == "run/export/hf"
    assert json.loads(exported.out)["step"] == 3


@pytest.mark.usefixtures("workplace")
def test_nothing_is_coloured_or_drawn_where_nobody_watches(minilm: Minilm) -> None:
    for words in (
        TOKENIZE,
        (*DISTILL, "-o", "run"),
        ("export", "run"),
        ("export", "nowhere"),
        ("distill", "--nonsense"),
    ):
        outcome = minilm(*words)
        assert "\x1b" not in outcome.out + outcome.err
        assert "\r" not in outcome.out + outcome.err
    log = Path("run/log.txt").read_text(encoding="utf-8")
    assert "\x1b" not in log


@pytest.mark.usefixtures("workplace")
def test_a_dry_run_prints_the_plan_alone(minilm: Minilm) -> None:
    outcome = minilm(*DISTILL, "--dry-run")
    assert (outcome.status, outcome.out) == (0, "")
    for heading in ("Teacher", "Student", "Relations", "Data", "Training", "Measured"):
        assert f"{heading}\n" in outcome.err.replace(" \n", "\n").replace(" ", "") + "\n"
    assert "encoder.layer.1.output.dense.weight" in outcome.err


@pytest.mark.usefixtures("workplace")
def test_a_dry_run_as_json_is_one_object(minilm: Minilm) -> None:
    outcome = minilm(*DISTILL, "--dry-run", "--json")
    plan = json.loads(outcome.out)
    assert outcome.out.count("\n") == 1
    assert plan["training"]["steps"] == 3
    assert plan["student"]["layers"] == 2
    assert plan["teacher"]["layer"] == 4
    assert plan["measured"]["seconds_per_step"] > 0


def test_plain_progress_is_at_most_a_line_in_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now)}))
    progress = Console().progress
    progress.start("Distilling", 1000)
    for step in range(1, 1001):
        now += 0.1
        progress.update(step, {"loss": 1.0, "lr": 1e-3})
    progress.stop()
    lines = capsys.readouterr().err.splitlines()
    assert PLAIN_INTERVAL == 10
    assert 9 <= len(lines) <= 10
    assert lines[0].startswith("Distilling: step ")
    assert "loss 1.0000" in lines[0]
    assert "left" in lines[0]


def test_a_job_of_less_than_ten_seconds_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Console().progress
    progress.start("Distilling", 100)
    for step in range(100):
        progress.update(step)
    progress.stop()
    assert capsys.readouterr().err == ""


def test_names_with_markup_are_shown_as_they_are(minilm: Minilm, tmp_path: Path) -> None:
    outcome = minilm("export", tmp_path / "[bold]run[/bold]")
    assert "[bold]run[/bold]: there is no such run" in outcome.err


def test_a_long_message_is_not_broken_into_lines(
    minilm: Minilm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    long = tmp_path / ("long" * 40)
    assert outcome_line(minilm("export", long).err) == f"Error: {long}: there is no such run"


@pytest.mark.usefixtures("workplace")
def test_a_command_to_copy_is_not_broken_into_lines(minilm: Minilm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    folder = f"runs/{'long' * 20}"
    outcome = minilm(*DISTILL, "-o", folder)
    assert outcome.status == 0, outcome.err
    assert f"minilm export {folder}\n" in outcome.err


class Leaving(io.StringIO):
    """A stream that fails from the third text on, as one whose listener goes away; a terminal if that is wanted."""

    def __init__(self, error: int, *, terminal: bool) -> None:
        super().__init__()
        self.error, self.terminal, self.left = error, terminal, 3

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.flush()
        self.left -= 1
        return super().write(text)

    def flush(self) -> None:
        if not self.left:
            raise OSError(self.error, "nobody listens")


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", [errno.EIO, errno.EPIPE, errno.ENOSPC])
@pytest.mark.usefixtures("workplace")
def test_a_run_goes_on_to_its_end_when_nobody_listens_any_more(
    minilm: Minilm, monkeypatch: pytest.MonkeyPatch, error: int, terminal: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "PLAIN_INTERVAL", 0)
    stream = Leaving(error, terminal=terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    outcome = minilm(*DISTILL, "-o", "run")
    assert (outcome.status, outcome.out) == (0, "run\n")
    assert Path("run/student/model.safetensors").is_file()
    assert "Loading the teacher" in stream.getvalue()
    assert stream.left == 0


def test_drawing_goes_on_unseen_when_the_terminal_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Leaving(errno.EIO, terminal=True)
    stream.left = 0
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Console().progress
    progress.start("Distilling", 10)
    print("a warning of another library", file=sys.stderr)
    progress.update(5, {"loss": 1.0})
    time.sleep(0.6)  # the display refreshes itself four times a second, in a thread
    progress.stop()
    assert sys.stderr is stream


def test_a_program_without_a_stderr_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    talks = Console()
    talks.say("one")
    talks.table("two", [("three", "four")])
    assert talks.progress is not None


@pytest.mark.parametrize("columns", ["0", "1", "-5", "x", str(10**30)])
def test_an_odd_width_of_the_screen_hides_no_message(
    minilm: Minilm, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert outcome_line(minilm("export", "nowhere").err) == "Error: nowhere: there is no such run"


def outcome_line(text: str) -> str:
    """The only line of a text."""
    (line,) = text.splitlines()
    return line


def test_the_clock_of_the_tests_is_the_real_one_again() -> None:
    assert console.time is time


def test_what_a_terminal_obeys_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.error(MinilmError("no \x1b[31mred\x07 \x9b2J", where="a\x1b]0;title\x07", hint="Look at\n    \x1bcfile"))
    console.table("T", [("name\x1b[2J", "value\x00")])
    said = capsys.readouterr().err
    assert not [sign for sign in said if sign < " " and sign != "\n"]
    assert "\x9b" not in said
    assert "no \ufffd[31mred \ufffd2J" in said
