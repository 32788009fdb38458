"""A distillation from settings to a finished run folder: what is saved, reported and stopped, and when.

`distill` validates everything, writes the run's folder and trains; `resume` reads the folder and trains on. Both meet
in `_train`, so an interrupted run and an uninterrupted one go the same way.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers import __version__ as transformers_version

from minilm_cli import __version__, checkpoint
from minilm_cli.batches import BatchStream
from minilm_cli.corpus import convert_token_lists
from minilm_cli.engine import Distiller, default_micro_batch_tokens, has_bf16, pick_device
from minilm_cli.errors import Interrupted, MinilmError
from minilm_cli.export import write_hf
from minilm_cli.files import refuse_existing, staged, write_json
from minilm_cli.hub import load_tokenizer, quiet, tokenizer_info
from minilm_cli.metrics import Fanout, JsonlSink, Progress, check_sinks, open_sinks
from minilm_cli.models import (
    build_student,
    evenly_spaced,
    init_from_teacher,
    load_teacher,
    longest_input,
    relation_heads,
    resolve_layer,
    student_config,
)
from minilm_cli.runfolder import RUNS, RunFolder, final_losses
from minilm_cli.settings import DEFAULT_STEPS, DistillSettings, change_mid_run
from minilm_cli.taps import RelationTap
from minilm_cli.tokens import TokenizerInfo, TokenStore

logger = logging.getLogger(__name__)

#: Real steps that a dry run measures; the first is a warm-up.
MEASURED_STEPS = 3


@dataclass(frozen=True)
class RunReport:
    """The outcome of `distill` and `resume`."""

    path: Path
    step: int
    losses: Mapping[str, float]
    """The last value of each loss."""
    finished_before: bool = False
    """There was nothing left to do."""


@dataclass(frozen=True)
class _Job:
    """Everything a run needs, loaded and checked against each other."""

    settings: DistillSettings
    """With every `auto` resolved."""
    tokenizer: PreTrainedTokenizerBase
    student_config: PreTrainedConfig
    stream: BatchStream
    distiller: Distiller
    total_steps: int
    plan: dict[str, Any]


def distill(settings: DistillSettings, progress: Progress, *, force: bool = False) -> RunReport:
    """Train a student from its beginning, in a new run folder.

    Raises `MinilmError` before anything is written if the settings, the models and the tokens do not fit together;
    `RunError` if training fails; `Interrupted` after a signal, once a checkpoint is saved.
    """
    _refuse_many_processes()
    if settings.output is not None:
        refuse_existing(settings.output, force=force)
    tokenizer, config, output = _load_names(settings)
    with staged(output, force=force) as built:
        job = _prepare(settings, tokenizer, config, output, converted=built / "tokens")
        _write_folder(RunFolder(built), job)
    return _train(job, RunFolder(output), progress)


def dry_run(settings: DistillSettings) -> dict[str, Any]:
    """The plan of a run, with time and memory measured on a few real steps; writes nothing that stays."""
    _refuse_many_processes()
    tokenizer, config, output = _load_names(settings)
    with tempfile.TemporaryDirectory(prefix="minilm-") as folder:
        job = _prepare(settings, tokenizer, config, output, converted=Path(folder) / "tokens")
        return job.plan | {"measured": _measure(job)}


def resume(
    run: RunFolder, progress: Progress, *, steps: int | None = None, changes: Mapping[str, Any] | None = None
) -> RunReport:
    """Go on with a run from its newest sound checkpoint, or from the beginning if it has none yet.

    steps: a new total, instead of the run's. changes: other settings that may change mid-run, by dotted path.
    Raises what `distill` raises.
    """
    _refuse_many_processes()
    before = run.settings()
    wanted = dict(changes or {}) | ({"training.steps": steps} if steps is not None else {})
    settings = change_mid_run(before, wanted)
    newest = checkpoint.latest(run.checkpoints)
    total = settings.training.steps
    assert total is not None
    if newest is not None and newest.step > total:
        raise MinilmError(
            f"the run has done {newest.step} steps already and cannot be shortened to {total}", where=str(run.path)
        )
    if newest is not None and newest.step == total and run.student.exists() and settings == before:
        return RunReport(run.path, total, final_losses(run.metrics()), finished_before=True)
    with quiet():
        config = AutoConfig.from_pretrained(run.student_config_file)
    tokenizer = load_tokenizer(str(run.tokenizer))
    job = _prepare(settings, tokenizer, config, run.path, converted=run.tokens)
    if settings != before:
        run.write_settings(job.settings)
        write_json(run.plan_file, job.plan)
    return _train(job, run, progress, newest)


# --- Before training ---------------------------------------------------------------------------------------------


def _refuse_many_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MinilmError("this version of minilm trains in one process", hint="Start it without torchrun.")


def _load_names(settings: DistillSettings) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig, Path]:
    """What is cheap to load and to check: it fails before the teacher's weights are read."""
    check_sinks(settings.reporting.sinks)
    teacher = settings.teacher
    options: dict[str, Any] = {"revision": teacher.revision, "trust_remote_code": teacher.trust_remote_code}
    tokenizer = load_tokenizer(teacher.name, **options)
    with quiet():
        teacher_config = AutoConfig.from_pretrained(teacher.name, **options)
    config = student_config(settings.student.config, teacher_config)
    name = f"{_short_name(config)}-from-{Path(teacher.name).name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return tokenizer, config, settings.output or RUNS / name


