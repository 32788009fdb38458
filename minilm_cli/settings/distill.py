"""All settings of `minilm distill`. The string below a field documents it; `--help` shows its first sentence."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from minilm_cli.settings.flags import Flag
from minilm_cli.settings.types import (
    InAStep,
    Length,
    NonNegativeFloat,
    NonNegativeInt,
    NotBool,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
    encodable,
    shortened,
)

DEFAULT_STEPS = 400_000

#: Token stores with weights get exactly their shares in any so many consecutive sequences. The smallest share is one.
CYCLE = 10_000

Stores = Path | tuple[Path, ...] | dict[Path, PositiveFloat]


def _parse_layers(value: Any) -> Any:
    """`6,12` as a list; other values unchanged."""
    value = value.split(",") if isinstance(value, str) and "," in value else value
    layers = value if isinstance(value, list | tuple) else [value]
    if not layers:
        raise ValueError("must have at least one layer")
    if any(layer in (0, "0") for layer in layers):  # compared with ==: a wrong value may be unhashable
        raise ValueError("layers are counted from 1, or from −1 backwards; there is no layer 0")
    return value


def _single_layer(value: str | int | tuple[int, ...]) -> str | int | tuple[int, ...]:
    """Make a list of one layer a number."""
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def _parse_count(value: Any) -> Any:
    """`20M` as 20,000,000; other values unchanged."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)([kMB])", value) if isinstance(value, str) else None
    return round(float(found[1]) * {"k": 10**3, "M": 10**6, "B": 10**9}[found[2]]) if found else value


def _parse_number(value: Any) -> Any:
    """Digits as a number, and `16k` as 16,000; other values unchanged."""
    return int(value) if isinstance(value, str) and value.isdecimal() else _parse_count(value)


Layer = Annotated[int, NotBool]


def _parse_relations(value: Any) -> Any:
    """`qq=1,kk=1` as a mapping; other values unchanged."""
    if not isinstance(value, str):
        return value
    weights: dict[str, str] = {}
    for part in value.split(","):
        pair, _, weight = part.strip().partition("=")
        if pair in weights:
            raise ValueError(f"the relation {pair!r} is given twice")
        weights[pair] = weight or "1"
    return weights


def _check_relations(value: dict[str, float]) -> dict[str, float]:
    if not value:
        raise ValueError("must have at least one relation, such as qq=1,kk=1,vv=1")
    for pair in value:
        if not re.fullmatch("[qkv][qkv]", pair):
            raise ValueError(f"{pair!r} is not a relation; a relation is a pair of q, k and v, such as qq or qk")
    return value


def _parse_stores(value: Any) -> Any:
    """Refuse what is neither a path, nor a list of paths, nor a mapping of paths to positive weights."""
    if isinstance(value, str | Path):
        return value
    several = isinstance(value, list | tuple | Mapping) and len(value) > 0
    if not several or not all(isinstance(path, str | Path) for path in value):
        raise ValueError("must be a path, a list of paths, or a mapping of paths to weights")
    for path, count in Counter(map(Path, value)).items():
        if count > 1:
            raise ValueError(f"{encodable(path)} is given twice")
    if not isinstance(value, Mapping):
        return value
    return {path: _store_weight(path, weight) for path, weight in value.items()}


def _store_weight(path: str | Path, value: Any) -> float:
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and 0 < (weight := float(value)) < math.inf:
            return weight
    what = f"the weight of {encodable(path)}"
    raise ValueError(f"{what} must be a finite number greater than 0, not {shortened(value)}")


def _check_stores(value: Stores) -> Stores:
    """Refuse a share smaller than 1 in `CYCLE`; make a single store a path."""
    if isinstance(value, Path):
        return value
    if isinstance(value, dict):
        weights = {path: Fraction(str(weight)) for path, weight in value.items()}  # from text: 0.1 is exactly a tenth
        path = min(weights, key=lambda path: weights[path])
        if weights[path] * CYCLE < sum(weights.values()):
            share = f"less than 1 in {CYCLE:,} of the sequences"
            raise ValueError(f"the weight of {encodable(path)}, {value[path]:g}, is {share}")
    return next(iter(value)) if len(value) == 1 else value


