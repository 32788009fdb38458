"""The files that a model folder keeps its weights in, and what is wrong with one that cannot be read.

Imports torch and transformers only when they are used.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.jsonio import read_json

#: As `save_pretrained` of any version names them, in the order in which transformers looks for them.
_NAMES = tuple(f"{name}{index}" for name in ("model.safetensors", "pytorch_model.bin") for index in ("", ".index.json"))

#: How a file begins that was cloned without Git LFS.
_POINTER = b"version https://git-lfs.github.com/"


def has_weights(folder: Path) -> bool:
    """Whether a folder has the weights of a model, in one file or in several."""
    return any((folder / name).is_file() for name in _NAMES)


def weight_files(folder: Path) -> list[Path]:
    """The files from which transformers reads a model's weights; none where the folder has no weights.

    Raises `MinilmError` if they are several, and the index that names them cannot be read.
    """
    file = next((folder / name for name in _NAMES if (folder / name).is_file()), None)
    if file is None or file.suffix != ".json":
        return [] if file is None else [file]
    try:
        return [folder / name for name in sorted({*read_json(file, kind="index of weights")["weight_map"].values()})]
    except (AttributeError, KeyError, TypeError):
        raise MinilmError("this index of weights has no weight_map with names of files", where=str(file)) from None


def refuse_damaged(name: str, kind: str) -> None:
    """Raise `MinilmError` if a file of the weights of the `kind` in folder `name` is missing or cannot be read."""
    for file in weight_files(Path(name)):
        if (fault := _fault(file)) is not None:
            what, hint = fault
            raise MinilmError(f"the {kind} cannot be loaded: {file.name} {what}", where=name, hint=hint)


def _fault(file: Path) -> tuple[str, str] | None:
    """What is wrong with a file of weights, and the remedy. Reads the tensors' names and shapes only."""
    from torch import Tensor
    from transformers.modeling_utils import load_state_dict

    if not file.is_file():
        return "is missing, and the index of the weights names it", "Download or copy this file too."
    with file.open("rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            return "is a Git LFS pointer, not the weights", "Download the weights with git lfs pull."
    try:
        content = load_state_dict(file, map_location="meta", weights_only=True)
        sound = all(isinstance(value, Tensor) for value in dict(content).values())
    except SafetensorError as error:
        return f"is damaged: {error}", "Download or copy it again."
    except Exception:  # noqa: BLE001  # torch raises anything at a file that is not its own
        sound = False
    hint = "Download or copy it again; or save the model with save_pretrained, which writes safetensors."
    return None if sound else ("is damaged, or holds more than tensors", hint)
