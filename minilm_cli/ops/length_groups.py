"""Groups of sequences of similar length, so that batched matrix products have few shapes and little padding.

Positions are those of the tokens of a micro-batch, flattened. All tensors are made on the device from a small one, so
that nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Span = tuple[int, int]


@dataclass(frozen=True)
class Group:
    """Sequences that are computed together, padded to the longest."""

    rows: Tensor
    """Positions, (sequences, longest); for padding, the position of the sequence's last token."""
    lengths: Tensor
    """Real tokens of each, (sequences,)."""
    real: Tensor | None
    """Which places are real tokens, (sequences, longest); `None` if all are."""
    block: slice | None
    """All positions, if they are consecutive and none is padding."""

    def gather(self, tensor: Tensor) -> Tensor:
        """(positions, …) to (sequences, longest, …), a view if the positions are consecutive."""
        if self.block is None:
            return tensor[self.rows]
        return tensor[self.block].reshape(*self.rows.shape, *tensor.shape[1:])

    def scatter(self, found: Tensor, into: Tensor) -> None:
        """Write (sequences, longest, …) into (positions + 1, …), whose last place receives the padding."""
        if self.block is not None:
            into[self.block].view(found.shape).copy_(found)
            return
        rows = self.rows if self.real is None else torch.where(self.real, self.rows, into.shape[0] - 1)
        into[rows] = found.to(into.dtype)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`, copied without waiting if that is a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def groups(spans: Sequence[Span], device: torch.device, *, most: float, raggedness: float) -> Iterator[Group]:
    """Groups of the sequences at `spans`, (first position, length), the longest first.

    A group holds at least one sequence; of more, the longest's length times their number is at most `most`, and its
    square times their number at most `raggedness` times the sum of their own squares.
    """
    ordered = sorted(spans, key=lambda span: -span[1])
    starts, lengths = moved(torch.tensor(ordered, dtype=torch.long), device).unbind(1)
    begin = 0
    while begin < len(ordered):
        longest = ordered[begin][1]
        end, real = begin + 1, longest**2
        while end < len(ordered):
            real += ordered[end][1] ** 2
            count = end + 1 - begin
            if count * longest > most or count * longest**2 > raggedness * real:
                break
            end += 1
        places = torch.arange(longest, device=device)
        first, size = starts[begin:end, None], lengths[begin:end, None]
        if ordered[end - 1][1] < longest:
            yield Group(first + torch.minimum(places, size - 1), size[:, 0], places < size, None)
        else:
            at = ordered[begin][0]
            follow = all(ordered[n][0] == at + (n - begin) * longest for n in range(begin, end))
            block = slice(at, at + (end - begin) * longest) if follow else None
            yield Group(first + places, size[:, 0], None, block)
        begin = end
