"""Runs that are killed at random moments and resumed have the same result as an uninterrupted run."""

from __future__ import annotations

from pathlib import Path

import pytest

from minilm_cli.runs.folder import RunFolder
from tests.soak.checks import differences, incomplete_outputs, temporary_files
from tests.soak.kill_and_resume import KINDS, Soak, training


@pytest.mark.slow
def test_killed_and_resumed_runs_have_the_result_of_an_uninterrupted_run(
    tmp_path: Path, tiny_teacher: Path, tiny_student_config: Path, tiny_store: Path
) -> None:
    words = training(str(tiny_teacher), str(tiny_student_config), str(tiny_store), steps=20)
    # This seed takes few processes.
    tally = Soak(tmp_path, words, kills=len(KINDS), seed=116, say=print)()
    assert tally.problems == []
    assert tally.landed == dict.fromkeys(KINDS, 1)
    assert 0 < tally.runs == tally.identical
    assert tally.checkpoints > 0


@pytest.fixture
def damaged_run(copied_run: Path) -> RunFolder:
    """A copy of the finished run, which the test damages."""
    return RunFolder(copied_run)


def test_a_good_run_passes_the_checks(damaged_run: RunFolder, finished_run: Path) -> None:
    uninterrupted = RunFolder(finished_run)
    assert [
        *incomplete_outputs(damaged_run, uninterrupted),
        *differences(damaged_run, uninterrupted),
        *temporary_files(damaged_run),
    ] == []


def test_incomplete_outputs_are_found(damaged_run: RunFolder, finished_run: Path) -> None:
    (damaged_run.checkpoints / "step-00000004" / "optimizer.safetensors").unlink()
    (damaged_run.student / "config.json").write_bytes(b"{")
    (damaged_run.path / "export" / "hf").mkdir(parents=True)
    damaged_run.plan_file.unlink()
    problems = "\n".join(incomplete_outputs(damaged_run, RunFolder(finished_run)))
    assert "a checkpoint is damaged: " in problems
    assert "student/config.json differs from the uninterrupted run" in problems
    assert "the run's folder is incomplete: " in problems


@pytest.mark.parametrize("file", ["student/model.safetensors", "checkpoints/step-00000006/optimizer.safetensors"])
def test_a_changed_byte_is_found(damaged_run: RunFolder, finished_run: Path, file: str) -> None:
    content = bytearray((damaged_run.path / file).read_bytes())
    content[-1] ^= 1
    (damaged_run.path / file).write_bytes(content)
    assert list(differences(damaged_run, RunFolder(finished_run))) == [f"{file} differs"]


def test_an_additional_line_of_metrics_is_found(damaged_run: RunFolder, finished_run: Path) -> None:
    with damaged_run.metrics_file.open("a") as file:
        file.write('{"step": 6}\n')
    (problem,) = differences(damaged_run, RunFolder(finished_run))
    assert problem.endswith('of metrics.jsonl is {"step": 6}, uninterrupted None')


def test_temporary_files_are_found(damaged_run: RunFolder) -> None:
    names = (".tmp-run-abc", "run/.tmp-settings.json", "run/checkpoints/.tmp-step-00000008-def")
    for name in names:
        (damaged_run.path.parent / name).touch()
    assert list(temporary_files(damaged_run)) == [f"{name} is left" for name in names]