class TeacherSettings(Section):
    """The teacher model."""

    PANEL: ClassVar = "Teacher and student"

    name: Annotated[str, Flag("--teacher", metavar="NAME"), Field(min_length=1)]
    """Hub name or local folder of the teacher."""
    revision: Annotated[str | None, Flag("--revision")] = None
    """Branch, tag or commit of the teacher on the Hub."""
    layer: Annotated[
        Literal["auto"] | Layer | tuple[Layer, ...],
        Flag("--teacher-layer", metavar="auto|N,..."),
        BeforeValidator(_parse_layers),
        AfterValidator(_single_layer),
    ] = "auto"
    """Teacher layer to learn from: 1-based, −1 is the last; or several, such as `6,12`, each learnt by a student layer.
    Their queries, keys and values are transferred, and the loss is the mean over the layers. `auto`: the last of a
    12-layer teacher, 21 of BERT-large's 24, 19 of RoBERTa-large's and XLM-R-large's 24 (MiniLMv2, section 4.1)."""
    trust_remote_code: Annotated[bool, Flag("--trust-remote-code")] = False
    """Run model code that comes with the teacher. Only for sources you trust."""


class StudentSettings(Section):
    """The student model."""

    PANEL: ClassVar = "Teacher and student"

    config: Annotated[Annotated[str, Field(min_length=1)] | None, Flag("--student-config", metavar="CONFIG")] = None
    """Configuration of the student, unless its size is given: a `config.json`, a folder that has one, or a preset such
    as `l6-h384` (layers, hidden size; the teacher's family) or `bert:l6-h384` (another family)."""
    max_mb: Annotated[PositiveFloat | None, Flag("--max-mb")] = None
    """Largest size of the student, in MB of fp32 weights, instead of a configuration. It has half of the teacher's
    layers and is as wide as fits. Where it would be narrower than a quarter of the teacher, it has fewer layers."""
    max_params: Annotated[PositiveInt | None, Flag("--max-params", metavar="N"), BeforeValidator(_parse_count)] = None
    """The same as a number of parameters, such as `20M`."""
    keep_vocab: Annotated[
        Literal["auto", "all", "tokens"] | PositiveInt | Annotated[str, Field(min_length=1)],
        Flag("--keep-vocab", metavar="auto|all|tokens|N|FILE"),
        BeforeValidator(_parse_number),
    ] = "auto"
    """Tokens of the teacher that the student keeps: `all`; `tokens`, those that the data has; a number, so many in all,
    the most frequent; a file with one on each line; or a run or folder with such a tokenizer. Special tokens, single
    characters and bytes are always kept. A token that is left out is read as smaller ones, by the teacher too. `auto`:
    all, but with `max_mb` or `max_params` as many as fit."""
    keep_count: Annotated[PositiveInt, Flag("--keep-count")] = 1
    """With `--keep-vocab tokens`: how often the data must have a token."""
    layer: Annotated[
        Layer | tuple[Layer, ...],
        Flag("--student-layer", metavar="N,..."),
        BeforeValidator(_parse_layers),
        AfterValidator(_single_layer),
    ] = -1
    """Student layer that learns: 1-based, −1 is the last; or several, such as `3,6`, each with a teacher layer to learn
    from."""
    init: Annotated[
        Literal["random", "teacher"] | Annotated[str, Field(min_length=1)],
        Flag("--init", metavar="random|teacher|MODEL"),
    ] = "random"
    """Initial weights of the student: `random`; `teacher`, evenly spaced layers of the teacher, fitted to the student's
    size if that differs; or a run, folder or Hub name of a model with the student's configuration. With `teacher`, each
    student layer that learns starts as the layer that it learns from."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if sum(value is not None for value in (self.config, self.max_mb, self.max_params)) > 1:
            raise ValueError("give one of config, max_mb and max_params")
        if self.keep_count > 1 and self.keep_vocab != "tokens":
            raise ValueError("keep_count needs keep_vocab=tokens (--keep-vocab tokens)")
        return self

    @property
    def budget(self) -> tuple[int, str] | None:
        """Most parameters, and the setting that says so; `None` if there is a configuration."""
        if self.max_mb is not None:
            return int(self.max_mb * 10**6 / 4), "student.max_mb"
        return None if self.max_params is None else (self.max_params, "student.max_params")


class DataSettings(Section):
    """The training data."""

    PANEL: ClassVar = "Data"

    path: Annotated[
        Stores,
        Flag("--data", metavar="PATH[:WEIGHT]", repeatable=True),
        BeforeValidator(_parse_stores),
        AfterValidator(_check_stores),
    ] = Path("tokens")
    """Token store, or a `.jsonl.gz` file with a list of token ids on each line; repeat the option to use several. In a
    settings file, several are a list of paths, read as if they were one store, or a mapping of each path to its weight:
    its share of the sequences."""
    max_length: Annotated[Length | None, Flag("--max-length", default="the store's")] = None
    """Longest sequence in tokens; longer ones are cut to it. Their last special token is kept."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The path of each store."""
        return (self.path,) if isinstance(self.path, Path) else tuple(self.path)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The weight of each store, if they have weights."""
        return tuple(self.path.values()) if isinstance(self.path, dict) else None

    def found_from_anywhere(self) -> Stores:
        """`path` with absolute paths."""
        paths = tuple(path.absolute() for path in self.paths)
        return paths if self.weights is None else dict(zip(paths, self.weights, strict=True))


class RelationSettings(Section):
    """The self-attention relations that the student learns (MiniLMv2, section 3)."""

    PANEL: ClassVar = "Objective"

    weights: Annotated[
        dict[str, Annotated[float, Field(gt=0, le=10**6), NotBool]],
        Flag("--relations", metavar="PAIR=WEIGHT,..."),
        BeforeValidator(_parse_relations),
        AfterValidator(_check_relations),
    ] = Field(default={"qq": 1.0, "kk": 1.0, "vv": 1.0})
    """Weight of each relation in the loss; a relation is a pair of q (queries), k (keys) and v (values)."""
    heads: Annotated[Literal["auto"] | PositiveInt, Flag("--relation-heads")] = "auto"
    """Number of relation heads; auto: 48, or 64 for a 1024-wide teacher, else the nearest divisor of both widths."""
    rotary: Literal["after", "before"] = "after"
    """Where queries and keys of rotary families are compared: `after` their rotation by the positions, as attention
    compares them, or `before`."""


class TrainingSettings(Section):
    """Length, batch size and hardware."""

    PANEL: ClassVar = "Training"

    steps: Annotated[PositiveInt | None, Flag("--steps", default=str(DEFAULT_STEPS))] = None
    """Number of optimiser steps. Default: 400000, unless `epochs` is given."""
    epochs: Annotated[float | None, Flag("--epochs"), Field(gt=0, le=10**9), NotBool] = None
    """Passes over the training sequences, instead of a number of steps."""
    batch_size: Annotated[InAStep, Flag("--batch-size")] = 256
    """Sequences in an optimiser step, over all processes."""
    micro_batch_tokens: Annotated[Literal["auto"] | InAStep, Flag("--micro-batch-tokens")] = "auto"
    """Padded tokens in one forward pass; changes speed and memory, but not the result. Only the dropout masks differ.
    `auto`: measured at the start of a run of two million tokens or more, and remembered for the next run."""
    precision: Annotated[Literal["auto", "bf16", "fp32"], Flag("--precision")] = "auto"
    """Number format of the models; auto: bf16 where the hardware has it, else fp32. The loss is always computed in
    fp32."""
    device: Annotated[str, Flag("--device", metavar="auto|DEVICE")] = "auto"
    """Torch device such as cuda:1; auto: cuda, else mps, else cpu."""
    compile: Annotated[bool, Flag("--compile/--no-compile")] = False
    """Compile teacher and student with torch.compile: slower to start, no gain on CPUs."""
    deterministic: bool = True
    """On a GPU, use only kernels that add in the same order each time: a resumed run is then equal to the last bit.
    Their backward passes of attention are slower."""
    seed: Annotated[NonNegativeInt, Flag("--seed")] = 42
    """Seed of everything random: student weights, held-out sequences, order, dropout."""

    @field_validator("epochs")
    @classmethod
    def _one_length(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("steps") is not None:
            raise ValueError("give either steps or epochs, not both")
        return value


class OptimizerSettings(Section):
    """AdamW."""

    PANEL: ClassVar = "Optimiser"

    lr: Annotated[PositiveFloat, Flag("--lr")] = 6e-4
    """Peak learning rate."""
    weight_decay: Annotated[NonNegativeFloat, Flag("--weight-decay")] = 0.01
    """Decoupled weight decay; none on biases and norms."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay rates of Adam's first and second moments."""
    eps: PositiveFloat = 1e-6
    """Added to the denominator of Adam's update."""
    clip_norm: Annotated[PositiveFloat, Flag("--clip-norm")] = 1.0
    """Largest 2-norm of the gradient; a larger gradient is scaled down to it."""


