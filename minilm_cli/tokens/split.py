"""Which sequences of the stores are held out, and the shuffled order of the others: a pure function of the seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minilm_cli.base.seeding import derive
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.tokens.mixture import Mixture
from minilm_cli.tokens.permutation import permute
from minilm_cli.tokens.store import Indices


@dataclass(frozen=True)
class Part:
    """Sequences that are shuffled together: the first places of a fixed shuffle are held out."""

    indices: range
    held_out: int
    seed: int

    @property
    def trained(self) -> int:
        """Number of sequences to train on."""
        return len(self.indices) - self.held_out

    def shuffled(self, places: Indices) -> Indices:
        """The indices at these places of the fixed shuffle."""
        return self.indices.start + permute(places, len(self.indices), derive(self.seed, "held-out"))

    def train(self, places: Indices) -> Indices:
        """The indices at these places of the endless order of shuffled epochs."""
        epochs, places = np.divmod(places, self.trained)
        order = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order[here] = permute(places[here], self.trained, derive(self.seed, "epoch", int(epoch)))
        return self.shuffled(order + self.held_out)


def split(store: Mixture, *, seed: int, fraction: float, limit: int) -> list[Part]:
    """The parts of a mixture, each with its held-out share: `fraction` of it, and at most `limit` sequences in all."""
    limits = store.share_out(limit)
    return [
        Part(
            part,
            # At least one sequence is left to train on.
            held_out=min(math.ceil(len(part) * fraction), most, len(part) - 1),
            seed=seed if len(limits) == 1 else derive(seed, "part", number),
        )
        for number, (part, most) in enumerate(zip(store.parts, limits, strict=True))
    ]


def split_by(settings: DistillSettings, store: Mixture) -> list[Part]:
    """The parts that a run with these settings has."""
    evaluation = settings.evaluation
    return split(store, seed=settings.training.seed, fraction=evaluation.fraction, limit=evaluation.limit)


def held_out(parts: list[Part]) -> Indices:
    """The indices of all held-out sequences."""
    return np.concatenate([part.shuffled(np.arange(part.held_out)) for part in parts])


def spread(values: Sequence[Any], count: int) -> list[Any]:
    """At most `count` values, evenly spaced."""
    return list(values[:: max(1, len(values) // count)][:count])
