"""A mistake: how it is made, and what is said of it. And what is true of every one."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conftest import Minilm


def _nothing() -> None:
    """Prepare nothing."""


@dataclass(frozen=True)
class Mistake:
    """A command line that is refused."""

    name: str
    words: str
    """As typed after `minilm`."""
    says: tuple[str, ...]
    """All of these are in the message."""
    prepare: Callable[[], object] = _nothing
    """Called in the folder that the command is run in."""
    status: int = 2

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def is_told(mistake: Mistake, minilm: Minilm) -> None:
    """The message names the thing and the remedy, in a few lines of stderr alone, and no file has changed."""
    mistake.prepare()
    before = _files()
    outcome = minilm(*shlex.split(mistake.words))
    assert outcome.status == mistake.status, outcome.err
    for words in mistake.says:
        assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert 1 <= len(outcome.err.splitlines()) <= 8
    assert _files() == before


def _files() -> dict[str, str]:
    """Everything in the current folder and the one for temporary files beside it: name and content."""
    found = {}
    for path in sorted(Path.cwd().parent.rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"→ {path.readlink()}"
        else:
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found
