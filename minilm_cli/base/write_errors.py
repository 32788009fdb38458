"""Errors of the operating system while writing, as messages for users."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from minilm_cli.base.errors import MinilmError, RunError, reason, remedy

#: Below this many free bytes, an error of writing mentions how many there are.
_LITTLE_SPACE = 2**30


@contextmanager
def writing(path: Path, *, inside: Path | None = None) -> Iterator[None]:
    """Raise errors of writing as `RunError` about `path`.

    inside: a folder; errors about files outside it are not changed.
    """
    try:
        yield
    except SafetensorError as error:  # does not name the file
        raise RunError(f"could not be written: {error}", where=str(path), hint=_space(path)) from error
    except OSError as error:
        about = None if error.filename is None else Path(os.fsdecode(error.filename))
        if inside is not None and about is not None and not about.is_relative_to(inside):
            raise
        message = f"could not be written: {reason(error)}"
        raise RunError(message, where=str(path), hint=_hint(error, path)) from error


@contextmanager
def creating(path: Path, *, chosen: bool = True) -> Iterator[None]:
    """Raise errors of creating `path` in its folder as `MinilmError` or, if the disk is full or fails, as `RunError`.

    chosen: whether the user chose the path; if not, the error is never theirs, so always a `RunError`.
    """
    try:
        yield
    except OSError as error:
        wrong_place = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
        kind = MinilmError if chosen and wrong_place else RunError
        message = f"nothing can be written here: {reason(error)}"
        folder = Path(os.fsdecode(error.filename or path)).parent
        raise kind(message, where=str(folder), hint=_hint(error, path)) from None


def _hint(error: OSError, path: Path) -> str | None:
    return (None if isinstance(error, PermissionError) else _space(path)) or remedy(error)


def _space(path: Path) -> str | None:
    """How many bytes are free in the folder of `path`, if they are few."""
    with suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        if free < _LITTLE_SPACE:
            return f"Only {free / 1e6:,.0f} MB free in {path.parent}."
    return None
