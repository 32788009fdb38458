"""The lock of a run, its signals, and which inputs and settings may change when it is resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.progress import NoProgress
from minilm_cli.runs import checkpoint
from minilm_cli.runs.folder import RunFolder
from minilm_cli.training import run
from minilm_cli.training.loop import TrainingLoop
from tests.pause_after_step import PAUSE, PAUSED

from .conftest import CallAt, Commands, Settings, assert_same_result, has_done_a_step, metrics, wait_until


@pytest.fixture
def endless(tiny_teacher: Path, tiny_student_config: Path, tiny_store: Path) -> tuple[str, ...]:
    """The command of a run in the folder `run` that does not end by itself."""
    return (
        *("distill", "--teacher", str(tiny_teacher), "--student-config", str(tiny_student_config)),
        *("--data", str(tiny_store), "--steps", "100000", "--batch-size", "4", "--warmup-steps", "1"),
        *("--eval-fraction", "0", "--save-every", "1000000", "--log-every", "1", "--output", "run"),
    )


def test_a_second_process_is_refused_until_the_first_ends(minilm: Commands, endless: tuple[str, ...]) -> None:
    folder = minilm.folder / "run"
    process = minilm.start(*endless)
    wait_until(has_done_a_step(folder), process)
    pid = (folder / "lock").read_text(encoding="utf-8").splitlines()[0]
    assert int(pid) == process.pid
    for words in (("resume", "run"), (*endless, "--force")):
        refused = minilm(*words)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"process {pid} on " in refused.stderr
        assert "Traceback" not in refused.stderr
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    minilm.end(process)
    # The lock ended with the process: this one gets it.
    process = minilm.start("resume", "run")
    wait_until(lambda: (folder / "lock").read_text(encoding="utf-8").startswith(f"{process.pid}\n"), process)
    wait_until(has_done_a_step(folder), process)
    process.send_signal(signal.SIGINT)
    assert minilm.end(process).returncode == 130
    assert (folder / "lock").read_text(encoding="utf-8") == ""


def test_sigusr1_saves_a_checkpoint_and_the_run_continues(minilm: Commands, endless: tuple[str, ...]) -> None:
    folder = minilm.folder / "run"
    process = minilm.start(*endless)
    os.kill(process.pid, 0)
    wait_until(has_done_a_step(folder), process)
    for _ in range(2):
        before = checkpoint.steps(folder / "checkpoints")
        os.kill(int((folder / "lock").read_text(encoding="utf-8").splitlines()[0]), signal.SIGUSR1)
        wait_until(lambda before=before: checkpoint.steps(folder / "checkpoints") != before, process)  # type: ignore[misc]
    saved = checkpoint.latest(folder / "checkpoints")
    assert saved is not None
    written = (folder / "metrics.jsonl").read_text(encoding="utf-8").count("\n")
    wait_until(lambda: (folder / "metrics.jsonl").read_text(encoding="utf-8").count("\n") > written, process)
    process.send_signal(signal.SIGTERM)
    ended = minilm.end(process)
    assert ended.returncode == 143
    assert f"SIGUSR1: the checkpoint of step {saved.step} is saved." in ended.stderr


def test_sigusr1_before_the_first_step_does_no_harm(minilm: Commands, endless: tuple[str, ...]) -> None:
    process = minilm.start(*endless)
    wait_until(lambda: list(minilm.folder.glob(".tmp-minilm-run-*")), process)
    process.send_signal(signal.SIGUSR1)
    wait_until(has_done_a_step(minilm.folder / "run"), process)
    process.send_signal(signal.SIGHUP)
    ended = minilm.end(process)
    assert ended.returncode == 129
    assert "SIGHUP after step " in ended.stderr
    assert checkpoint.latest(minilm.folder / "run" / "checkpoints") is not None


def test_a_second_signal_stops_the_run_without_saving(minilm: Commands, endless: tuple[str, ...]) -> None:
    folder = minilm.folder / "run"
    (minilm.folder / PAUSE).write_text("1")
    process = minilm.start(*endless, program=PAUSED)
    wait_until(has_done_a_step(folder), process)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: "once more stops at once" in (folder / "log.txt").read_text(encoding="utf-8"), process)
    process.send_signal(signal.SIGINT)
    ended = minilm.end(process)
    assert ended.returncode == 130
    assert "Stopped: at once, without saving." in ended.stderr
    assert checkpoint.steps(folder / "checkpoints") == []
    assert not list(folder.rglob(".tmp-*"))


# --- Changed inputs ----------------------------------------------------------------------------------------------


def edit(path: Path, **values: object) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def change_a_weight(teacher: Path) -> None:
    """Change one weight a little."""
    weights = load_file(teacher / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"][0] += 1e-3
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "teacher's weights": (lambda folder: change_a_weight(folder / "teacher"), "the teacher's weights"),
    "teacher's config": (
        lambda folder: edit(folder / "teacher" / "config.json", layer_norm_eps=1e-5),
        "the teacher's config.json",
    ),
    "student's config": (
        lambda folder: edit(folder / "run" / "student-config.json", layer_norm_eps=1e-5),
        "the student's configuration",
    ),
    "tokens": (lambda folder: edit(folder / "tokens" / "manifest.json", max_length=77), "the token store"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_resume_names_the_input_that_changed(
    tmp_path: Path,
    small_settings: Settings,
    tiny_teacher: Path,
    tiny_store: Path,
    change: Callable[[Path], object],
    message: str,
) -> None:
    shutil.copytree(tiny_teacher, tmp_path / "teacher")
    shutil.copytree(tiny_store, tmp_path / "tokens")
    same = {"teacher__name": str(tmp_path / "teacher"), "data__path": tmp_path / "tokens"}
    folder = run.distill(small_settings(tmp_path / "run", **same), NoProgress()).path
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    change(tmp_path)
    with pytest.raises(MinilmError, match=f"{message} changed since the run began") as caught:
        run.resume(RunFolder(folder), NoProgress(), {"training.steps": 9})
    assert caught.value.exit_status == 2
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert [path.name for path in after if after[path] != before[path]] in ([], ["student-config.json"])


def test_a_teacher_that_was_saved_again_is_accepted(
    tmp_path: Path, small_settings: Settings, tiny_teacher: Path
) -> None:
    shutil.copytree(tiny_teacher, tmp_path / "teacher")
    folder = run.distill(small_settings(tmp_path / "run", teacher__name=str(tmp_path / "teacher")), NoProgress()).path
    edit(tmp_path / "teacher" / "config.json", transformers_version="99.0", architectures=["Other"], _name_or_path="x")
    assert run.resume(RunFolder(folder), NoProgress(), {"training.steps": 8}).step == 8


# --- Changed settings --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_another_token_budget_and_other_intervals_change_losses_only_by_rounding(
    tmp_path: Path, small_settings: Settings, make_teacher: Callable[..., Path]
) -> None:
    # Without dropout, because its masks depend on the micro-batches.
    teacher = make_teacher(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    same = {
        "teacher__name": str(teacher),
        "student__config": "l2-h24",
        "training__steps": 12,
        "reporting__log_every": 1,
    }
    uninterrupted = run.distill(small_settings(tmp_path / "uninterrupted", **same), NoProgress()).path
    # Stopped at step 4 of 12, and resumed with other micro-batches, evaluations, checkpoints and logs.
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run.distill(small_settings(stopped, **same), CallAt(step_4=stop))
    changes = {
        "training.micro_batch_tokens": 33,
        "reporting.log_every": 4,
        "checkpoint.every": 5,
        "evaluation.every": 6,
    }
    run.resume(RunFolder(stopped), NoProgress(), changes)
    ours, theirs = losses_by_step(stopped), losses_by_step(uninterrupted)
    assert list(ours) == [1, 2, 3, 4, 8, 12]
    for step, losses in ours.items():
        assert losses == pytest.approx(theirs[step], rel=1e-3)


def losses_by_step(folder: Path) -> dict[int, list[float]]:
    """The training losses of each logged step."""
    return {
        int(record["step"]): [value for name, value in record.items() if name.startswith("loss")]
        for record in metrics(folder)
        if "loss" in record
    }


def test_an_evaluation_between_two_interruptions_is_logged_once(
    tmp_path: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = run.distill(small_settings(tmp_path / "uninterrupted"), NoProgress()).path
    folder = tmp_path / "run"
    evaluate = TrainingLoop._evaluate_if_due

    def save_and_stop(training: TrainingLoop) -> None:
        if training._step == 3:  # as after a signal
            training._save()
            stop()
        evaluate(training)

    monkeypatch.setattr(TrainingLoop, "_evaluate_if_due", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run.distill(small_settings(folder), NoProgress())
    monkeypatch.undo()
    monkeypatch.setattr(TrainingLoop, "_save", lambda _: stop())
    with pytest.raises(KeyboardInterrupt):
        run.resume(RunFolder(folder), NoProgress())
    monkeypatch.undo()
    assert [record["step"] for record in metrics(folder) if "eval_loss" in record] == [0, 3]
    run.resume(RunFolder(folder), NoProgress())
    assert_same_result(folder, uninterrupted)


def stop() -> None:
    """End the run."""
    raise KeyboardInterrupt
