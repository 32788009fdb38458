"""Checkpoints: one folder a step, whole or absent, checksummed, no pickle.

`checkpoints/step-00001000/` holds a `.safetensors` file for each group of tensors and `checkpoint.json`: format
version, step, the checksum of each file, and what else the caller wants to find again. A folder without it, or whose
checksums differ, is no checkpoint. Ignores what the tensors mean.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minilm_cli.errors import MinilmError, RunError
from minilm_cli.files import read_json, sha256, staged, write_json

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d{8,})")
_MANIFEST = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A sound checkpoint: its checksums were compared."""

    path: Path
    step: int
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the caller saved beside the tensors."""

    def tensors(self, group: str) -> dict[str, Tensor]:
        """The tensors of one group, by name."""
        return load_file(self.path / f"{group}.safetensors")


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], notes: Mapping[str, Any]) -> Checkpoint:
    """Write the checkpoint of `step` into `folder`, replacing one of the same step."""
    path = folder / f"step-{step:08}"
    with staged(path, force=True) as built:
        built.mkdir()
        for group, members in tensors.items():
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in members.items()}
            save_file(contiguous, built / f"{group}.safetensors")
        checksums = {file.name: sha256(file) for file in sorted(built.iterdir())}
        manifest = {"format_version": FORMAT_VERSION, "step": step, "sha256": checksums, "notes": dict(notes)}
        write_json(built / _MANIFEST, manifest)
    return Checkpoint(path, step, notes)


def load(path: Path) -> Checkpoint:
    """Open one checkpoint after comparing its checksums; raises `RunError` saying which file failed which check."""
    try:
        manifest = read_json(path / _MANIFEST, kind="checkpoint manifest")
    except MinilmError as error:
        raise RunError(error.message, where=error.where) from None
    try:
        if manifest["format_version"] > FORMAT_VERSION:
            raise RunError(f"this checkpoint has format {manifest['format_version']}: upgrade minilm", where=str(path))
        step, checksums, notes = int(manifest["step"]), dict(manifest["sha256"]), dict(manifest["notes"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"an entry is missing or wrong: {error}", where=str(path / _MANIFEST)) from None
    if path.name != path_of(path.parent, step).name or not checksums:
        raise RunError("this is the manifest of another step, or of no files", where=str(path / _MANIFEST))
    for name, expected in checksums.items():
        file = path / Path(name).name
        if not file.is_file():
            raise RunError("the file is missing", where=str(file))
        if sha256(file) != expected:
            raise RunError("its bytes are not those that were written (checksum)", where=str(file))
    return Checkpoint(path, step, notes)


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint folder, rising; whether each is sound is not looked at."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` stands."""
    return folder / f"step-{step:08}"


def latest(folder: Path, *, up_to: int | None = None) -> Checkpoint | None:
    """The newest sound checkpoint (of at most step `up_to`), warning of each one passed over.

    `None` if there is none at all; raises `RunError` if there are some and none is sound.
    """
    found = [step for step in steps(folder) if up_to is None or step <= up_to]
    problems = []
    for step in reversed(found):
        try:
            return load(path_of(folder, step))
        except (RunError, SafetensorError) as error:
            logger.warning("Passing over a damaged checkpoint: %s", error)
            problems.append(str(error))
    if problems:
        raise RunError("none of the checkpoints is sound:\n" + "\n".join(problems), where=str(folder))
    return None


def prune(folder: Path, *, newest: int, keep: int, best: int | None = None) -> None:
    """Remove all but the `keep` checkpoints up to step `newest` and the one of step `best`.

    Later ones are those that a run which went back passed over as damaged: they go too.
    """
    found = steps(folder)
    kept = {*[step for step in found if step <= newest][-keep:], best}
    for step in found:
        if step not in kept:
            shutil.rmtree(path_of(folder, step), ignore_errors=True)
