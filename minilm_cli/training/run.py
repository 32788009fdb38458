"""A distillation from settings to a finished run folder.

`distill` validates everything, writes the run's folder and trains; `resume` reads the folder and trains on; `follow` is
what all processes but the first do. They meet in `_train`, so an interrupted and an uninterrupted run take the same
path.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minilm_cli.base.atomic import renewed, staged
from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.jsonio import write_json
from minilm_cli.base.locks import Lock
from minilm_cli.base.overwrite import refuse_existing
from minilm_cli.base.progress import NoProgress, Progress
from minilm_cli.export.card import Facts, write_card
from minilm_cli.export.consumers import encode_here
from minilm_cli.export.exporting import write_verified
from minilm_cli.export.hf import HuggingFace
from minilm_cli.export.source import source_of_run
from minilm_cli.models.hub import quiet
from minilm_cli.models.sentence_head import read_head, write_head
from minilm_cli.runs import checkpoint
from minilm_cli.runs.checkpoint import Checkpoint
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.held_out import HeldOut
from minilm_cli.runs.lookup import final_losses, find_run, refuse_lost_checkpoints
from minilm_cli.runs.plan import Plan
from minilm_cli.runs.plan_text import banner
from minilm_cli.runs.run_state import RunState
from minilm_cli.runs.sinks import check_sinks, log_in
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.settings.load import change_mid_run
from minilm_cli.training import environment, nonfinite
from minilm_cli.training.distributed import World
from minilm_cli.training.loop import Judge, TrainingLoop
from minilm_cli.training.measure import measure
from minilm_cli.training.run_log import logging_to
from minilm_cli.training.saving import resume_after
from minilm_cli.training.setup import Named, PreparedRun, load_named, prepare, prepare_again
from minilm_cli.training.signals import Signals
from minilm_cli.training.start import STARTS
from minilm_cli.training.student_choice import token_file

logger = logging.getLogger(__name__)


JudgeFor = Callable[[DistillSettings], Judge | None]
"""Makes of settings what scores the student during training; raises `MinilmError`."""


def no_judge(_: DistillSettings) -> None:
    """Score nothing during training."""


@dataclass(frozen=True)
class RunReport:
    """The outcome of `distill` and `resume`."""

    path: Path
    step: int
    plan: Plan
    records: Sequence[Mapping[str, float]] = ()
    """The lines of `metrics.jsonl`."""
    seconds: float = 0.0
    """Of the whole run, interruptions not counted."""
    tokens: int = 0
    """Trained on, each as often as it came."""
    finished_before: bool = False
    """There was nothing left to do."""

    @property
    def sequences(self) -> int:
        """Trained on, each as often as it came: every step has as many."""
        return self.step * self.plan.training.batch_size

    @property
    def losses(self) -> Mapping[str, float]:
        """The last value of each loss."""
        return final_losses(self.records)

    @property
    def held_out(self) -> HeldOut | None:
        """The held-out loss over the run."""
        return HeldOut.of(self.records)


def distill(
    settings: DistillSettings,
    progress: Progress,
    *,
    force: bool = False,
    world: World | None = None,
    judge_for: JudgeFor = no_judge,
) -> RunReport:
    """Train a student in a new run folder; as rank 0, if several processes share the work.

    If torchrun has restarted the processes after this run was begun, it is resumed.
    judge_for: makes of the settings what scores the student during training.
    Raises `MinilmError` before anything is written if the settings, the models and the tokens do not fit together;
    `RunError` if training fails; `Interrupted` after a signal, once a checkpoint is saved.
    """
    world = world or World()
    if (begun := environment.begun_by_this_launch(settings)) is not None:
        logger.info("Restarted: resuming %s.", begun.path)
        return resume(begun, progress, world=world, judge_for=judge_for)
    judge = judge_for(settings)
    named = _load_named(settings, force=force)
    log_in(settings.reporting.sinks, needed=True)
    with staged(named.output, force=force, folder=True) as built:
        prepared = prepare(settings, named, converted=RunFolder(built).tokens, world=world)
        _write_folder(RunFolder(built), prepared, environment.describe(prepared.distiller.device, world.size, settings))
    with (run := RunFolder(named.output)).locked() as lock:
        return _train(prepared, run, progress, None, lock, judge)


def dry_run(settings: DistillSettings, *, force: bool = False, judge_for: JudgeFor = no_judge) -> Plan:
    """The plan of a run, with time and memory measured on a few real steps; leaves no files."""
    judge = judge_for(settings)
    named = _load_named(settings, force=force)
    with tempfile.TemporaryDirectory(prefix="minilm-") as folder:
        prepared = prepare(settings, named, converted=Path(folder) / "tokens", world=World())
        return prepared.plan.model_copy(update={"measured": measure(prepared, judge)})


def resume(
    run: RunFolder,
    progress: Progress,
    changes: Mapping[str, Any] | None = None,
    *,
    world: World | None = None,
    judge_for: JudgeFor = no_judge,
) -> RunReport:
    """Continue a run from its newest sound checkpoint, or from the beginning if it has none yet.

    changes: settings that may change mid-run, by dotted path; `training.steps` is a new total. judge_for: as for
    `distill`.
    Raises what `distill` raises.
    """
    run.check()
    with run.locked() as lock:
        before = run.settings()
        settings = change_mid_run(before, changes or {})
        check_sinks(settings.reporting.sinks)
        log_in(settings.reporting.sinks, needed=False)
        newest = checkpoint.latest(run.checkpoints)
        if _is_finished(run, newest, before, settings):
            return _finished(run, settings.training.steps or 0, RunState.of(newest))
        if newest is None:
            refuse_lost_checkpoints(run, before.checkpoint)
        judge = judge_for(settings)
        prepared = prepare_again(run, settings, world or World(), initial=newest is None)
        if settings != before:
            if newest is not None:
                run.write_changes(newest.step, before, prepared.settings)
            run.write_settings(prepared.settings)
            run.write_plan(prepared.plan)
        return _train(prepared, run, progress, newest, lock, judge)


def _finished(run: RunFolder, step: int, state: RunState) -> RunReport:
    return RunReport(
        run.path,
        step,
        run.plan(),
        records=run.metrics(),
        seconds=state.wall_seconds,
        tokens=state.tokens,
        finished_before=True,
    )


def follow(world: World) -> None:
    """Do this process's share of the run that rank 0 announces, if it announces one.

    Raises `Dismissed` if rank 0 reports the error, and `RunError` for an error of this process.
    """
    silent = logging.getLogger("minilm_cli")
    silent.setLevel(logging.DEBUG)
    silent.propagate = False
    silent.addHandler(logging.NullHandler())
    announced = world.wait_for_announcement()
    run = RunFolder(Path(announced["run"]))
    _wait_for(run.settings_file, world)
    settings, newest = DistillSettings.model_validate(announced["settings"]), None
    if announced["step"] is not None:
        _wait_for(path := checkpoint.path_of(run.checkpoints, announced["step"]), world)
        newest = checkpoint.load(path)
    # The first process hands its initial weights out.
    _train(prepare_again(run, settings, world, initial=False), run, NoProgress(), newest, None)


def replay(file: Path) -> nonfinite.Finding:
    """Repeat the step that a `not-finite-step-….safetensors` was kept of, and say where it is not finite.

    In this process, from the weights in the file, with the run's settings, teacher and tokens; nothing is trained.
    For a run in one process whose settings and budget of tokens have not changed since, these are the same passes; for
    another, the same sequences with other dropout masks. Raises `MinilmError` if teacher or tokens have changed.
    """
    step, weights = nonfinite.read(file)
    run = find_run(file.parent)
    prepared = prepare_again(run, run.settings(), World(), initial=False)
    prepared.distiller.load_state({"student": weights, "optimizer": {}})
    return nonfinite.examine(prepared.distiller, step, prepared.stream.step(step))


def _load_named(settings: DistillSettings, *, force: bool) -> Named:
    """The first checks of a new run, before anything large is read."""
    if settings.output is not None:
        student = settings.student
        start = None if student.init in STARTS else student.init
        named = [name for name in (student.config, start, token_file(student)) if name is not None]
        inputs = (settings.teacher.name, *settings.data.paths, *named)
        refuse_existing(settings.output, *inputs, force=force, folder=True)
    return load_named(settings)


def _is_finished(run: RunFolder, newest: Checkpoint | None, before: DistillSettings, settings: DistillSettings) -> bool:
    """Whether no step is left to do; raises `MinilmError` if the new settings make no sense then."""
    total = settings.training.steps
    assert total is not None
    if newest is not None and newest.step > total:
        raise MinilmError(
            f"the run has done {newest.step} steps already and cannot be shortened to {total}", where=str(run.path)
        )
    if not run.is_finished() or (newest is not None and newest.step < total):
        return False
    if settings != before and total == before.training.steps:
        raise MinilmError(
            "the run is finished: no step is left that a setting could change",
            where=str(run.path),
            hint="Extend it with --steps.",
        )
    return settings == before


def _write_folder(run: RunFolder, prepared: PreparedRun, facts: Mapping[str, Any]) -> None:
    run.path.mkdir(exist_ok=True)
    run.write_settings(prepared.settings)
    write_json(run.environment_file, facts)
    run.write_plan(prepared.plan)
    prepared.student.config.to_json_file(run.student_config_file, use_diff=False)
    with quiet():
        prepared.tokenizer.save_pretrained(run.tokenizer)
        if prepared.student.vocabulary is not None:
            prepared.student.tokenizer.save_pretrained(run.trimmed_tokenizer)
    teacher = prepared.settings.teacher
    with suppress(MinilmError):  # it may have parts that are not supported; export says so
        if head := read_head(teacher.name, teacher.revision):
            write_head(head, run.sentence_head, hidden_size=prepared.plan.teacher.width)


def _wait_for(path: Path, world: World) -> None:
    """Wait until this process sees what another machine may just have written; raises `RunError`."""
    deadline = time.monotonic() + world.timeout
    while not path.exists():
        if time.monotonic() > deadline:
            raise RunError(
                f"this path did not appear for {world.timeout:.0f} s",
                where=str(path),
                hint="All machines need the run's folder under the same path, on a file system that they share.",
            )
        time.sleep(0.2)


def _train(
    prepared: PreparedRun,
    run: RunFolder,
    progress: Progress,
    newest: Checkpoint | None,
    lock: Lock | None,
    judge: Judge | None = None,
) -> RunReport:
    """Train from `newest`, or the beginning, to the last step; rank 0, who has the lock, writes the student."""
    world, signals = prepared.distiller.world, Signals()
    if world.leads:
        settings = prepared.settings.model_dump(mode="json")
        step = None if newest is None else newest.step
        world.announce({"run": str(run.path.absolute()), "step": step, "settings": settings})
    world.connect(prepared.distiller.device)
    log = run.log_file if world.leads else run.rank_log_file(world.rank)
    logs = world.leads or prepared.settings.reporting.log_ranks
    with logging_to(log) if logs else nullcontext(), signals.caught(), _stopping(progress):
        if world.leads:
            _announce(prepared.plan, run, progress)
        loop = TrainingLoop(prepared, run, progress, signals, newest, lock, judge)
        try:
            loop.run()
        finally:
            loop.close()
        report = RunReport(
            run.path,
            prepared.total_steps,
            prepared.plan,
            seconds=loop.seconds,
            tokens=loop.tokens,
        )
        if not world.leads:
            return report
        signals.end_at_once("Training is done and saved, but the student is not written.", hint=run.resume_hint)
        progress.activity("Writing the student")
        _write_student(run, prepared.total_steps)
        return replace(report, records=run.metrics())


@contextmanager
def _stopping(progress: Progress) -> Iterator[None]:
    try:
        yield
    finally:
        progress.stop()


def _announce(plan: Plan, run: RunFolder, progress: Progress) -> None:
    """Show what is trained, and write it to the log."""
    rows = banner(plan, str(run.path))
    progress.announce("Distilling", rows)
    for name, value in rows:
        logger.debug("%s: %s", name, value)


def _write_student(run: RunFolder, step: int) -> None:
    final = checkpoint.load(checkpoint.path_of(run.checkpoints, step))
    try:
        with renewed(run.student) as built:
            source = source_of_run(run, final)
            verified = write_verified("hf", HuggingFace(encode_here), source, built, NoProgress())
            write_card(Facts(source, "hf", verified, built), picture=False)
    except RunError as error:
        error.hint = resume_after(error, run, "Training is done and saved.")
        raise
    logger.debug("Done: the student is in %s", run.student)
