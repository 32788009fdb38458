"""A distillation from settings to a finished run folder: what is saved, reported and stopped, and when.

`distill` validates everything, writes the run's folder and trains; `resume` reads the folder and trains on; `follow` is
what all processes but the first do. They meet in `_train`, so an interrupted run and an uninterrupted one go the same
way.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import __version__ as transformers_version

from minilm_cli import __version__, checkpoint
from minilm_cli.distributed import Lost, World, launch, same_launch
from minilm_cli.engine import StepReport
from minilm_cli.errors import Dismissed, Interrupted, MinilmError, RunError
from minilm_cli.export import write_hf
from minilm_cli.files import read_json, refuse_existing, staged, write_json
from minilm_cli.hub import load_tokenizer, quiet
from minilm_cli.job import Job, Names, load_config, load_names, measure, prepare
from minilm_cli.metrics import Fanout, JsonlSink, NoProgress, Progress, Sink, check_sinks, open_sinks
from minilm_cli.models import saved_config
from minilm_cli.plan import Plan
from minilm_cli.runfolder import RunFolder, final_losses, find_run
from minilm_cli.settings import DistillSettings, change_mid_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunReport:
    """The outcome of `distill` and `resume`."""

    path: Path
    step: int
    losses: Mapping[str, float]
    """The last value of each loss."""
    finished_before: bool = False
    """There was nothing left to do."""


def distill(
    settings: DistillSettings, progress: Progress, *, force: bool = False, world: World | None = None
) -> RunReport:
    """Train a student from its beginning, in a new run folder; as rank 0, where several processes share the work.

    If torchrun has started the processes anew after this run was begun, it goes on.
    Raises `MinilmError` before anything is written if the settings, the models and the tokens do not fit together;
    `RunError` if training fails; `Interrupted` after a signal, once a checkpoint is saved.
    """
    world = world or World()
    if (begun := _begun_by_this_launch(settings)) is not None:
        logger.info("Started anew: going on with %s.", begun.path)
        return resume(begun, progress, world=world)
    names = _begin(settings, force=force)
    with staged(names.output, force=force) as built:
        job = prepare(settings, names, converted=RunFolder(built).tokens, world=world)
        _write_folder(RunFolder(built), job, _environment(job.distiller.device, world, settings))
    return _train(job, RunFolder(names.output), progress, world)


def dry_run(settings: DistillSettings, *, force: bool = False) -> Plan:
    """The plan of a run, with time and memory measured on a few real steps; writes nothing that stays."""
    names = _begin(settings, force=force)
    with tempfile.TemporaryDirectory(prefix="minilm-") as folder:
        job = prepare(settings, names, converted=Path(folder) / "tokens", world=World())
        return job.plan.model_copy(update={"measured": measure(job)})


def resume(
    run: RunFolder, progress: Progress, changes: Mapping[str, Any] | None = None, *, world: World | None = None
) -> RunReport:
    """Go on with a run from its newest sound checkpoint, or from the beginning if it has none yet.

    changes: settings that may change mid-run, by dotted path; `training.steps` is a new total.
    Raises what `distill` raises.
    """
    world = world or World()
    before = run.settings()
    settings = change_mid_run(before, changes or {})
    check_sinks(settings.reporting.sinks)
    newest = checkpoint.latest(run.checkpoints)
    total = settings.training.steps
    assert total is not None
    if newest is not None and newest.step > total:
        raise MinilmError(
            f"the run has done {newest.step} steps already and cannot be shortened to {total}", where=str(run.path)
        )
    if newest is not None and newest.step == total and run.student.exists() and settings == before:
        return RunReport(run.path, total, final_losses(run.metrics()), finished_before=True)
    job = prepare(settings, _names_of(run, settings), converted=run.tokens, world=world)
    if job.plan.data.manifest_sha256 != run.plan().data.manifest_sha256:
        raise MinilmError(
            "the token store is not the one that the run began with",
            where=str(settings.data.path),
            hint="Put that one back, or start a new run.",
        )
    if settings != before:
        run.write_settings(job.settings)
        write_json(run.plan_file, job.plan.model_dump())
    return _train(job, run, progress, world, newest)


def follow(world: World) -> None:
    """Do this process's share of the run that rank 0 tells of, if it tells of one.

    Raises `Dismissed` where it is for rank 0 to say what happened, and `RunError` for what went wrong here.
    """
    heard_by_nobody = logging.getLogger("minilm_cli")
    heard_by_nobody.setLevel(logging.DEBUG)
    heard_by_nobody.propagate = False
    heard_by_nobody.addHandler(logging.NullHandler())
    told = world.hear()
    run = RunFolder(Path(told["run"]))
    _wait_for(run.settings_file, world)
    settings, newest = DistillSettings.model_validate(told["settings"]), None
    if told["step"] is not None:
        _wait_for(path := checkpoint.path_of(run.checkpoints, told["step"]), world)
        newest = checkpoint.load(path)
    job = prepare(settings, _names_of(run, settings), converted=run.tokens, world=world)
    _train(job, run, NoProgress(), world, newest)


def _begin(settings: DistillSettings, *, force: bool) -> Names:
    """The first checks of a new run, before anything large is read."""
    if settings.output is not None:
        refuse_existing(settings.output, force=force)
    return load_names(settings)


def _names_of(run: RunFolder, settings: DistillSettings) -> Names:
    """What the settings of a run that was begun name."""
    tokenizer = load_tokenizer(str(run.tokenizer.absolute()))
    return Names(tokenizer, load_config(settings.teacher), saved_config(run.student_config_file), run.path)


def _begun_by_this_launch(settings: DistillSettings) -> RunFolder | None:
    """The run that the processes before these began with the same words, if torchrun has started them anew."""
    if (ours := launch()) is None:
        return None
    try:
        run = find_run(settings.output)
        environment = read_json(run.environment_file, kind="environment")
    except MinilmError:
        return None
    same = same_launch(ours, environment.get("launch"), finished=run.student.exists())
    return run if same and environment.get("asked_for") == _digest(settings) else None


def _digest(settings: DistillSettings) -> str:
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()


def _wait_for(path: Path, world: World) -> None:
    """Wait until this process sees what another machine may just have written; raises `RunError`."""
    deadline = time.monotonic() + world.timeout
    while not path.exists():
        if time.monotonic() > deadline:
            raise RunError(
                f"there is nothing here that this process could see, for {world.timeout:.0f} s",
                where=str(path),
                hint="All machines need the run's folder under the same path, on a file system that they share.",
            )
        time.sleep(0.2)


def _write_folder(run: RunFolder, job: Job, environment: dict[str, Any]) -> None:
    run.path.mkdir(exist_ok=True)
    run.write_settings(job.settings)
    write_json(run.environment_file, environment)
    write_json(run.plan_file, job.plan.model_dump())
    job.student_config.to_json_file(run.student_config_file, use_diff=False)
    with quiet():
        job.tokenizer.save_pretrained(run.tokenizer)


def _environment(device: torch.device, world: World, asked_for: DistillSettings) -> dict[str, Any]:
    return {
        "minilm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers_version,
        "platform": platform.platform(),
        "processor": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "processes": world.size,
        "launch": launch(),
        "asked_for": _digest(asked_for),
    }


# --- Training ----------------------------------------------------------------------------------------------------


class _Signals:
    """Ctrl-C and SIGTERM ask the run to stop after what it is doing; a second one stops it at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def pending(self) -> int:
        """The number of the one that came, or 0."""
        return self.received or 0

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

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            raise Interrupted("at once, without saving.", number, hint="Resuming starts from the last checkpoint.")
        self.received = number
        logger.info("%s: saving a checkpoint, then stopping; once more stops at once.", signal.Signals(number).name)


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


