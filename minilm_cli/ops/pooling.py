"""Pooling of token states into one vector for each sequence, as sentence-transformers defines it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def pool(states: Tensor, mask: Tensor, mode: str) -> Tensor:
    """One vector for each sequence, (batch, width).

    states: (batch, tokens, width). mask: (batch, tokens), 1 for a real token, 0 for padding on either side.
    mode: one of `POOLING_MODES`.
    """
    return POOLING_MODES[mode](states, mask.unsqueeze(2).to(states.dtype))


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


def _mean_sqrt_len_tokens(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9).sqrt()


def _weighted_mean(states: Tensor, mask: Tensor) -> Tensor:
    """The n-th real token counts n times (SGPT, arXiv 2202.08904, section 3.1)."""
    return _mean(states, mask.cumsum(1) * mask)


def _max(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(mask == 0, torch.finfo(states.dtype).min).amax(1)


def _first(states: Tensor, mask: Tensor) -> Tensor:
    return _at(states, mask.squeeze(2).argmax(1))


def _last(states: Tensor, mask: Tensor) -> Tensor:
    return _at(states, mask.squeeze(2).cumsum(1).argmax(1))


def _at(states: Tensor, places: Tensor) -> Tensor:
    return states.gather(1, places[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)


#: By sentence-transformers' names.
POOLING_MODES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "cls": _first,
    "max": _max,
    "lasttoken": _last,
    "mean_sqrt_len_tokens": _mean_sqrt_len_tokens,
    "weightedmean": _weighted_mean,
}
