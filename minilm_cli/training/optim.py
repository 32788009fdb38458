"""AdamW, its learning rate, and its moments by the names of the parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minilm_cli.models.state import refuse_mismatch
from minilm_cli.settings.distill import OptimizerSettings, ScheduleSettings

#: What AdamW keeps of each parameter.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


#: Warm-up of the paper (MiniLMv2, section 4.1), and the largest share of a run that `auto` gives to it.
_WARMUP_STEPS, _WARMUP_SHARE = 4000, 0.1


def warmup_steps(wanted: int | str, total_steps: int) -> int:
    """The number of warm-up steps; `auto` is the paper's, or a tenth of a shorter run."""
    return min(_WARMUP_STEPS, round(_WARMUP_SHARE * total_steps)) if wanted == "auto" else int(wanted)


class LearningRate:
    """The learning rate of each step: linear warm-up, then constant or decaying to zero at the last step."""

    def __init__(self, schedule: ScheduleSettings, peak: float, total_steps: int) -> None:
        """`peak` is reached at the end of the warm-up."""
        self.peak = peak
        self.warmup_steps = warmup_steps(schedule.warmup_steps, total_steps)
        self.total_steps = total_steps
        self._kind = schedule.kind

    def __call__(self, step: int) -> float:
        """The learning rate of `step` (1-based)."""
        return self.peak * self._factor(step)

    def _factor(self, step: int) -> float:
        warmup = self.warmup_steps
        if step <= warmup:
            return step / warmup
        left = max(0.0, (self.total_steps - step) / max(1, self.total_steps - warmup))
        match self._kind:
            case "linear":
                return left
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * (1 - left)))
            case "constant":
                return 1.0


class Optimizer:
    """AdamW on the trained parameters of the student, with a clipped gradient."""

    def __init__(
        self, trained: Mapping[str, nn.Parameter], settings: OptimizerSettings, learning_rate: LearningRate
    ) -> None:
        """Parameters of one dimension, which are biases and norms, have no weight decay."""
        self.trained = dict(trained)
        self.learning_rate = learning_rate
        self._clip_norm = settings.clip_norm
        groups = [
            {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        fused = all(parameter.device.type in {"cpu", "cuda"} for parameter in trained.values())
        self._adamw = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def clip(self) -> Tensor:
        """Scale the gradient down to the largest norm allowed; returns the norm it had."""
        return torch.nn.utils.clip_grad_norm_(self.trained.values(), self._clip_norm)

    def step(self, step: int) -> float:
        """Move the parameters along the gradient; returns the learning rate of `step` (1-based)."""
        lr = self.learning_rate(step)
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        return lr

    def state(self) -> dict[str, Tensor]:
        """The moments, as `PARAMETER.MOMENT`."""
        return {
            f"{name}.{key}": value
            for name, parameter in self.trained.items()
            for key, value in self._adamw.state.get(parameter, {}).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned; raises `MinilmError` if it is that of another student."""
        if not state:  # as before the first step
            return
        shapes: dict[str, Tensor] = {}
        for name, parameter in self.trained.items():
            shapes |= {f"{name}.step": torch.empty(()), f"{name}.exp_avg": parameter, f"{name}.exp_avg_sq": parameter}
        refuse_mismatch(state, shapes)
        for name, parameter in self.trained.items():
            # The step counter, too, is where the optimiser makes it: on the device if that is a GPU (fused).
            moments: dict[str, Any] = {key: state[f"{name}.{key}"].to(parameter.device).clone() for key in _MOMENTS}
            self._adamw.state[parameter] = moments
