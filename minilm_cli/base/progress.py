"""How a job reports its progress, without knowing how it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

Record = Mapping[str, float | int]


class Progress(Protocol):
    """Shows how far a job is."""

    def announce(self, title: str, rows: Iterable[Sequence[str]]) -> None:
        """Before a job: what it is going to do, as names and values."""

    def start(self, title: str, total: float | None, *, done: float = 0, unit: str = "steps") -> None:
        """A job begins, with `done` of `total` units (`steps` or `bytes`) finished; `total` may be unknown."""

    def update(self, done: float, shown: Record | None = None, *, left: float | None = None) -> None:
        """`done` units are finished; the numbers `shown` replace those next to the bar.

        left: seconds until the end, if the job knows better than its share of units says.
        """

    def activity(self, text: str) -> None:
        """What is done now instead of the units, such as saving; an empty text: the units again."""

    def stop(self) -> None:
        """The job is over."""


class NoProgress:
    """Shows nothing."""

    def announce(self, title: str, rows: Iterable[Sequence[str]]) -> None:
        """Do nothing."""

    def start(self, title: str, total: float | None, *, done: float = 0, unit: str = "steps") -> None:
        """Do nothing."""

    def update(self, done: float, shown: Record | None = None, *, left: float | None = None) -> None:
        """Do nothing."""

    def activity(self, text: str) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""
