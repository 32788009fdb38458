from __future__ import annotations

import pytest

from minilm_cli.settings.distill import CheckpointSettings, EvaluationSettings
from minilm_cli.training.pace import Pace


def pace(steps: int, *, evaluate: int = 1000, save: int = 1000, minutes: float = 15.0) -> Pace:
    return Pace(steps, EvaluationSettings(every=evaluate), CheckpointSettings(every=save, minutes=minutes))


def test_time_left_counts_steps_evaluations_and_checkpoints() -> None:
    run = pace(100, evaluate=25, save=50, minutes=1000)
    run.step.add(2.0)
    assert run.left(40) == 120
    run.checkpoint.add(10.0)
    assert run.left(40) == 120 + 2 * 10  # at 50 and 100
    run.evaluation.add(7.0)
    assert run.left(40) == 120 + 3 * 7 + 3 * 10  # at 50, 75 and 100; each may be the best so far
    assert run.left(100) == 7 + 10


def test_last_step_is_evaluated_and_saved_once() -> None:
    run = pace(110, evaluate=50, save=1000)
    run.evaluation.add(1.0)
    assert [run.left(step) for step in (0, 1, 50, 51, 100, 101, 110)] == [3, 3, 3, 2, 2, 1, 1]


def test_checkpoints_by_time_are_counted() -> None:
    run = pace(1000, evaluate=10**6, save=10**6, minutes=10)
    run.step.add(6.0)
    run.checkpoint.add(1.0)
    assert run.left(0) == 6000 + 10


def test_time_of_a_step_follows_the_newest_slowly() -> None:
    run = pace(2)
    for _ in range(100):
        run.step.add(1.0)
    run.step.add(101.0)
    assert run.left(1) == pytest.approx(3.0)
