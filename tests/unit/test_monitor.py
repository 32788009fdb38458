from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from minilm_cli.training.monitor import AGAIN, Monitor


def warnings_of(numbers: Iterable[tuple[float, float]], first: int = 1, **options: Any) -> dict[int, str]:
    """The warnings for these losses and gradient norms, by step."""
    monitor = Monitor(**({"warmup_steps": 0} | options))
    return {
        step: text for step, (loss, norm) in enumerate(numbers, start=first) for text in monitor.look(step, loss, norm)
    }


def noisy(loss: Callable[[int], float], norm: Callable[[int], float], steps: int) -> list[tuple[float, float]]:
    """Losses and gradient norms with the noise of real batches."""
    pick = random.Random(0)
    return [
        (loss(step) * pick.lognormvariate(0, 0.1), norm(step) * pick.lognormvariate(0, 0.5)) for step in range(steps)
    ]


HEALTHY = {
    "learning": noisy(lambda step: 2 * math.exp(-step / 300) + 0.2, lambda _: 1.0, 3000),
    "gradient grows in the warm-up": noisy(
        lambda step: 2.0 - min(step, 1000) / 800, lambda step: 0.05 * (1 + min(step, 1000) / 10), 3000
    ),
    "plateau": noisy(lambda step: 2.0 if step < 100 else 1.0, lambda _: 0.3, 3000),
    "loss falls to zero": noisy(
        lambda step: 2 * math.exp(-step / 100) + 1e-9, lambda step: math.exp(-step / 100) + 1e-12, 3000
    ),
    "single spikes": [(2.0 if step < 20 else 1.0, 1000.0 if step % 50 == 0 else 1.0) for step in range(3000)],
    "learning rate decays to zero": noisy(lambda step: 0.5 - step / 1e4, lambda step: 1 - step / 3001, 3000),
    "loss is zero from the start": [(0.0, 0.0)] * 1000,
}


@pytest.mark.parametrize("numbers", HEALTHY.values(), ids=HEALTHY)
def test_healthy_run_gives_no_warning(numbers: list[tuple[float, float]]) -> None:
    assert warnings_of(numbers) == {}


def test_exploding_gradient_is_reported_once() -> None:
    numbers = noisy(
        lambda step: (1.6 if step < 20 else 1.0) if step < 500 else 1.0 + (step - 500) / 50,
        lambda step: 1.0 if step < 500 else math.exp((step - 500) / 20),
        900,
    )
    [(step, text)] = [(step, text) for step, text in warnings_of(numbers).items() if "exploding" in text]
    assert 500 < step < 620
    assert text.startswith("The gradient is exploding: over the last 20 steps its norm was ")
    assert "lower learning rate" in text


def test_vanishing_gradient_is_reported_again_later() -> None:
    numbers = noisy(lambda step: 1.9 if step < 20 else 1.2, lambda step: 1.0 if step < 200 else 1e-6, AGAIN + 500)
    (first, text), (second, _) = warnings_of(numbers).items()
    assert 200 < first < 300
    assert second - first >= AGAIN
    assert text.startswith("The student seems dead: over the last 220 steps the loss was 1.2")


def test_student_that_learns_nothing_is_reported() -> None:
    # As all-MiniLM-L6-v2's students do at a learning rate of 0.01.
    numbers = noisy(lambda step: 0.80 if step < 20 else 0.83, lambda step: 0.2 if step < 20 else 0.07, 3000)
    assert list(warnings_of(numbers)) == [220]
    assert list(warnings_of(numbers, warmup_steps=1000)) == [1220]
    resumed = warnings_of(numbers[500:], first=501, first_loss=0.8)
    assert list(resumed) == [720]
    assert "at first it was 0.8, and the gradient norm is 0.0" in resumed[720]


def test_gradient_of_zero_from_the_start_is_reported() -> None:
    assert "seems dead" in next(iter(warnings_of([(2.0, 0.0)] * 100).values()))


def test_resumed_run_without_a_known_first_loss_gives_no_warning() -> None:
    assert warnings_of(noisy(lambda _: 1.0, lambda _: 0.3, 1500), first=40_001) == {}
