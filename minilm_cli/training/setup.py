"""Everything a run needs, loaded, checked against each other, and every `auto` resolved. Writes nothing of its own.

What is cheap to check comes first, so that a mistake is told before the teacher's weights are read.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from minilm_cli.base.atomic import restore
from minilm_cli.base.checksums import sha256
from minilm_cli.base.errors import MinilmError
from minilm_cli.models.families import longest_input
from minilm_cli.models.heads import relation_heads, resolve_layer
from minilm_cli.models.hub import load_tokenizer, tokenizer_info
from minilm_cli.models.initialise import evenly_spaced, init_from_teacher
from minilm_cli.models.student import build_student, student_config
from minilm_cli.models.tap import RelationTap
from minilm_cli.models.teacher import load_teacher, read_teacher_config
from minilm_cli.runs.folder import RUNS
from minilm_cli.runs.plan import (
    DataFacts,
    Measured,
    Plan,
    RelationFacts,
    StoreFacts,
    StudentFacts,
    TeacherFacts,
    TrainingFacts,
)
from minilm_cli.runs.sinks import check_sinks
from minilm_cli.settings.distill import DEFAULT_STEPS, DistillSettings, TeacherSettings
from minilm_cli.tokens.id_lists import convert_token_lists, is_id_lists
from minilm_cli.tokens.mixture import Mixture
from minilm_cli.tokens.store import TokenizerInfo, TokenStore
from minilm_cli.training import micro_batch_budget
from minilm_cli.training.batches import BatchStream
from minilm_cli.training.devices import has_bf16, pick_device
from minilm_cli.training.distiller import Distiller
from minilm_cli.training.distributed import World

logger = logging.getLogger(__name__)


#: Real steps that a dry run measures; the first is a warm-up.
MEASURED_STEPS = 3


#: Tokens of a store that take more than a moment to read.
_WORTH_A_WORD = 2**30


@dataclass(frozen=True)
class Job:
    """Everything a run needs."""

    settings: DistillSettings
    """With every `auto` resolved."""
    tokenizer: PreTrainedTokenizerBase
    student_config: PreTrainedConfig
    stream: BatchStream
    distiller: Distiller
    total_steps: int
    plan: Plan


@dataclass(frozen=True)
class Names:
    """What the settings name, as far as it is cheap to load."""

    tokenizer: PreTrainedTokenizerBase
    teacher_config: PreTrainedConfig
    teacher_config_sha256: str
    """Of what the teacher's config.json says of the model."""
    student_config: PreTrainedConfig
    output: Path
    student_config_sha256: str | None = None
    """Of the file that the configuration was read from, where a run was begun."""


def load_names(settings: DistillSettings) -> Names:
    """The teacher's tokenizer, the student's configuration and the run's folder; raises `MinilmError`."""
    check_sinks(settings.reporting.sinks)
    teacher = settings.teacher
    teacher_config, teacher_config_sha256 = load_config(teacher)
    config = student_config(settings.student.config, teacher_config)
    tokenizer = load_tokenizer(teacher.name, revision=teacher.revision, trust_remote_code=teacher.trust_remote_code)
    name = f"{_short_name(config)}-from-{Path(teacher.name).name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Names(tokenizer, teacher_config, teacher_config_sha256, config, settings.output or RUNS / name)


