"""Which existing outputs may be replaced: with `--force`, and only what minilm made."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.locks import LOCK, holder

DEMO_MARK, EXPORT_MARK = ".minilm-demo", "minilm-export.json"

#: A folder that contains all files of one of these was made by minilm: a store, run, checkpoint, export or demo.
_MARKS = (
    ("manifest.json", "shard-00000.npy"),
    ("settings.json", "plan.json"),
    ("checkpoint.json",),
    ("config.json", "loss.svg"),
    (EXPORT_MARK,),
    (DEMO_MARK,),
)

_ELSEWHERE = "Choose another --output."


def refuse_existing(path: Path, *inputs: str | Path, force: bool, folder: bool | None = None) -> None:
    """Raise `MinilmError` if `path` exists and must not be replaced.

    inputs: files and folders that the output is made from; an output that contains one is refused. folder: whether the
    output is a folder, which must not replace a file, or a file, which must not replace a folder; `None`: no check.
    """
    if path.name in ("", ".."):
        raise MinilmError("an output needs a name of its own", where=str(path), hint=_ELSEWHERE)
    if not (path.exists() or path.is_symlink()):
        return
    if not force:
        hint = "Choose another --output, or replace it with --force."
        raise MinilmError("this output exists already", where=str(path), hint=hint)
    if path.is_symlink():  # the link is replaced, not its target
        return
    if path.is_dir():
        _refuse_folder(path)
    elif not path.is_file():
        raise _kept("this is a device, a pipe or a socket", path)
    for given in map(str, inputs):
        if PurePath(os.path.realpath(given)).is_relative_to(os.path.realpath(path)):
            message = f"this output would replace {given}, which is an input"
            raise MinilmError(message, where=str(path), hint=_ELSEWHERE)
    if folder is not None and folder != path.is_dir():
        found, wanted = ("file", "folder") if folder else ("folder", "file")
        raise _kept(f"this is a {found}, and the output is a {wanted}", path)


def _refuse_folder(path: Path) -> None:
    """Raise `MinilmError` if this folder is not empty, and was not made by minilm or is in use."""
    if not any(path.iterdir()):
        return
    if not any(all((path / name).exists() for name in mark) for mark in _MARKS):
        raise _kept("this folder was not made by minilm", path)
    if Path.cwd().resolve().is_relative_to(path.resolve()):
        raise _kept("this folder contains the current working directory", path)
    if who := holder(path / LOCK):
        raise MinilmError(
            f"{who} is using this folder", where=str(path), hint="Stop that process, or choose another --output."
        )


def _kept(what: str, path: Path) -> MinilmError:
    return MinilmError(f"{what}; --force does not replace it", where=str(path), hint=_ELSEWHERE)
