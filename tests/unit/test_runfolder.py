from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.runs import checkpoint
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.lookup import final_losses, find_run, pick_checkpoint
from minilm_cli.runs.run_state import BackedOff, Best, RunState
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.settings.load import load_distill_settings


def settings() -> DistillSettings:
    return load_distill_settings(None, ["training.seed=7"], {"teacher.name": "t", "student.config": "l3-h384"})


def made(path: Path) -> RunFolder:
    path.mkdir(parents=True)
    run = RunFolder(path)
    run.write_settings(settings())
    return run


def save(run: RunFolder, step: int, best: int | None = None) -> None:
    notes = {"best": None if best is None else {"step": best, "eval_loss": 0.5}}
    checkpoint.save(run.checkpoints, step, {"student": {"weight": torch.tensor([float(step)])}}, notes)


def test_settings_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    assert run.settings() == settings()
    assert [path.name for path in run.path.iterdir()] == ["settings.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"teacher": {"name": "t"}, "student": {"config": "s"}, "x": 1}']
)
def test_settings_that_cannot_be_read_are_refused_by_file(tmp_path: Path, text: str) -> None:
    run = made(tmp_path / "run")
    run.settings_file.write_text(text)
    with pytest.raises(MinilmError) as caught:
        run.settings()
    assert caught.value.where == str(run.settings_file)


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_plan_that_cannot_be_read_is_refused_by_file(tmp_path: Path, text: str) -> None:
    run = made(tmp_path / "run")
    run.plan_file.write_text(text)
    with pytest.raises(MinilmError) as caught:
        run.plan()
    assert caught.value.where == str(run.plan_file)


def test_the_newest_run_is_the_one_started_last(tmp_path: Path) -> None:
    for number, name in enumerate(("b", "c", "a")):
        run = made(tmp_path / "runs" / name)
        os.utime(run.settings_file, (number, number))
    (tmp_path / "runs" / "d").mkdir()
    made(tmp_path / "runs" / ".tmp-e")
    assert find_run(None, tmp_path / "runs").path == tmp_path / "runs" / "a"


def test_a_run_may_be_named(tmp_path: Path) -> None:
    made(tmp_path / "run")
    assert find_run(tmp_path / "run").path == tmp_path / "run"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="there is no such run"):
        find_run(tmp_path / "nothing")
    with pytest.raises(MinilmError, match=r"it has no settings.json"):
        find_run(tmp_path)
    for runs in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(MinilmError, match="there is no run in"):
            find_run(None, runs)


def test_a_run_is_found_that_a_killed_process_had_moved_aside(tmp_path: Path) -> None:
    aside = tmp_path / ".tmp-minilm-run-abc" / ".replaced"
    aside.mkdir(parents=True)
    (aside.parent / ".minilm-lock").touch()
    made(aside / "run")
    assert find_run(tmp_path / "run").path == tmp_path / "run"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_checkpoint_is_picked_by_what_it_is(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    for step in (1, 2, 3):
        save(run, step, best=2)
    assert pick_checkpoint(run, "last").step == 3
    assert pick_checkpoint(run, "best").step == 2
    assert pick_checkpoint(run, 1).step == 1


def test_without_an_evaluation_none_is_the_best(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    save(run, 1)
    with pytest.raises(MinilmError, match="no checkpoint was evaluated"):
        pick_checkpoint(run, "best")


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    for wanted in ("last", "best", 1):
        with pytest.raises(MinilmError, match="there is no checkpoint"):
            pick_checkpoint(run, wanted)
    save(run, 1)
    save(run, 4)
    with pytest.raises(MinilmError, match="there is no checkpoint of step 3") as caught:
        pick_checkpoint(run, 3)
    assert caught.value.hint == "There are checkpoints of the steps 1, 4."


def test_a_damaged_checkpoint_that_was_asked_for_is_not_replaced_by_another(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    save(run, 1)
    save(run, 2)
    (checkpoint.path_of(run.checkpoints, 1) / "student.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="checksum"):
        pick_checkpoint(run, 1)


def test_metrics_are_the_lines_that_are_whole(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    assert run.metrics() == []
    run.metrics_file.write_bytes(b'{"step": 1, "loss": 2.0}\n\xff\n\n{"step": 2, "lo')
    assert run.metrics() == [{"step": 1, "loss": 2.0}]


def test_the_final_losses_are_the_last_of_each() -> None:
    records = [
        {"step": 1, "loss": 3.0, "lr": 1.0},
        {"step": 1, "eval_loss": 2.5, "eval_loss_qq": 2.0},
        {"step": 2, "loss": 1.0, "elapsed": 3.0},
    ]
    assert final_losses(records) == {"loss": 1.0, "eval_loss": 2.5, "eval_loss_qq": 2.0}


def test_a_run_is_locked_against_a_second_process(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    with run.locked() as lock:
        assert lock.in_place()
        with pytest.raises(MinilmError, match=r"process \d+ on .* is at work on this run") as caught, run.locked():
            pass
        assert (caught.value.exit_status, caught.value.where) == (2, str(run.path))
    with run.locked():
        pass


def test_taking_the_lock_clears_away_what_a_killed_process_left(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    save(run, 1)
    (run.path / ".tmp-settings.json").write_text("{")
    (run.checkpoints / ".tmp-gone-step-00000009").mkdir()
    (run.checkpoints / ".tmp-gone-step-00000009" / "student.safetensors").write_text("x")
    with run.locked():
        assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "lock", "settings.json"]
        assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000001"]


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with caplog.at_level("WARNING", logger="minilm_cli"), made(tmp_path / "run").locked():
        pass
    assert "on a file system without locks" in caplog.text


def test_a_run_of_a_later_layout_is_refused_with_the_version_that_wrote_it(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    assert run.environment() == {}
    run.environment_file.write_text('{"format_version": 9, "minilm": "7.8.9"}')
    with pytest.raises(MinilmError, match=r"this run has format 9, written by minilm 7\.8\.9; .* reads up to 1"):
        find_run(tmp_path / "run")


@pytest.mark.parametrize(
    "notes",
    [
        {"best": 5},
        {"best": {"step": "2", "eval_loss": 1.0}},
        {"evaluated": "x"},
        {"since": {"sequences": 1, "colour": 2}},
        {"colour": 1},
    ],
)
def test_notes_that_are_not_those_of_a_run_are_refused(tmp_path: Path, notes: dict[str, Any]) -> None:
    run = made(tmp_path / "run")
    chosen = checkpoint.save(run.checkpoints, 1, {"student": {"weight": torch.zeros(1)}}, notes)
    with pytest.raises(RunError, match="its notes are not those of a run") as caught:
        RunState.of(chosen)
    assert caught.value.where == str(chosen.path)


def test_notes_are_read_back_as_they_were_saved(tmp_path: Path) -> None:
    best, backed_off = Best(step=2, eval_loss=0.25), BackedOff(wanted=9, became=4)
    notes = RunState(evaluated=3, best=best, elapsed=1.5, backed_off=backed_off)
    checkpoint.save(tmp_path, 4, {"student": {}}, notes.model_dump())
    assert RunState.of(checkpoint.load(checkpoint.path_of(tmp_path, 4))) == notes


def test_lines_of_metrics_that_are_no_records_are_left_out(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    run.metrics_file.write_text('[1]\n3\n"x"\n{"loss": 1.0}\n{"step": "1"}\n{"step": 1}\n')
    assert run.metrics() == [{"step": 1}]


def test_the_command_that_goes_on_can_be_copied() -> None:
    assert RunFolder(Path("runs/my run")).resume_command == "minilm resume 'runs/my run'"