def _short_name(config: PreTrainedConfig) -> str:
    return f"l{config.num_hidden_layers}-h{config.hidden_size}"


def _prepare(
    settings: DistillSettings,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    output: Path,
    *,
    converted: Path,
) -> _Job:
    """Load teacher, student and tokens, check them against each other and resolve every `auto`.

    `converted` is where a store stands, or is put, that is made from a file of token-id lists.
    """
    try:
        device = pick_device(settings.training.device)
    except ValueError as error:
        raise MinilmError(f"training.device: {settings.training.device!r} is not to be had: {error}") from None
    bf16 = settings.training.precision == "bf16" or (settings.training.precision == "auto" and has_bf16(device))
    teacher_model, teacher_layer = load_teacher(
        settings.teacher.name,
        layer=settings.teacher.layer,
        revision=settings.teacher.revision,
        trust_remote_code=settings.teacher.trust_remote_code,
    )
    teacher_parameters = sum(parameter.numel() for parameter in teacher_model.parameters())
    student_model = build_student(config, seed=settings.training.seed)
    student_layer = resolve_layer(settings.student.layer, config.num_hidden_layers, setting="student.layer")
    if settings.student.init == "teacher":
        init_from_teacher(student_model, student_layer, teacher_model, teacher_layer)
    store = _open_store(settings.data.path, converted, tokenizer, teacher_model.config)
    max_length = min(settings.data.max_length or store.manifest.longest, store.manifest.longest)
    for side, model in (("teacher", teacher_model), ("student", student_model)):
        limit = longest_input(model)
        if limit is not None and max_length > limit:
            raise MinilmError(
                f"the {side} reads at most {limit} tokens, and the data has sequences of {max_length}",
                where=str(settings.data.path),
                hint=f"Cut them with --max-length {limit}.",
            )
    teacher, student = RelationTap(teacher_model, teacher_layer), RelationTap(student_model, student_layer)
    widths = [_widths(tap, settings.relations.weights) for tap in (teacher, student)]
    heads = relation_heads(settings.relations.heads, *widths)
    stream = BatchStream(
        store,
        seed=settings.training.seed,
        batch_size=settings.training.batch_size,
        micro_batch_tokens=(
            default_micro_batch_tokens(device)
            if settings.training.micro_batch_tokens == "auto"
            else settings.training.micro_batch_tokens
        ),
        max_length=max_length,
        pad_id=teacher_model.config.pad_token_id or 0,
        held_out_fraction=settings.evaluation.fraction,
        held_out_limit=settings.evaluation.limit,
    )
    training = settings.training
    total_steps = training.steps or (
        math.ceil(training.epochs * stream.train_sequences / training.batch_size) if training.epochs else DEFAULT_STEPS
    )
    distiller = Distiller(teacher, student, settings, heads=heads, total_steps=total_steps, device=device, bf16=bf16)
    resolved = _resolved(
        settings,
        {
            "teacher": {"layer": teacher_layer, "name": _findable(settings.teacher.name)},
            "student": {"layer": student_layer},
            "data": {"max_length": max_length, "path": settings.data.path.absolute()},
            "relations": {"heads": heads},
            "training": {
                "steps": total_steps,
                "epochs": None,
                "precision": "bf16" if bf16 else "fp32",
                "micro_batch_tokens": stream.micro_batch_tokens,
            },
            "output": output.absolute(),
        },
    )
    named = {name: parameter for name, parameter in student_model.named_parameters()}
    plan = {
        "teacher": {
            "name": Path(settings.teacher.name).name if Path(settings.teacher.name).is_dir() else settings.teacher.name,
            "on_hub": not Path(settings.teacher.name).is_dir(),
            "family": teacher_model.config.model_type,
            "layers": teacher_model.config.num_hidden_layers,
            "layer": teacher_layer,
            "width": teacher_model.config.hidden_size,
            "parameters": teacher_parameters,
        },
        "student": {
            "name": _short_name(config),
            "family": config.model_type,
            "layers": config.num_hidden_layers,
            "layer": student_layer,
            "width": config.hidden_size,
            "parameters": sum(parameter.numel() for parameter in named.values()),
            "tensors": len(named),
            "init_layers": evenly_spaced(student_layer, teacher_layer) if settings.student.init == "teacher" else [],
            "untrained": distiller.untrained,
            "untrained_parameters": sum(named[name].numel() for name in distiller.untrained),
        },
        "relations": {
            "weights": settings.relations.weights,
            "heads": heads,
            "teacher_head_width": max(widths[0]) // heads,
            "student_head_width": max(widths[1]) // heads,
        },
        "data": {
            "name": settings.data.path.name,
            "tokenizer": store.manifest.tokenizer.name,
            "sequences": len(store),
            "tokens": store.manifest.tokens,
            "held_out": stream.held_out_sequences,
            "max_length": max_length,
        },
        "training": {
            "steps": total_steps,
            "epochs": round(total_steps * training.batch_size / stream.train_sequences, 3),
            "batch_size": training.batch_size,
            "micro_batch_tokens": stream.micro_batch_tokens,
            "precision": resolved.training.precision,
            "device": str(device),
        },
    }
    return _Job(resolved, tokenizer, config, stream, distiller, total_steps, plan)


