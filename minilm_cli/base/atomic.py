"""Outputs that are complete or absent.

An output is built in a temporary folder `.tmp-minilm-NAME-RANDOM/` next to its destination, so on the same file
system. When it is complete it is flushed to disk and renamed. The folder's `.minilm-lock` is locked as long as its
process lives: `sweep` removes folders whose lock is free, which killed processes left behind. An output that is
replaced first moves into `.replaced/` of the temporary folder. If the process is killed before the new output has its
name, `sweep` moves the old one back.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.locks import Held, Lock
from minilm_cli.base.overwrite import refuse_existing
from minilm_cli.base.write_errors import creating, writing

_TEMPORARY = ".tmp-minilm-"

_LOCK = ".minilm-lock"

_REPLACED = ".replaced"

#: How often to try again when another process removes a folder before it is locked.
_LOCK_TRIES = 100


@contextmanager
def staged(path: Path, *, force: bool = False, folder: bool | None = None) -> Iterator[Path]:
    """Yield a temporary path to build a file or folder at; move it to `path` if the block succeeds, else remove it.

    Raises what `refuse_existing` raises, and `RunError` if something cannot be written, as on a full disk.
    """
    with (
        room_for(path, force=force, folder=folder),
        _temporary_folder(path) as temporary,
        writing(path, inside=temporary),
    ):
        yield temporary / path.name
        refuse_existing(path, force=force, folder=folder)  # another process may have been faster
        _publish(temporary / path.name, path, temporary)


@contextmanager
def renewed(path: Path) -> Iterator[Path]:
    """Like `staged`, for a part of minilm's own folders, such as a checkpoint: it replaces what exists at `path`.

    If it cannot be written that is always a `RunError`, because the user did not choose the path.
    """
    with creating(path, chosen=False):
        path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    with _temporary_folder(path, chosen=False) as temporary, writing(path, inside=temporary):
        yield temporary / path.name
        _publish(temporary / path.name, path, temporary)


def publish(built: Path, path: Path, *, force: bool = False, folder: bool | None = None) -> None:
    """Move what was built on the same file system to `path`, as `staged` does; if that fails, `built` is unchanged."""
    with _temporary_folder(path) as temporary, writing(path):
        refuse_existing(path, force=force, folder=folder)
        _publish(built, path, temporary)


@contextmanager
def room_for(path: Path, *, force: bool = False, folder: bool | None = None) -> Iterator[None]:
    """Create the folder of an output, and remove it after the block if it is still empty.

    Removes what killed processes left next to `path`. Raises what `refuse_existing` raises.
    """
    refuse_existing(path, force=force, folder=folder)
    created = [parent for parent in path.parents if not parent.exists()]
    with creating(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise MinilmError("an output cannot be put below a file", where=str(path)) from None
    sweep(path.parent)
    try:
        yield
    finally:
        with suppress(OSError):  # not empty
            for parent in created:
                parent.rmdir()


def make_beside(path: Path, name: str) -> Path:
    """Create the folder `name` next to `path` unless it exists, and return it; raises as `staged` if it cannot."""
    folder = path.with_name(name)
    with creating(path):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)
    return folder


@contextmanager
def _temporary_folder(path: Path, *, chosen: bool = True) -> Iterator[Path]:
    """A locked temporary folder next to `path`, removed after the block."""
    with creating(path, chosen=chosen):
        lock = _lock_new_folder(path)
    folder = lock.path.parent
    try:
        yield folder
    finally:
        with suppress(OSError):
            with lock:
                _move_back(folder)
            shutil.rmtree(folder, ignore_errors=True)  # unlocked: NFS keeps open files


def _lock_new_folder(path: Path) -> Lock:
    for _ in range(_LOCK_TRIES):
        folder = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{path.name}-", dir=path.parent))
        if lock := _claim(folder):
            return lock
        shutil.rmtree(folder, ignore_errors=True)
    raise RunError(
        "file locks do not work on this file system",
        where=str(path.parent),
        hint="Choose another place, preferably a local disk.",
    )


def _claim(folder: Path) -> Lock | None:
    """The lock on a new folder, or `None` if a sweep in another process has just locked or removed it."""
    with suppress(Held, FileNotFoundError):
        lock = Lock(folder / _LOCK)
        if lock.in_place():
            return lock
        lock.close()
    return None


def sweep(folder: Path, *, own: bool = False) -> None:
    """Remove temporary folders that killed processes left in `folder`, after moving back what they were replacing.

    Those of living processes stay. own: no other process writes in `folder`, so temporary files are removed too.
    """
    for left in sorted(folder.glob(".tmp-*" if own else f"{_TEMPORARY}*")):
        with suppress(Held, OSError):
            if not left.is_dir():
                if own:
                    left.unlink()
                continue
            with Lock(left / _LOCK) as lock:
                if not lock.holds:
                    continue
                _move_back(left)
            shutil.rmtree(left, ignore_errors=True)


def restore(path: Path) -> None:
    """If `path` does not exist, move back what a process was replacing there when it was killed."""
    if not path.exists():
        sweep(path.parent)


def _publish(built: Path, path: Path, temporary: Path) -> None:
    # safetensors creates files for their owner only; the lock file has the mode of any new file.
    _sync_tree(built, mode=stat.S_IMODE((temporary / _LOCK).stat().st_mode))
    _put(built, path, aside=temporary / _REPLACED)
    sync(path.parent)


def _put(built: Path, path: Path, *, aside: Path) -> None:
    """Rename `built` to `path`. A file replaces a file at once; anything else first moves into `aside`."""
    if (path.exists() or path.is_symlink()) and not (built.is_file() and path.is_file()):
        aside.mkdir()
        path.rename(aside / path.name)
    built.rename(path)


def _move_back(temporary: Path) -> None:
    """Give what was to be replaced its name again, unless the new output has it."""
    aside = temporary / _REPLACED
    if not aside.is_dir():
        return
    for replaced in aside.iterdir():
        path = temporary.with_name(replaced.name)
        if not path.exists():
            replaced.rename(path)
    aside.rename(temporary / "obsolete")  # from now on it may be incomplete, and must not move back


def discard(path: Path) -> None:
    """Remove a folder such that it is complete or absent at any moment; `sweep` removes what a killed process left."""
    temporary = path.with_name(f".tmp-gone-{path.name}")
    path.rename(temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush one file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(path: Path, *, mode: int) -> None:
    """Give the file `path`, or all files in the folder `path`, this mode, and flush them and their folders to disk."""
    for child in (*path.rglob("*"), path) if path.is_dir() else (path,):
        if not child.is_symlink():
            if child.is_file():
                child.chmod(mode)
            sync(child)
