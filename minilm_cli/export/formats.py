"""What a format of an export does; each has a module of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from minilm_cli.export.source import Source


@dataclass(frozen=True)
class Verified:
    """What was found by loading an export as its users do."""

    largest_difference: float
    """Of token states and sentence embeddings, as a share of the largest value."""
    kept: Mapping[str, Any] = field(default_factory=dict)
    """What a quantised model keeps of the embeddings (see `verify.Kept`)."""


class Format(Protocol):
    """A way to hand out a model."""

    def check(self, source: Source) -> None:
        """Raise `MinilmError` if this model cannot be exported so, before anything is written."""

    def write(self, source: Source, folder: Path) -> None:
        """Write the model and its tokenizer into a new folder."""

    def verify(self, source: Source, folder: Path) -> Verified:
        """Use the folder as others do and compare; raises `RunError` if it does not compute the same."""
