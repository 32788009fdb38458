"""A step whose loss or gradient is not finite: where it comes from, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minilm_cli import __version__
from minilm_cli.base.atomic import renewed
from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.tokens.store import TokenIds

#: What the names of the student's weights begin with.
_STUDENT = "student."


def keep(file: Path, error: NotFinite, sequences: Mapping[int, TokenIds], student: Mapping[str, Tensor]) -> None:
    """Write the file; `sequences` are token ids by index in the store. Raises `MinilmError` if it cannot be written.

    It holds `indices` and `lengths` (sequences), `input_ids` (sequences, longest), padded with zeros, and the weights
    as `student.NAME`; its metadata say step and message.
    """
    tensors = {f"{_STUDENT}{name}": tensor.detach().cpu().contiguous() for name, tensor in student.items()}
    if sequences:
        ids = [torch.from_numpy(sequence.astype(np.int64)) for sequence in sequences.values()]
        tensors["indices"] = torch.tensor(list(sequences))
        tensors["lengths"] = torch.tensor([len(sequence) for sequence in ids])
        tensors["input_ids"] = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    facts = {"step": str(error.finding.step), "message": error.message, "minilm": __version__}
    with renewed(file) as built:
        save_file(tensors, built, facts)


def read(file: Path) -> tuple[int, dict[str, Tensor]]:
    """The step, and the weights of the student before it; raises `MinilmError` if the file is none of these."""
    try:
        with safe_open(file, "pt") as left:
            names = [name for name in left.keys() if name.startswith(_STUDENT)]  # noqa: SIM118  # it is no mapping
            weights = {name.removeprefix(_STUDENT): left.get_tensor(name) for name in names}
            return int((left.metadata() or {})["step"]), weights
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise MinilmError(f"this is not what a step that was not finite leaves: {error}", where=str(file)) from None


#: As many names are shown.
_FEW = 10


@dataclass(frozen=True)
class Finding:
    """Where a loss or gradient that is not finite comes from."""

    step: int
    sequences: Sequence[int] = ()
    """Indices in the token store of the sequences whose loss or gradient is not finite."""
    relations: Sequence[str] = ()
    """The relations whose loss is not finite."""
    teacher: bool = False
    """Whether the teacher's relations are not either, for one of them: then nothing of the student's helps."""
    weights: Sequence[str] = ()
    """Weights of the student that are not."""
    gradients: Sequence[str] = ()
    """Weights whose gradient is not, where every loss is."""

    def told(self) -> str:
        """In a few sentences."""
        parts = [
            (self.relations, "Relations: {}."),
            (self.sequences, "Sequences of the token store: {}."),
            (self.weights, "Weights of the student that are not finite themselves: {}."),
            (self.gradients, "The losses are finite, and the gradients of these weights are not: {}."),
        ]
        told = [form.format(_few(names)) for names, form in parts if names]
        if self.teacher:
            told.append("The teacher's own relations are not finite for them.")
        return " ".join(told)


class NotFinite(RunError):
    """A step's loss or gradient is not finite; the optimiser has not moved."""

    def __init__(self, finding: Finding, loss: float, grad_norm: float) -> None:
        self.finding = finding
        super().__init__(
            f"step {finding.step}: the loss is {loss:g} and its gradient's norm {grad_norm:g}; the step was not taken."
            f" {finding.told()}".rstrip()
        )


def _few(names: Sequence[object]) -> str:
    shown = ", ".join(map(str, names[:_FEW]))
    return shown if len(names) <= _FEW else f"{shown} … ({len(names)} in all)"
