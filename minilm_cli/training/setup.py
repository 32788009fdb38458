"""Everything a run needs, loaded, checked against each other, and every `auto` resolved.

Cheap checks come first, so that a mistake is reported before the teacher's weights are read. What comes after takes
what it needs of the settings, not the settings.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from minilm_cli.base.checksums import sha256, sha256_of_text
from minilm_cli.base.errors import MinilmError
from minilm_cli.models.checks import refuse_local_layer
from minilm_cli.models.families import is_rotary
from minilm_cli.models.hub import load_tokenizer, read_card, tokenizer_info
from minilm_cli.models.inputs import Layout
from minilm_cli.models.kept_vocabulary import KeptVocabulary
from minilm_cli.models.size import size_of
from minilm_cli.models.student import build_student
from minilm_cli.models.student_config import saved_config
from minilm_cli.models.tap import Tap
from minilm_cli.models.teacher import load_teacher, read_teacher_config
from minilm_cli.models.trials import common_layout, computes_in_bf16, refuse_unreadable
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.lookup import RUNS
from minilm_cli.runs.plan import Plan, RelationFacts, StartFacts, TeacherFacts, TrainingFacts, changed, refuse_changes
from minilm_cli.runs.plan_facts import data_facts, student_facts, teacher_facts
from minilm_cli.runs.sinks import check_sinks
from minilm_cli.settings.distill import (
    DEFAULT_STEPS,
    DistillSettings,
    RelationSettings,
    TeacherSettings,
    TrainingSettings,
)
from minilm_cli.tokens.mixture import Mixture
from minilm_cli.training import micro_batch_budget
from minilm_cli.training.advice import advice
from minilm_cli.training.batches import BatchStream
from minilm_cli.training.devices import choose_device, has_bf16, repeat_exactly
from minilm_cli.training.distiller import Distiller
from minilm_cli.training.distributed import World
from minilm_cli.training.layer_pairs import layer_pairs
from minilm_cli.training.objective import RelationObjective, relation_heads, used_widths
from minilm_cli.training.optim import LearningRate
from minilm_cli.training.start import STARTS, check_start, start_from_model, start_from_teacher
from minilm_cli.training.stores import Vocabulary, choose_max_length, open_stores, refuse_missing, verify_stores
from minilm_cli.training.student_choice import Student, check_student, choose_student, resolved_tokens

logger = logging.getLogger(__name__)

#: Entries of a teacher's config.json that say nothing of the model: who wrote the file, and when.
_SAYS_NOTHING = {"_name_or_path", "_commit_hash", "architectures", "dtype", "torch_dtype", "transformers_version"}

#: Largest relative difference of a packed row's projections that is rounding: that of bf16, through many layers.
_PACKING_ROUNDING = 0.05


@dataclass(frozen=True)
class Named:
    """What the settings name, as far as it is cheap to load."""

    tokenizer: PreTrainedTokenizerBase
    """The teacher's."""
    teacher_config: PreTrainedConfig
    teacher_config_sha256: str
    """Of the entries of the teacher's config.json that describe the model."""
    output: Path
    student: Student | None = None
    """That of a run which was begun."""
    student_config_sha256: str | None = None
    """Of the file that a run which was begun keeps it in."""
    start: StartFacts | None = None
    """How the student started, in a run with a checkpoint, which has its weights."""


@dataclass(frozen=True)
class PreparedRun:
    """Everything a run needs."""

    settings: DistillSettings
    """With every `auto` resolved."""
    tokenizer: PreTrainedTokenizerBase
    """The teacher's."""
    student: Student
    stream: BatchStream
    distiller: Distiller
    total_steps: int
    plan: Plan


# --- What is cheap to load ---------------------------------------------------------------------------------------


def load_named(settings: DistillSettings) -> Named:
    """The teacher's tokenizer and configuration, and the run's folder; raises `MinilmError` for a wrong student."""
    check_sinks(settings.reporting.sinks)
    check_start(settings.student.init)
    teacher = settings.teacher
    teacher_config, checksum = _teacher_config(teacher)
    tokenizer = load_tokenizer(teacher.name, revision=teacher.revision, trust_remote_code=teacher.trust_remote_code)
    student = check_student(settings, teacher_config, tokenizer)
    name = f"{student}-from-{Path(teacher.name).name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Named(tokenizer, teacher_config, checksum, settings.output or RUNS / name)