class ScheduleSettings(Section):
    """The learning rate over the steps."""

    PANEL: ClassVar = "Optimiser"

    kind: Annotated[Literal["linear", "cosine", "constant"], Flag("--schedule")] = "linear"
    """Learning rate after the warm-up: decay to zero at the last step, linear or cosine, or constant."""
    warmup_steps: Annotated[Literal["auto"] | NonNegativeInt, Flag("--warmup-steps")] = "auto"
    """Warm-up steps, in which the learning rate rises linearly from zero. `auto`: 4000, or a tenth of the steps of a
    run of fewer than 40000."""


class EvaluationSettings(Section):
    """The held-out loss, and scores on a task."""

    PANEL: ClassVar = "Saving and reporting"

    fraction: Annotated[Share, Flag("--eval-fraction")] = 0.01
    """Share of the sequences that is held out from training."""
    limit: PositiveInt = 10_000
    """Largest number of held-out sequences, whatever the fraction."""
    every: Annotated[PositiveInt, Flag("--eval-every")] = 1000
    """Steps between evaluations of the held-out loss. The last step always has one."""
    task: Annotated[str | None, Flag("--eval-task", metavar="SPEC")] = None
    """Task, as for minilm evaluate, that each evaluation also scores the student on, without fine-tuning. Similarity
    and retrieval are scored by the student's embeddings, classes by a logistic regression on them."""


