"""The tensors of a model by name, and whether others fit them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from minilm_cli.base.errors import MinilmError


def unshared_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's state without a second name for a tensor it shares."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen.add(tensor.data_ptr())
            state[name] = tensor
    return state


def refuse_others(given: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Raise `MinilmError` if tensors of a checkpoint have not the names and shapes of ours."""
    theirs, wanted = ({name: tuple(tensor.shape) for name, tensor in side.items()} for side in (given, ours))
    for name in sorted(theirs.keys() | wanted.keys()):
        if theirs.get(name) != wanted.get(name):
            raise MinilmError(
                f"the checkpoint is of another student: {name} is {theirs.get(name, 'absent')} there and"
                f" {wanted.get(name, 'absent')} in the student"
            )
