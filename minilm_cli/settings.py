"""The settings of every command: what may be set, its default, its meaning. No torch, no files but settings files.

Each field is documented by the string below it; the reference pages and the error messages are made from these.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeGuard, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from minilm_cli.errors import MinilmError, remedy

DEFAULT_STEPS = 400_000

#: Of so many sequences in a row, token stores with weights give exactly their shares: the smallest share is one.
CYCLE = 10_000

#: Characters of a settings file: thirty times what all settings take. Parsing YAML takes hundreds of times as much.
LONGEST_FILE = 2**16

#: Characters of a wrong value that are shown.
LONGEST_SHOWN = 200

#: What parsers raise. PyYAML takes a value to be what its tag says it is: `!!bool x` is a KeyError.
_NOT_PARSED = (
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def _no_bool(value: Any) -> Any:
    """`true` is no number, whatever Python says."""
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004  # pydantic takes ValueErrors
    return value


_Number = BeforeValidator(_no_bool)
PositiveInt = Annotated[int, Field(gt=0, le=2**62), _Number]
NonNegativeInt = Annotated[int, Field(ge=0, le=2**62), _Number]
PositiveFloat = Annotated[float, Field(gt=0), _Number]
NonNegativeFloat = Annotated[float, Field(ge=0), _Number]
Weight = Annotated[float, Field(gt=0, le=10**6), _Number]
Share = Annotated[float, Field(ge=0, lt=1), _Number]
InAStep = Annotated[int, Field(gt=0, le=2**24), _Number]
"""What fp32 can count: processes tell each other such numbers so."""
Length = Annotated[int, Field(ge=2, le=2**21), _Number]
Model = TypeVar("Model", bound=BaseModel)

Layer = Annotated[int, _Number]
Stores = Path | tuple[Path, ...] | dict[Path, PositiveFloat]


def _nonzero_layer(value: Any) -> Any:
    if value in (0, "0"):  # a list is no layer either, and cannot be in a set
        raise ValueError("layers are counted from 1, or from −1 backwards; there is no layer 0")
    return value


def _check_language(value: str) -> str:
    if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*", value):
        raise ValueError("must be the code of a language, such as en, de or zh-Hant")
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


def _encodable(path: str | Path) -> str:
    """A path for a message of pydantic's, which takes no half characters."""
    return str(path).encode(errors="replace").decode()


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


