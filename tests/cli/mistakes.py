"""A mistake: how it is made, and what is said of it. And what is true of every one."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conftest import Minilm

Preparation = Callable[[], object]

#: Bytes of a file whose content is compared.
SMALL = 2**16

DISTILL = "distill --teacher teacher --student-config config.json --steps 4 --batch-size 4 "


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
    prepare: Preparation = _nothing
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


def _files() -> dict[Path, object]:
    """Everything in the current folder and in the one for temporary files next to it."""
    return {
        Path(folder, name): _content(Path(folder, name))
        for folder, folders, files in os.walk(Path.cwd().parent)
        for name in (*folders, *files)
    }


def _content(path: Path) -> object:
    """What a change of the file would change: the bytes of a small one, size and time of others."""
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            return path.readlink()
        if stat.S_ISREG(status.st_mode) and status.st_size <= SMALL:
            return path.read_bytes()
    except PermissionError:
        return "unreadable"
    return (status.st_mode, status.st_ino, *((status.st_size, status.st_mtime_ns) if path.is_file() else ()))


# --- Preparations ------------------------------------------------------------------------------------------------

#: The value of an entry that is to be removed.
REMOVED: Any = object()


def write(name: str, content: str | bytes) -> Preparation:
    """A file with this content."""
    return lambda: Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


def edit(name: str, **entries: Any) -> Preparation:
    """A JSON file with other entries."""

    def change() -> None:
        path = Path(name)
        values = json.loads(path.read_text(encoding="utf-8")) | entries
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not REMOVED}))

    return change


def remove(*names: str) -> Preparation:
    """Files, links and folders that are not there."""

    def go() -> None:
        for path in map(Path, names):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    return go


def halve(name: str) -> Preparation:
    """A file of which the second half is missing."""
    return lambda: os.truncate(name, Path(name).stat().st_size // 2)


def flip(name: str) -> Preparation:
    """A file whose last byte is wrong."""

    def damage() -> None:
        content = bytearray(Path(name).read_bytes())
        content[-1] ^= 0xFF
        Path(name).write_bytes(content)

    return damage


def folder(name: str) -> Preparation:
    """A folder where a file was, or nothing."""
    return all_of(remove(name), lambda: Path(name).mkdir(parents=True))


def link(name: str, target: str) -> Preparation:
    """A link where something else was, or nothing."""
    return all_of(remove(name), lambda: Path(name).symlink_to(target))


def pipe(name: str) -> Preparation:
    """A pipe that nobody writes to where a file was, or nothing."""
    return all_of(remove(name), lambda: os.mkfifo(name))


def mode(name: str, bits: int) -> Preparation:
    """A file or folder that may be read, written and searched by fewer."""
    return lambda: Path(name).chmod(bits)


def all_of(*preparations: Preparation) -> Preparation:
    """One preparation after the other."""

    def go() -> None:
        for prepare in preparations:
            prepare()

    return go