def load_config(teacher: TeacherSettings) -> tuple[PreTrainedConfig, str]:
    """The teacher's configuration, and a checksum of what its config.json says of the model; raises `MinilmError`."""
    config, values = read_teacher_config(
        teacher.name, revision=teacher.revision, trust_remote_code=teacher.trust_remote_code
    )
    if not all(hasattr(config, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")):
        raise MinilmError(f"this is no text encoder, but a {config.model_type} model", where=teacher.name)
    # Who wrote the file, and when, changes nothing.
    says_nothing = {"_name_or_path", "_commit_hash", "architectures", "dtype", "torch_dtype", "transformers_version"}
    said = {key: value for key, value in values.items() if key not in says_nothing}
    return config, _sha256(json.dumps(said, sort_keys=True))


def refuse_missing(stores: tuple[Path, ...]) -> None:
    """Raise `MinilmError` if a token store is gone that a run began with; a file of id lists was converted then."""
    for path in stores:
        restore(path)
        if not is_id_lists(path) and not path.exists():
            raise _changed("the token store is gone that the run began with", path)


def refuse_changes(settings: DistillSettings, before: Plan, now: Plan) -> None:
    """Raise `MinilmError` if tokens, teacher or student are not those that the run began with."""
    _refuse_other_stores(settings.data.paths, before.data, now.data)
    checks = {
        "the teacher's config.json": (settings.teacher.name, before.teacher.config_sha256, now.teacher.config_sha256),
        "the teacher's weights": (settings.teacher.name, before.teacher.weights_sha256, now.teacher.weights_sha256),
        "the student's configuration": ("student-config.json", before.student.config_sha256, now.student.config_sha256),
    }
    for what, (where, then, found) in checks.items():
        if then != found:
            raise _changed(f"{what} changed since the run began", where)


def _refuse_other_stores(paths: tuple[Path, ...], before: DataFacts, now: DataFacts) -> None:
    for path, then, found in itertools.zip_longest(paths, _stores_of(before), _stores_of(now)):
        if found is None:
            raise _changed(f"the run began with a token store more, {then.name}", "data.path")
        if then is None:
            raise _changed("the run began without this token store", path)
        if then.manifest_sha256 != found.manifest_sha256:
            raise _changed("the token store changed since the run began", path)
        if then.weight != found.weight:
            was, is_now = (f"{store.weight:g}" if store.weight else "none" for store in (then, found))
            raise _changed(f"the token store's weight changed since the run began: it was {was}, and is {is_now}", path)


def _stores_of(data: DataFacts) -> list[StoreFacts]:
    """The facts of each store; one alone is told of by those of the data."""
    alone = data.model_dump(include={"name", "sequences", "tokens", "manifest_sha256"})
    return data.stores or [StoreFacts(**alone, share=1.0, weight=None)]


def _changed(what: str, where: str | Path) -> MinilmError:
    return MinilmError(what, where=str(where), hint="Put it back, or start a new run.")


def prepare(settings: DistillSettings, names: Names, *, converted: Path, world: World) -> Job:
    """Load teacher, student and tokens, check them against each other and resolve every `auto`.

    `converted` is where a store stands, or is put, that is made from a file of token-id lists; that of the second of
    several stores is beside it, with `-2` after its name. `world` are the processes that will train. Raises
    `MinilmError` if something does not fit.
    """
    training = settings.training
    device = _device(training.device, world)
    bf16 = training.precision == "bf16" or (training.precision == "auto" and has_bf16(device))
    if device.type == "cuda":
        _repeat_exactly()
    stores = _open_stores(settings.data.paths, converted, names)
    if world.leads:  # once is enough, for it reads everything
        for path, store in stores.items():
            if store.manifest.tokens > _WORTH_A_WORD:
                logger.info("Comparing the checksums of %s.", path)
            store.verify()
    mixture = Mixture(list(stores.values()), settings.data.weights)
    teacher, teacher_parameters = _teacher(settings, names.teacher_config)
    teacher_weights = _weights_sha256(teacher.model)  # before they are moved, and rounded
    student = _student(settings, names.student_config, teacher)
    max_length = _max_length(settings.data.max_length, stores, {"teacher": teacher.model, "student": student.model})
    widths = [_widths(tap, settings.relations.weights) for tap in (teacher, student)]
    heads = relation_heads(settings.relations.heads, *widths)
    wanted = training.micro_batch_tokens
    pack = teacher.packs() and student.packs()
    stream = BatchStream(
        mixture,
        seed=training.seed,
        batch_size=training.batch_size,
        micro_batch_tokens=wanted if isinstance(wanted, int) else micro_batch_budget.untried(device),
        max_length=max_length,
        pad_id=teacher.model.config.pad_token_id or 0,
        pack=pack,
        pin=device.type == "cuda",
        held_out_fraction=settings.evaluation.fraction,
        held_out_limit=settings.evaluation.limit,
        rank=world.rank,
        ranks=world.size,
    )
    total_steps = training.steps or (
        math.ceil(training.epochs * stream.train_sequences / training.batch_size) if training.epochs else DEFAULT_STEPS
    )
    if settings.schedule.warmup_steps >= total_steps:
        logger.warning(
            "The warm-up of %d steps does not end within the run's %d: see --warmup-steps.",
            settings.schedule.warmup_steps,
            total_steps,
        )
    distiller = Distiller(
        teacher, student, settings, heads=heads, total_steps=total_steps, device=device, bf16=bf16, world=world
    )
    tokens_per_step = training.batch_size * mixture.mean_length(max_length)
    if wanted == "auto":
        facts = {
            "teacher": _shape(teacher), "student": _shape(student), "relations": settings.relations.weights,
            "heads": heads, "max_length": max_length, "tokens_per_step": round(tokens_per_step),
            "bf16": bf16, "pack": pack, "compile": training.compile,
        }  # fmt: skip
        micro_batch_budget.settle(distiller, stream, run_tokens=total_steps * tokens_per_step, facts=facts)
    resolved = _resolved(
        settings,
        {
            "teacher": {
                "layer": teacher.layer,
                "name": _findable(settings.teacher.name),
                # A branch moves; the commit that was loaded does not.
                "revision": getattr(names.teacher_config, "_commit_hash", None) or settings.teacher.revision,
            },
            "student": {"layer": student.layer},
            "data": {"max_length": max_length, "path": settings.data.found_from_anywhere()},
            "relations": {"heads": heads},
            "training": {
                "steps": total_steps,
                "epochs": None,
                "precision": "bf16" if bf16 else "fp32",
                "micro_batch_tokens": stream.micro_batch_tokens,
            },
            "output": names.output.absolute(),
        },
    )
    plan = Plan(
        teacher=_teacher_facts(
            settings.teacher.name, teacher, teacher_parameters, names.teacher_config_sha256, teacher_weights
        ),
        student=_student_facts(
            settings,
            student,
            teacher.layer,
            distiller.untrained,
            names.student_config_sha256 or _sha256(names.student_config.to_json_string(use_diff=False)),
        ),
        relations=RelationFacts(
            weights=settings.relations.weights,
            heads=heads,
            teacher_head_width=max(widths[0]) // heads,
            student_head_width=max(widths[1]) // heads,
        ),
        data=_data_facts(stores, mixture, settings.data.weights, held_out=stream.held_out_sequences, cut=max_length),
        training=TrainingFacts(
            steps=total_steps,
            epochs=total_steps * training.batch_size / stream.train_sequences,
            batch_size=training.batch_size,
            tokens_per_step=round(tokens_per_step),
            micro_batch_tokens=stream.micro_batch_tokens,
            precision=resolved.training.precision,
            device=str(device),
            processes=world.size,
        ),
    )
    return Job(resolved, names.tokenizer, names.student_config, stream, distiller, total_steps, plan)


def measure(job: Job) -> Measured:
    """Time and peak memory of a few real steps, at a learning rate of zero."""
    job.distiller.peak_lr = 0.0
    started, sequences, tokens = 0.0, 0, 0
    for report in job.distiller.steps(job.stream, first=1, last=MEASURED_STEPS):
        if report.step == 1:
            started = time.perf_counter()
        else:
            sequences += report.sequences
            tokens += report.tokens
    seconds = time.perf_counter() - started
    if job.distiller.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(job.distiller.device)
    else:
        # Kilobytes on Linux, bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Measured(
        seconds_per_step=seconds / (MEASURED_STEPS - 1),
        sequences_per_second=sequences / seconds,
        tokens_per_second=tokens / seconds,
        peak_memory_gib=peak / 2**30,
        hours_in_all=seconds / (MEASURED_STEPS - 1) * job.total_steps / 3600,
    )


def _short_name(config: PreTrainedConfig) -> str:
    return f"l{config.num_hidden_layers}-h{config.hidden_size}"


def _shape(tap: RelationTap) -> list[Any]:
    config = tap.model.config
    return [config.model_type, tap.layer, config.hidden_size, sum(p.numel() for p in tap.model.parameters())]


def _device(wanted: str, world: World) -> torch.device:
    """The device of this process: of several on a machine with GPUs each has its own."""
    try:
        device = pick_device(wanted)
    except ValueError as error:
        raise MinilmError(f"training.device: {wanted!r} is not to be had: {error}") from None
    if world.size == 1 or device.type == "cpu":
        return device
    if str(device) != "cuda":
        raise MinilmError(f"training.device: {wanted!r} is one device, and there are {world.size} processes")
    if world.local_size > torch.cuda.device_count():
        raise MinilmError(
            f"there are {world.local_size} processes and {torch.cuda.device_count()} GPUs on this machine",
            hint="Start as many processes as there are GPUs (--nproc-per-node).",
        )
    device = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(device)
    return device


def _repeat_exactly() -> None:
    """Have the GPU's kernels add up in the same order each time, so that a resumed run gives what it would have given.

    torch warns, once, of a kernel that cannot: that of attention with dropout, backward.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by a property


def _teacher(settings: DistillSettings, config: PreTrainedConfig) -> tuple[RelationTap, int]:
    """The teacher's tap, and the number of parameters that are kept of it."""
    wanted = settings.teacher
    logger.info("Loading the teacher, %s.", wanted.name)
    model, layer = load_teacher(
        wanted.name,
        layer=wanted.layer,
        revision=wanted.revision,
        trust_remote_code=wanted.trust_remote_code,
        config=config,
    )
    return RelationTap(model, layer), sum(parameter.numel() for parameter in model.parameters())


def _student(settings: DistillSettings, config: PreTrainedConfig, teacher: RelationTap) -> RelationTap:
    layer = resolve_layer(settings.student.layer, config.num_hidden_layers, setting="student.layer")
    model = build_student(config, seed=settings.training.seed)
    if settings.student.init == "teacher":
        init_from_teacher(model, layer, teacher.model, teacher.layer)
    return RelationTap(model, layer)


def _max_length(wanted: int | None, stores: Mapping[Path, TokenStore], models: Mapping[str, PreTrainedModel]) -> int:
    """Tokens of the longest sequence that will be seen, which both models must be able to read."""
    path, longest = max(((path, store.manifest.longest) for path, store in stores.items()), key=lambda found: found[1])
    max_length = min(wanted or longest, longest)
    for side, model in models.items():
        limit = longest_input(model)
        if limit is not None and max_length > limit:
            raise MinilmError(
                f"the {side} reads at most {limit} tokens, and the data has sequences of {max_length}",
                where=str(path),
                hint=f"Cut them with --max-length {limit}.",
            )
    return max_length


def _public_name(name: str | None) -> str | None:
    """A Hub name as it is, and of a local folder only the last part: where it lies is nobody else's business."""
    return name if name is None or (name.count("/") == 1 and not Path(name).is_dir()) else Path(name).name


def _teacher_facts(
    name: str, tap: RelationTap, parameters: int, config_sha256: str, weights_sha256: str
) -> TeacherFacts:
    config = tap.model.config
    return TeacherFacts(
        name=_public_name(name) or name,
        on_hub=not Path(name).is_dir(),
        family=config.model_type,
        layers=config.num_hidden_layers,
        layer=tap.layer,
        width=config.hidden_size,
        parameters=parameters,
        config_sha256=config_sha256,
        weights_sha256=weights_sha256,
    )


def _data_facts(
    stores: Mapping[Path, TokenStore], mixture: Mixture, weights: Sequence[float] | None, *, held_out: int, cut: int
) -> DataFacts:
    weight_of_each: Sequence[float | None] = weights or [None] * len(stores)
    each = [
        StoreFacts(
            name=path.name,
            sequences=len(store),
            tokens=store.manifest.tokens,
            share=share,
            weight=weight,
            manifest_sha256=sha256(store.path / "manifest.json"),
        )
        for (path, store), share, weight in zip(stores.items(), mixture.shares, weight_of_each, strict=True)
    ]
    tokenizers = dict.fromkeys(_public_name(store.manifest.tokenizer.name) for store in stores.values())
    sums = [store.manifest_sha256 for store in each]
    return DataFacts(
        name=", ".join(store.name for store in each),
        tokenizer=", ".join(filter(None, tokenizers)) or None,
        sequences=len(mixture),
        tokens=sum(store.tokens for store in each),
        manifest_sha256=sums[0] if len(each) == 1 else _sha256("".join(sums)),
        held_out=held_out,
        max_length=cut,
        stores=each if len(each) > 1 else [],
    )


def _student_facts(
    settings: DistillSettings, tap: RelationTap, teacher_layer: int, untrained: list[str], config_sha256: str
) -> StudentFacts:
    config, named = tap.model.config, dict(tap.model.named_parameters())
    return StudentFacts(
        name=_short_name(config),
        family=config.model_type,
        layers=config.num_hidden_layers,
        layer=tap.layer,
        width=config.hidden_size,
        parameters=sum(parameter.numel() for parameter in named.values()),
        init_from_teacher_layers=evenly_spaced(tap.layer, teacher_layer) if settings.student.init == "teacher" else [],
        tensors=len(named),
        untrained=untrained,
        untrained_parameters=sum(named[name].numel() for name in untrained),
        config_sha256=config_sha256,
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _weights_sha256(model: PreTrainedModel) -> str:
    """Of the weights that are kept; without the pooler's, which a teacher may lack and are then random."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if "pooler" not in name:
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _findable(name: str) -> str:
    """A local folder by its full path, so that the run can be resumed from anywhere; a Hub name as it is."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def _resolved(settings: DistillSettings, updates: Mapping[str, Any]) -> DistillSettings:
    values = settings.model_dump()
    for section, value in updates.items():
        values[section] = values[section] | value if isinstance(value, dict) else value
    return DistillSettings.model_validate(values)


def _open_stores(paths: tuple[Path, ...], converted: Path, names: Names) -> dict[Path, TokenStore]:
    """The token store at each path, each once."""
    real = [os.path.realpath(path) for path in paths]
    for number, path in enumerate(paths):
        if real[number] in real[:number]:
            raise MinilmError("this token store is given twice", where=str(path), hint="Give each token store once.")
    return {
        path: _open_store(
            path,
            converted if number == 1 else converted.with_name(f"{converted.name}-{number}"),
            names.tokenizer,
            names.teacher_config,
        )
        for number, path in enumerate(paths, start=1)
    }


def _open_store(
    path: Path, converted: Path, tokenizer: PreTrainedTokenizerBase, teacher: PreTrainedConfig
) -> TokenStore:
    """The token store at `path`, checked and of the teacher's vocabulary; a file of id lists is converted first."""
    restore(path)
    if is_id_lists(path) or path.is_file():
        if not is_id_lists(path):
            raise MinilmError("a token store (a folder) or a .jsonl.gz of token-id lists is wanted", where=str(path))
        if not converted.exists():
            logger.info("Making a token store of %s.", path)
            special = tokenizer_info(tokenizer).special_ids
            convert_token_lists(path, converted, TokenizerInfo(vocabulary_size=teacher.vocab_size, special_ids=special))
        path = converted
    store = TokenStore(path)
    made_with = store.manifest.tokenizer
    ours = tokenizer_info(tokenizer)
    if made_with.vocabulary_sha256 not in (None, ours.vocabulary_sha256):
        raise MinilmError(
            f"these tokens were made with the tokenizer {made_with.name}, whose vocabulary is not the teacher's",
            where=str(path),
            hint="Tokenise again with --tokenizer set to the teacher.",
        )
    if made_with.vocabulary_size > teacher.vocab_size:
        raise MinilmError(
            f"the tokens' vocabulary has {made_with.vocabulary_size} ids, and the teacher has embeddings for"
            f" {teacher.vocab_size}",
            where=str(path),
        )
    return store


def _widths(tap: RelationTap, relations: Mapping[str, float]) -> set[int]:
    """Widths of the projections in use, found by a pass over a token; both of a relation must be the same."""
    token = torch.ones((1, 1), dtype=torch.long)
    tap.eval()
    with torch.no_grad():
        found = {letter: tensor.shape[1] for letter, tensor in zip("qkv", tap(token, token), strict=True)}
    for left, right in map(tuple, relations):
        if found[left] != found[right]:
            raise MinilmError(
                f"relations.weights: {left}{right} pairs {left}, {found[left]} wide, with {right}, {found[right]} wide,"
                f" in {tap.model.config.model_type} (grouped-query attention)",
                hint="Pair projections of one width, such as qq, kk and vv.",
            )
    return {found[letter] for pair in relations for letter in pair}
