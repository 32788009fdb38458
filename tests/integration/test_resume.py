"""A run that was stopped, in whatever way and at whatever moment, ends as one that never was."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AlbertConfig, AlbertModel, BertConfig

from minilm_cli.base.errors import Interrupted, MinilmError, RunError
from minilm_cli.base.progress import NoProgress
from minilm_cli.export import exporting
from minilm_cli.runs import checkpoint
from minilm_cli.runs import sinks as minilm_metrics
from minilm_cli.runs.folder import RunFolder
from minilm_cli.settings.export import ExportSettings
from minilm_cli.training import run
from minilm_cli.training.distiller import Distiller
from minilm_cli.training.micro_batches import MicroBatch

from .conftest import At, Commands, Settings, is_the_same, lasting_files, lasting_metrics, metrics, wait_until

LONG = {
    "training__batch_size": 16,
    "schedule__kind": "constant",
    "evaluation__every": 20,
    "checkpoint__every": 10,
    "reporting__log_every": 3,
}


class Fault(Exception):
    """What a run does not expect."""


class Fails(NoProgress):
    """Progress that ends the run, with no time to save, as soon as a step is shown."""

    def __init__(self, step: int) -> None:
        """Fail at `step`; 0 is before the first."""
        self.step = step

    def update(self, done: float, shown: object = None) -> None:  # noqa: ARG002
        """Fail at the step."""
        if done == self.step:
            raise Fault


@pytest.fixture
def uninterrupted(tmp_path: Path, small_settings: Settings) -> Callable[[int], Path]:
    """Makes that run, of so many steps, and does not stop it."""

    def make(steps: int) -> Path:
        settings = small_settings(tmp_path / "uninterrupted", training__steps=steps, **LONG)
        return run.distill(settings, NoProgress()).path

    return make


@pytest.fixture
def distill(tiny_teacher: Path, tiny_student_config: Path, tiny_store: Path) -> tuple[str, ...]:
    """The words of a run that does not end by itself, in the folder `run`."""
    return (
        *("distill", "--teacher", str(tiny_teacher), "--student-config", str(tiny_student_config)),
        *("--data", str(tiny_store), "--steps", "100000", "--batch-size", "16", "--warmup-steps", "1"),
        *("--schedule", "constant", "--eval-fraction", "0.05", "--eval-every", "20", "--save-every", "10"),
        *("--log-every", "3", "--output", "run"),
    )


@pytest.mark.slow
def test_a_run_that_is_killed_twice_ends_as_one_that_was_not(
    minilm: Commands, distill: tuple[str, ...], uninterrupted: Callable[[int], Path]
) -> None:
    folder = minilm.folder / "run"
    process = minilm.start(*distill)
    wait_until((folder / "settings.json").exists, process)
    process.send_signal(signal.SIGKILL)
    assert minilm.end(process).returncode == -signal.SIGKILL

    process = minilm.start("resume", "run")
    wait_until((folder / "checkpoints" / "step-00000020").exists, process)
    process.send_signal(signal.SIGKILL)
    assert minilm.end(process).returncode == -signal.SIGKILL
    assert not (folder / "student").exists()

    steps = max(checkpoint.steps(folder / "checkpoints")) + 20
    done = minilm("resume", "run", "--steps", str(steps))
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    assert "Resuming from step " in done.stderr
    is_the_same(folder, uninterrupted(steps))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(
    minilm: Commands,
    distill: tuple[str, ...],
    uninterrupted: Callable[[int], Path],
    number: signal.Signals,
    status: int,
) -> None:
    folder = minilm.folder / "run"
    process = minilm.start(*distill)
    wait_until(lambda: (folder / "metrics.jsonl").exists() and metrics_so_far(folder) >= 4, process)
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
    is_the_same(folder, uninterrupted(saved + 10))


def metrics_so_far(folder: Path) -> int:
    """Whole lines of metrics in a run that goes on."""
    return (folder / "metrics.jsonl").read_text(encoding="utf-8").count("\n")


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> dict[str, Path]:
    """Folders with teachers of two families that share a tokenizer."""
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
def test_a_run_that_fails_after_any_step_ends_as_one_that_did_not(
    tmp_path: Path, small_settings: Settings, families: dict[str, Path], family: str
) -> None:
    same = {"teacher__name": str(families[family]), "student__config": "l2-h24", "reporting__log_every": 3}
    whole = run.distill(small_settings(tmp_path / "whole", **same), NoProgress()).path
    for step in range(7):
        folder = tmp_path / f"failed-{step}"
        with pytest.raises(Fault):
            run.distill(small_settings(folder, **same), Fails(step))
        run.resume(RunFolder(folder), NoProgress())
        is_the_same(folder, whole)


@pytest.mark.usefixtures("no_packing")
def test_a_padded_run_says_the_same_of_its_padding(tmp_path: Path, small_settings: Settings) -> None:
    same = {"checkpoint__every": 2, "reporting__log_every": 3}
    whole = run.distill(small_settings(tmp_path / "whole", **same), NoProgress()).path
    assert any(record.get("padding_fraction", 0) > 0 for record in metrics(whole))
    folder = tmp_path / "failed"
    with pytest.raises(Fault):
        run.distill(small_settings(folder, **same), Fails(5))
    run.resume(RunFolder(folder), NoProgress())
    is_the_same(folder, whole)


@pytest.fixture
def no_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every family is padded."""
    monkeypatch.setattr("minilm_cli.models.tap.RegistryTap.packs", lambda _: False)


