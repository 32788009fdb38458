"""The tensors of a model by name, and whether saved ones fit it."""

from __future__ import annotations

from collections.abc import Mapping

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


def refuse_mismatch(saved: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Raise `MinilmError` if the tensors of a checkpoint differ in names or shapes from ours."""
    theirs, expected = ({name: tuple(tensor.shape) for name, tensor in side.items()} for side in (saved, ours))
    for name in sorted(theirs.keys() | expected.keys()):
        if theirs.get(name) != expected.get(name):
            raise MinilmError(
                f"the checkpoint is of another student: {name} is {theirs.get(name, 'absent')} there and"
                f" {expected.get(name, 'absent')} in the student"
            )
