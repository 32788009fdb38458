"""What a person is told when something they can mend went wrong.

Ignores how it is shown (`console`) and what a bug looks like: a bug keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import shlex
from contextlib import suppress
from pathlib import Path

from minilm_cli import __version__

#: Characters of the name of a version.
_LONGEST_VERSION = 50

#: What to do about what the system says.
_REMEDIES = {
    errno.ENAMETOOLONG: "Give it a shorter name.",
    errno.ELOOP: "It is a link that leads back to itself: name what it should lead to.",
    errno.ENOSPC: "Make room, or name another place.",
    errno.EDQUOT: "Make room, or name another place.",
    errno.EROFS: "Name another place.",
    errno.EMFILE: "Allow this shell more open files: ulimit -n 65536",
}


class MinilmError(Exception):
    """Something the user gave is wrong (exit status 2).

    `message` says what is wrong, `where` names the file, line or setting, `hint` says what to do about it.
    """

    exit_status = 2

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return "\n".join(part for part in (self._located(), self.hint) if part)

    def _located(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class InputChanged(MinilmError):
    """An input is not what it was when the work on it began."""


class RunError(MinilmError):
    """What the user gave is right, but the work failed while it ran (exit status 1)."""

    exit_status = 1


class Interrupted(MinilmError):
    """A signal ended the run after its state was saved (exit status 128 + the signal's number)."""

    def __init__(self, message: str, signal_number: int, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_status = 128 + signal_number


class Dismissed(MinilmError):
    """Another process of the same run says what happened: this one ends with its status, and says nothing."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(f"dismissed with exit status {exit_status}")
        self.exit_status = exit_status


def refuse_newer(what: str, value: object, readable: int, *, where: str, writer: str = "written_by") -> None:
    """Raise `MinilmError` if a file's `value` says that it is of a later format than `readable`.

    writer: the key under which stands the version of minilm that wrote it.
    """
    if not isinstance(value, dict):
        return
    version, by = value.get("format_version"), value.get(writer)
    if not isinstance(version, int) or version <= readable:
        return
    if not isinstance(by, str) or len(by) >= _LONGEST_VERSION:
        by = "of a later version"
    raise MinilmError(
        f"this {what} has format {version}, written by minilm {by}; this minilm, {__version__}, reads up to {readable}",
        where=where,
        hint="Upgrade minilm.",
    )


def remedy(error: OSError) -> str | None:
    """What to do about what the system refused, as a hint; `None` if nothing general can be said."""
    if isinstance(error, PermissionError) and isinstance(error.filename, str | bytes):
        place = shlex.quote(str(_nearest(Path(os.fsdecode(error.filename)))))
        return f"Do you have the right to it? See: ls -ld {place}"
    return _REMEDIES.get(error.errno or 0)


def _nearest(path: Path) -> Path:
    """The path, or the folder above it beyond which nothing can be seen."""
    for place in (path, *path.parents):
        with suppress(OSError):
            place.lstat()
            return place
    return path
