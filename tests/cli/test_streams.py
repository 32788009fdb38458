"""Stdout, stderr, progress and formatting of the commands, without a terminal."""

from __future__ import annotations

import errno
import io
import itertools
import json
import re
import sys
from pathlib import Path

import pytest

from minilm_cli.base.errors import MinilmError
from minilm_cli.cli import console
from minilm_cli.cli.console import Console
from minilm_cli.runs.folder import RunFolder
from minilm_cli.training import run
from minilm_cli.training.run import RunReport

from .conftest import Minilm

TOKENIZE = ("tokenize", "corpus.txt", "--tokenizer", "teacher", "--force", "--workers", "1")
DISTILL = (
    *("distill", "--teacher", "teacher", "--student-config", "config.json", "--steps", "3", "--batch-size", "4"),
    *("--eval-fraction", "0.05", "--log-every", "1"),
)


@pytest.mark.usefixtures("workplace")
def test_tokenize_prints_the_path_of_its_store(minilm: Minilm) -> None:
    outcome = minilm(*TOKENIZE)
    assert (outcome.status, outcome.out) == (0, "tokens\n")
    assert "Tokenised into tokens" in outcome.err


@pytest.mark.usefixtures("workplace")
def test_tokenize_prints_a_table_of_counts(minilm: Minilm) -> None:
    outcome = minilm(*TOKENIZE, "--max-length", "32")
    rows = dict(line.strip().rsplit(maxsplit=1) for line in outcome.err.splitlines()[1:])
    manifest = json.loads(Path("tokens/manifest.json").read_text(encoding="utf-8"))
    assert (rows["lines"], rows["blank lines skipped"]) == ("200", "20")
    assert int(rows["lines split"]) > 0
    assert rows["lines dropped"] == "0"
    assert int(rows["sequences"]) == manifest["sequences"]
    assert int(rows["tokens"].replace(",", "")) == manifest["tokens"]
    assert rows["longest"] == "32"
    assert "tokens per second" in rows


@pytest.mark.usefixtures("workplace")
def test_tokenize_prints_one_json_object(minilm: Minilm) -> None:
    outcome = minilm(*TOKENIZE, "--json")
    facts = json.loads(outcome.out)
    assert outcome.out.count("\n") == 1
    assert facts["path"] == "tokens"
    assert (facts["lines"], facts["blank_lines_skipped"]) == (200, 20)
    assert facts["tokens"] > facts["sequences"] > 0


@pytest.mark.usefixtures("workplace")
def test_distill_export_and_resume_print_their_paths(minilm: Minilm) -> None:
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


def test_a_run_without_metrics_prints_its_steps(
    minilm: Minilm, monkeypatch: pytest.MonkeyPatch, finished_run: Path
) -> None:
    plan = RunFolder(finished_run).plan()
    monkeypatch.setattr(run, "distill", lambda *_, **__: RunReport(Path("runs/new"), 6, plan))
    outcome = minilm("distill", "--teacher", "teacher", "--student-config", "config.json")
    assert (outcome.status, outcome.out) == (0, "runs/new\n")
    assert "Trained 6 steps\n" in outcome.err
    assert "loss" not in outcome.err


@pytest.mark.usefixtures("workplace")
def test_distill_resume_and_export_print_one_json_object_each(minilm: Minilm) -> None:
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
    assert facts["first_eval_loss"] == json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])["eval_loss"]
    assert (facts["best_step"], facts["best_eval_loss"]) == (3, facts["eval_loss"])
    assert facts["improved"] == (facts["eval_loss"] < facts["first_eval_loss"])
    assert facts["sequences"] == 12
    assert facts.pop("seconds") > 0
    again = json.loads(resumed.out)
    assert again.pop("seconds") > 0
    assert again == facts
    assert json.loads(exported.out)["path"] == "run/export/hf"
    assert json.loads(exported.out)["step"] == 3


@pytest.mark.usefixtures("workplace")
def test_a_run_begins_with_what_it_does_and_ends_with_what_became_of_it(minilm: Minilm) -> None:
    lines = [line.strip() for line in minilm(*DISTILL, "-o", "run").err.splitlines()]
    begin, end = lines.index("Distilling"), lines.index("Trained 3 steps")
    shown = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in lines[begin + 1 : end] if ":" not in line[:11])
    assert shown["run folder"] == "run"
    assert re.fullmatch(r"teacher: bert, 4 layers, .* parameters; layer 4 is learnt, the last", shown["teacher"])
    assert re.match(r"bert, 2 layers, .* × smaller, .* × less arithmetic\); layer 2 learns", shown["student"])
    assert shown["relations"] == "QQ × 1, KK × 1, VV × 1; 6 heads"
    assert "sequences held out" in shown["data"]
    assert "3 steps of 4 sequences" in shown["training"]
    assert "rate 0.0006 after 0 warm-up steps, then linear decay" in shown["training"]
    assert re.match(r"cpu, .*, 1 process;", shown["hardware"])
    outcome = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in lines[end + 1 : end + 6])
    losses = [record["eval_loss"] for record in metrics() if "eval_loss" in record]
    assert outcome["held-out loss"] == f"{losses[0]:.4f} → {losses[-1]:.4f}"
    assert outcome["seen"].startswith("12 sequences, ")
    assert re.fullmatch(r"[\d,]+ parameters, [\d.]+ MB; the teacher: [\d,]+, [\d.]+ MB", outcome["student"])
    log = Path("run/log.txt").read_text(encoding="utf-8")
    assert f"student: {shown['student']}" in log


