from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from minilm_cli.settings.distill import ScheduleSettings
from minilm_cli.training.optim import LearningRate

from .distillers import Factory, train


@pytest.mark.parametrize(
    ("kind", "warmup", "total", "factors"),
    [
        ("linear", 4, 10, {1: 0.25, 4: 1.0, 5: 5 / 6, 10: 0.0, 12: 0.0}),
        ("linear", 0, 4, {1: 0.75, 4: 0.0}),
        ("linear", 10, 4, {4: 0.4}),
        ("linear", 4, 4, {4: 1.0}),
        ("cosine", 4, 10, {2: 0.5, 4: 1.0, 7: 0.5, 10: 0.0, 12: 0.0}),
        ("cosine", 0, 2, {1: 0.5}),
        ("constant", 4, 10, {3: 0.75, 5: 1.0, 10: 1.0}),
        ("constant", 0, 10, {1: 1.0}),
    ],
)
def test_learning_rate_schedule(kind: Any, warmup: int, total: int, factors: dict[int, float]) -> None:
    rate = LearningRate(ScheduleSettings(kind=kind, warmup_steps=warmup), 1.0, total)
    assert {step: rate(step) for step in factors} == pytest.approx(factors, abs=1e-12)


@pytest.mark.parametrize(
    ("wanted", "total", "steps"),
    [
        ("auto", 400_000, 4000),
        ("auto", 40_000, 4000),
        ("auto", 10_000, 1000),
        ("auto", 40, 4),
        ("auto", 3, 0),
        (7, 5, 7),
    ],
)
def test_warm_up_is_the_papers_or_a_tenth_of_a_shorter_run(wanted: Any, total: int, steps: int) -> None:
    assert LearningRate(ScheduleSettings(warmup_steps=wanted), 1.0, total).warmup_steps == steps


def test_each_step_uses_its_learning_rate(factory: Factory) -> None:
    distiller = factory.distiller("optimizer.lr=0.004", "schedule.warmup_steps=2", steps=4)
    rates = [report.lr for report in train(distiller, factory.stream(), last=4)]
    assert rates == [0.002, 0.004, 0.002, 0.0]
    assert {group["lr"] for group in distiller.optimizer._adamw.param_groups} == {0.0}


def test_biases_and_norms_have_no_weight_decay(factory: Factory) -> None:
    distiller = factory.distiller("optimizer.weight_decay=0.3")
    decayed, others = distiller.optimizer._adamw.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in distiller.student.model.named_parameters()}
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(names[id(p)].endswith("bias") or "LayerNorm" in names[id(p)] for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(names) - len(distiller.untrained)
    assert (decayed["betas"], decayed["eps"]) == ((0.9, 0.999), 1e-6)


def test_gradient_is_clipped_to_the_clip_norm(factory: Factory) -> None:
    def norms(clip_norm: float) -> tuple[float, float]:
        """The gradient norm before clipping, and the one that the optimiser got."""
        distiller = factory.distiller(f"optimizer.clip_norm={clip_norm}")
        [report] = train(distiller, factory.stream(), last=1)
        # After one step, Adam's first moment is (1 - beta) times the gradient.
        gradients = [state["exp_avg"] / (1 - 0.9) for state in distiller.optimizer._adamw.state.values()]
        return report.grad_norm, torch.cat([tensor.flatten() for tensor in gradients]).norm().item()

    norm, clipped = norms(1e6)
    assert math.isclose(clipped, norm, rel_tol=1e-4)
    reported, clipped = norms(norm / 10)
    assert math.isclose(reported, norm, rel_tol=1e-5)
    assert math.isclose(clipped, norm / 10, rel_tol=1e-3)
