"""The held-out loss over a run: where it began, where it ended, and where it was best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class HeldOut:
    """The evaluations of a run, in short."""

    first: float
    last: float
    best: float
    best_step: int
    """The step with a checkpoint (that is, after 0) where the loss was lowest."""

    @classmethod
    def of(cls, records: Iterable[Mapping[str, float]]) -> HeldOut | None:
        """Those among the records of `metrics.jsonl`; `None` without one after the start."""
        found = [(record["eval_loss"], int(record["step"])) for record in records if "eval_loss" in record]
        saved = [(loss, step) for loss, step in found if step > 0]
        if not saved or not found[1:]:
            return None
        best, best_step = min(saved)
        return cls(found[0][0], found[-1][0], best, best_step)

    @property
    def improved(self) -> bool:
        """Whether the loss at the end is below that at the start."""
        return self.last < self.first

    @property
    def warning(self) -> str | None:
        """What to say of a run that did not improve."""
        if self.improved:
            return None
        return f"The held-out loss did not improve: {self.first:.4g} at the start, {self.last:.4g} at the end."

    @property
    def best_before(self) -> str | None:
        """What to say if an earlier checkpoint than the last is the best."""
        if self.best >= self.last:
            return None
        return f"The held-out loss was lowest at step {self.best_step}: {self.best:.4g}."
