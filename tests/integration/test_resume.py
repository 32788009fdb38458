"""A run that was stopped, at any moment and in any way, and resumed has the same result as one that was not."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AlbertConfig, AlbertModel, BertConfig

from minilm_cli.base.errors import Interrupted, MinilmError, RunError
from minilm_cli.base.progress import NoProgress, Record
from minilm_cli.export import exporting
from minilm_cli.runs import checkpoint
from minilm_cli.runs import sinks as minilm_metrics
from minilm_cli.runs.folder import RunFolder
from minilm_cli.settings.export import ExportSettings
from minilm_cli.training import run
from minilm_cli.training.distiller import Distiller
from minilm_cli.training.micro_batches import MicroBatch

from .conftest import (
    CallAt,
    Commands,
    Crash,
    Settings,
    assert_same_result,
    crash,
    crash_at,
    metrics,
    metrics_without_times,
    result_files,
    wait_until,
)

LONG = {
    "training__batch_size": 16,
    "schedule__kind": "constant",
    "evaluation__every": 20,
    "checkpoint__every": 10,
    "reporting__log_every": 3,
}


@pytest.fixture
def uninterrupted(tmp_path: Path, small_settings: Settings) -> Callable[[int], Path]:
    """Makes the same run with the given number of steps, uninterrupted."""

    def make(steps: int) -> Path:
        settings = small_settings(tmp_path / "uninterrupted", training__steps=steps, **LONG)
        return run.distill(settings, NoProgress()).path

    return make


@pytest.fixture
def distill(tiny_teacher: Path, tiny_student_config: Path, tiny_store: Path) -> tuple[str, ...]:
    """The command of a run in the folder `run` that does not end by itself."""
    return (
        *("distill", "--teacher", str(tiny_teacher), "--student-config", str(tiny_student_config)),
        *("--data", str(tiny_store), "--steps", "100000", "--batch-size", "16", "--warmup-steps", "1"),
        *("--schedule", "constant", "--eval-fraction", "0.05", "--eval-every", "20", "--save-every", "10"),
        *("--log-every", "3", "--output", "run"),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_a_checkpoint_and_reports_how_to_resume(
    minilm: Commands,
    distill: tuple[str, ...],
    uninterrupted: Callable[[int], Path],
    number: signal.Signals,
    status: int,
) -> None:
    folder = minilm.folder / "run"
    process = minilm.start(*distill)
    wait_until(lambda: (folder / "metrics.jsonl").exists() and lines_of_metrics(folder) >= 4, process)
    process.send_signal(number)
    stopped = minilm.end(process)
    assert (stopped.returncode, stopped.stdout) == (status, "")
    assert f"{number.name} after step " in stopped.stderr
    assert "minilm resume run" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    saved = max(checkpoint.steps(folder / "checkpoints"))
    assert f"after step {saved} of 100000" in stopped.stderr
    assert not (folder / "student").exists()

    done = minilm("resume", "run", "--steps", str(saved + 10))
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    assert f"Resuming from step {saved}." in done.stderr
    assert_same_result(folder, uninterrupted(saved + 10))


def lines_of_metrics(folder: Path) -> int:
    """Complete lines of metrics in a run that is under way."""
    return (folder / "metrics.jsonl").read_text(encoding="utf-8").count("\n")


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> dict[str, Path]:
    """Folders with a BERT and an ALBERT that share a tokenizer."""
    folder = tmp_path_factory.mktemp("families") / "albert"
    shutil.copytree(tiny_teacher, folder)
    vocabulary = BertConfig.from_pretrained(tiny_teacher).vocab_size
    config = AlbertConfig(
        vocab_size=vocabulary,
        hidden_size=48,
        embedding_size=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        hidden_dropout_prob=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AlbertModel(config).save_pretrained(folder)
    return {"bert": tiny_teacher, "albert": folder}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_run_that_crashes_after_any_step_has_the_same_result_when_resumed(
    tmp_path: Path, small_settings: Settings, families: dict[str, Path], family: str
) -> None:
    same = {"teacher__name": str(families[family]), "student__config": "l2-h24", "reporting__log_every": 3}
    uninterrupted_run = run.distill(small_settings(tmp_path / "uninterrupted_run", **same), NoProgress()).path
    for step in range(7):
        folder = tmp_path / f"failed-{step}"
        with pytest.raises(Crash):
            run.distill(small_settings(folder, **same), crash_at(step))
        run.resume(RunFolder(folder), NoProgress())
        assert_same_result(folder, uninterrupted_run)


@pytest.mark.usefixtures("no_packing")
def test_a_resumed_run_reports_the_same_padding(tmp_path: Path, small_settings: Settings) -> None:
    same = {"checkpoint__every": 2, "reporting__log_every": 3}
    uninterrupted_run = run.distill(small_settings(tmp_path / "uninterrupted_run", **same), NoProgress()).path
    assert any(record.get("padding_fraction", 0) > 0 for record in metrics(uninterrupted_run))
    folder = tmp_path / "failed"
    with pytest.raises(Crash):
        run.distill(small_settings(folder, **same), crash_at(5))
    run.resume(RunFolder(folder), NoProgress())
    assert_same_result(folder, uninterrupted_run)


@pytest.fixture
def no_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pad the batches of every family."""
    monkeypatch.setattr("minilm_cli.training.setup.common_layout", lambda *_: "padded")