def _teacher_config(teacher: TeacherSettings) -> tuple[PreTrainedConfig, str]:
    """The teacher's configuration, and a checksum of what its config.json says of the model; raises `MinilmError`."""
    config, values = read_teacher_config(
        teacher.name, revision=teacher.revision, trust_remote_code=teacher.trust_remote_code
    )
    said = {key: value for key, value in values.items() if key not in _SAYS_NOTHING}
    return config, sha256_of_text(json.dumps(said, sort_keys=True))


def prepare_again(run: RunFolder, settings: DistillSettings, world: World, *, initial: bool) -> PreparedRun:
    """A run that was begun, prepared again; raises `MinilmError` if something it began with is missing or changed.

    initial: whether the student gets its initial weights, as there is no checkpoint to take others from.
    """
    refuse_missing(settings.data.paths)
    tokenizer = load_tokenizer(str(run.tokenizer.absolute()))
    config, checksum = saved_config(run.student_config_file), sha256(run.student_config_file)
    teacher_config, teacher_checksum = _teacher_config(settings.teacher)
    before = run.plan()
    # The settings of a run that was begun give the layer as a number, the plan says why.
    layers = replace(layer_pairs(settings, teacher_config, config), reason=before.teacher.layer_reason)
    source = settings.student.config or str(run.student_config_file)
    student = Student(source, config, layers, tokenizer, facts=before.vocabulary)
    if before.vocabulary is not None:
        trimmed = load_tokenizer(str(run.student_tokenizer.absolute()))
        if tokenizer_info(trimmed).vocabulary_sha256 != before.vocabulary.vocabulary_sha256:
            raise changed("the student's tokenizer changed since the run began", run.student_tokenizer)
        kept = KeptVocabulary.between(tokenizer, teacher_config.vocab_size, trimmed)
        student = replace(student, tokenizer=trimmed, vocabulary=kept)
    start = None if initial else before.student.start
    named = Named(tokenizer, teacher_config, teacher_checksum, run.path, student, checksum, start)
    prepared = prepare(settings, named, converted=run.tokens, world=world)
    refuse_changes(before, prepared.plan, teacher=settings.teacher.name, stores=settings.data.paths)
    return prepared


# --- Everything --------------------------------------------------------------------------------------------------


def prepare(settings: DistillSettings, named: Named, *, converted: Path, world: World) -> PreparedRun:
    """Load teacher, student and tokens, check them against each other and resolve every `auto`.

    converted: where a store is put that is made from a file of token-id lists (see `open_stores`). world: the processes
    that will train. Raises `MinilmError` if something does not fit.
    """
    device = choose_device(settings.training.device, world)
    if settings.training.deterministic:
        repeat_exactly(device, strictly=True)
    vocabulary = Vocabulary(tokenizer_info(named.tokenizer), named.teacher_config.vocab_size)
    stores = open_stores(settings.data.paths, converted, vocabulary)
    if world.leads:  # once is enough, since it reads everything
        verify_stores(stores)
    chosen = named.student or choose_student(settings, named.teacher_config, named.tokenizer, [*stores.values()])
    respell = chosen.vocabulary.respelling() if chosen.vocabulary else None
    mixture = Mixture(list(stores.values()), settings.data.weights, respell)
    teacher, of_teacher = _load_teacher(settings, named, chosen)
    student = _build_student(settings, chosen)
    student_size = size_of(student.model)
    max_length = choose_max_length(settings.data.max_length, stores, {"teacher": teacher, "student": student})
    relations = _relation_facts(settings.relations, teacher, student, max_length)
    layout = common_layout(teacher, student)
    stream = _batch_stream(settings, mixture, max_length, layout=layout, device=device, world=world)
    start = named.start or _start(settings, chosen.tokenizer, teacher, student, relations, stream)
    total_steps = _total_steps(settings.training, stream)
    distiller = _distiller(settings, teacher, student, relations, total_steps=total_steps, device=device, world=world)
    _try_packing(distiller, stream)
    tokens_per_step = stream.batch_size * mixture.mean_length(max_length)
    if settings.training.micro_batch_tokens == "auto":
        facts = _speed_facts(distiller, relations, stream, round(tokens_per_step), compiled=settings.training.compile)
        micro_batch_budget.settle(distiller, stream, run_tokens=total_steps * tokens_per_step, facts=facts)
    resolved = _resolved(settings, named, chosen, distiller, stream, heads=relations.heads, total_steps=total_steps)
    # Building the student has completed its configuration, which the run will save.
    config_sha256 = named.student_config_sha256 or sha256_of_text(chosen.config.to_json_string(use_diff=False))
    plan = Plan(
        teacher=of_teacher,
        student=student_facts(
            student,
            student_size,
            start,
            untrained=distiller.untrained,
            config_sha256=config_sha256,
        ),
        relations=relations,
        data=data_facts(
            stores, mixture, settings.data.weights, held_out=stream.held_out_sequences, max_length=max_length
        ),
        training=_training_facts(resolved, distiller, stream, tokens_per_step=round(tokens_per_step)),
        vocabulary=chosen.facts,
    )
    for warning in advice(plan):
        logger.warning(warning)
    return PreparedRun(resolved, named.tokenizer, chosen, stream, distiller, total_steps, plan)


