"""A distillation from settings to a finished run folder.

`distill` validates everything, writes the run's folder and trains; `resume` reads the folder and trains on; `follow` is
what all processes but the first do. They meet in `_train`, so an interrupted run and an uninterrupted one go the same
way.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import __version__ as transformers_version

from minilm_cli import __version__
from minilm_cli.base.atomic import renewed, staged
from minilm_cli.base.checksums import sha256
from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.jsonio import write_json
from minilm_cli.base.locks import Lock
from minilm_cli.base.overwrite import refuse_existing
from minilm_cli.base.progress import NoProgress, Progress
from minilm_cli.export.hf import write_hf
from minilm_cli.models.hub import load_tokenizer, quiet
from minilm_cli.models.student import saved_config
from minilm_cli.runs import checkpoint
from minilm_cli.runs.folder import FORMAT_VERSION, RunFolder, final_losses, find_run
from minilm_cli.runs.plan import Plan
from minilm_cli.runs.sinks import check_sinks
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.settings.load import change_mid_run
from minilm_cli.training import nonfinite
from minilm_cli.training.distributed import World, launch, same_launch
from minilm_cli.training.loop import Training, mended
from minilm_cli.training.nonfinite import Finding
from minilm_cli.training.setup import (
    Job,
    Names,
    load_config,
    load_names,
    measure,
    prepare,
    refuse_changes,
    refuse_missing,
)
from minilm_cli.training.signals import Signals

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
    with staged(names.output, force=force, folder=True) as built:
        job = prepare(settings, names, converted=RunFolder(built).tokens, world=world)
        _write_folder(RunFolder(built), job, _environment(job.distiller.device, world, settings))
    with (run := RunFolder(names.output)).locked() as lock:
        return _train(job, run, progress, world, lock)


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
    run.check()
    with run.locked() as lock:
        return _go_on(run, progress, changes or {}, world or World(), lock)


def _go_on(run: RunFolder, progress: Progress, changes: Mapping[str, Any], world: World, lock: Lock) -> RunReport:
    before = run.settings()
    settings = change_mid_run(before, changes)
    check_sinks(settings.reporting.sinks)
    newest = checkpoint.latest(run.checkpoints)
    total = settings.training.steps
    assert total is not None
    if newest is not None and newest.step > total:
        raise MinilmError(
            f"the run has done {newest.step} steps already and cannot be shortened to {total}", where=str(run.path)
        )
    if run.is_finished() and (newest is None or newest.step == total):
        if settings == before:
            return RunReport(run.path, total, final_losses(run.metrics()), finished_before=True)
        if settings.training.steps == before.training.steps:
            raise MinilmError(
                "the run is finished: no step is left that a setting could change",
                where=str(run.path),
                hint="Extend it with --steps.",
            )
    if newest is None:
        run.refuse_lost_checkpoints(before.checkpoint)
    job = _prepare_again(run, settings, world)
    if settings != before:
        if newest is not None:
            run.write_changes(newest.step, before, job.settings)
        run.write_settings(job.settings)
        write_json(run.plan_file, job.plan.model_dump())
    return _train(job, run, progress, world, lock, newest)


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
    job = _prepare_again(run, settings, world)
    _train(job, run, NoProgress(), world, None, newest)


def replay(file: Path) -> Finding:
    """Do the step again that a `not-finite-step-….safetensors` was left of, and say where it is not finite.

    In this process, from the weights that are in the file, with the run's settings, teacher and tokens; nothing is
    trained. These are the very passes of a run in one process whose settings, and budget of tokens, are still those
    of then; of another, the same sequences with other dropout masks. Raises `MinilmError` if teacher or tokens are
    not what they were.
    """
    step, weights = nonfinite.read(file)
    run = find_run(file.parent)
    settings = run.settings()
    job = _prepare_again(run, settings, World())
    job.distiller.load_state({"student": weights, "optimizer": {}})
    return job.distiller.examine(step, job.stream.step(step))


def _begin(settings: DistillSettings, *, force: bool) -> Names:
    """The first checks of a new run, before anything large is read."""
    if settings.output is not None:
        inputs: tuple[str | Path, ...] = (*settings.data.paths, settings.teacher.name, settings.student.config)
        refuse_existing(settings.output, *inputs, force=force, folder=True)
    return load_names(settings)


def _prepare_again(run: RunFolder, settings: DistillSettings, world: World) -> Job:
    """The job of a run that was begun; raises `MinilmError` if what it began with is gone or is another."""
    refuse_missing(settings.data.paths)
    tokenizer = load_tokenizer(str(run.tokenizer.absolute()))
    config = saved_config(run.student_config_file)
    names = Names(tokenizer, *load_config(settings.teacher), config, run.path, sha256(run.student_config_file))
    job = prepare(settings, names, converted=run.tokens, world=world)
    refuse_changes(settings, run.plan(), job.plan)
    return job


def _begun_by_this_launch(settings: DistillSettings) -> RunFolder | None:
    """The run that the processes before these began with the same words, if torchrun has started them anew."""
    if (ours := launch()) is None:
        return None
    try:
        run = find_run(settings.output)
        environment = run.environment()
    except MinilmError:
        return None
    same = same_launch(ours, environment.get("launch"), finished=run.is_finished())
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
        "format_version": FORMAT_VERSION,
        "id": secrets.token_hex(4),
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
class _LogFile(logging.FileHandler):
    """A log that a full disk does not make more noise than its lines are worth."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802  # logging's name
        """Tell the person once."""
        if not self.failed:
            self.failed = True
            logger.warning("%s cannot be written: lines are missing from now on.", self.baseFilename)


@contextmanager
def _logging_to(file: Path) -> Iterator[None]:
    handler = _LogFile(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("minilm_cli")
    root.addHandler(handler)
    try:
        yield
    except Exception as error:
        # The person is told on another way; who looks here on the next day wants to know too.
        logger.debug("Ended: %s", error, exc_info=not isinstance(error, MinilmError))
        raise
    finally:
        root.removeHandler(handler)
        with suppress(OSError):  # what is still unwritten
            handler.close()


def _train(
    job: Job,
    run: RunFolder,
    progress: Progress,
    world: World,
    lock: Lock | None,
    newest: checkpoint.Checkpoint | None = None,
) -> RunReport:
    """Train from `newest`, or the beginning, to the last step; rank 0, who has the lock, writes the student."""
    signals = Signals()
    log = run.log_file if world.leads else run.path / f"log-rank-{world.rank:05}.txt"
    logs = world.leads or job.settings.reporting.log_ranks
    if world.leads:
        step = None if newest is None else newest.step
        settings = job.settings.model_dump(mode="json")
        world.tell({"run": str(run.path.absolute()), "step": step, "settings": settings})
    world.meet(job.distiller.device)
    with _logging_to(log) if logs else nullcontext(), signals.caught():
        training = Training(job, run, progress, signals, newest, world, lock)
        try:
            training.go()
        finally:
            training.close()
        if not world.leads:
            return RunReport(run.path, job.total_steps, {})
        signals.end_at_once("Training is done and saved, the student not written.", hint=run.how_to_go_on())
        final = checkpoint.load(checkpoint.path_of(run.checkpoints, job.total_steps))
        try:
            with renewed(run.student) as built:
                write_hf(run, final, built)
        except RunError as error:
            error.hint = mended(error, run, "Training is done and saved.")
            raise
        losses = final_losses(run.metrics())
        logger.debug("Done: the student is in %s", run.student)
    return RunReport(run.path, job.total_steps, losses)
