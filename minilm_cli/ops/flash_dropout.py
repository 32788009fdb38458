"""FlashAttention with dropout, for sequences of varying length, in one call.

torch's public function for such sequences has no dropout. The operator under it has; as it may change, it is tried
before it is used.
"""

from __future__ import annotations

import itertools
import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

logger = logging.getLogger(__name__)

_forward = torch.ops.aten._flash_attention_forward

#: Largest relative difference between results in 16 bits.
_ROUNDING = 0.02


def flash_with_dropout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    longest: int,
    dropout: float,
    *,
    scale: float | None = None,
    window: tuple[int, int] = (-1, -1),
) -> Tensor:
    """Attention within each sequence, (positions, heads, width), like its arguments; differentiable.

    offsets: where each sequence begins, and the last ends. dropout: of probabilities, by torch's generator. scale: of
    scores, 1/√width by default. window: tokens that a query sees before and behind it; −1: all.
    """
    before, behind = window
    found: Tensor = _forward(
        query, key, value, offsets, offsets, longest, longest, dropout, behind == 0, False,
        scale=scale, window_size_left=before, window_size_right=behind,
    )[0]  # fmt: skip
    return found


@cache
def works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether it computes attention and its gradient there, with masks that repeat; if not, a warning says why."""
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            wrong = _tried(device, dtype)
    except torch.OutOfMemoryError:
        raise  # nothing is wrong with it
    except Exception as error:  # noqa: BLE001  # an operator that is not public may fail in any way
        wrong = str(error).strip().partition("\n")[0] or type(error).__name__
    if wrong:
        logger.warning("Attention with dropout is computed without FlashAttention, which is slower: %s", wrong)
    return not wrong


def _tried(device: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with its results; empty if nothing is."""
    lengths, shape = (1, 5, 33, 70), (109, 2, 16)
    offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
    random = torch.Generator().manual_seed(0)
    query, key, value, outer = (torch.randn(shape, generator=random).to(device, dtype) for _ in range(4))
    value.requires_grad_()

    def run(dropout: float, seed: int, values: Tensor = value) -> Tensor:
        torch.manual_seed(seed)
        with torch.enable_grad():
            return flash_with_dropout(query, key, values, offsets, max(lengths), dropout)

    plain: Any = varlen_attn(query, key, value, offsets, offsets, max(lengths), max(lengths))
    first, again, other = run(0.5, 1), run(0.5, 1), run(0.5, 2)
    first.backward(outer)  # type: ignore[no-untyped-call]  # it has no types
    assert value.grad is not None, "the values have a gradient"
    # The output is linear in the values, so both of these are the same sum, if the masks are.
    products, by_gradient = (outer * first).float(), (value.grad * value).float().sum()
    if (run(0.0, 1) - plain).abs().max() > _ROUNDING * plain.abs().max():
        return "without dropout, it differs from torch's public function"
    if not torch.equal(first, again) or torch.equal(first, other):
        return "its masks do not follow the seed"
    if abs(float(run(0.5, 1, torch.ones_like(value)).float().mean()) - 1) > 10 * _ROUNDING:
        return "its mean with dropout is another than without"
    if (products.sum() - by_gradient).abs() > _ROUNDING * products.abs().sum():
        return "its gradient is that of other masks"
    return ""
