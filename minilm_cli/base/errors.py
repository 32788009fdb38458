"""Errors that a user can fix: what is wrong, where, and what to do.

`console` decides how they are shown. A bug is none of them and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import shlex
from contextlib import suppress
from pathlib import Path

from minilm_cli import __version__

_REMEDIES = {
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "This link leads back to itself; give the path of its target.",
    errno.ENOSPC: "Free some space, or choose another place.",
    errno.EDQUOT: "Free some space, or choose another place.",
    errno.EROFS: "Choose another place.",
    errno.EMFILE: "Allow more open files in this shell: ulimit -n 65536",
}


class MinilmError(Exception):
    """Something the user gave is wrong (exit status 2).

    `message` says what is wrong, `where` names the file, line or setting, `hint` says what to do.
    """

    exit_status = 2

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        located = f"{self.where}: {self.message}" if self.where else self.message
        return "\n".join(filter(None, (located, self.hint)))


class InputChanged(MinilmError):
    """An input changed while it was being read."""


class RunError(MinilmError):
    """What the user gave is right, but the work failed while it ran (exit status 1)."""

    exit_status = 1


class Interrupted(MinilmError):
    """A signal ended the run after its state was saved (exit status 128 + the signal's number)."""

    def __init__(self, message: str, signal_number: int, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_status = 128 + signal_number


class Dismissed(MinilmError):
    """Another process of the same run reports the error: this one ends with the same status, silently."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(f"dismissed with exit status {exit_status}")
        self.exit_status = exit_status


def refuse_newer(what: str, value: object, readable: int, *, where: str, writer: str = "written_by") -> None:
    """Raise `MinilmError` if the content `value` of a file has a `format_version` above `readable`.

    writer: the key of the minilm version that wrote the file.
    """
    if not isinstance(value, dict):
        return
    version = value.get("format_version")
    if not isinstance(version, int) or version <= readable:
        return
    by = value.get(writer, "?")
    raise MinilmError(
        f"this {what} has format {version}, written by minilm {by}; this minilm, {__version__}, reads up to {readable}",
        where=where,
        hint="Upgrade minilm.",
    )


def reason(error: OSError) -> str:
    """What the operating system says."""
    return error.strerror or str(error)


def remedy(error: OSError) -> str | None:
    """What to do about an error of the operating system, as a hint; `None` if nothing general can be said."""
    if isinstance(error, PermissionError) and isinstance(error.filename, str | bytes):
        place = shlex.quote(str(_visible(Path(os.fsdecode(error.filename)))))
        return f"Check the permissions: ls -ld {place}"
    return _REMEDIES.get(error.errno or 0)


def _visible(path: Path) -> Path:
    """The path, or the nearest folder above it that can be listed with `ls -ld`."""
    for place in (path, *path.parents):
        with suppress(OSError):
            place.lstat()
            return place
    return path
