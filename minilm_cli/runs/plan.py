"""What a run trains on what, in numbers: shown by a dry run, kept in the run folder, and stated in the model card.

Fields that end in `_sha256` are for the program: a resumed run must find the same. Fields that may be null or
empty are absent from the plans of earlier versions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from minilm_cli.base.errors import MinilmError


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TeacherFacts(_Facts):
    """The teacher; `parameters` counts those up to the tapped layer, and `total_parameters` all.

    `layer` is the tapped layer; of several it is the last, and `tapped_layers` lists them all. `layer_reason` says why
    it is this one, and is null if the user chose it. `operations_per_token` are the floating-point operations of the
    whole model's matrix products for one token. The licence and `language`, a list of codes, are those that its own
    model card states.
    """

    name: str
    on_hub: bool
    family: str
    layers: int
    layer: int
    tapped_layers: list[int] = []
    layer_reason: str | None = None
    width: int
    parameters: int
    total_parameters: int | None = None
    operations_per_token: int | None = None
    config_sha256: str
    weights_sha256: str
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: list[str] = []


class StartFacts(_Facts):
    """The student's initial weights, random if nothing else is said.

    `init_from_teacher_layers` are the teacher's layers that the student's took over, from the first.
    `init_share_kept` is the share of the second moments of the teacher's hidden states that a student of another width
    keeps. `init_from` is another model that it started as, and `init_lineage` says how that was made, the earliest
    first; `init_random_tail` says whether the part of it after the learnt layer was never trained.
    """

    init_from_teacher_layers: list[int] = []
    init_share_kept: float | None = None
    init_from: str | None = None
    init_lineage: list[str] = []
    init_random_tail: bool = False

    @property
    def has_random_tail(self) -> bool:
        """Whether the part after the learnt layer has random weights, so that the student's outputs mean little."""
        from_random = not self.init_from_teacher_layers and self.init_from is None
        return from_random or self.init_random_tail


class StudentFacts(StartFacts):
    """The student; `untrained` are the parameters that the loss does not reach.

    `layer`, `tapped_layers` and `operations_per_token` are as for the teacher. `embedding_parameters` are those in
    tables, with a row for each token or position.
    """

    name: str
    family: str
    layers: int
    layer: int
    tapped_layers: list[int] = []
    width: int
    attention_heads: int | None = None
    feed_forward_width: int | None = None
    parameters: int
    embedding_parameters: int | None = None
    operations_per_token: int | None = None
    tensors: int
    untrained: list[str]
    untrained_parameters: int
    config_sha256: str

    @property
    def start(self) -> StartFacts:
        """The initial weights alone."""
        return StartFacts(**self.model_dump(include={*StartFacts.model_fields}))


class VocabularyFacts(_Facts):
    """The tokens that the student keeps of its teacher's.

    The shares are of the tokens in the data: those that are read as several smaller ones, and as the unknown token.
    `texts_compared` held-out texts that need no token that was left out are split as by the teacher's tokenizer.
    """

    tokens: int
    teacher_tokens: int
    share_split: float
    share_unknown: float
    texts_compared: int
    vocabulary_sha256: str


class RelationFacts(_Facts):
    """The relations, and how wide a relation head is."""

    weights: dict[str, float]
    heads: int
    teacher_head_width: int
    student_head_width: int


class StoreFacts(_Facts):
    """A token store; `share` is its part of the sequences that are seen, by its weight if it has one."""

    name: str
    sequences: int
    tokens: int
    share: float
    weight: float | None
    manifest_sha256: str

    @property
    def described(self) -> str:
        """Its content, for a person."""
        return f"{self.sequences:,} sequences, {self.tokens:,} tokens; {self.share:.2%} of the sequences seen"


class DataFacts(_Facts):
    """The tokens; lengths are in tokens. `stores` lists the token stores if there are several."""

    name: str
    tokenizer: str | None
    sequences: int
    tokens: int
    manifest_sha256: str
    held_out: int
    max_length: int
    stores: list[StoreFacts] = []


class TrainingFacts(_Facts):
    """Length of the training, the learning rate, and where it runs."""

    steps: int
    epochs: float
    batch_size: int
    tokens_per_step: int
    micro_batch_tokens: int
    learning_rate: float | None = None
    warmup_steps: int | None = None
    schedule: str | None = None
    precision: str
    device: str
    processes: int = 1


class Measured(_Facts):
    """Time and memory of a few real steps; `hours_in_all` counts evaluations and checkpoints too."""

    seconds_per_step: float
    sequences_per_second: float
    tokens_per_second: float
    peak_memory_gib: float
    seconds_per_evaluation: float | None = None
    seconds_per_checkpoint: float | None = None
    hours_in_all: float


class Plan(_Facts):
    """All facts of a run."""

    teacher: TeacherFacts
    student: StudentFacts
    relations: RelationFacts
    data: DataFacts
    training: TrainingFacts
    vocabulary: VocabularyFacts | None = None
    measured: Measured | None = None


# --- Before and after an interruption ----------------------------------------------------------------------------


def refuse_changes(before: Plan, now: Plan, *, teacher: str, stores: Sequence[Path]) -> None:
    """Raise `MinilmError` if tokens, teacher or student are not those that the run started with.

    teacher: its name. stores: the paths of the token stores of `now`.
    """
    _refuse_other_stores(stores, before.data, now.data)
    checks = {
        "the teacher's config.json": (teacher, before.teacher.config_sha256, now.teacher.config_sha256),
        "the teacher's weights": (teacher, before.teacher.weights_sha256, now.teacher.weights_sha256),
        "the student's configuration": ("student-config.json", before.student.config_sha256, now.student.config_sha256),
    }
    for what, (where, then, found) in checks.items():
        if then != found:
            raise changed(f"{what} changed since the run began", where)


def _refuse_other_stores(paths: Sequence[Path], before: DataFacts, now: DataFacts) -> None:
    for path, then, found in itertools.zip_longest(paths, _each_store(before), _each_store(now)):
        if found is None:
            raise changed(f"token store {then.name}, used when the run began, is missing", "data.path")
        if then is None:
            raise changed("this token store was not used when the run began", path)
        if then.manifest_sha256 != found.manifest_sha256:
            raise changed("the token store changed since the run began", path)
        if then.weight != found.weight:
            was, is_now = (f"{store.weight:g}" if store.weight else "none" for store in (then, found))
            raise changed(f"the token store's weight changed since the run began, from {was} to {is_now}", path)


def _each_store(data: DataFacts) -> list[StoreFacts]:
    """The facts of each store; a single one is described by those of the data."""
    alone = data.model_dump(include={"name", "sequences", "tokens", "manifest_sha256"})
    return data.stores or [StoreFacts(**alone, share=1.0, weight=None)]


def changed(what: str, where: str | Path) -> MinilmError:
    """What to raise if something is not as it was when the run began."""
    return MinilmError(what, where=str(where), hint="Restore it, or start a new run.")
