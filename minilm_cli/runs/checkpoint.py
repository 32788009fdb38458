"""Checkpoints: one folder a step, complete or absent, with checksums, without pickle.

`checkpoints/step-00001000/` holds a `.safetensors` file for each group of tensors and `checkpoint.json`: format
version, step, the checksum of each file, the caller's notes, and a checksum of all that. A folder without it, or whose
checksums differ, is not a checkpoint.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minilm_cli import __version__
from minilm_cli.base.atomic import discard, renewed
from minilm_cli.base.checksums import sha256, sha256_of_text
from minilm_cli.base.errors import MinilmError, RunError, refuse_newer, remedy
from minilm_cli.base.jsonio import first_wrong, read_json, write_json

logger = logging.getLogger(__name__)


FORMAT_VERSION = 1


_NAME = re.compile(r"step-([0-9]{8,18})")


_MANIFEST = "checkpoint.json"


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: Annotated[int, Field(gt=0)]
    written_by: str
    step: Annotated[int, Field(ge=0)]
    sha256: Annotated[dict[Annotated[str, Field(pattern=r"^[a-z]+\.safetensors$")], str], Field(min_length=1)]
    notes: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A sound checkpoint: its checksums have been compared."""

    path: Path
    step: int
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the caller saved besides the tensors."""

    def tensors(self, group: str) -> dict[str, Tensor]:
        """The tensors of one group, by name; raises `RunError` if there is no such group."""
        file = self.path / f"{group}.safetensors"
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise RunError(f"this file cannot be read as safetensors: {error}", where=str(file)) from None


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], notes: Mapping[str, Any]) -> Checkpoint:
    """Write the checkpoint of `step` into `folder`, replacing one of the same step; raises `RunError` if it cannot."""
    path = path_of(folder, step)
    with renewed(path) as built:
        built.mkdir()
        for group, members in tensors.items():
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in members.items()}
            save_file(contiguous, built / f"{group}.safetensors")
        manifest = {
            "format_version": FORMAT_VERSION,
            "written_by": __version__,
            "step": step,
            "sha256": {file.name: sha256(file) for file in sorted(built.iterdir())},
            "notes": dict(notes),
        }
        write_json(built / _MANIFEST, manifest | {"seal": _seal(manifest)})
    return Checkpoint(path, step, notes)


def load(path: Path) -> Checkpoint:
    """Open one checkpoint after comparing its checksums; raises `RunError` saying which file failed which check.

    One of a later format is not damaged: it raises `MinilmError`.
    """
    manifest = _read_manifest(path / _MANIFEST)
    if path.name != path_of(path.parent, manifest.step).name:
        raise RunError("this manifest is of another step", where=str(path / _MANIFEST))
    for name, expected in manifest.sha256.items():
        file = path / name
        if not file.is_file():
            raise RunError("the file is missing", where=str(file))
        try:
            found = sha256(file)
        except OSError as error:
            message = f"the file cannot be read: {error.strerror}"
            raise RunError(message, where=str(file), hint=remedy(error)) from None
        if found != expected:
            raise RunError("this file is damaged (its checksum differs)", where=str(file))
    return Checkpoint(path, manifest.step, manifest.notes)


def _read_manifest(file: Path) -> _Manifest:
    try:
        value = read_json(file, kind="checkpoint manifest")
    except MinilmError as error:
        raise RunError(error.message, where=error.where, hint=error.hint) from None
    if not isinstance(value, dict):
        raise RunError("this is not a checkpoint manifest", where=str(file))
    seal = value.pop("seal", None)
    if seal != _seal(value):  # before the version, which a flipped bit may have changed
        raise RunError("this manifest is damaged (its checksum differs)", where=str(file))
    refuse_newer("checkpoint", value, FORMAT_VERSION, where=str(file.parent))
    try:
        return _Manifest.model_validate(value)
    except ValidationError as error:
        raise RunError(f"an entry is missing or wrong: {first_wrong(error)}", where=str(file)) from None


def _seal(manifest: Mapping[str, Any]) -> str:
    """A checksum of the manifest's content, independent of the order and spacing of its entries."""
    return sha256_of_text(json.dumps(manifest, sort_keys=True))


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint folder, in order; whether each is sound is not checked."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))


def path_of(folder: Path, step: int) -> Path:
    """The folder of the checkpoint of `step`."""
    return folder / f"step-{step:08}"


def latest(folder: Path) -> Checkpoint | None:
    """The newest sound checkpoint; each damaged one that is skipped is a warning.

    `None` if there are no checkpoints; raises `RunError` if there are some and none is sound.
    """
    problems = []
    for step in reversed(steps(folder)):
        try:
            return load(path := path_of(folder, step))
        except RunError as error:
            if not path.exists():  # the run is training and has saved a newer one
                return latest(folder)
            logger.warning("Skipping a damaged checkpoint: %s", error)
            problems.append(f"{error.where}: {error.message}")
    if problems:
        raise RunError("none of the checkpoints is sound:\n" + "\n".join(problems), where=str(folder))
    return None


def prune(folder: Path, *, newest: int, keep: int, best: int | None = None) -> None:
    """Remove all but the `keep` checkpoints up to step `newest`, which is sound, and the one of step `best`.

    Later ones were skipped as damaged when the run resumed: they are removed too. What cannot be removed stays, with a
    warning.
    """
    found = steps(folder)
    kept = {*[step for step in found if step <= newest][-keep:], best}
    for step in found:
        if step not in kept:
            try:
                discard(path_of(folder, step))
            except OSError as error:
                logger.warning("%s cannot be removed: %s", path_of(folder, step), error.strerror)
