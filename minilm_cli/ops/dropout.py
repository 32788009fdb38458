"""Dropout with fast masks on a CPU, where torch draws them number by number on one core.

A mask takes 16 random bits a place, drawn by numpy and compared in one vectorised pass: about ten times faster. Each
mask has its own seed, drawn from torch's generator: `torch.manual_seed` decides all of them, and the backward pass can
draw a mask again instead of keeping it. On other devices torch's own dropout is fast, and is used.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

_VALUES = 2**16


def drawn_seed() -> int:
    """A seed from torch's generator."""
    return int(torch.randint(2**63 - 1, ()).item())


class Masks:
    """A sequence of dropout masks, decided by a seed."""

    def __init__(self, seed: int, probability: float) -> None:
        """`probability` of a place to be dropped, rounded to a multiple of 2^-16."""
        self._bits = np.random.SFC64(seed)
        self._dropped = min(round(probability * _VALUES), _VALUES - 1)
        #: Factor for the kept values, which preserves the expectation.
        self.scale = _VALUES / (_VALUES - self._dropped)

    def fill(self, out: Tensor) -> Tensor:
        """Write 0 where a place is dropped and 1 where it is kept; returns `out`, contiguous and of any type."""
        words = self._bits.random_raw(-(-out.numel() // 4))
        bits = torch.from_numpy(words.view(np.int16)[: out.numel()]).view(out.shape)
        return torch.ge(bits, self._dropped - _VALUES // 2, out=out)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, with fast masks on CPUs."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name for it
        """Zero each place with probability `p` while training, and scale the others up."""
        if not self.training or input.device.type != "cpu" or not 0 < self.p < 1:
            return super().forward(input)
        masks = Masks(drawn_seed(), self.p)
        return (input * masks.fill(torch.empty_like(input, memory_format=torch.contiguous_format))).mul_(masks.scale)


def replace_dropout(model: nn.Module) -> None:
    """Replace every `torch.nn.Dropout` of a model by `Dropout`."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) is nn.Dropout:
            model.set_submodule(name, Dropout(module.p, module.inplace).train(module.training))
