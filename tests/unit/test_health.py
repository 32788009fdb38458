from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from minilm_cli.training.monitor import AGAIN, Monitor
from minilm_cli.training.nonfinite import Finding, NotFinite


def test_a_finding_names_what_is_known_and_nothing_else() -> None:
    finding = Finding(step=7, sequences=[3, 5], relations=["qq", "vv"])
    assert finding.described() == "Relations: qq, vv. Sequences of the token store: 3, 5."
    assert Finding(step=7).described() == ""
    assert "The teacher's own" in Finding(step=7, sequences=[3], teacher=True).described()
    assert "encoder.weight" in Finding(step=7, gradients=["encoder.weight"]).described()
    assert "that are not finite: a" in Finding(step=7, weights=["a"]).described()


def test_many_names_are_cut_short_and_counted() -> None:
    told = Finding(step=7, sequences=range(256)).described()
    assert "0, 1, 2" in told
    assert "(256 in all)" in told
    assert len(told) < 100


def test_what_is_not_finite_is_told_with_its_step() -> None:
    error = NotFinite(Finding(step=7), math.nan, math.inf)
    assert (error.exit_status, error.message) == (
        1,
        "step 7: the loss is nan and the gradient norm inf; the step was not taken.",
    )


def watched(numbers: Iterable[tuple[float, float]], first: int = 1, **known: Any) -> dict[int, str]:
    """What is said after which step, of losses and norms."""
    watch = Monitor(**({"warmup_steps": 0} | known))
    return {
        step: text for step, (loss, norm) in enumerate(numbers, start=first) for text in watch.look(step, loss, norm)
    }


def noisy(loss: Callable[[int], float], norm: Callable[[int], float], steps: int) -> list[tuple[float, float]]:
    """Losses and norms about these, as uneven as those of real batches."""
    pick = random.Random(0)
    return [
        (loss(step) * pick.lognormvariate(0, 0.1), norm(step) * pick.lognormvariate(0, 0.5)) for step in range(steps)
    ]


SOUND = {
    "learning": noisy(lambda step: 2 * math.exp(-step / 300) + 0.2, lambda _: 1.0, 3000),
    "a warm-up in which the gradient grows": noisy(
        lambda step: 2.0 - min(step, 1000) / 800, lambda step: 0.05 * (1 + min(step, 1000) / 10), 3000
    ),
    "a plateau": noisy(lambda step: 2.0 if step < 100 else 1.0, lambda _: 0.3, 3000),
    "a student that has learnt all": noisy(
        lambda step: 2 * math.exp(-step / 100) + 1e-9, lambda step: math.exp(-step / 100) + 1e-12, 3000
    ),
    "single spikes": [(2.0 if step < 20 else 1.0, 1000.0 if step % 50 == 0 else 1.0) for step in range(3000)],
    "a rate that decays to nothing": noisy(lambda step: 0.5 - step / 1e4, lambda step: 1 - step / 3001, 3000),
    "a loss of nothing from the first": [(0.0, 0.0)] * 1000,
}


@pytest.mark.parametrize("numbers", SOUND.values(), ids=SOUND)
def test_a_sound_run_is_not_warned_of(numbers: list[tuple[float, float]]) -> None:
    assert watched(numbers) == {}


def test_an_exploding_gradient_is_told_once() -> None:
    numbers = noisy(
        lambda step: (1.6 if step < 20 else 1.0) if step < 500 else 1.0 + (step - 500) / 50,
        lambda step: 1.0 if step < 500 else math.exp((step - 500) / 20),
        900,
    )
    [(step, text)] = [(step, text) for step, text in watched(numbers).items() if "exploding" in text]
    assert 500 < step < 620
    assert text.startswith("The gradient is exploding: over the last 20 steps its norm was ")
    assert "lower learning rate" in text


def test_a_student_without_a_gradient_is_told_of_again_after_a_long_while() -> None:
    numbers = noisy(lambda step: 1.9 if step < 20 else 1.2, lambda step: 1.0 if step < 200 else 1e-6, AGAIN + 500)
    (first, text), (second, _) = watched(numbers).items()
    assert 200 < first < 300
    assert second - first >= AGAIN
    assert text.startswith("The student seems dead: over the last 220 steps the loss was 1.2")


def test_a_student_that_learns_nothing_is_dead_though_its_gradient_is_not() -> None:
    # As all-MiniLM-L6-v2's students do at a learning rate of 0.01.
    numbers = noisy(lambda step: 0.80 if step < 20 else 0.83, lambda step: 0.2 if step < 20 else 0.07, 3000)
    assert list(watched(numbers)) == [220]
    assert list(watched(numbers, warmup_steps=1000)) == [1220]
    resumed = watched(numbers[500:], first=501, first_loss=0.8)
    assert list(resumed) == [720]
    assert "at first it was 0.8, and the gradient norm is 0.0" in resumed[720]


def test_a_gradient_of_zero_from_the_first_is_a_dead_student() -> None:
    assert "seems dead" in next(iter(watched([(2.0, 0.0)] * 100).values()))


def test_a_resumed_run_whose_first_loss_is_not_known_is_given_the_benefit_of_the_doubt() -> None:
    assert watched(noisy(lambda _: 1.0, lambda _: 0.3, 1500), first=40_001) == {}
