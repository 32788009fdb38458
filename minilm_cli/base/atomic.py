"""Outputs that are complete or absent: built under a temporary name beside their destination, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

from safetensors import SafetensorError

from minilm_cli.base.errors import MinilmError, RunError, remedy
from minilm_cli.base.locks import Held, Lock, holder

#: A folder that has a file of this name is worked on by whoever holds the lock on it.
LOCK = "lock"

#: What the names of folders begin with that outputs are built in.
_BUILDING = ".tmp-minilm-"

#: The same as `LOCK`, in such a folder.
_HOLDER_LOCK = ".minilm-lock"

#: There too: what stood in the output's place.
_REPLACED = ".replaced"

#: How often a lock is tried for that is lost as soon as it is taken.
LOCK_TRIES = 100


DEMO_MARK = ".minilm-demo"

#: A folder that holds all files of one of these was made by minilm: a store, a run, a checkpoint, an export, a demo.
_MARKS = (
    ("manifest.json", "shard-00000.npy"),
    ("settings.json", "plan.json"),
    ("checkpoint.json",),
    ("config.json", "loss.svg"),
    (DEMO_MARK,),
)


def refuse_existing(path: Path, *inputs: str | Path, force: bool, folder: bool | None = None) -> None:
    """Raise `MinilmError` if `path` exists and may not be replaced: without `force`, or if it is none of ours.

    inputs: files and folders that the output is made from, and would replace. folder: whether the output is a folder,
    which replaces no file, or a file, which replaces no folder; `None` if either may take the other's place.
    """
    if path.name in ("", ".."):
        raise MinilmError("an output needs a name of its own", where=str(path), hint="Name another --output.")
    if not force and (path.exists() or path.is_symlink()):
        raise MinilmError(
            "this output exists already", where=str(path), hint="Name another --output, or replace it with --force."
        )
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise _kept("this is a device, a pipe or a socket", path)
    if path.is_symlink() or not path.exists():  # a link is replaced, and not what it points to
        return
    if path.is_dir() and any(path.iterdir()):
        if not any(all((path / name).exists() for name in mark) for mark in _MARKS):
            raise _kept("this folder was not made by minilm", path)
        if Path.cwd().resolve().is_relative_to(path.resolve()):
            raise _kept("the current folder is in this one", path)
        if who := holder(path / LOCK):
            raise MinilmError(
                f"{who} is at work in this folder", where=str(path), hint="End that first, or name another --output."
            )
    for given in map(str, inputs):
        if PurePath(os.path.realpath(given)).is_relative_to(os.path.realpath(path)):
            raise MinilmError(
                f"this output would replace {given}, which is read", where=str(path), hint="Name another --output."
            )
    if folder is not None and folder != path.is_dir():
        there, wanted = ("file", "folder") if folder else ("folder", "file")
        raise _kept(f"this is a {there}, and the output is a {wanted}", path)


def _kept(what: str, path: Path) -> MinilmError:
    return MinilmError(f"{what}; --force does not replace it", where=str(path), hint="Name another --output.")


@contextmanager
def staged(path: Path, *, force: bool = False, folder: bool | None = None) -> Iterator[Path]:
    """Give a name beside `path` to build a file or folder under; move it to `path` when the block ends well.

    What was built is flushed to disk before it is renamed, and removed if the block raises, so `path` is whole or
    absent. `refuse_existing` says which `path` may be replaced. What cannot be written, on a full disk for example, is
    a `RunError`.
    """
    with room_for(path, force=force, folder=folder), _holder(path) as holding, writing(path, inside=holding):
        built = holding / path.name
        yield built
        refuse_existing(path, force=force, folder=folder)  # another process may have been faster
        _publish(built, path, holding)


@contextmanager
def renewed(path: Path) -> Iterator[Path]:
    """The same for a part of what is minilm's own, such as a checkpoint: whatever stands there gives way.

    That nothing can be written there is no mistake of the user's, but always a `RunError`.
    """
    with _refused(path, own=True):
        path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    with _holder(path, own=True) as holding, writing(path, inside=holding):
        built = holding / path.name
        yield built
        _publish(built, path, holding)


def publish(built: Path, path: Path, *, force: bool = False, folder: bool | None = None) -> None:
    """Flush what was built beside `path` to disk, and rename it; where that fails it is left as it is."""
    with _holder(path) as holding, writing(path):
        refuse_existing(path, force=force, folder=folder)  # as in `staged`
        _publish(built, path, holding)


def _publish(built: Path, path: Path, holding: Path) -> None:
    # safetensors gives its files to their owner alone; an output is as open as any new file.
    _sync_tree(built, mode=stat.S_IMODE((holding / _HOLDER_LOCK).stat().st_mode))
    _put(built, path, aside=holding / _REPLACED)
    sync(path.parent)


@contextmanager
def room_for(path: Path, *, force: bool = False, folder: bool | None = None) -> Iterator[None]:
    """Make the folder of an output, and remove it again if nothing has come to be in it when the block ends.

    Raises what `refuse_existing` raises. What killed processes left beside `path` is cleared away.
    """
    refuse_existing(path, force=force, folder=folder)
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise MinilmError("an output cannot be put below a file", where=str(path)) from None
    except OSError as error:
        message = f"the folder of this output cannot be made: {_reason(error)}"
        raise MinilmError(message, where=str(path), hint=remedy(error)) from None
    sweep(path.parent)
    try:
        yield
    finally:
        with suppress(OSError):  # folders made for an output that did not come to be; those in use stay
            for parent in made:
                parent.rmdir()


@contextmanager
def writing(path: Path, *, inside: Path | None = None) -> Iterator[None]:
    """Turn what the system says of a file that cannot be written into a `RunError` about `path`.

    inside: a folder; what is said of files outside is left as it is.
    """
    try:
        yield
    except SafetensorError as error:  # says nothing of which file
        raise RunError(f"it could not be written: {error}", where=str(path), hint=_room(path)) from error
    except OSError as error:
        about = None if error.filename is None else Path(os.fsdecode(error.filename))
        if inside is not None and about is not None and not about.is_relative_to(inside):
            raise
        raise RunError(
            f"it could not be written: {_reason(error)}", where=str(path), hint=_hint(error, path)
        ) from error


@contextmanager
def _refused(path: Path, *, own: bool = False) -> Iterator[None]:
    """Tell where nothing can be written beside `path`: for want of leave, which is a mistake, or for want of space.

    own: the path is not of the user's choice, so it is never a mistake.
    """
    try:
        yield
    except OSError as error:
        mistakes = () if own else (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
        kind = MinilmError if error.errno in mistakes else RunError
        message = f"nothing can be written here: {_reason(error)}"
        raise kind(message, where=str(path.parent), hint=_hint(error, path)) from None


def make_beside(path: Path, name: str) -> Path:
    """A folder of this name beside the output `path`, made if need be; raises as `staged` if it cannot be."""
    folder = path.with_name(name)
    with _refused(path):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)
    return folder


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _hint(error: OSError, path: Path) -> str | None:
    """What to do about what cannot be written at `path`."""
    return (None if isinstance(error, PermissionError) else _room(path)) or remedy(error)


def _room(path: Path) -> str | None:
    """How much may be written beside `path`, where that is little."""
    with suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        if free < 2**30:
            return f"There are {free / 1e6:,.0f} MB free in {path.parent}."
    return None


@contextmanager
def _holder(path: Path, *, own: bool = False) -> Iterator[Path]:
    """A locked folder beside `path`, on its file system, so that renaming is atomic; removed at the end."""
    with _refused(path, own=own):
        folder, lock = _locked_folder(path)
    try:
        with lock:
            yield folder
    finally:
        with suppress(OSError):
            _remove(folder)


def _locked_folder(path: Path) -> tuple[Path, Lock]:
    for _ in range(LOCK_TRIES):
        folder = Path(tempfile.mkdtemp(prefix=f"{_BUILDING}{path.name}-", dir=path.parent))
        if lock := _claim(folder):
            return folder, lock
        shutil.rmtree(folder, ignore_errors=True)
    raise no_lock(path)


def _claim(folder: Path) -> Lock | None:
    """The lock on a new folder, unless another process has taken it for one that was left behind."""
    with suppress(Held):
        return Lock.claim(folder / _HOLDER_LOCK)
    return None


def no_lock(path: Path) -> RunError:
    """What to raise where locks on files beside `path` are lost as soon as they are taken."""
    return RunError(
        "a file that is locked here is at once another one: this file system does not know its files again",
        where=str(path.parent),
        hint="Name another place, best on a disk of this machine.",
    )


def sweep(folder: Path, *, own: bool = False) -> None:
    """Clear away what killed processes left in `folder`, after putting back what they had only moved aside.

    What a living process works on stays. own: nobody else writes here, so that temporary files without a lock go too.
    """
    for left in sorted(folder.glob(".tmp-*" if own else f"{_BUILDING}*")) if folder.is_dir() else ():
        with suppress(Held, OSError):
            if (left / _HOLDER_LOCK).is_file():
                with Lock(left / _HOLDER_LOCK) as lock:
                    if lock.holds:
                        _put_back(left / _REPLACED, folder)
                        _remove(left)
            elif not own:
                left.rmdir()  # if it is empty: its process was killed before it could lock it
            elif left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


def restore(path: Path) -> None:
    """If there is nothing at `path`, put back what a process had moved aside that was killed while it replaced it."""
    if not path.exists():
        sweep(path.parent)


def _remove(folder: Path) -> None:
    """Remove a folder that outputs were built in; its lock last, by which it is known until then."""
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != _HOLDER_LOCK:
            child.unlink()
    shutil.rmtree(folder)


def _put_back(aside: Path, folder: Path) -> None:
    """Give what stands in `aside` its name in `folder` again, unless something new has it."""
    for replaced in aside.iterdir() if aside.is_dir() else ():
        if not (folder / replaced.name).exists():
            replaced.rename(folder / replaced.name)


def _put(built: Path, path: Path, *, aside: Path) -> None:
    """Rename `built` to `path`, after moving a folder that stood there into `aside`, for `sweep` to find.

    Nothing takes the place of a folder at once: a process that is killed in between leaves neither, and the next that
    looks puts the old one back. A file is replaced at once.
    """
    try:
        there = path.exists() or path.is_symlink()
        if there and not (built.is_file() and path.is_file()):
            aside.mkdir()
            path.rename(aside / path.name)
        built.rename(path)
    except BaseException:
        _put_back(aside, path.parent)
        raise


def discard(path: Path) -> None:
    """Remove a folder at once: it is whole or absent, whatever happens meanwhile (`sweep` clears away the rest)."""
    gone = path.with_name(f".tmp-gone-{path.name}")
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush one file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(path: Path, *, mode: int) -> None:
    """Flush a file, or a folder and all that is in it, to disk; files get this mode."""
    for child in (*path.rglob("*"), path) if path.is_dir() else (path,):
        if not child.is_symlink():
            if child.is_file():
                child.chmod(mode)
            sync(child)