def _cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Section(BaseModel):
    """A group of settings: frozen, and strict about names."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )
    ONLY_READ: ClassVar[frozenset[str]] = frozenset()
    """The names of files that may be no UTF-8, as those on disk may: nothing is written with them."""

    @field_validator("*")
    @classmethod
    def _can_be_named(cls, value: Any, info: ValidationInfo) -> Any:
        """Paths and names are given to the system, and written as UTF-8."""
        for name in value if isinstance(value, tuple | dict) else (value,):
            if isinstance(name, str | Path):
                text = str(name)
                if "\0" in text:
                    raise ValueError("must have no null character")
                try:
                    os.fsencode(text) if info.field_name in cls.ONLY_READ else text.encode()
                except UnicodeEncodeError:
                    raise ValueError("must be Unicode text") from None
        return value


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


class Flags(Section):
    """Settings that no file holds: what is wrong with one is told as it is typed."""

    TYPED: ClassVar[Mapping[str, str]] = {}
    """How, for those that are typed otherwise than by a flag of their name."""


class TokenizeSettings(Flags):
    """All settings of `minilm tokenize`."""

    TYPED = {"inputs": "INPUT", "continued": "--continue"}
    ONLY_READ = frozenset({"inputs"})

    inputs: tuple[str, ...] = Field(min_length=1)
    """Text (a line is a sample), `.jsonl` and `.csv` files, each also as `.gz`, `.bz2`, `.xz` or `.zst`; `.parquet`
    files; patterns of files; `-`, standard input; `hf://datasets/NAME[:SPLIT]`, a data set of the Hub."""
    tokenizer: str = Field(default="bert-base-uncased", min_length=1)
    """Hub name or local folder."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    trust_remote_code: bool = False
    """Run tokenizer code that comes with it. Only for sources you trust."""
    output: Path = Path("tokens")
    """The token store's folder, or a file whose name ends in `.jsonl.gz`."""
    max_length: Length = 512
    """Tokens in a sequence, special tokens counted."""
    overflow: Literal["split", "truncate", "drop"] = "split"
    """What becomes of a longer line."""
    pack: bool = False
    """Join successive lines, up to `max_length`; none across a blank line, which ends a document."""
    split_sentences: bool = False
    """Each sentence is a sample, instead of each line."""
    language: Annotated[str, AfterValidator(_check_language)] = "en"
    """The language whose rules sentences are split by."""
    text_field: str | None = Field(default=None, min_length=1)
    """The field or column that holds the text (default: `text`); with it, standard input is JSON lines."""
    errors: Literal["strict", "replace"] = "strict"
    """Bytes that are not UTF-8: refuse the file, or replace each by U+FFFD."""
    workers: Annotated[int, Field(gt=0, le=4096), _Number] = Field(default_factory=_cores)
    """Worker processes (default: one for each core); the output is the same whatever the number."""
    batch_size: PositiveInt = 1000
    """Lines handed to a worker at once."""
    continued: bool = False
    """Go on with a token store that was interrupted, from its last whole shard."""
    force: bool = False
    """Replace an existing output, or what is left of one that was interrupted."""

    @model_validator(mode="after")
    def _language_of_sentences(self) -> Self:
        if "language" in self.model_fields_set and not self.split_sentences:
            raise ValueError("--language says how sentences are split: give --split-sentences too")
        return self


class ExportSettings(Flags):
    """All settings of `minilm export`."""

    TYPED = {"run": "RUN"}

    run: Path
    """The run's folder."""
    format: Literal["hf"] = "hf"
    """`hf`: a folder that `transformers.AutoModel` loads."""
    checkpoint: Literal["last", "best"] | NonNegativeInt = "last"
    """Which checkpoint: the last, the best by held-out loss, or the step's number."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the exported weights."""
    output: Path | None = None
    """Where it goes. Default: `RUN/export/FORMAT`."""
    push_to_hub: str | None = None
    """Upload the export to this Hub repository as well."""
    private: bool = False
    """Make that repository private if it is new."""
    force: bool = False
    """Replace an existing output."""


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted paths: `{"optimizer": {"lr": 1}}` becomes `{"optimizer.lr": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, Mapping) and dotted not in ("relations.weights", "data.path"):
            flat.update(flatten(value, f"{dotted}."))
        else:
            flat[dotted] = value
    return flat


def setting_names(model: type[BaseModel] = DistillSettings, prefix: str = "") -> list[str]:
    """The dotted path of every setting, in the order they are declared."""
    names = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += setting_names(field.annotation, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names


class _Loader(yaml.SafeLoader):
    """The safe loader; it refuses a key given twice, where the last would count, and merging.

    A few lines that merge one another make mappings of billions of entries.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not read", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
        super().flatten_mapping(node)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506  # it is a safe loader


def _parse_json(text: str) -> Any:
    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
            raise ValueError(f"{name} is given twice")
        return seen

    return json.loads(text, object_pairs_hook=mapping)


def read_settings_file(path: Path) -> dict[str, Any]:
    """Parse a `.yaml`, `.toml` or `.json` settings file into nested dictionaries; raises `MinilmError`."""
    parsers: dict[str, Callable[[str], Any]] = {
        ".yaml": _parse_yaml,
        ".yml": _parse_yaml,
        ".toml": tomllib.loads,
        ".json": _parse_json,
    }
    parser = parsers.get(path.suffix.lower())
    if parser is None:
        raise MinilmError("a settings file ends in .yaml, .toml or .json", where=str(path))
    if path.exists() and not path.is_file():  # a pipe may never end
        raise MinilmError("the settings file cannot be read: it is not a file", where=str(path))
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST_FILE + 1)
    except FileNotFoundError:
        raise MinilmError("there is no such settings file", where=str(path)) from None
    except OSError as error:
        message = f"the settings file cannot be read: {error.strerror}"
        raise MinilmError(message, where=str(path), hint=remedy(error)) from None
    except UnicodeDecodeError as error:
        raise MinilmError(f"the settings file cannot be read: {error}", where=str(path)) from None
    if len(text) > LONGEST_FILE:
        raise MinilmError(f"the settings file is longer than {LONGEST_FILE:,} characters", where=str(path))
    try:
        value = parser(text)
    except _NOT_PARSED as error:
        message = " ".join(str(error).split())
        raise MinilmError(f"the settings file cannot be parsed: {message}", where=str(path)) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MinilmError("a settings file holds a mapping of names to values", where=str(path))
    return value


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` strings of `--set` as dotted paths; the values are read as YAML. Raises `MinilmError`."""
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip("."):
            raise MinilmError(
                f"--set wants KEY=VALUE, not {assignment!r}", hint="For example: --set optimizer.weight_decay=0.1"
            )
        if key in parsed:
            raise MinilmError(f"--set gives {key} twice")
        try:
            parsed[key] = _parse_yaml(text)
        except _NOT_PARSED:
            parsed[key] = text
    return parsed


def combine(flags: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Flags that are given (not `None`) and `--set` assignments, by dotted path; none may be given both ways."""
    given = {dotted: value for dotted, value in flags.items() if value is not None}
    assigned = parse_assignments(assignments)
    for dotted in assigned.keys() & given.keys():
        raise MinilmError(f"{dotted} is given by its flag and by --set", hint="Give it once.")
    return given | assigned


