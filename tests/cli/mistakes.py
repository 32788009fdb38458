"""Mistakes of the user: the command, what is prepared before it, its message; and the checks that hold for all."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conftest import Minilm

Preparation = Callable[[], object]

#: Prepares the file of the given name.
Damage = Callable[[str], Preparation]

#: Files up to this size, in bytes, are compared by content.
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
    message: tuple[str, ...]
    """Parts of the message."""
    prepare: Preparation = _nothing
    """Called in the folder in which the command runs."""
    status: int = 2

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def in_options(command: str, table: Mapping[str, tuple[str, ...]]) -> list[Mistake]:
    """The mistakes of a table from wrong options to the parts of the message."""
    return [Mistake(words[:60], f"{command} {words}", message) for words, message in table.items()]


def check_mistake(mistake: Mistake, minilm: Minilm) -> None:
    """The message is as expected, short, without traceback and on stderr only; and no file has changed."""
    mistake.prepare()
    before = _files()
    outcome = minilm(*shlex.split(mistake.words))
    assert outcome.status == mistake.status, outcome.err
    for part in mistake.message:
        assert part in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert 1 <= len(outcome.err.splitlines()) <= 8
    assert _files() == before


def _files() -> dict[Path, object]:
    """Everything in the current folder and in the folder for temporary files next to it."""
    return {
        Path(folder, name): _content(Path(folder, name))
        for folder, folders, files in os.walk(Path.cwd().parent)
        for name in (*folders, *files)
    }


def _content(path: Path) -> object:
    """The bytes of a small file; size and time of a larger one."""
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

#: The value of an entry to remove.
REMOVED: Any = object()


def write(name: str, content: str | bytes) -> Preparation:
    """Write a file."""
    return lambda: Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


def edit(name: str, **entries: Any) -> Preparation:
    """Change entries of a JSON file."""

    def change() -> None:
        path = Path(name)
        values = json.loads(path.read_text(encoding="utf-8")) | entries
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not REMOVED}))

    return change


def remove(name: str) -> Preparation:
    """Remove a file, link or folder, if it exists."""

    def go() -> None:
        path = Path(name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    return go


def halve(name: str) -> Preparation:
    """Remove the second half of a file."""
    return lambda: os.truncate(name, Path(name).stat().st_size // 2)


def flip(name: str) -> Preparation:
    """Change the last byte of a file."""

    def damage() -> None:
        content = bytearray(Path(name).read_bytes())
        content[-1] ^= 0xFF
        Path(name).write_bytes(content)

    return damage


def folder(name: str) -> Preparation:
    """Make an empty folder, in place of what has this name."""
    return all_of(remove(name), lambda: Path(name).mkdir(parents=True))


def file(name: str) -> Preparation:
    """Make an empty file, in place of what has this name."""
    return all_of(remove(name), write(name, ""))


def link(name: str, target: str) -> Preparation:
    """Make a link, in place of what has this name."""
    return all_of(remove(name), lambda: Path(name).symlink_to(target))


def pipe(name: str) -> Preparation:
    """Make a pipe without a writer, in place of what has this name."""
    return all_of(remove(name), lambda: os.mkfifo(name))


def mode(name: str, bits: int) -> Preparation:
    """Change the permissions of a file or folder."""
    return lambda: Path(name).chmod(bits)


def folder_with(name: str, files: tuple[str, ...] = (), bits: int = 0o700) -> Preparation:
    """Make a folder of empty files, and then change its permissions."""
    return all_of(folder(name), *(write(f"{name}/{inner}", "") for inner in files), mode(name, bits))


def all_of(*preparations: Preparation) -> Preparation:
    """One preparation after the other."""

    def go() -> None:
        for prepare in preparations:
            prepare()

    return go


#: Contents that are neither JSON objects nor weights nor tables.
WRONG_CONTENT: Mapping[str, Damage] = {
    "empty": lambda name: write(name, ""),
    "zero bytes": lambda name: write(name, bytes(5000)),
    "all bytes": lambda name: write(name, bytes(range(256))),
    "null": lambda name: write(name, "null"),
    "nested deeply": lambda name: write(name, "[" * 100_000),
}

#: What may be in the place of a file.
NOT_A_FILE: Mapping[str, Damage] = {
    "a folder": folder,
    "a pipe": pipe,
    "a device": lambda name: link(name, "/dev/zero"),
    "a broken link": lambda name: link(name, "nowhere/file"),
    "a link to itself": lambda name: link(name, Path(name).name),
}
