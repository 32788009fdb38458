"""All settings of `minilm distill`. Each field is documented by the string below it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from minilm_cli.settings.types import (
    InAStep,
    Length,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
    Weight,
    _encodable,
    _Number,
    _short,
)

DEFAULT_STEPS = 400_000

#: Of so many sequences in a row, token stores with weights give exactly their shares: the smallest share is one.
CYCLE = 10_000


Layer = Annotated[int, _Number]


Stores = Path | tuple[Path, ...] | dict[Path, PositiveFloat]


def _nonzero_layer(value: Any) -> Any:
    if value in (0, "0"):  # a list is no layer either, and cannot be in a set
        raise ValueError("layers are counted from 1, or from −1 backwards; there is no layer 0")
    return value


def _parse_relations(value: Any) -> Any:
    """`qq=1,kk=1` as a mapping; other values as they are."""
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
        raise ValueError("at least one relation is needed, such as qq=1,kk=1,vv=1")
    for pair in value:
        if not re.fullmatch("[qkv][qkv]", pair):
            raise ValueError(f"{pair!r} is not a relation: a pair of q, k and v is wanted, such as qq or qk")
    return value


def _parse_stores(value: Any) -> Any:
    """A path or several as they are, with weights that are numbers above zero; what else there is is refused."""
    if isinstance(value, str | Path):
        return value
    several = isinstance(value, list | tuple | Mapping) and len(value) > 0
    if not several or not all(isinstance(path, str | Path) for path in value):
        raise ValueError("a path is wanted, a list of paths, or a mapping of paths to weights")
    for path, count in Counter(map(Path, value)).items():
        if count > 1:
            raise ValueError(f"{_encodable(path)} is given twice")
    if not isinstance(value, Mapping):
        return value
    return {path: _store_weight(path, weight) for path, weight in value.items()}


def _store_weight(path: str | Path, value: Any) -> float:
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and 0 < (weight := float(value)) < math.inf:
            return weight
    what = f"the weight of {_encodable(path)}"
    raise ValueError(f"{what} must be a finite number greater than 0, not {_short(value)}")


def _check_stores(value: Stores) -> Stores:
    """Refuse a share that is too small; one store alone is a path."""
    if isinstance(value, Path):
        return value
    if isinstance(value, dict):
        weights = {path: Fraction(str(weight)) for path, weight in value.items()}  # 0.1 is a tenth
        path = min(weights, key=lambda path: weights[path])
        if weights[path] * CYCLE < sum(weights.values()):
            share = f"less than 1 in {CYCLE:,} of what is seen"
            raise ValueError(f"the weight of {_encodable(path)}, {value[path]:g}, gives it {share}")
    return next(iter(value)) if len(value) == 1 else value


class TeacherSettings(Section):
    """The model that is learnt from."""

    name: str = Field(min_length=1)
    """Hub name or local folder of the teacher."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    layer: Annotated[Literal["auto"] | Layer, BeforeValidator(_nonzero_layer)] = "auto"
    """Layer whose queries, keys and values are transferred: 1-based, −1 is the last. `auto`: the last of a 12-layer
    teacher, 21 of BERT-large's 24, 19 of RoBERTa-large's and XLM-R-large's 24 (MiniLMv2, section 4.1)."""
    trust_remote_code: bool = False
    """Run model code that comes with the teacher. Only for sources you trust."""


class StudentSettings(Section):
    """The model that learns."""

    config: str = Field(min_length=1)
    """A Hugging Face `config.json`, a folder that has one, or a preset such as `l6-h384` (layers, hidden size)."""
    layer: Annotated[Layer, BeforeValidator(_nonzero_layer)] = -1
    """Student layer that is trained to match the teacher's: 1-based, −1 is the last."""
    init: Literal["random", "teacher"] = "random"
    """Starting weights: `random`, or copied from evenly spaced layers of the `teacher` (equal widths)."""