def _findable(name: str) -> str:
    """A local folder by its full path, so that the run can be resumed from anywhere; a Hub name as it is."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def _resolved(settings: DistillSettings, updates: Mapping[str, Any]) -> DistillSettings:
    values = settings.model_dump()
    for section, value in updates.items():
        values[section] = values[section] | value if isinstance(value, dict) else value
    return DistillSettings.model_validate(values)


def _open_store(
    path: Path, converted: Path, tokenizer: PreTrainedTokenizerBase, teacher: PreTrainedConfig
) -> TokenStore:
    """The token store at `path`, checked and of the teacher's vocabulary; a file of id lists is converted first."""
    if path.name.endswith(".jsonl.gz") or path.is_file():
        if not path.name.endswith(".jsonl.gz"):
            raise MinilmError("a token store (a folder) or a .jsonl.gz of token-id lists is wanted", where=str(path))
        if not converted.exists():
            special = tokenizer_info(tokenizer).special_ids
            convert_token_lists(path, converted, TokenizerInfo(vocabulary_size=teacher.vocab_size, special_ids=special))
        path = converted
    store = TokenStore(path)
    store.verify()
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
            f"the tokens go up to id {made_with.vocabulary_size - 1}, and the teacher has {teacher.vocab_size} embeddings",
            where=str(path),
        )
    return store


