"""The formats of an export: each writes a student and loads it back as its users do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from minilm_cli.models.state import refuse_mismatch, unshared_state
from minilm_cli.models.student import build_student
from minilm_cli.models.student_config import saved_config
from minilm_cli.runs.checkpoint import Checkpoint
from minilm_cli.runs.folder import RunFolder

#: Last hidden states, (batch, tokens, width), of token ids (batch, tokens) and their attention mask, if there is one.
Encode = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Source:
    """What is exported: the student of a run at a checkpoint."""

    run: RunFolder
    checkpoint: Checkpoint
    dtype: str = "float32"
    """Type of the exported weights."""

    def student(self) -> PreTrainedModel:
        """The student with the checkpoint's weights, in fp32 and evaluation mode; raises `MinilmError` for others'."""
        model = build_student(saved_config(self.run.student_config_file), seed=0)
        weights = self.checkpoint.tensors("student")
        refuse_mismatch(weights, unshared_state(model))
        model.load_state_dict(weights, strict=False)
        model.train(False)
        return model


class Format(Protocol):
    """A way to hand out a student."""

    tolerance: Mapping[str, float]
    """By type of the weights: the largest difference of hidden states, as a share of the largest, that is rounding."""

    def write(self, source: Source, folder: Path) -> None:
        """Write the student and its tokenizer into a new folder."""

    def load(self, folder: Path, dtype: str) -> Encode:
        """Load the folder as its users do; raises `MinilmError` if that fails."""
