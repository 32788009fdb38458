"""A step whose loss or gradient is not finite: where that comes from, and the file that is kept of the step."""

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
from minilm_cli.training.batches import Batch
from minilm_cli.training.distiller import Distiller, StepNotFinite

#: Prefix of the names of the student's weights in the file.
_STUDENT = "student."

#: Names that a message shows at most.
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
    """Whether the teacher's own relations are not finite for one of them: no setting of the student helps then."""
    weights: Sequence[str] = ()
    """Weights of the student that are not finite."""
    gradients: Sequence[str] = ()
    """Weights whose gradient is not finite, although every loss is."""

    def described(self) -> str:
        """In a few sentences."""
        parts = [
            (self.relations, "Relations: {}."),
            (self.sequences, "Sequences of the token store: {}."),
            (self.weights, "Weights of the student that are not finite: {}."),
            (self.gradients, "The losses are finite, but the gradients of these weights are not: {}."),
        ]
        sentences = [form.format(_few(names)) for names, form in parts if names]
        if self.teacher:
            sentences.append("The teacher's own relations are not finite for them.")
        return " ".join(sentences)


class NotFinite(RunError):
    """A step's loss or gradient is not finite; the step was not taken."""

    def __init__(self, finding: Finding, loss: float, grad_norm: float) -> None:
        self.finding = finding
        super().__init__(
            f"step {finding.step}: the loss is {loss:g} and the gradient norm {grad_norm:g}; the step was not taken."
            f" {finding.described()}".rstrip()
        )


def _few(names: Sequence[object]) -> str:
    shown = ", ".join(map(str, names[:_FEW]))
    return shown if len(names) <= _FEW else f"{shown} … ({len(names)} in all)"


# --- Finding it --------------------------------------------------------------------------------------------------


def explain(distiller: Distiller, error: StepNotFinite) -> NotFinite:
    """The error for a person, after repeating the step to find where it is not finite."""
    return NotFinite(examine(distiller, error.step, error.batch), error.loss, error.grad_norm)


def examine(distiller: Distiller, step: int, batch: Batch) -> Finding:
    """Where a loss or gradient of `step` that is not finite comes from, found by repeating its passes.

    All processes look at their share and tell each other. Leaves no gradient behind.
    """
    relations, names = list(distiller.objective.parts), list(distiller.optimizer.trained)
    sequences: list[int] = []
    culprits: set[int] = set()
    gradients: set[int] = set()
    teacher_fails = False
    distiller.seed_dropout(step)  # for the very masks that failed
    for micro_batch in batch.micro_batches:
        teacher, student = distiller.outputs(micro_batch)
        spans, bad = micro_batch.inputs.spans, []
        for index, span in zip(micro_batch.indices.tolist(), spans, strict=True):
            with torch.no_grad():
                loss, parts = distiller.objective(teacher, student, [span])
                if not torch.isfinite(loss).item():
                    bad.append(index)
                    culprits.update((~torch.isfinite(parts)).nonzero().flatten().tolist())
                    alone, _ = distiller.objective(teacher, teacher, [span])
                    teacher_fails |= not torch.isfinite(alone).item()
        if not bad:
            distiller.optimizer.zero_grad()
            torch.autograd.backward(distiller.objective(teacher, student, spans)[0])
            wrong = _not_finite_gradients(distiller)
            gradients |= wrong
            bad = micro_batch.indices.tolist() if wrong else []
        sequences += bad
    distiller.optimizer.zero_grad()
    gather = distiller.world.all_gather
    return Finding(
        step=step,
        sequences=gather(sequences),
        relations=[relations[number] for number in sorted(set(gather(sorted(culprits))))],
        teacher=any(gather([int(teacher_fails)])),
        weights=[name for name, weight in distiller.optimizer.trained.items() if not _is_finite(weight)],
        gradients=[names[number] for number in sorted(set(gather(sorted(gradients))))],
    )


def _not_finite_gradients(distiller: Distiller) -> set[int]:
    """Numbers of the trained parameters whose gradient is not finite."""
    parameters = distiller.optimizer.trained.values()
    return {number for number, parameter in enumerate(parameters) if not _is_finite(parameter.grad)}


def _is_finite(tensor: Tensor | None) -> bool:
    if tensor is None:
        return True
    return bool(torch.isfinite(tensor._values() if tensor.is_sparse else tensor).all())


# --- Keeping it --------------------------------------------------------------------------------------------------


def keep(file: Path, error: NotFinite, sequences: Mapping[int, TokenIds], student: Mapping[str, Tensor]) -> None:
    """Write the file; `sequences` are token ids by index in the store. Raises `RunError` if it cannot be written.

    It holds `indices` and `lengths` (sequences), `input_ids` (sequences, longest), padded with zeros, and the student's
    weights before the step as `student.NAME`; its metadata are step and message.
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
    """The step, and the student's weights before it; raises `MinilmError` if the file is not one that `keep` wrote."""
    try:
        with safe_open(file, "pt") as left:
            names = [name for name in left.keys() if name.startswith(_STUDENT)]  # noqa: SIM118  # it is no mapping
            weights = {name.removeprefix(_STUDENT): left.get_tensor(name) for name in names}
            return int((left.metadata() or {})["step"]), weights
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise MinilmError(f"this file is not one of a step that was not finite: {error}", where=str(file)) from None