def _widths(tap: RelationTap, relations: Mapping[str, float]) -> set[int]:
    """Widths of the projections in use, found by a pass over a token; both of a relation must be the same."""
    token = torch.ones((1, 1), dtype=torch.long)
    tap.eval()
    with torch.no_grad():
        found = {letter: tensor.shape[1] for letter, tensor in zip("qkv", tap(token, token), strict=True)}
    for left, right in relations:
        if found[left] != found[right]:
            raise MinilmError(
                f"relations.weights: {left}{right} pairs {left}, {found[left]} wide, with {right}, {found[right]} wide,"
                f" in {tap.model.config.model_type} (grouped-query attention)",
                hint="Pair projections of one width, such as qq, kk and vv.",
            )
    return {found[letter] for pair in relations for letter in pair}


def _write_folder(run: RunFolder, job: _Job) -> None:
    run.path.mkdir(exist_ok=True)
    run.write_settings(job.settings)
    write_json(run.environment_file, _environment(job.distiller.device))
    write_json(run.plan_file, job.plan)
    job.student_config.to_json_file(run.student_config_file, use_diff=False)
    with quiet():
        job.tokenizer.save_pretrained(run.tokenizer)


def _environment(device: torch.device) -> dict[str, Any]:
    return {
        "minilm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers_version,
        "platform": platform.platform(),
        "processor": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
    }


def _measure(job: _Job) -> dict[str, float]:
    """Seconds a step and peak memory, over a few real steps at a learning rate that changes nothing."""
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
    return {
        "seconds_per_step": seconds / (MEASURED_STEPS - 1),
        "sequences_per_second": sequences / seconds,
        "tokens_per_second": tokens / seconds,
        "peak_memory_bytes": peak,
        "hours_in_all": seconds / (MEASURED_STEPS - 1) * job.total_steps / 3600,
    }


# --- Training ----------------------------------------------------------------------------------------------------


class _Signals:
    """Ctrl-C and SIGTERM ask the run to stop after what it is doing; a second one stops it at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def pending(self) -> bool:
        """Whether one came."""
        return self.received is not None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Handle the signals inside the block."""
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._handle) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = number
        logger.warning("%s: saving a checkpoint, then stopping.", signal.Signals(number).name)


@contextmanager
def _logging_to(file: Path) -> Iterator[None]:
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("minilm_cli")
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def _train(job: _Job, run: RunFolder, progress: Progress, newest: checkpoint.Checkpoint | None = None) -> RunReport:
    """Train from `newest`, or the beginning, to the last step, and write the student."""
    signals = _Signals()
    with _logging_to(run.log_file), signals.caught():
        training = _Training(job, run, progress, signals, newest)
        try:
            training.go()
        finally:
            training.close()
        final = checkpoint.load(checkpoint.path_of(run.checkpoints, job.total_steps))
        with staged(run.student, force=True) as built:
            write_hf(run, final, built)
        losses = final_losses(run.metrics())
        logger.info("Done: the student is in %s", run.student)
    return RunReport(run.path, job.total_steps, losses)