def test_a_finished_run_says_so(minilm: Commands, finished_run: Path) -> None:
    shutil.copytree(finished_run, minilm.folder / "runs" / "mine")
    before = lasting_files(minilm.folder / "runs" / "mine", 6)
    done = minilm("resume")
    assert (done.returncode, done.stdout) == (0, "runs/mine\n")
    assert "runs/mine is finished: 6 steps. Extend it with --steps." in done.stderr
    assert lasting_files(minilm.folder / "runs" / "mine", 6) == before


def test_more_steps_extend_a_run(tmp_path: Path, finished_run: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    before = lasting_metrics(folder).splitlines()
    report = run.resume(RunFolder(folder), NoProgress(), {"training.steps": 9})
    assert (report.step, report.finished_before) == (9, False)
    assert lasting_metrics(folder).splitlines()[: len(before)] == before
    assert [record["step"] for record in metrics(folder)][len(before) :] == [8, 9, 9]
    assert RunFolder(folder).settings().training.steps == 9
    assert (folder / "student" / "model.safetensors").read_bytes() != (
        finished_run / "student" / "model.safetensors"
    ).read_bytes()
    assert run.resume(RunFolder(folder), NoProgress()).finished_before


def test_a_setting_that_may_change_is_changed_and_kept(tmp_path: Path, finished_run: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    changes = {"training.steps": 8, "checkpoint.keep": 1, "reporting.log_every": 1}
    run.resume(RunFolder(folder), NoProgress(), changes)
    assert [record["step"] for record in metrics(folder) if "loss" in record][-2:] == [7, 8]
    assert len(list((folder / "checkpoints").iterdir())) <= 2
    assert RunFolder(folder).settings().checkpoint.keep == 1


def test_micro_batches_of_another_size_change_no_loss_beyond_rounding(
    tmp_path: Path, small_settings: Settings, make_teacher: Callable[..., Path]
) -> None:
    # Without dropout, whose masks depend on the cut.
    teacher = make_teacher(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config = {"teacher__name": str(teacher), "student__config": "l2-h24"}
    folders = []
    for budget in ("auto", 40):
        settings = small_settings(tmp_path / f"run-{budget}", training__micro_batch_tokens=budget, **config)
        folders.append(run.distill(settings, NoProgress()).path)
    first, second = (
        [[value for name, value in record.items() if "loss" in name] for record in metrics(folder)]
        for folder in folders
    )
    assert [pytest.approx(losses, rel=1e-3) for losses in first] == second


def test_a_budget_that_memory_was_too_small_for_is_not_tried_again(
    tmp_path: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, refused = Distiller.loss, []

    def with_little_memory(distiller: Distiller, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        if batch.tokens > 60:
            refused.append(batch.tokens)
            raise torch.OutOfMemoryError("out of memory")
        return loss(distiller, batch)

    budget = {"evaluation__fraction": 0.0, "training__micro_batch_tokens": 60}
    undisturbed = run.distill(small_settings(tmp_path / "undisturbed", **budget), NoProgress()).path
    monkeypatch.setattr(Distiller, "loss", with_little_memory)
    budget["training__micro_batch_tokens"] = 120
    with pytest.raises(Fault):
        run.distill(small_settings(tmp_path / "run", **budget), Fails(3))
    assert len(refused) == 1
    folder = run.resume(RunFolder(tmp_path / "run"), NoProgress()).path
    assert len(refused) == 1
    ours, theirs = lasting_files(folder, 6), lasting_files(undisturbed, 6)
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.mark.parametrize("file", ["student.safetensors", "optimizer.safetensors", "checkpoint.json"])
def test_a_damaged_newest_checkpoint_is_passed_over(
    tmp_path: Path, finished_run: Path, file: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("minilm_cli"), "propagate", True)
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    damaged = folder / "checkpoints" / "step-00000006" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0x80
    damaged.write_bytes(content)
    with caplog.at_level("WARNING", logger="minilm_cli"):
        run.resume(RunFolder(folder), NoProgress())
    assert "Skipping a damaged checkpoint" in caplog.text
    assert f"step-00000006/{file}" in caplog.text
    is_the_same(folder, finished_run)


@pytest.fixture
def copied(tmp_path: Path, finished_run: Path) -> Path:
    """A copy of the finished run, to be spoilt."""
    return shutil.copytree(finished_run, tmp_path / "run")


def test_a_run_whose_every_checkpoint_is_gone_is_not_begun_anew(copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints")
    (copied / "checkpoints").mkdir()  # as where a disk is not mounted
    before = (copied / "metrics.jsonl").read_bytes()
    assert run.resume(RunFolder(copied), NoProgress()).finished_before
    with pytest.raises(RunError, match="the run's checkpoints are missing"):
        run.resume(RunFolder(copied), NoProgress(), {"training.steps": 8})
    shutil.rmtree(copied / "student")
    with pytest.raises(RunError, match="the run's checkpoints are missing") as caught:
        run.resume(RunFolder(copied), NoProgress())
    assert caught.value.where == str(copied / "checkpoints")
    assert (copied / "metrics.jsonl").read_bytes() == before


def test_a_run_that_was_killed_in_its_first_checkpoint_begins_anew(
    tmp_path: Path, small_settings: Settings, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: object) -> None:
        raise Fault

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(Fault):
        run.distill(small_settings(tmp_path / "run"), NoProgress())
    monkeypatch.undo()
    assert max(record["step"] for record in metrics(tmp_path / "run")) == 2
    run.resume(RunFolder(tmp_path / "run"), NoProgress())
    is_the_same(tmp_path / "run", finished_run)


def test_a_newest_checkpoint_that_is_half_deleted_costs_no_other(
    copied: Path, finished_run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("minilm_cli"), "propagate", True)
    (copied / "checkpoints" / "step-00000006" / "checkpoint.json").unlink()
    run.resume(RunFolder(copied), NoProgress())
    is_the_same(copied, finished_run)
    assert checkpoint.steps(copied / "checkpoints") == checkpoint.steps(finished_run / "checkpoints")
    assert "Skipping a damaged checkpoint" in caplog.text
    assert "no checkpoint" not in caplog.text


def test_a_student_that_is_half_deleted_is_written_again(copied: Path, finished_run: Path) -> None:
    (copied / "student" / "config.json").unlink()
    assert not run.resume(RunFolder(copied), NoProgress()).finished_before
    for name in ("config.json", "model.safetensors"):
        assert (copied / "student" / name).read_bytes() == (finished_run / "student" / name).read_bytes()


def test_a_signal_while_the_student_is_written_ends_the_run_which_can_be_finished(
    tmp_path: Path, small_settings: Settings, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def write(_form: object, _source: object, built: Path) -> None:
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
    is_the_same(folder, finished_run)


def test_a_folder_that_became_read_only_when_the_student_is_written_is_no_mistake_of_the_users(
    tmp_path: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = tempfile.mkdtemp

    def refuse_students(prefix: str, **options: Any) -> str:
        if "student" in prefix:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), prefix)
        return make(prefix=prefix, **options)

    monkeypatch.setattr(tempfile, "mkdtemp", refuse_students)
    with pytest.raises(RunError, match="Read-only file system") as caught:
        run.distill(small_settings(tmp_path / "run"), NoProgress())
    assert "Training is done and saved. Once that is fixed:" in str(caught.value.hint)


def test_a_run_whose_metrics_cannot_be_written_stops_at_its_next_checkpoint(
    tmp_path: Path, small_settings: Settings, finished_run: Path
) -> None:
    folder = tmp_path / "run"
    file, aside = folder / "metrics.jsonl", tmp_path / "aside"
    with pytest.raises(RunError, match="step 3: the checkpoint cannot be saved: could not be written: No such file"):
        run.distill(small_settings(folder), At(step_3=lambda: file.rename(aside)))
    aside.rename(file)
    assert max(record["step"] for record in metrics(folder)) == 2
    run.resume(RunFolder(folder), NoProgress())
    is_the_same(folder, finished_run)


def test_a_run_goes_on_without_a_report_that_does_not_start(
    tmp_path: Path, small_settings: Settings, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object) -> None:
        raise ConnectionError("no network")

    with pytest.raises(Fault):
        run.distill(small_settings(tmp_path / "run", reporting__sinks=["tensorboard"]), Fails(3))
    monkeypatch.setattr(minilm_metrics, "TensorBoardSink", down)
    run.resume(RunFolder(tmp_path / "run"), NoProgress())
    is_the_same(tmp_path / "run", finished_run)


def test_what_was_changed_on_the_way_is_told_by_the_card(tmp_path: Path, small_settings: Settings) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Fault):
        run.distill(small_settings(folder), Fails(5))
    run.resume(RunFolder(folder), NoProgress(), {"optimizer.lr": 1e-5, "checkpoint.keep": 9})
    row = "| changed after step 4 | optimizer.lr from 0.0006 to 1e-05 |\n"
    assert row in (folder / "student" / "README.md").read_text(encoding="utf-8")
    early = exporting.export(ExportSettings(run=folder, checkpoint=4)).path
    assert row not in (early / "README.md").read_text(encoding="utf-8")


def test_a_setting_that_no_step_is_left_for_is_refused(copied: Path) -> None:
    with pytest.raises(MinilmError, match="no step is left that a setting could change") as caught:
        run.resume(RunFolder(copied), NoProgress(), {"optimizer.lr": 1e-5})
    assert caught.value.exit_status == 2
    assert RunFolder(copied).settings().optimizer.lr != 1e-5


def test_a_run_can_be_resumed_from_elsewhere_and_after_it_was_moved(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "moved" / "run"
    shutil.copytree(finished_run, folder)
    monkeypatch.chdir(tmp_path)
    report = run.resume(RunFolder(Path("moved/run")), NoProgress(), {"training.steps": 7})
    assert report.path == Path("moved/run")
    assert (folder / "checkpoints" / "step-00000007").is_dir()
