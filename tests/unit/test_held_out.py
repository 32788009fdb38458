from __future__ import annotations

import pytest

from minilm_cli.runs.held_out import HeldOut


def of(*losses: tuple[int, float]) -> HeldOut | None:
    return HeldOut.of([{"step": 1, "loss": 9.0}, *({"step": step, "eval_loss": loss} for step, loss in losses)])


@pytest.mark.parametrize("losses", [(), ((0, 1.0),), ((5, 1.0),)])
def test_one_evaluation_says_nothing(losses: tuple[tuple[int, float], ...]) -> None:
    assert of(*losses) is None


def test_improvement_is_from_the_start_to_the_end() -> None:
    found = of((0, 1.0), (10, 0.5), (20, 0.25))
    assert found == HeldOut(first=1.0, last=0.25, best=0.25, best_step=20)
    assert found.improved
    assert (found.warning, found.best_before) == (None, None)


def test_a_run_that_got_worse_is_warned_of_and_its_best_step_named() -> None:
    found = of((0, 0.5), (10, 0.75), (20, 385_753.0))
    assert found is not None
    assert not found.improved
    assert found.warning == "The held-out loss did not improve: 0.5 at the start, 3.858e+05 at the end."
    assert found.best_before == "The held-out loss was lowest at step 10: 0.75."


def test_the_start_has_no_checkpoint_to_be_the_best() -> None:
    found = of((0, 0.1), (10, 0.2))
    assert found is not None
    assert (found.best_step, found.best_before) == (10, None)
