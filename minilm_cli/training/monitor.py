"""Warnings about runs that diverge or learn nothing."""

from __future__ import annotations

from collections import deque
from statistics import fmean, median

#: Steps that are looked at, and those before them that they are compared with.
RECENT, BEFORE = 20, 200

#: Exploding: the gradient norm has grown by this factor, and the loss by this one.
NORM_GROWTH, LOSS_GROWTH = 10.0, 1.2

#: Dead: the loss is still this share of the first, after the warm-up; or it is this share, and the gradient norm that
#: share of the largest so far.
NOTHING_LEARNT, LITTLE_LEARNT, NORM_LEFT = 0.98, 0.5, 1e-3

#: Steps before the same warning is repeated.
AGAIN = 5000


class Monitor:
    """Looks at every step's loss and gradient norm, and says when a run has most likely failed.

    It would rather miss a failure than be wrong: a norm that grows while the loss falls is learning, and a small one
    with a small loss is success.
    """

    def __init__(self, *, warmup_steps: int, first_loss: float | None = None) -> None:
        """first_loss: its value when the run was interrupted."""
        self.first_loss = first_loss
        """The mean loss of the first steps, once they are done."""
        self._warmup_steps = warmup_steps
        self._losses: deque[float] = deque(maxlen=BEFORE + RECENT)
        self._norms: deque[float] = deque(maxlen=BEFORE + RECENT)
        self._largest_norm = 0.0
        self._warned: dict[str, int] = {}

    def look(self, step: int, loss: float, grad_norm: float) -> list[str]:
        """Take the numbers of a step; returns warnings about the run."""
        self._losses.append(loss)
        self._norms.append(grad_norm)
        if step == RECENT == len(self._losses):
            self.first_loss = fmean(self._losses)
        if len(self._losses) < 2 * RECENT or step % RECENT:
            return []
        norm = median(list(self._norms)[-RECENT:])
        self._largest_norm = max(self._largest_norm, norm)
        found = {"exploding": self._exploding(norm), "dead": self._dead(step, norm)}
        return [text for what, text in found.items() if text and self._is_new(step, what)]

    def _exploding(self, norm: float) -> str | None:
        before = median(list(self._norms)[:-RECENT])
        loss, loss_before = fmean(list(self._losses)[-RECENT:]), fmean(list(self._losses)[:-RECENT])
        if norm <= NORM_GROWTH * before or loss <= LOSS_GROWTH * loss_before:
            return None
        return (
            f"The gradient is exploding: over the last {RECENT} steps its norm was {norm:.3g}, after {before:.3g}, and"
            f" the loss {loss:.3g}, after {loss_before:.3g}. A lower learning rate may save the run."
        )

    def _dead(self, step: int, norm: float) -> str | None:
        loss, first = fmean(self._losses), self.first_loss
        if not first:
            return None
        warm = len(self._losses) == BEFORE + RECENT and step >= self._warmup_steps + BEFORE + RECENT
        still = norm <= NORM_LEFT * self._largest_norm
        if not (warm and loss > NOTHING_LEARNT * first) and not (still and loss > LITTLE_LEARNT * first):
            return None
        return (
            f"The student seems dead: over the last {len(self._losses)} steps the loss was {loss:.3g}, at first it was"
            f" {first:.3g}, and the gradient norm is {norm:.3g}. Another learning rate, in a new run, may help."
        )

    def _is_new(self, step: int, what: str) -> bool:
        last = self._warned.get(what)
        if last is not None and step - last < AGAIN:
            return False
        self._warned[what] = step
        return True