class Recording(NoProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}
        self.updates: list[tuple[float, dict[str, float]]] = []
        self.left: list[float | None] = []
        self.activities: list[str] = []

    def announce(self, title: str, rows: Iterable[Sequence[str]]) -> None:
        assert title == "Distilling"
        self.rows = dict(rows)

    def update(self, done: float, shown: Record | None = None, *, left: float | None = None) -> None:
        self.updates.append((done, dict(shown or {})))
        self.left.append(left)

    def activity(self, text: str) -> None:
        self.activities.append(text)


def test_a_resumed_run_shows_where_it_was(tmp_path: Path, small_settings: Settings) -> None:
    with pytest.raises(Crash):
        run.distill(small_settings(tmp_path / "run"), crash_at(5))
    last = {name: value for record in metrics(tmp_path / "run") for name, value in record.items()}
    progress = Recording()
    run.resume(RunFolder(tmp_path / "run"), progress)
    assert progress.rows["run folder"] == str(tmp_path / "run")
    done, shown = progress.updates[0]
    assert done == 4
    assert shown["eval_loss"] == last["eval_loss"]
    assert shown["loss"] == last["loss"]


def test_evaluations_and_checkpoints_are_shown_and_counted(tmp_path: Path, small_settings: Settings) -> None:
    progress = Recording()
    path = run.distill(small_settings(tmp_path / "run", training__micro_batch_tokens=64), progress).path
    held_out = RunFolder(path).plan().data.held_out
    evaluating = [text for text in progress.activities if text.startswith("Evaluating ")]
    assert len(set(evaluating)) > 1
    assert evaluating.count(f"Evaluating {held_out}/{held_out}") == 3  # before the first step, at 3 and at 6
    assert progress.activities.count("Saving") == 4  # at 2, 3 (the best), 4 and 6
    assert progress.activities[-1] == "Writing the student"
    left = [seconds for seconds in progress.left if seconds is not None]
    assert len(left) == 6
    assert all(seconds > 0 for seconds in left)


def test_resume_reports_a_finished_run(minilm: Commands, finished_run: Path) -> None:
    shutil.copytree(finished_run, minilm.folder / "runs" / "mine")
    before = result_files(minilm.folder / "runs" / "mine", 6)
    done = minilm("resume")
    assert (done.returncode, done.stdout) == (0, "runs/mine\n")
    assert "runs/mine is finished: 6 steps. Extend it with --steps." in done.stderr
    assert result_files(minilm.folder / "runs" / "mine", 6) == before


def test_more_steps_extend_a_run(copied_run: Path, finished_run: Path) -> None:
    before = metrics_without_times(copied_run).splitlines()
    report = run.resume(RunFolder(copied_run), NoProgress(), {"training.steps": 9})
    assert (report.step, report.finished_before) == (9, False)
    assert metrics_without_times(copied_run).splitlines()[: len(before)] == before
    assert [record["step"] for record in metrics(copied_run)][len(before) :] == [8, 9, 9]
    assert RunFolder(copied_run).settings().training.steps == 9
    assert (copied_run / "student" / "model.safetensors").read_bytes() != (
        finished_run / "student" / "model.safetensors"
    ).read_bytes()
    assert run.resume(RunFolder(copied_run), NoProgress()).finished_before