def _load_teacher(settings: DistillSettings, named: Named, student: Student) -> tuple[Tap, TeacherFacts]:
    """The teacher, with the tokens that the student keeps, and its facts."""
    teacher, layers = settings.teacher, student.layers
    logger.info("Loading the teacher, %s.", teacher.name)
    model, size = load_teacher(
        teacher.name,
        layer=layers.teacher[-1],
        revision=teacher.revision,
        trust_remote_code=teacher.trust_remote_code,
        config=named.teacher_config,
    )
    facts = teacher_facts(
        model,
        layers.teacher,
        teacher.name,
        size,
        read_card(teacher.name, teacher.revision),
        layer_reason=layers.reason,
        config_sha256=named.teacher_config_sha256,
    )
    if student.vocabulary is not None:
        student.vocabulary.trim_model(model)
    tap = Tap(model, layers.teacher, rotated=settings.relations.rotary == "after")
    refuse_unreadable(tap, "teacher", teacher.name)
    return tap, facts


def _build_student(settings: DistillSettings, student: Student) -> Tap:
    model = build_student(student.config, seed=settings.training.seed)
    tap = Tap(model, student.layers.student, rotated=settings.relations.rotary == "after")
    refuse_unreadable(tap, "student", "student.config")
    return tap


def _start(
    settings: DistillSettings,
    tokenizer: PreTrainedTokenizerBase,
    teacher: Tap,
    student: Tap,
    relations: RelationFacts,
    stream: BatchStream,
) -> StartFacts:
    """Give the student its initial weights; raises `MinilmError` if they do not fit. tokenizer: the student's."""
    match settings.student.init:
        case "random":
            return StartFacts()
        case "teacher":
            return start_from_teacher(student, teacher, relations, stream)
        case name:
            return start_from_model(student, name, tokenizer)


def _relation_facts(settings: RelationSettings, teacher: Tap, student: Tap, max_length: int) -> RelationFacts:
    """Which relations are compared; raises `MinilmError` if a model does not have them."""
    for side, tap in (("teacher", teacher), ("student", student)):
        for layer in tap.layers:
            refuse_local_layer(tap.model.config, layer, max_length, side)
    if settings.rotary == "before" and not any(is_rotary(tap.model.config) for tap in (teacher, student)):
        raise MinilmError(
            "relations.rotary: neither the teacher nor the student rotates its queries and keys", hint="Leave it out."
        )
    widths = [used_widths(tap, settings.weights) for tap in (teacher, student)]
    heads = relation_heads(settings.heads, *widths)
    return RelationFacts(
        weights=settings.weights,
        heads=heads,
        teacher_head_width=max(widths[0]) // heads,
        student_head_width=max(widths[1]) // heads,
    )


def _batch_stream(
    settings: DistillSettings, mixture: Mixture, max_length: int, *, layout: Layout, device: torch.device, world: World
) -> BatchStream:
    wanted = settings.training.micro_batch_tokens
    return BatchStream(
        mixture,
        seed=settings.training.seed,
        batch_size=settings.training.batch_size,
        micro_batch_tokens=wanted if isinstance(wanted, int) else micro_batch_budget.untried(device),
        max_length=max_length,
        layout=layout,
        pin=device.type == "cuda",
        held_out_fraction=settings.evaluation.fraction,
        held_out_limit=settings.evaluation.limit,
        rank=world.rank,
        ranks=world.size,
    )


def _total_steps(settings: TrainingSettings, stream: BatchStream) -> int:
    if settings.epochs is not None:
        return math.ceil(settings.epochs * stream.train_sequences / settings.batch_size)
    return settings.steps or DEFAULT_STEPS


def _distiller(
    settings: DistillSettings,
    teacher: Tap,
    student: Tap,
    relations: RelationFacts,
    *,
    total_steps: int,
    device: torch.device,
    world: World,
) -> Distiller:
    return Distiller(
        teacher,
        student,
        RelationObjective(relations.weights, relations.heads),
        settings.optimizer,
        LearningRate(settings.schedule, settings.optimizer.lr, total_steps),
        seed=settings.training.seed,
        device=device,
        bf16=_chooses_bf16(settings.training.precision, student, device),
        compile_models=settings.training.compile,
        world=world,
    )


