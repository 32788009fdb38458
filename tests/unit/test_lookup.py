from __future__ import annotations

import os
from pathlib import Path

import pytest

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.runs import checkpoint
from minilm_cli.runs.lookup import final_losses, find_model, find_run, pick_checkpoint

from .run_folders import create_run, save


def test_newest_run_is_the_one_started_last(tmp_path: Path) -> None:
    for number, name in enumerate(("b", "c", "a")):
        run = create_run(tmp_path / "runs" / name)
        os.utime(run.settings_file, (number, number))
    (tmp_path / "runs" / "d").mkdir()
    create_run(tmp_path / "runs" / ".tmp-e")
    assert find_run(None, tmp_path / "runs").path == tmp_path / "runs" / "a"


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="there is no such run"):
        find_run(tmp_path / "nothing")
    with pytest.raises(MinilmError, match=r"it has no settings.json"):
        find_run(tmp_path)
    for runs in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(MinilmError, match="there is no run in"):
            find_run(None, runs)


def test_what_is_neither_a_run_nor_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="there is no such run"):
        find_model(tmp_path / "nothing")
    (tmp_path / "config.json").touch()
    with pytest.raises(MinilmError, match="no model folder either"):
        find_model(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert find_model(tmp_path) == tmp_path


def test_run_moved_aside_by_a_killed_process_is_restored(tmp_path: Path) -> None:
    aside = tmp_path / ".tmp-minilm-run-abc" / ".replaced"
    aside.mkdir(parents=True)
    (aside.parent / ".minilm-lock").touch()
    create_run(aside / "run")
    assert find_run(tmp_path / "run").path == tmp_path / "run"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_run_of_a_later_format_is_refused(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    assert run.environment() == {}
    run.environment_file.write_text('{"format_version": 9, "minilm": "7.8.9"}')
    with pytest.raises(MinilmError, match=r"this run has format 9, written by minilm 7\.8\.9; .* reads up to 1"):
        find_run(tmp_path / "run")


def test_checkpoint_is_picked_as_last_best_or_by_step(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    for step in (1, 2, 3):
        save(run, step, best=2)
    assert pick_checkpoint(run, "last").step == 3
    assert pick_checkpoint(run, "best").step == 2
    assert pick_checkpoint(run, 1).step == 1


def test_missing_checkpoint_is_refused_with_the_existing_ones(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    for choice in ("last", "best", 1):
        with pytest.raises(MinilmError, match="there is no checkpoint"):
            pick_checkpoint(run, choice)
    save(run, 1)
    save(run, 4)
    with pytest.raises(MinilmError, match="there is no checkpoint of step 3") as caught:
        pick_checkpoint(run, 3)
    assert caught.value.hint == "There are checkpoints of the steps 1, 4."
    with pytest.raises(MinilmError, match="no checkpoint was evaluated"):
        pick_checkpoint(run, "best")


def test_damaged_checkpoint_is_not_replaced_by_another(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    save(run, 1)
    save(run, 2)
    (checkpoint.path_of(run.checkpoints, 1) / "student.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="checksum"):
        pick_checkpoint(run, 1)


def test_final_losses_are_the_last_ones() -> None:
    records = [
        {"step": 1, "loss": 3.0, "lr": 1.0},
        {"step": 1, "eval_loss": 2.5, "eval_loss_qq": 2.0},
        {"step": 2, "loss": 1.0, "elapsed": 3.0},
    ]
    assert final_losses(records) == {"loss": 1.0, "eval_loss": 2.5, "eval_loss_qq": 2.0}