def test_a_changed_setting_is_used_and_saved(copied_run: Path) -> None:
    changes = {"training.steps": 8, "checkpoint.keep": 1, "reporting.log_every": 1}
    run.resume(RunFolder(copied_run), NoProgress(), changes)
    assert [record["step"] for record in metrics(copied_run) if "loss" in record][-2:] == [7, 8]
    assert len(list((copied_run / "checkpoints").iterdir())) <= 2
    assert RunFolder(copied_run).settings().checkpoint.keep == 1


@pytest.mark.slow
def test_a_token_budget_that_exceeded_the_memory_is_not_tried_again(
    tmp_path: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, refused = Distiller.loss, []

    def loss_with_little_memory(distiller: Distiller, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        if batch.tokens > 60:
            refused.append(batch.tokens)
            raise torch.OutOfMemoryError("out of memory")
        return loss(distiller, batch)

    budget = {"evaluation__fraction": 0.0, "training__micro_batch_tokens": 60}
    uninterrupted_run = run.distill(small_settings(tmp_path / "uninterrupted_run", **budget), NoProgress()).path
    monkeypatch.setattr(Distiller, "loss", loss_with_little_memory)
    budget["training__micro_batch_tokens"] = 120
    with pytest.raises(Crash):
        run.distill(small_settings(tmp_path / "run", **budget), crash_at(3))
    assert len(refused) == 1
    folder = run.resume(RunFolder(tmp_path / "run"), NoProgress()).path
    assert len(refused) == 1
    ours, theirs = result_files(folder, 6), result_files(uninterrupted_run, 6)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_a_run_without_its_checkpoints_is_not_restarted(copied_run: Path) -> None:
    shutil.rmtree(copied_run / "checkpoints")
    (copied_run / "checkpoints").mkdir()  # as if a disk were not mounted
    before = (copied_run / "metrics.jsonl").read_bytes()
    assert run.resume(RunFolder(copied_run), NoProgress()).finished_before
    with pytest.raises(RunError, match="the run's checkpoints are missing"):
        run.resume(RunFolder(copied_run), NoProgress(), {"training.steps": 8})
    shutil.rmtree(copied_run / "student")
    with pytest.raises(RunError, match="the run's checkpoints are missing") as caught:
        run.resume(RunFolder(copied_run), NoProgress())
    assert caught.value.where == str(copied_run / "checkpoints")
    assert (copied_run / "metrics.jsonl").read_bytes() == before


def test_a_run_that_crashed_in_its_first_checkpoint_is_restarted(
    tmp_path: Path, small_settings: Settings, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "save", crash)
    with pytest.raises(Crash):
        run.distill(small_settings(tmp_path / "run"), NoProgress())
    monkeypatch.undo()
    assert max(record["step"] for record in metrics(tmp_path / "run")) == 2
    run.resume(RunFolder(tmp_path / "run"), NoProgress())
    assert_same_result(tmp_path / "run", finished_run)


@pytest.mark.parametrize(
    "damage", [lambda file: os.truncate(file, file.stat().st_size // 2), Path.unlink], ids=["cut-short", "removed"]
)
@pytest.mark.parametrize("file", ["student.safetensors", "optimizer.safetensors", "checkpoint.json"])
def test_a_damaged_newest_checkpoint_is_skipped_and_written_again(
    copied_run: Path,
    finished_run: Path,
    file: str,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("minilm_cli"), "propagate", True)
    damage(copied_run / "checkpoints" / "step-00000006" / file)
    run.resume(RunFolder(copied_run), NoProgress())
    assert_same_result(copied_run, finished_run)
    assert checkpoint.steps(copied_run / "checkpoints") == checkpoint.steps(finished_run / "checkpoints")
    assert "Skipping a damaged checkpoint" in caplog.text
    assert f"step-00000006/{file}" in caplog.text
    assert "no checkpoint" not in caplog.text


def test_an_incomplete_student_is_written_again(copied_run: Path, finished_run: Path) -> None:
    (copied_run / "student" / "config.json").unlink()
    assert not run.resume(RunFolder(copied_run), NoProgress()).finished_before
    for name in ("config.json", "model.safetensors"):
        assert (copied_run / "student" / name).read_bytes() == (finished_run / "student" / name).read_bytes()


def test_a_run_interrupted_while_it_writes_the_student_can_be_resumed(
    tmp_path: Path, small_settings: Settings, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def write(_name: str, _form: object, _source: object, built: Path, _progress: object) -> None:
        built.mkdir()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run, "write_verified", write)
    with pytest.raises(Interrupted, match="Training is done and saved") as caught:
        run.distill(small_settings(folder), NoProgress())
    monkeypatch.undo()
    assert caught.value.exit_status == 128 + signal.SIGTERM
    assert f"minilm resume {folder}" in str(caught.value.hint)
    assert not (folder / "student").exists()
    assert not list(folder.rglob(".tmp-*"))
    run.resume(RunFolder(folder), NoProgress())
    assert_same_result(folder, finished_run)


def test_a_folder_that_became_read_only_before_the_student_is_written_is_a_run_error(
    tmp_path: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdtemp = tempfile.mkdtemp

    def fail_for_students(prefix: str, **options: Any) -> str:
        if "student" in prefix:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), prefix)
        return mkdtemp(prefix=prefix, **options)

    monkeypatch.setattr(tempfile, "mkdtemp", fail_for_students)
    with pytest.raises(RunError, match="Read-only file system") as caught:
        run.distill(small_settings(tmp_path / "run"), NoProgress())
    assert "Training is done and saved. Once that is fixed:" in str(caught.value.hint)


def test_a_run_that_cannot_write_metrics_stops_at_its_next_checkpoint(
    tmp_path: Path, small_settings: Settings, finished_run: Path
) -> None:
    folder = tmp_path / "run"
    file, aside = folder / "metrics.jsonl", tmp_path / "aside"
    with pytest.raises(RunError, match="step 3: the checkpoint cannot be saved: could not be written: No such file"):
        run.distill(small_settings(folder), CallAt(step_3=lambda: file.rename(aside)))
    aside.rename(file)
    assert max(record["step"] for record in metrics(folder)) == 2
    run.resume(RunFolder(folder), NoProgress())
    assert_same_result(folder, finished_run)


def test_a_resumed_run_continues_without_a_sink_that_does_not_start(
    tmp_path: Path, small_settings: Settings, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("no network")

    with pytest.raises(Crash):
        run.distill(small_settings(tmp_path / "run", reporting__sinks=["tensorboard"]), crash_at(3))
    monkeypatch.setattr(minilm_metrics, "TensorBoardSink", fail)
    run.resume(RunFolder(tmp_path / "run"), NoProgress())
    assert_same_result(tmp_path / "run", finished_run)


def test_the_card_reports_changed_settings(tmp_path: Path, small_settings: Settings) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Crash):
        run.distill(small_settings(folder), crash_at(5))
    run.resume(RunFolder(folder), NoProgress(), {"optimizer.lr": 1e-5, "checkpoint.keep": 9})
    row = "| changed after step 4 | optimizer.lr from 0.0006 to 1e-05 |\n"
    assert row in (folder / "student" / "README.md").read_text(encoding="utf-8")
    early = exporting.export(ExportSettings(model=folder, checkpoint=4), NoProgress()).path
    assert row not in (early / "README.md").read_text(encoding="utf-8")


def test_a_changed_setting_is_refused_if_no_step_is_left(copied_run: Path) -> None:
    with pytest.raises(MinilmError, match="no step is left that a setting could change") as caught:
        run.resume(RunFolder(copied_run), NoProgress(), {"optimizer.lr": 1e-5})
    assert caught.value.exit_status == 2
    assert RunFolder(copied_run).settings().optimizer.lr != 1e-5


def test_a_moved_run_can_be_resumed_from_another_folder(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "moved" / "run"
    shutil.copytree(finished_run, folder)
    monkeypatch.chdir(tmp_path)
    report = run.resume(RunFolder(Path("moved/run")), NoProgress(), {"training.steps": 7})
    assert report.path == Path("moved/run")
    assert (folder / "checkpoints" / "step-00000007").is_dir()
