"""What a run trains on what, in numbers: shown by a dry run, kept in the run folder, told by the model card.

What ends in `_sha256` is for the program: a resumed run must find the same.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TeacherFacts(_Facts):
    """The teacher; `parameters` are those that are kept, up to the tapped layer."""

    name: str
    on_hub: bool
    family: str
    layers: int
    layer: int
    width: int
    parameters: int
    config_sha256: str
    weights_sha256: str


class StudentFacts(_Facts):
    """The student; what the loss does not reach is `untrained`."""

    name: str
    family: str
    layers: int
    layer: int
    width: int
    parameters: int
    init_from_teacher_layers: list[int]
    tensors: int
    untrained: list[str]
    untrained_parameters: int
    config_sha256: str


class RelationFacts(_Facts):
    """The relations, and how wide a relation head is."""

    weights: dict[str, float]
    heads: int
    teacher_head_width: int
    student_head_width: int


class StoreFacts(_Facts):
    """A token store; `share` is its part of the sequences that are seen, as its weight, if it has one, gives it."""

    name: str
    sequences: int
    tokens: int
    share: float
    weight: float | None
    manifest_sha256: str

    @property
    def told(self) -> str:
        """What is in it, for a person."""
        return f"{self.sequences:,} sequences, {self.tokens:,} tokens; {self.share:.2%} of the sequences seen"


class DataFacts(_Facts):
    """The tokens; lengths are in tokens. If they are of several stores, `stores` has each."""

    name: str
    tokenizer: str | None
    sequences: int
    tokens: int
    manifest_sha256: str
    held_out: int
    max_length: int
    stores: list[StoreFacts] = []


class TrainingFacts(_Facts):
    """How long and on what."""

    steps: int
    epochs: float
    batch_size: int
    tokens_per_step: int
    micro_batch_tokens: int
    precision: str
    device: str
    processes: int = 1


class Measured(_Facts):
    """What a few real steps took."""

    seconds_per_step: float
    sequences_per_second: float
    tokens_per_second: float
    peak_memory_gib: float
    hours_in_all: float


class Plan(_Facts):
    """All of it."""

    teacher: TeacherFacts
    student: StudentFacts
    relations: RelationFacts
    data: DataFacts
    training: TrainingFacts
    measured: Measured | None = None

    def tables(self) -> dict[str, list[tuple[str, str]]]:
        """Rows of names and values for a person, by section."""
        sections = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            name: [
                row
                for key, value in facts
                if value not in (None, []) and not key.endswith("_sha256")
                for row in _rows(key, value)
            ]
            for name, facts in sections.items()
            if facts is not None
        }


def _rows(key: str, value: Any) -> list[tuple[str, str]]:
    if key == "stores":
        return [(store.name, store.told) for store in value]
    if key == "hours_in_all":
        hours = f"{value:,.2f}"
        return [("hours in all", "less than 0.01" if hours == "0.00" else hours)]
    return [(key.replace("_", " "), _shown(value))]


def _shown(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case list():
            return ", ".join(map(str, value))
        case dict():
            return ", ".join(f"{key}={number:g}" for key, number in value.items())
        case _:
            return str(value)