def _merge(into: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, name = dotted.split(".")
    for section in sections:
        child = into.setdefault(section, {})
        if not isinstance(child, dict):
            raise _unknown(dotted, None)
        into = child
    into[name] = value


def validate(model: type[Model], values: Mapping[str, Any], *, where: str | None = None) -> Model:
    """Build `model` from plain values; raises `MinilmError` in the user's terms."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explain(model, error, where) from None


def load_distill_settings(
    file: Path | None = None, assignments: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> DistillSettings:
    """Settings from a file, overridden by `--set` assignments and flags (dotted paths; `None` is not given).

    A list for `data.path` is one of words, PATH or PATH:WEIGHT.
    Raises `MinilmError` for a file that cannot be read, an unknown or twice given setting, or a wrong value.
    """
    # A section with nothing in it, as where all its lines are commented out, is read as null.
    read = read_settings_file(file) if file else {}
    values = {name: {} if value is None and name != "output" else value for name, value in read.items()}
    overrides = combine(flags or {}, assignments)
    # Of the two ways to say how long to train, the command line's replaces the file's.
    for name, other in (("training.steps", "training.epochs"), ("training.epochs", "training.steps")):
        if name in overrides and other not in overrides and isinstance(values.get("training"), dict):
            values["training"].pop(other.partition(".")[2], None)
    for dotted, value in overrides.items():
        _merge(values, dotted, value)
    where, data = str(file) if file else None, values.get("data")
    if isinstance(data, dict) and isinstance(words := data.get("path"), list) and _all_words(words):
        data["path"] = _typed_stores(words, where)
    for required, flag in (("teacher.name", "--teacher"), ("student.config", "--student-config")):
        section, name = required.split(".")
        if not isinstance(values.get(section, {}), dict) or values.get(section, {}).get(name) is None:
            raise MinilmError(f"{flag} is missing", hint=f"Give {flag}, or {required} in a settings file (--config).")
    return validate(DistillSettings, values, where=where)


def _all_words(values: list[Any]) -> TypeGuard[list[str]]:
    return all(isinstance(value, str) for value in values)


def _typed_stores(words: Sequence[str], where: str | None) -> tuple[Path, ...] | dict[Path, float]:
    """What words name: the weight is what follows the last colon, unless there is a file of the whole name."""
    stores: dict[Path, float | None] = {}
    for word in words:
        name, _, number = word.rpartition(":")
        weight = None
        if name and not os.path.lexists(word):
            try:
                weight = float(number)
            except ValueError:
                if os.path.lexists(name):
                    raise MinilmError(
                        f"data.path: {_encodable(word)}: {_encodable(number)!r} is not a weight", where=where
                    ) from None
        path = Path(word if weight is None else name)
        if path in stores:
            raise MinilmError(
                f"data.path: {_encodable(path)} is given twice", where=where, hint="Give each token store once."
            )
        stores[path] = weight
    weights = {path: weight for path, weight in stores.items() if weight is not None}
    if not weights:
        return tuple(stores)
    for path in stores:
        if path not in weights:
            raise MinilmError(
                f"data.path: {_encodable(path)} has no weight, and another has",
                where=where,
                hint="Give all a weight, or none.",
            )
    return weights


def change_mid_run(settings: DistillSettings, changes: Mapping[str, Any]) -> DistillSettings:
    """A run's settings with `changes` (dotted paths); raises `MinilmError` for what may not change mid-run."""
    values = settings.model_dump()
    for dotted, value in changes.items():
        if dotted not in setting_names():
            raise _unknown(dotted, None)
        if dotted not in CHANGEABLE_MID_RUN:
            raise MinilmError(
                f"{dotted} may not change while a run goes on",
                hint="These may: " + ", ".join(sorted(CHANGEABLE_MID_RUN)) + ".",
            )
        if dotted == "training.steps" and value is None:
            raise MinilmError("training.steps: a number of steps is wanted")
        _merge(values, dotted, value)
    return validate(DistillSettings, values)


def _unknown(dotted: str, where: str | None, known: Sequence[str] | None = None) -> MinilmError:
    known = setting_names() if known is None else known
    # A name without its section is as close as it gets: `lr` is meant to be `optimizer.lr`.
    near = [name for name in known if name.rpartition(".")[2] == dotted.rpartition(".")[2]]
    near += difflib.get_close_matches(dotted, known, n=1)
    hint = f"Did you mean {near[0]}?" if near else "The reference page “Settings” lists all there are."
    return MinilmError(f"there is no setting {dotted or 'without a name'}", where=where, hint=hint)


def _explain(model: type[BaseModel], error: ValidationError, where: str | None) -> MinilmError:
    """The first thing wrong, in the user's terms."""
    first = error.errors(include_url=False)[0]
    # pydantic names the branch of a union it tried last (`int`, `literal[...]`): no part of a setting's path.
    known = setting_names(model)
    dotted = ""
    for part in first["loc"]:
        candidate = f"{dotted}.{part}" if dotted else str(part)
        if first["type"] != "extra_forbidden" and not any(
            n == candidate or n.startswith(candidate + ".") for n in known
        ):
            break
        dotted = candidate
    if first["type"] == "extra_forbidden":
        return _unknown(dotted, where, known)
    reasons = [
        entry["msg"].removeprefix("Value error, ")
        for entry in error.errors(include_url=False)
        if entry["loc"][: len(dotted.split("."))] == tuple(dotted.split("."))
    ] or [first["msg"].removeprefix("Value error, ")]
    reasons = [reason.replace("Input should be", "must be") for reason in reasons]
    message = " or ".join(dict.fromkeys(reason[0].lower() + reason[1:] for reason in reasons))
    given = first["input"]
    shown = f" (given: {_short(given)})" if isinstance(given, str | int | float | bool) else ""
    name = dotted
    if dotted and issubclass(model, Flags):
        name = model.TYPED.get(dotted, f"--{dotted.replace('_', '-')}")
    return MinilmError(f"{name}: {message}{shown}" if name else message, where=where)


def _short(value: str | float | bool) -> str:
    # Python writes no integer of thousands of digits, but in hexadecimal.
    text = hex(value) if isinstance(value, int) and value.bit_length() > LONGEST_SHOWN else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