def _try_packing(distiller: Distiller, stream: BatchStream) -> None:
    """Try packed rows where they were not tried yet: on a GPU, in bf16. If they go wrong, pad the sequences instead."""
    if stream.layout != "packed" or (distiller.device.type == "cpu" and not distiller.bf16):
        return
    error = distiller.packing_error()
    if not error < _PACKING_ROUNDING:
        stream.layout = "padded"
        logger.warning(
            "On this device sequences in one row give other results than alone, by %.0f%%. They are padded instead,"
            " which is slower.",
            100 * error,
        )


def _chooses_bf16(precision: str, student: Tap, device: torch.device) -> bool:
    """Whether to compute in bf16; raises `MinilmError` if that is wanted and impossible."""
    if precision == "fp32" or (precision == "auto" and not has_bf16(device)):
        return False
    if computes_in_bf16(student):
        return True
    if precision == "bf16":
        raise MinilmError(f"training.precision: {student.family.name} models cannot compute in bf16", hint="Use fp32.")
    logger.warning("%s models cannot compute in bf16: using fp32.", student.family.name)
    return False


def _speed_facts(
    distiller: Distiller, relations: RelationFacts, stream: BatchStream, tokens_per_step: int, *, compiled: bool
) -> dict[str, Any]:
    """What the speed of a micro-batch depends on, besides the machine."""

    def shape(tap: Tap) -> list[Any]:
        parameters = sum(parameter.numel() for parameter in tap.model.parameters())
        return [tap.family.name, tap.layers, tap.model.config.hidden_size, parameters]

    return {
        "teacher": shape(distiller.teacher),
        "student": shape(distiller.student),
        "relations": relations.weights,
        "heads": relations.heads,
        "max_length": stream.max_length,
        "tokens_per_step": tokens_per_step,
        "bf16": distiller.bf16,
        "layout": stream.layout,
        "compile": compiled,
    }


# --- Resolved ----------------------------------------------------------------------------------------------------


def _resolved(
    settings: DistillSettings,
    named: Named,
    student: Student,
    distiller: Distiller,
    stream: BatchStream,
    *,
    heads: int,
    total_steps: int,
) -> DistillSettings:
    """The settings with every `auto` resolved, and every path absolute, so that a run can be resumed from anywhere."""
    updates: dict[str, Any] = {
        "teacher": {
            "layer": distiller.teacher.layers,
            "name": _found_from_anywhere(settings.teacher.name),
            # A branch moves; the commit that was loaded does not.
            "revision": getattr(named.teacher_config, "_commit_hash", None) or settings.teacher.revision,
        },
        "student": {
            "config": student.source,
            "max_mb": None,
            "max_params": None,
            "keep_vocab": resolved_tokens(settings.student, student),
            "layer": distiller.student.layers,
            "init": init if (init := settings.student.init) in STARTS else _found_from_anywhere(init),
        },
        "data": {"max_length": stream.max_length, "path": settings.data.found_from_anywhere()},
        "relations": {"heads": heads},
        "training": {
            "steps": total_steps,
            "epochs": None,
            "precision": "bf16" if distiller.bf16 else "fp32",
            "micro_batch_tokens": stream.micro_batch_tokens,
        },
        "evaluation": {"task": _found_from_anywhere(settings.evaluation.task)},
        "schedule": {"warmup_steps": distiller.optimizer.learning_rate.warmup_steps},
    }
    values = settings.model_dump()
    for section, entries in updates.items():
        values[section] |= entries
    return DistillSettings.model_validate(values | {"output": named.output.absolute()})


def _found_from_anywhere(name: str | None) -> str | None:
    """A name as an absolute path, if there is such a file or folder."""
    return str(Path(name).absolute()) if name is not None and Path(name).exists() else name


def _training_facts(
    resolved: DistillSettings, distiller: Distiller, stream: BatchStream, *, tokens_per_step: int
) -> TrainingFacts:
    training, rate = resolved.training, distiller.optimizer.learning_rate
    return TrainingFacts(
        steps=rate.total_steps,
        epochs=rate.total_steps * stream.batch_size / stream.train_sequences,
        batch_size=stream.batch_size,
        tokens_per_step=tokens_per_step,
        micro_batch_tokens=stream.micro_batch_tokens,
        learning_rate=rate.peak,
        warmup_steps=rate.warmup_steps,
        schedule=resolved.schedule.kind,
        precision=training.precision,
        device=str(distiller.device),
        processes=distiller.world.size,
    )
