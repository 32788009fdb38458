"""How a job reports its progress to a person, without knowing who shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

Record = Mapping[str, float | int]


class Progress(Protocol):
    """Shows a person how far a job is: `done` of `total`, and what is worth knowing beside it."""

    def start(self, title: str, total: float | None, *, done: float = 0, unit: str = "steps") -> None:
        """A job begins: `done` of `total` (`None`: not known) units (`steps` or `bytes`) are behind it."""

    def update(self, done: float, shown: Record | None = None) -> None:
        """`done` units are behind it; `shown` replaces what stands beside the bar."""

    def stop(self) -> None:
        """The job is over."""


class NoProgress:
    """Progress that nobody sees."""

    def start(self, title: str, total: float | None, *, done: float = 0, unit: str = "steps") -> None:
        """Nothing."""

    def update(self, done: float, shown: Record | None = None) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""
