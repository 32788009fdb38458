"""The tensors of a model by name, and whether saved ones fit it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from minilm_cli.base.errors import MinilmError


def unshared_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's state with one name for each tensor, where it shares some."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen.add(tensor.data_ptr())
            state[name] = tensor
    return state


def checksum(model: nn.Module) -> str:
    """SHA-256 of a model's weights by name, in fp32: the same for a run's student and its exports.

    Without the pooler, which is made anew where the files lack it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(unshared_state(model).items()):
        if "pooler" not in name:
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def refuse_mismatch(saved: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Raise `MinilmError` if the tensors of a checkpoint differ in names or shapes from ours."""
    theirs, expected = ({name: tuple(tensor.shape) for name, tensor in side.items()} for side in (saved, ours))
    for name in sorted(theirs.keys() | expected.keys()):
        if theirs.get(name) != expected.get(name):
            raise MinilmError(
                f"the checkpoint is of another student: {name} is {theirs.get(name, 'absent')} there and"
                f" {expected.get(name, 'absent')} in the student"
            )
