"""Which layers of teacher and student are compared with each other."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.families import family_of
from minilm_cli.models.layers import resolve_layers
from minilm_cli.settings.distill import DistillSettings


@dataclass(frozen=True)
class LayerPairs:
    """The layers that are compared, 1-based and rising: each of the teacher's with the student's in the same place."""

    teacher: tuple[int, ...]
    student: tuple[int, ...]
    reason: str | None = None
    """Why it is this layer of the teacher; `None` if the user chose it."""


def layer_pairs(settings: DistillSettings, teacher: PreTrainedConfig, student: PreTrainedConfig) -> LayerPairs:
    """The pairs that the settings name, `auto` resolved.

    Raises `MinilmError` if a model has no such layer, the layers do not rise, or one of them has no counterpart.
    """
    wanted, reason = settings.teacher.layer, None
    if wanted == "auto":
        wanted, reason = family_of(teacher).best_layer(teacher)
    theirs = resolve_layers(wanted, teacher.num_hidden_layers, setting="teacher.layer")
    ours = resolve_layers(settings.student.layer, student.num_hidden_layers, setting="student.layer")
    if len(theirs) != len(ours):
        raise MinilmError(
            f"student.layer: each teacher layer is learnt by one student layer, but teacher.layer has {len(theirs)} and"
            f" student.layer {len(ours)}",
            hint="Give as many numbers to --student-layer as to --teacher-layer: for example 3,6 and 6,12.",
        )
    return LayerPairs(theirs, ours, reason)
