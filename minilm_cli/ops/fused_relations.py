"""The relation loss in a few Triton kernels, for GPUs that multiply bf16: scores stay in registers.

Two passes over the sequences: `relation_kernels.losses` gives loss and normalisers, `relation_kernels.gradient` the
gradient. Importing this imports Triton.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minilm_cli.ops import relation_kernels
from minilm_cli.ops.length_groups import Span, moved
from minilm_cli.ops.relations import ByLetter, Relations

#: The narrowest matrices that Triton multiplies.
_NARROWEST = 16

_LOG2_E = 1 / math.log(2)

#: Widths of relation heads, together, beyond which registers are left for fewer columns.
_WIDE, _COLUMNS_OF_WIDE = 96, 32


@dataclass(frozen=True)
class Blocks:
    """How sequences up to a length are cut. Fixed, since other blocks add in another order and give other bits."""

    longest: float
    rows: int
    columns: int
    warps: int


BLOCKS = (Blocks(64, 32, 32, 2), Blocks(math.inf, 64, 64, 4))


def losses_and_gradients(
    relations: Relations, teacher: ByLetter, student: ByLetter, gradients: ByLetter, dtype: torch.dtype
) -> Tensor:
    """The promise of `ops.relations.Backend`, for tensors of bf16 or fp16; the loss is fp32.

    A gradient that several launches add to is fp32 until the last of them.
    """
    teacher, student = ({letter: _rows(side[letter]) for letter in relations.letters} for side in (teacher, student))
    anchor = student[relations.letters[0]]
    parts = [_tiles(spans, blocks, anchor.device) for spans, blocks in _by_blocks(relations.spans)]
    count = sum(len(tiles) for tiles, _ in parts)
    logs = torch.empty((2, relations.heads, len(anchor)), dtype=torch.float32, device=anchor.device)
    found = torch.empty((len(relations.weights), relations.heads, count), dtype=torch.float32, device=anchor.device)
    launches = Counter(letter for pair in relations.weights for letter in {*pair})
    sums = {
        letter: into[:-1] if launches[letter] == 1 else torch.zeros_like(into[:-1], dtype=torch.float32)
        for letter, into in gradients.items()
    }
    # Triton starts kernels on the current device, whatever that of the tensors is.
    with torch.cuda.device(anchor.device) if anchor.is_cuda else nullcontext():
        for number, (pair, weight) in enumerate(relations.weights.items()):
            begin = 0
            for tiles, blocks in parts:
                run = _Launch(relations.heads, tiles, blocks, teacher, student, logs)
                run.losses(pair, found[number, :, begin:])
                for turned in {pair: None, pair[::-1]: None}:
                    letter = turned[0]
                    if letter in sums:
                        run.gradient(pair, turned, weight, sums[letter], add=launches[letter] > 1)
                begin += len(tiles)
    for letter, total in sums.items():
        if launches[letter] > 1:
            gradients[letter][:-1].copy_(total)
    return found.to(dtype).flatten(1).sum(1)


@dataclass(frozen=True)
class _Launch:
    """Starts kernels over some tiles."""

    heads: int
    tiles: Tensor
    blocks: Blocks
    teacher: ByLetter
    student: ByLetter
    logs: Tensor

    def losses(self, pair: str, into: Tensor) -> None:
        """Of the relation `pair`, (heads, tiles)."""
        tensors, fixed = self._pair(pair)
        positions, stride = self.logs.shape[2], into.stride(0)
        relation_kernels.losses[self._grid](
            *tensors, self.tiles, *self.logs, into, positions, stride, HEADS=self.heads, **fixed
        )

    def gradient(self, pair: str, turned: str, weight: float, into: Tensor, *, add: bool) -> None:
        """Of the relation `pair`, with respect to the first letter of `turned`: the pair, or the pair reversed."""
        tensors, fixed = self._pair(turned)
        factor = weight * fixed["WIDTH_S"] ** -0.5 / self.heads
        relation_kernels.gradient[self._grid](
            *tensors, self.tiles, *self.logs, into, into.stride(0), self.logs.shape[2], factor,
            OWN=pair == turned, OTHER=pair == turned[::-1], ADD=add, **fixed,
        )  # fmt: skip

    @property
    def _grid(self) -> tuple[int, int]:
        return len(self.tiles), self.heads

    def _pair(self, letters: str) -> tuple[list[Any], dict[str, Any]]:
        """Both letters' projections in teacher and student, with their strides, and the constants."""
        tensors = [side[letter] for letter in letters for side in (self.teacher, self.student)]
        widths = (tensor.shape[1] // self.heads for tensor in tensors[:2])
        return [*tensors, *(tensor.stride(0) for tensor in tensors)], constants(self.blocks, *widths)


def constants(blocks: Blocks, teacher: int, student: int) -> dict[str, Any]:
    """What the kernels are compiled for, by the widths of a relation head."""
    padded_t, padded_s = _padded(teacher), _padded(student)
    return {
        "WIDTH_T": teacher,
        "WIDTH_S": student,
        "PADDED_T": padded_t,
        "PADDED_S": padded_s,
        "SCALE_T": teacher**-0.5 * _LOG2_E,
        "SCALE_S": student**-0.5 * _LOG2_E,
        "ROWS": blocks.rows,
        "COLUMNS": blocks.columns if padded_t + padded_s <= _WIDE else _COLUMNS_OF_WIDE,
        "num_warps": blocks.warps,
        "num_stages": 2,
        "enable_fp_fusion": True,  # a later version will ask for it
    }


def _rows(tensor: Tensor) -> Tensor:
    """The same, each row in one piece."""
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


def _padded(width: int) -> int:
    return max(_NARROWEST, 1 << (width - 1).bit_length())


def _by_blocks(spans: Sequence[Span]) -> Iterator[tuple[list[Span], Blocks]]:
    shortest = 0.0
    for blocks in BLOCKS:
        if some := [span for span in spans if shortest < span[1] <= blocks.longest]:
            yield some, blocks
        shortest = blocks.longest


def _tiles(spans: Sequence[Span], blocks: Blocks, device: torch.device) -> tuple[Tensor, Blocks]:
    """(start of the sequence, its length, first row) of each tile, (tiles, 3), those of long sequences first."""
    each = np.array(sorted(spans, key=lambda span: -span[1]), dtype=np.int32)
    counts = -(-each[:, 1] // blocks.rows)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    tiles = np.column_stack([np.repeat(each, counts, axis=0), within * blocks.rows]).astype(np.int32)
    return moved(torch.from_numpy(tiles), device), blocks
