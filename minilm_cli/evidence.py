"""What is left of a step that was not finite: its sequences, and the student before it, in one safetensors file.

Ignores what was wrong with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minilm_cli import __version__
from minilm_cli.errors import MinilmError
from minilm_cli.files import renewed
from minilm_cli.health import NotFinite
from minilm_cli.tokens import TokenIds

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