class _Training:
    """The loop around the engine: evaluation, checkpoints, metrics, progress, signals."""

    def __init__(
        self,
        job: _Job,
        run: RunFolder,
        progress: Progress,
        signals: _Signals,
        newest: checkpoint.Checkpoint | None,
    ) -> None:
        self._job, self._run, self._progress, self._signals = job, run, progress, signals
        self._settings, self._distiller = job.settings, job.distiller
        notes: Mapping[str, Any] = {} if newest is None else newest.notes
        self._step = 0 if newest is None else newest.step
        self._saved: int | None = None if newest is None else newest.step
        self._evaluated: int | None = notes.get("evaluated")
        self._best: dict[str, float] | None = notes.get("best")
        self._elapsed: float = notes.get("elapsed", 0.0)
        if newest is not None:
            self._distiller.load_state({group: newest.tensors(group) for group in ("student", "optimizer")})
            logger.info("Going on from step %d.", newest.step)
        reporting = self._settings.reporting
        metrics = JsonlSink(run.metrics_file, keep_steps=-1 if newest is None else newest.step)
        extra = open_sinks(reporting.sinks, run.path, self._settings.model_dump(mode="json"))
        self._sinks = Fanout([metrics, *extra])
        self._last_save = time.monotonic()

    def close(self) -> None:
        """End the progress display and the sinks."""
        self._progress.stop()
        self._sinks.close()

    def go(self) -> None:
        """Train to the last step; raises `Interrupted` after a signal."""
        total = self._job.total_steps
        self._progress.start("Distilling", total, done=self._step)
        self._mark = time.monotonic()
        self._since = {"sequences": 0, "tokens": 0, "padded_tokens": 0}
        self._evaluate_if_due()
        steps = self._distiller.steps(self._job.stream, first=self._step + 1, last=total, stop=self._signals.pending)
        for report in steps:
            self._step = report.step
            for name in self._since:
                self._since[name] += getattr(report, name)
            shown = None
            if report.step in (1, total) or report.step % self._settings.reporting.log_every == 0:
                shown = self._log(report.metrics(self._settings.relations.weights))
            self._progress.update(report.step, shown)
            self._evaluate_if_due()
            self._save_if_due()
            if self._signals.pending():
                break
        if self._signals.received is not None:
            if self._saved != self._step:
                self._save()
            raise Interrupted(
                f"{signal.Signals(self._signals.received).name} after step {self._step} of {total}; a checkpoint is"
                f" saved in {self._run.path}.",
                self._signals.received,
                hint=f"Go on with: minilm resume {self._run.path}",
            )

    def _log(self, metrics: dict[str, float]) -> dict[str, float]:
        """Write a line of metrics over the steps since the last one; returns it."""
        now = time.monotonic()
        seconds, self._mark = max(now - self._mark, 1e-9), now
        self._elapsed += seconds
        since, self._since = self._since, dict.fromkeys(self._since, 0)
        record: dict[str, float] = {
            "step": self._step,
            **metrics,
            "sequences_per_second": since["sequences"] / seconds,
            "tokens_per_second": since["tokens"] / seconds,
            "padding_fraction": 1 - since["tokens"] / since["padded_tokens"],
            "elapsed": self._elapsed,
        }
        self._sinks.write(record)
        return record

    def _evaluate_if_due(self) -> None:
        due = self._step in (0, self._job.total_steps) or self._step % self._settings.evaluation.every == 0
        if not due or self._evaluated == self._step or not self._job.stream.held_out_sequences:
            return
        started = time.monotonic()
        losses = self._distiller.evaluate(self._job.stream.held_out(), stop=self._signals.pending)
        if not losses:
            return  # a signal came: the evaluation is made up for when the run goes on
        self._mark += time.monotonic() - started  # rates are those of training
        self._evaluated = self._step
        self._sinks.write({"step": self._step, **losses})
        logger.info("Step %d: held-out loss %.4f", self._step, losses["eval_loss"])
        if self._step and (self._best is None or losses["eval_loss"] < self._best["eval_loss"]):
            self._best = {"step": self._step, "eval_loss": losses["eval_loss"]}
            self._save()

    def _save_if_due(self) -> None:
        saving = self._settings.checkpoint
        late = time.monotonic() - self._last_save >= 60 * saving.minutes
        due = self._step == self._job.total_steps or self._step % saving.every == 0
        if (due or late) and self._saved != self._step:
            self._save()

    def _save(self) -> None:
        started = time.monotonic()
        notes = {"evaluated": self._evaluated, "best": self._best, "elapsed": self._elapsed}
        checkpoint.save(self._run.checkpoints, self._step, self._distiller.state(), notes)
        best = None if self._best is None else int(self._best["step"])
        checkpoint.prune(self._run.checkpoints, keep=self._settings.checkpoint.keep, best=best)
        self._saved = self._step
        self._last_save = time.monotonic()
        self._mark += time.monotonic() - started
        logger.debug("Step %d: checkpoint saved", self._step)
