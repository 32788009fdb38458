"""Runs that are killed in the middle of anything end as one that nothing disturbed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from minilm_cli.runs.folder import RunFolder
from tests.soak.checks import differences, half_there, left_behind
from tests.soak.lives import KINDS, Soak, training


@pytest.mark.slow
def test_runs_that_are_killed_in_every_way_end_as_one_that_was_not(
    tmp_path: Path, tiny_teacher: Path, tiny_student_config: Path, tiny_store: Path
) -> None:
    words = training(str(tiny_teacher), str(tiny_student_config), str(tiny_store), steps=20)
    # A seed that takes few processes.
    tally = Soak(tmp_path, words, kills=len(KINDS), seed=116, say=print)()
    assert tally.wrong == []
    assert tally.landed == dict.fromkeys(KINDS, 1)
    assert 0 < tally.runs == tally.identical
    assert tally.checkpoints > 0


@pytest.fixture
def disturbed(tmp_path: Path, finished_run: Path) -> RunFolder:
    """A copy of the finished run, to be spoilt."""
    return RunFolder(shutil.copytree(finished_run, tmp_path / "run"))


def test_nothing_is_found_where_nothing_is_wrong(disturbed: RunFolder, finished_run: Path) -> None:
    whole = RunFolder(finished_run)
    assert [*half_there(disturbed, whole), *differences(disturbed, whole), *left_behind(disturbed)] == []


def test_what_is_half_there_is_found(disturbed: RunFolder, finished_run: Path) -> None:
    (disturbed.checkpoints / "step-00000004" / "optimizer.safetensors").unlink()
    (disturbed.student / "config.json").write_bytes(b"{")
    (disturbed.path / "export" / "hf").mkdir(parents=True)
    disturbed.plan_file.unlink()
    found = "\n".join(half_there(disturbed, RunFolder(finished_run)))
    assert "a checkpoint is not sound: " in found
    assert "student/config.json is not that of the undisturbed run" in found
    assert "the run's folder is not whole: " in found


@pytest.mark.parametrize("file", ["student/model.safetensors", "checkpoints/step-00000006/optimizer.safetensors"])
def test_another_byte_is_found(disturbed: RunFolder, finished_run: Path, file: str) -> None:
    content = bytearray((disturbed.path / file).read_bytes())
    content[-1] ^= 1
    (disturbed.path / file).write_bytes(content)
    assert list(differences(disturbed, RunFolder(finished_run))) == [f"{file} has other bytes"]


def test_a_line_of_metrics_too_many_is_found(disturbed: RunFolder, finished_run: Path) -> None:
    with disturbed.metrics_file.open("a") as file:
        file.write('{"step": 6}\n')
    (found,) = differences(disturbed, RunFolder(finished_run))
    assert found.endswith('of metrics.jsonl is {"step": 6}, undisturbed None')


def test_what_is_left_behind_is_found(disturbed: RunFolder) -> None:
    left = (".tmp-run-abc", "run/.tmp-settings.json", "run/checkpoints/.tmp-step-00000008-def")
    for name in left:
        (disturbed.path.parent / name).touch()
    assert list(left_behind(disturbed)) == [f"{name} is left" for name in left]