class DataSettings(Section):
    """The tokens that are learnt on."""

    path: Annotated[Stores, BeforeValidator(_parse_stores), AfterValidator(_check_stores)] = Path("tokens")
    """A token store, or a `.jsonl.gz` file with a list of token ids a line. Several: a list of them, which are read as
    if they were one, or a mapping of each to its weight, its share of the sequences that are seen."""
    max_length: Length | None = None
    """Longest sequence in tokens; longer ones are cut to it, their last special token kept. Default: the store's."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The path of each store."""
        return (self.path,) if isinstance(self.path, Path) else tuple(self.path)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The weight of each store, if they have any."""
        return tuple(self.path.values()) if isinstance(self.path, dict) else None

    def found_from_anywhere(self) -> Stores:
        """`path` with absolute paths."""
        paths = tuple(path.absolute() for path in self.paths)
        return paths if self.weights is None else dict(zip(paths, self.weights, strict=True))


class RelationSettings(Section):
    """The self-attention relations that are transferred (MiniLMv2, section 3)."""

    weights: Annotated[dict[str, Weight], BeforeValidator(_parse_relations), AfterValidator(_check_relations)] = Field(
        default={"qq": 1.0, "kk": 1.0, "vv": 1.0}
    )
    """Weight of each relation, a pair of q (queries), k (keys) and v (values): `qq=1,kk=1,vv=1`."""
    heads: Literal["auto"] | PositiveInt = "auto"
    """Relation heads. `auto`: 48, or 64 for a 1024-wide teacher, else the nearest divisor of both widths."""


class TrainingSettings(Section):
    """How long, how much at once, on what."""

    steps: PositiveInt | None = None
    """Optimiser steps. Default: 400000, unless `epochs` is given."""
    epochs: Annotated[float, Field(gt=0, le=10**9), _Number] | None = None
    """Passes over the training sequences, instead of `steps`."""
    batch_size: InAStep = 256
    """Sequences in an optimiser step, over all processes."""
    micro_batch_tokens: Literal["auto"] | InAStep = "auto"
    """Padded tokens in one forward pass. Changes speed and memory, never the result (but for the dropout masks).
    `auto`: tried out at the start of a run of two million tokens or more, and remembered for the next one."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto`: bf16 where the hardware has it, else fp32. The loss is always computed in fp32."""
    device: str = "auto"
    """`auto`: cuda, else mps, else cpu. Or a torch device such as `cuda:1`."""
    compile: bool = False
    """Compile teacher and student with `torch.compile`: a slower start, and on CPUs no gain."""
    seed: NonNegativeInt = 42
    """Seed of everything random: student weights, held-out share, order, dropout."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give either steps or epochs, not both")
        return self


class OptimizerSettings(Section):
    """AdamW."""

    lr: PositiveFloat = 6e-4
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay; none on biases and norms."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Adam's running-average coefficients."""
    eps: PositiveFloat = 1e-6
    """Added to Adam's denominator."""
    clip_norm: PositiveFloat = 1.0
    """Largest 2-norm of the whole gradient; a larger one is scaled down to it."""


class ScheduleSettings(Section):
    """The learning rate over the steps."""

    kind: Literal["linear", "cosine", "constant"] = "linear"
    """After warm-up: `linear` or `cosine` decay to zero at the last step, or `constant`."""
    warmup_steps: NonNegativeInt = 4000
    """Steps over which the learning rate rises linearly from zero."""


class EvaluationSettings(Section):
    """The held-out loss."""

    fraction: Share = 0.01
    """Share of the sequences held out from training."""
    limit: PositiveInt = 10_000
    """At most this many sequences are held out, whatever the fraction."""
    every: PositiveInt = 1000
    """Steps between two evaluations; the last step always has one."""


class CheckpointSettings(Section):
    """What is kept to go on from."""

    every: PositiveInt = 1000
    """Steps between two checkpoints; the last step always has one."""
    minutes: PositiveFloat = 15
    """Minutes after which a checkpoint is saved even if fewer steps were done."""
    keep: PositiveInt = 3
    """Checkpoints kept: the newest ones, and the best beside them."""


class ReportingSettings(Section):
    """Who is told what."""

    log_every: PositiveInt = 10
    """Steps between two lines of `metrics.jsonl`; the first and the last step always have one."""
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics go besides `metrics.jsonl`: `tensorboard`, `wandb`."""
    log_ranks: bool = False
    """With several processes, have each write a log of its own, `log-rank-00001.txt`, beside rank 0's `log.txt`."""


class DistillSettings(Section):
    """All settings of `minilm distill`."""

    teacher: TeacherSettings
    """The model that is learnt from."""
    student: StudentSettings
    """The model that learns."""
    data: DataSettings = DataSettings()
    """The tokens that are learnt on."""
    relations: RelationSettings = RelationSettings()
    """The self-attention relations that are transferred."""
    training: TrainingSettings = TrainingSettings()
    """How long, how much at once, on what."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """AdamW."""
    schedule: ScheduleSettings = ScheduleSettings()
    """The learning rate over the steps."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """The held-out loss."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """What is kept to go on from."""
    reporting: ReportingSettings = ReportingSettings()
    """Who is told what."""
    output: Path | None = None
    """The run's folder. Default: `runs/STUDENT-from-TEACHER-DATE-TIME`."""


#: What `minilm resume --set` may change: nothing that alters which sequences a step sees or what is learnt from them.
#: Rate, clipping and precision are for a run that would fail without: it becomes another than it would have been.
CHANGEABLE_MID_RUN = frozenset(
    {
        "training.steps",
        "training.micro_batch_tokens",
        "training.compile",
        "training.device",
        "training.precision",
        "optimizer.lr",
        "optimizer.clip_norm",
        "evaluation.every",
        "checkpoint.every",
        "checkpoint.minutes",
        "checkpoint.keep",
        "reporting.log_every",
        "reporting.sinks",
    }
)
