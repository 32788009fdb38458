"""The token ids of a micro-batch, and what each model makes of them: one batch, an adapter for teacher and student."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minilm_cli.models.families import family_of
from minilm_cli.tokens.store import TokenIds

Layout = Literal["packed", "padded", "equal"]
"""How the sequences of a micro-batch go through a model: in one row; each in a row as long as the longest; or the same
with sequences of one length each time, for models whose outputs depend on padding."""


@dataclass(frozen=True)
class Inputs:
    """Sequences of token ids, in the way that no model in particular wants them.

    Packed, they stand one after the other in a single row; padded, each is a row of its own.
    """

    ids: Tensor
    """Token ids, (1, tokens) if packed, else (sequences, longest), 0 in place of padding."""
    lengths: tuple[int, ...]
    """Real tokens of each sequence."""
    positions: Tensor | None = None
    """Packed only: the place of each token in its sequence, from 0, (1, tokens)."""
    mask: Tensor | None = None
    """Padded only: 1 for a real token, 0 for padding, (sequences, longest)."""

    @classmethod
    def packed(cls, sequences: Sequence[TokenIds]) -> Inputs:
        """The sequences in one row."""
        lengths = tuple(map(len, sequences))
        positions = np.concatenate([np.arange(length) for length in lengths])[None]
        return cls(_tensor(np.concatenate(sequences)[None]), lengths, positions=_tensor(positions))

    @classmethod
    def padded(cls, sequences: Sequence[TokenIds]) -> Inputs:
        """Each sequence in a row as long as the longest."""
        lengths = tuple(map(len, sequences))
        places = np.arange(max(lengths))
        ids = np.zeros((len(sequences), len(places)), dtype=np.int64)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = sequence
        return cls(_tensor(ids), lengths, mask=_tensor(places < np.array(lengths)[:, None]))

    @property
    def is_packed(self) -> bool:
        """Whether the sequences stand in one row."""
        return self.positions is not None

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(start, length) of each sequence among the flattened positions."""
        if self.is_packed:
            starts = itertools.accumulate(self.lengths[:-1], initial=0)
        else:
            starts = itertools.count(0, self.ids.shape[1])  # type: ignore[assignment]  # it has no end
        return list(zip(starts, self.lengths, strict=False))

    def to(self, device: torch.device) -> Inputs:
        """The same on another device, without waiting for it."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Inputs:
        """The same in memory that a GPU can read while it computes."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        positions, mask = (None if tensor is None else function(tensor) for tensor in (self.positions, self.mask))
        return Inputs(function(self.ids), self.lengths, positions, mask)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))


class InputAdapter:
    """Turns `Inputs` into the keyword arguments of one model, with padding and positions as its family counts them."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._first_position = family_of(model.config).first_position(model)
        self._pad_id = model.config.pad_token_id or 0

    def __call__(self, inputs: Inputs) -> dict[str, Tensor]:
        """`input_ids`, and `attention_mask` (padded) or `position_ids` (packed)."""
        if inputs.positions is not None:
            return {"input_ids": inputs.ids, "position_ids": self._positions(inputs.ids, inputs.positions)}
        assert inputs.mask is not None
        ids = inputs.ids if not self._pad_id else inputs.ids.masked_fill(inputs.mask == 0, self._pad_id)
        return {"input_ids": ids, "attention_mask": inputs.mask}

    def _positions(self, ids: Tensor, places: Tensor) -> Tensor:
        """The positions that the model itself gives a row without padding: (1, tokens), from places that begin at 0.

        RoBERTa and its relatives do not count a token with their padding id, which stays at the position of that
        number. In an MPNet student this may be a real token: its padding id is fixed, whatever the vocabulary.
        """
        if not self._first_position:
            return places
        padding = self._first_position - 1
        uncounted = (ids == padding).long()
        before = uncounted.cumsum(1) - uncounted
        starts = torch.arange(ids.shape[1], device=ids.device) - places
        counted = places - (before - before.gather(1, starts))
        return torch.where(uncounted.bool(), padding, counted + self._first_position)
