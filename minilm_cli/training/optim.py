"""AdamW and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from minilm_cli.settings.distill import OptimizerSettings, ScheduleSettings


def schedule_factor(schedule: ScheduleSettings, step: int, total: int) -> float:
    """The share of the peak learning rate at `step` (1-based) of `total`."""
    if step <= schedule.warmup_steps:
        return step / schedule.warmup_steps
    left = (total - step) / max(1, total - schedule.warmup_steps)
    match schedule.kind:
        case "linear":
            return max(0.0, left)
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * (1 - max(0.0, left))))
        case "constant":
            return 1.0


def _adamw(trained: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW without weight decay on biases and norms, which are the parameters of one dimension."""
    groups = [
        {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in {"cpu", "cuda"} for parameter in trained.values())
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)
