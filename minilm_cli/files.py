"""Outputs that are whole or absent, and the checksums that show it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minilm_cli.errors import MinilmError

DEMO_MARK = ".minilm-demo"

#: A folder that holds all files of one of these was made by minilm: a store, a run, a checkpoint, an export, a demo.
_MARKS = (
    ("manifest.json", "shard-00000.npy"),
    ("settings.json", "plan.json"),
    ("checkpoint.json",),
    ("config.json", "loss.svg"),
    (DEMO_MARK,),
)


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise `MinilmError` if `path` exists and may not be replaced: without `force`, or if it is none of ours."""
    if not force and (path.exists() or path.is_symlink()):
        raise MinilmError(
            "this output exists already", where=str(path), hint="Name another --output, or replace it with --force."
        )
    if path.is_dir() and not path.is_symlink() and any(path.iterdir()):
        ours = any(all((path / name).exists() for name in mark) for mark in _MARKS)
        if not ours or Path.cwd().resolve().is_relative_to(path.resolve()):
            raise MinilmError("this folder was not made by minilm; --force does not replace it", where=str(path))


@contextmanager
def staged(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a name beside `path` to build a file or folder under; move it to `path` when the block ends well.

    What was built is flushed to disk before it is renamed, and removed if the block raises, so `path` is whole or
    absent. An existing `path` is replaced with `force`, else refused with `MinilmError`.
    """
    refuse_existing(path, force=force)
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise MinilmError("an output cannot be put below a file", where=str(path)) from None
    # A private folder beside the destination: same file system, so that the rename is atomic.
    holder = Path(tempfile.mkdtemp(prefix=f".tmp-{path.name}-", dir=path.parent))
    try:
        built = holder / path.name
        yield built
        sync_tree(built)
        _put(built, path, aside=holder / "replaced")
        sync(path.parent)
    finally:
        shutil.rmtree(holder, ignore_errors=True)
        with suppress(OSError):  # folders made for an output that did not come to be; those in use stay
            for parent in made:
                parent.rmdir()


def _put(built: Path, path: Path, *, aside: Path) -> None:
    """Rename `built` to `path`, and what stood there to `aside`; if that fails, what stood there stays."""
    try:
        if path.exists() or path.is_symlink():
            path.rename(aside)
        built.rename(path)
    except BaseException:
        if aside.exists() and not path.exists():
            aside.rename(path)
        raise


def sync(path: Path) -> None:
    """Flush one file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """Flush a file, or a folder and all that is in it, to disk."""
    for child in path.rglob("*") if path.is_dir() else ():
        if not child.is_symlink():
            sync(child)
    sync(path)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, *, kind: str) -> Any:
    """Parse a JSON file; `kind` names it in the `MinilmError` raised where that fails."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MinilmError(f"there is no such {kind}", where=str(path)) from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise MinilmError(f"this {kind} cannot be read as JSON: {error}", where=str(path)) from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, to be read by people too; what stood there is replaced at once or not at all."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