class CheckpointSettings(Section):
    """What is saved to resume from."""

    PANEL: ClassVar = "Saving and reporting"

    every: Annotated[PositiveInt, Flag("--save-every")] = 1000
    """Steps between checkpoints, or 15 minutes if that is sooner. The last step always has one."""
    minutes: PositiveFloat = 15
    """Minutes between checkpoints, if `every` takes longer."""
    keep: Annotated[PositiveInt, Flag("--keep")] = 3
    """Number of newest checkpoints that are kept; the best one is kept too."""


class ReportingSettings(Section):
    """Logging and experiment trackers."""

    PANEL: ClassVar = "Saving and reporting"

    log_every: Annotated[PositiveInt, Flag("--log-every")] = 10
    """Steps between lines of metrics.jsonl. The first and the last step always have one."""
    sinks: Annotated[
        tuple[Literal["tensorboard", "wandb"], ...], Flag("--report-to", default="none", repeatable=True)
    ] = ()
    """Experiment tracker that gets the metrics too; may be repeated."""
    log_ranks: bool = False
    """With several processes, write a log for each: `log-rank-00001.txt`, … next to rank 0's `log.txt`."""


class DistillSettings(Section):
    """All settings of `minilm distill`."""

    PANEL: ClassVar = "Saving and reporting"

    teacher: TeacherSettings
    """The teacher model."""
    student: StudentSettings
    """The student model."""
    data: DataSettings = Field(default_factory=DataSettings)
    """The training data."""
    relations: RelationSettings = Field(default_factory=RelationSettings)
    """The self-attention relations that the student learns."""
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    """Length, batch size and hardware."""
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    """AdamW."""
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    """The learning rate over the steps."""
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    """The held-out loss."""
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)
    """What is saved to resume from."""
    reporting: ReportingSettings = Field(default_factory=ReportingSettings)
    """Logging and experiment trackers."""
    output: Annotated[Path | None, Flag("--output", short="-o", default="runs/STUDENT-from-TEACHER-DATE-TIME")] = None
    """Folder of the run."""


#: What `minilm resume --set` may change: nothing that alters which sequences a step sees, or the objective. Learning
#: rate, clipping and precision are in it to rescue a run that would fail without the change.
CHANGEABLE_MID_RUN = frozenset(
    {
        "training.steps",
        "training.micro_batch_tokens",
        "training.compile",
        "training.device",
        "training.precision",
        "training.deterministic",
        "optimizer.lr",
        "optimizer.clip_norm",
        "evaluation.every",
        "evaluation.task",
        "checkpoint.every",
        "checkpoint.minutes",
        "checkpoint.keep",
        "reporting.log_every",
        "reporting.sinks",
    }
)