@pytest.mark.usefixtures("workplace")
def test_a_run_that_got_worse_says_so_everywhere(minilm: Minilm) -> None:
    outcome = minilm(*DISTILL, "-o", "run", "--lr", "1", "--warmup-steps", "0", "--eval-every", "1", "--json")
    losses = [record["eval_loss"] for record in metrics() if "eval_loss" in record]
    assert losses[-1] > losses[0]
    best = min(losses[1:])
    facts = json.loads(outcome.out)
    assert (outcome.status, facts["improved"], facts["best_eval_loss"]) == (0, False, best)
    assert facts["best_step"] == losses.index(best)
    warning = f"The held-out loss did not improve: {losses[0]:.4g} at the start, {losses[-1]:.4g} at the end."
    assert f"Warning: {warning}\n" in outcome.err
    assert ("minilm export run --checkpoint best" in outcome.err) == (best < losses[-1])
    minilm("export", "run")
    assert warning in Path("run/export/hf/README.md").read_text(encoding="utf-8")


def metrics() -> list[dict[str, float]]:
    return [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("workplace")
def test_mean_loss_is_that_of_the_steps_since_the_last_line(minilm: Minilm) -> None:
    minilm(*DISTILL, "-o", "each")
    each = [json.loads(line) for line in Path("each/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    minilm(*DISTILL, "-o", "run", "--log-every", "10")
    first, second, third = (record["loss"] for record in each if "loss" in record)
    assert [record["mean_loss"] for record in metrics() if "loss" in record] == [first, (second + third) / 2]


@pytest.mark.usefixtures("workplace")
def test_output_without_a_terminal_has_no_control_characters(minilm: Minilm) -> None:
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
def test_a_dry_run_prints_the_plan(minilm: Minilm) -> None:
    outcome = minilm(*DISTILL, "--dry-run")
    assert (outcome.status, outcome.out) == (0, "")
    for heading in ("Teacher", "Student", "Relations", "Data", "Training", "Measured"):
        assert f"{heading}\n" in outcome.err.replace(" \n", "\n").replace(" ", "") + "\n"
    assert "not trained" in outcome.err
    name = "encoder.layer.1.output.dense.weight"
    assert name not in outcome.err
    assert name in minilm(*DISTILL, "--dry-run", "--verbose").err


@pytest.mark.usefixtures("workplace")
def test_a_dry_run_prints_one_json_object_and_writes_no_file(minilm: Minilm) -> None:
    before = set(Path().rglob("*"))
    outcome = minilm(*DISTILL, "--dry-run", "--json")
    plan = json.loads(outcome.out)
    assert set(Path().rglob("*")) == before
    assert "hours in all" in outcome.err
    assert plan["student"]["parameters"] > plan["student"]["untrained_parameters"] > 0
    assert plan["relations"]["heads"] == 6
    assert plan["student"]["operations_per_token"] < plan["teacher"]["operations_per_token"]
    assert outcome.out.count("\n") == 1
    assert plan["training"]["steps"] == 3
    assert plan["student"]["layers"] == 2
    assert (plan["teacher"]["layer"], plan["teacher"]["layer_reason"]) == (4, "the last")
    assert (plan["teacher"]["tapped_layers"], plan["student"]["tapped_layers"]) == ([], [])
    assert plan["measured"]["seconds_per_step"] > 0


@pytest.mark.usefixtures("workplace")
def test_a_dry_run_of_several_layers_lists_them(minilm: Minilm) -> None:
    outcome = minilm(*DISTILL, "--teacher-layer", "2,4", "--student-layer", "1,2", "--dry-run", "--json")
    plan = json.loads(outcome.out)
    for side, layers in (("teacher", [2, 4]), ("student", [1, 2])):
        assert (plan[side]["layer"], plan[side]["tapped_layers"]) == (layers[-1], layers)
    assert plan["teacher"]["layer_reason"] is None
    assert re.search(r"tapped layers +2, 4", outcome.err)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (("--warmup-steps", "1"), None),
        (("--warmup-steps", "3"), "The warm-up of 3 steps does not end within the run's 3: see --warmup-steps."),
        (
            ("--warmup-steps", "1", "--batch-size", "400"),
            "A batch of 400 sequences is larger than the training data of 262: each sequence comes 1.53 times in every"
            " step. See --batch-size.",
        ),
    ],
)
def test_settings_that_are_rarely_meant_give_a_warning(
    minilm: Minilm, words: tuple[str, ...], warning: str | None
) -> None:
    outcome = minilm(*DISTILL, *words, "--dry-run")
    warnings = [line for line in outcome.err.splitlines() if line.startswith("Warning: ")]
    assert warnings == ([f"Warning: {warning}"] if warning else [])


class Clock:
    """The console's clock, which a test sets."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(console, "time", found)
    return found


def test_plain_progress_prints_at_most_one_line_in_ten_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Console().progress
    progress.start("Distilling", 1000)
    for step in range(1, 1001):
        clock.now += 0.1
        progress.update(step, {"loss": 1.0, "lr": 1e-3})
    progress.stop()
    lines = capsys.readouterr().err.splitlines()
    assert 9 <= len(lines) <= 10
    assert lines[0].startswith("Distilling: step ")
    assert "loss 1.0000" in lines[0]
    assert "left" in lines[0]


def test_plain_lines_get_rarer(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Console().progress
    progress.start("Distilling", 10_000)
    printed = []
    for step in range(1, 10_001):
        clock.now += 1.0
        progress.update(step)
        if capsys.readouterr().err:
            printed.append(clock.now)
    progress.stop()
    assert printed[:13] == [*range(10, 111, 10), 170, 230]
    assert {after - before for before, after in itertools.pairwise(printed)} == {10, 60, 600}
    assert printed[-1] - printed[-2] == 600


def test_activities_are_shown_in_place_of_steps(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Console().progress
    progress.start("Distilling", 100)
    progress.update(20, {"loss": 1.0, "mean_loss": 2.0}, left=65.0)
    clock.now = 10.0
    progress.activity("Evaluating 310/717")
    clock.now = 20.0
    progress.activity("")
    progress.stop()
    assert capsys.readouterr().err.splitlines() == [
        "Distilling: step 20/100  evaluating 310/717  loss 1.0000  mean 2.0000  1:05 left",
        "Distilling: step 20/100  loss 1.0000  mean 2.0000  1:05 left",
    ]


def test_plain_progress_prints_nothing_in_the_first_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Console().progress
    progress.start("Distilling", 100)
    for step in range(100):
        progress.update(step)
    progress.stop()
    assert capsys.readouterr().err == ""


def test_markup_in_names_is_printed_literally(minilm: Minilm, tmp_path: Path) -> None:
    outcome = minilm("export", tmp_path / "[bold]run[/bold]")
    assert "[bold]run[/bold]: there is no such run" in outcome.err


def test_a_long_message_is_not_wrapped(minilm: Minilm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    long = tmp_path / ("long" * 40)
    assert only_line(minilm("export", long).err) == f"Error: {long}: there is no such run"


@pytest.mark.usefixtures("workplace")
def test_a_suggested_command_is_not_wrapped(minilm: Minilm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    folder = f"runs/{'long' * 20}"
    outcome = minilm(*DISTILL, "-o", folder)
    assert outcome.status == 0, outcome.err
    assert f"minilm export {folder}\n" in outcome.err


class FailingStream(io.StringIO):
    """A stream whose reader disappears: it fails from the third write on."""

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
            raise OSError(self.error, "the reader is gone")


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", [errno.EIO, errno.EPIPE, errno.ENOSPC])
@pytest.mark.usefixtures("workplace")
def test_a_run_finishes_after_stderr_fails(
    minilm: Minilm, monkeypatch: pytest.MonkeyPatch, error: int, terminal: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "PLAIN_INTERVALS", ((0.0, float("inf")),))
    stream = FailingStream(error, terminal=terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    outcome = minilm(*DISTILL, "-o", "run")
    assert (outcome.status, outcome.out) == (0, "run\n")
    assert Path("run/student/model.safetensors").is_file()
    assert "Loading the teacher" in stream.getvalue()
    assert stream.left == 0


def test_progress_continues_after_the_terminal_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = FailingStream(errno.EIO, terminal=True)
    stream.left = 0
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Console().progress
    progress.start("Distilling", 10)
    print("a warning of another library", file=sys.stderr)
    progress.update(5, {"loss": 1.0})
    assert progress._live is not None
    progress._live.refresh()  # as its thread does four times a second
    progress.stop()
    assert sys.stderr is stream


def test_the_console_works_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    silent = Console()
    silent.say("one")
    silent.table("two", [("three", "four")])
    assert silent.progress is not None


@pytest.mark.parametrize("columns", ["0", "1", "-5", "x", str(10**30)])
def test_a_wrong_width_of_the_screen_hides_no_message(
    minilm: Minilm, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert only_line(minilm("export", "nowhere").err) == "Error: nowhere: there is no such run"


def only_line(text: str) -> str:
    """The only line of a text."""
    (line,) = text.splitlines()
    return line


def test_control_characters_are_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.error(MinilmError("no \x1b[31mred\x07 \x9b2J", where="a\x1b]0;title\x07", hint="Look at\n    \x1bcfile"))
    console.table("T", [("name\x1b[2J", "value\x00")])
    printed = capsys.readouterr().err
    assert not [character for character in printed if character < " " and character != "\n"]
    assert "\x9b" not in printed
    assert "no \ufffd[31mred \ufffd2J" in printed
