"""How a job reports its progress, without knowing how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

Record = Mapping[str, float | int]


class Progress(Protocol):
    """Shows how far a job is."""

    def start(self, title: str, total: float | None, *, done: float = 0, unit: str = "steps") -> None:
        """A job begins, with `done` of `total` units (`steps` or `bytes`) finished; `total` may be unknown."""

    def update(self, done: float, shown: Record | None = None) -> None:
        """`done` units are finished; the numbers `shown` replace those next to the bar."""

    def stop(self) -> None:
        """The job is over."""


class NoProgress:
    """Shows nothing."""

    def start(self, title: str, total: float | None, *, done: float = 0, unit: str = "steps") -> None:
        """Do nothing."""

    def update(self, done: float, shown: Record | None = None) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""