def _train(
    job: Job, run: RunFolder, progress: Progress, world: World, newest: checkpoint.Checkpoint | None = None
) -> RunReport:
    """Train from `newest`, or the beginning, to the last step; rank 0 writes the student."""
    signals = _Signals()
    log = run.log_file if world.leads else run.path / f"log-rank-{world.rank:05}.txt"
    logs = world.leads or job.settings.reporting.log_ranks
    if world.leads:
        step = None if newest is None else newest.step
        settings = job.settings.model_dump(mode="json")
        world.tell({"run": str(run.path.absolute()), "step": step, "settings": settings})
    world.meet(job.distiller.device)
    with _logging_to(log) if logs else nullcontext(), signals.caught():
        training = _Training(job, run, progress, signals, newest, world)
        try:
            training.go()
        finally:
            training.close()
        if not world.leads:
            return RunReport(run.path, job.total_steps, {})
        final = checkpoint.load(checkpoint.path_of(run.checkpoints, job.total_steps))
        with staged(run.student, force=True) as built:
            write_hf(run, final, built)
        losses = final_losses(run.metrics())
        logger.debug("Done: the student is in %s", run.student)
    return RunReport(run.path, job.total_steps, losses)


class _Training:
    """The loop around the engine: evaluation, checkpoints, metrics, progress, signals."""

    def __init__(
        self,
        job: Job,
        run: RunFolder,
        progress: Progress,
        signals: _Signals,
        newest: checkpoint.Checkpoint | None,
        world: World,
    ) -> None:
        self._world = world
        self._job, self._run, self._progress, self._signals = job, run, progress, signals
        self._settings, self._distiller = job.settings, job.distiller
        notes: Mapping[str, Any] = {} if newest is None else newest.notes
        self._step = 0 if newest is None else newest.step
        self._saved: int | None = None if newest is None else newest.step
        self._evaluated: int | None = notes.get("evaluated")
        self._best: dict[str, float] | None = notes.get("best")
        self._elapsed: float = notes.get("elapsed", 0.0)
        # What was done since the last line of metrics, and the seconds it took.
        self._since_seconds: float = notes.get("since_seconds", 0.0)
        self._since: dict[str, int] = dict(notes.get("since") or {"sequences": 0, "tokens": 0, "padded_tokens": 0})
        # A budget that memory was too small for before: as (what was set, what it came down to).
        self._budget = job.stream.micro_batch_tokens
        if (before := notes.get("backed_off")) and before[0] == self._budget:
            job.stream.micro_batch_tokens = before[1]
        if newest is not None:
            self._distiller.load_state({group: newest.tensors(group) for group in ("student", "optimizer")})
            logger.info("Going on from step %d.", newest.step)
        self._distiller.copy_from_first()
        self._sinks = Fanout(self._open_sinks(-1 if newest is None else newest.step) if world.leads else [])
        self._last_save = time.monotonic()

    def _open_sinks(self, keep_steps: int) -> list[Sink]:
        extra = open_sinks(self._settings.reporting.sinks, self._run.path, self._settings.model_dump(mode="json"))
        return [JsonlSink(self._run.metrics_file, keep_steps=keep_steps), *extra]

    def close(self) -> None:
        """End the progress display and the sinks."""
        self._progress.stop()
        self._sinks.close()

    def go(self) -> None:
        """Train to the last step; raises `Interrupted` after a signal."""
        total = self._job.total_steps
        self._progress.start("Distilling", total, done=self._step)
        self._mark = time.monotonic() - self._since_seconds
        try:
            self._evaluate_if_due()
            if not self._distiller.stopped_by:
                self._take_steps()
        except (Lost, Dismissed):
            self._save_unless_saved()  # what this process has done is whole
            raise
        if number := self._distiller.stopped_by or self._signals.pending():
            self._save_unless_saved()
            if not self._world.leads:
                raise Dismissed(128 + number)
            raise Interrupted(
                f"{signal.Signals(number).name} after step {self._step} of {total}; a checkpoint is saved.",
                number,
                hint=f"Go on with:\n    minilm resume {self._run.path}",
            )

    def _take_steps(self) -> None:
        total = self._job.total_steps
        steps = self._distiller.steps(self._job.stream, first=self._step + 1, last=total, stop=self._signals.pending)
        for report in steps:
            self._step = report.step
            for name in self._since:
                self._since[name] += getattr(report, name)
            shown = None
            if report.step in (1, total) or report.step % self._settings.reporting.log_every == 0:
                shown = self._log(report)
            self._progress.update(report.step, shown)
            self._evaluate_if_due()
            if self._distiller.stopped_by:
                break
            self._save_if_due()

    def _log(self, report: StepReport) -> dict[str, float]:
        """Write a line of metrics over the steps since the last one; returns it."""
        now = time.monotonic()
        seconds, self._mark = max(now - self._mark, 1e-9), now
        self._elapsed += seconds
        since, self._since = self._since, dict.fromkeys(self._since, 0)
        record: dict[str, float] = {
            "step": self._step,
            **report.metrics(self._settings.relations.weights),
            "sequences_per_second": since["sequences"] / seconds,
            "tokens_per_second": since["tokens"] / seconds,
            "padding_fraction": 1 - since["tokens"] / since["padded_tokens"],
            "elapsed": self._elapsed,
        }
        if self._world.size > 1:
            waited, self._world.waited = self._world.waited, 0.0
            record |= {"work_imbalance": report.imbalance, "waiting_fraction": min(1.0, waited / seconds)}
            logger.debug("Step %d: %.1f s, %.1f of them waiting for the others", self._step, seconds, waited)
        self._sinks.write(record)
        return record

    def _evaluate_if_due(self) -> None:
        due = self._step in (0, self._job.total_steps) or self._step % self._settings.evaluation.every == 0
        if not due or self._evaluated == self._step or not self._job.stream.held_out_sequences:
            return
        started = time.monotonic()
        losses = self._distiller.evaluate(self._job.stream.held_out(), stop=self._signals.pending)
        if not losses:
            return  # a signal came somewhere: the evaluation is made up for when the run goes on
        self._mark += time.monotonic() - started  # rates are those of training
        self._evaluated = self._step
        self._sinks.write({"step": self._step, **losses})
        self._progress.update(self._step, losses)
        logger.debug("Step %d: held-out loss %.4f", self._step, losses["eval_loss"])
        if self._step and (self._best is None or losses["eval_loss"] < self._best["eval_loss"]):
            self._best = {"step": self._step, "eval_loss": losses["eval_loss"]}
            self._save()

    def _save_if_due(self) -> None:
        saving = self._settings.checkpoint
        late = time.monotonic() - self._last_save >= 60 * saving.minutes
        due = self._step == self._job.total_steps or self._step % saving.every == 0
        if due or late:
            self._save_unless_saved()

    def _save_unless_saved(self) -> None:
        if self._saved != self._step:
            self._save()

    def _save(self) -> None:
        if not self._world.leads:
            return
        started = time.monotonic()
        notes = {
            "evaluated": self._evaluated,
            "best": self._best,
            "elapsed": self._elapsed,
            "since": self._since,
            "since_seconds": started - self._mark,
            "backed_off": [self._budget, self._job.stream.micro_batch_tokens],
        }
        checkpoint.save(self._run.checkpoints, self._step, self._distiller.state(), notes)
        best = None if self._best is None else int(self._best["step"])
        keep = self._settings.checkpoint.keep
        checkpoint.prune(self._run.checkpoints, newest=self._step, keep=keep, best=best)
        self._saved = self._step
        self._last_save = time.monotonic()
        self._mark += time.monotonic() - started
        logger.debug("Step %d: checkpoint saved", self._step)
