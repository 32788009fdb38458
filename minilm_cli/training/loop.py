"""The loop around the engine: what is evaluated, saved, reported and stopped, and when.

`Training.go` takes a run from where it stands to its last step. Ignores how a run begins and what becomes of it.
"""

from __future__ import annotations

import logging
import signal
import time

from minilm_cli.base.errors import Dismissed, Interrupted, MinilmError, RunError
from minilm_cli.base.locks import Lock
from minilm_cli.base.progress import Progress, Record
from minilm_cli.runs import checkpoint
from minilm_cli.runs.folder import BackedOff, Best, Notes, RunFolder, Since
from minilm_cli.runs.sinks import Fanout, JsonlSink, Sink, open_sinks
from minilm_cli.training import nonfinite
from minilm_cli.training.distiller import StepReport
from minilm_cli.training.distributed import Lost, World
from minilm_cli.training.monitor import Watch
from minilm_cli.training.nonfinite import Finding, NotFinite
from minilm_cli.training.setup import Job
from minilm_cli.training.signals import Signals

logger = logging.getLogger(__name__)


class Training:
    """The loop around the engine: evaluation, checkpoints, metrics, progress, signals."""

    def __init__(
        self,
        job: Job,
        run: RunFolder,
        progress: Progress,
        signals: Signals,
        newest: checkpoint.Checkpoint | None,
        world: World,
        lock: Lock | None,
    ) -> None:
        self._world, self._lock = world, lock
        self._job, self._run, self._progress, self._signals = job, run, progress, signals
        self._settings, self._distiller = job.settings, job.distiller
        notes = Notes() if newest is None else Notes.of(newest)
        self._step = 0 if newest is None else newest.step
        self._saved: int | None = None if newest is None else newest.step
        self._evaluated, self._best = notes.evaluated, notes.best
        self._elapsed, self._since, self._since_seconds = notes.elapsed, notes.since, notes.since_seconds
        self._budget = job.stream.micro_batch_tokens
        if notes.backed_off is not None and notes.backed_off.wanted == self._budget:
            job.stream.micro_batch_tokens = notes.backed_off.became
        self._watch = Watch(warmup_steps=self._settings.schedule.warmup_steps, first_loss=notes.first_loss)
        if newest is not None:
            self._distiller.load_state({group: newest.tensors(group) for group in ("student", "optimizer")})
            logger.info("Going on from step %d.", newest.step)
        self._distiller.copy_from_first()
        self._metrics = self._open_metrics(resumed=newest is not None) if world.leads else None
        self._sinks = Fanout([self._metrics, *self._open_sinks(resumed=newest is not None)] if self._metrics else [])
        self._last_save = time.monotonic()

    def _open_metrics(self, *, resumed: bool) -> JsonlSink:
        def written_before(record: Record) -> bool:
            done = (self._evaluated or 0) if "eval_loss" in record else self._step
            return resumed and record["step"] <= done

        return JsonlSink(self._run.metrics_file, written_before)

    def _open_sinks(self, *, resumed: bool) -> list[Sink]:
        """The optional ones; where a run is gone on with, one that does not start is left out."""
        return open_sinks(
            self._settings.reporting.sinks,
            self._run.path,
            run_id=f"{self._run.path.name}-{self._run.environment().get('id', '')}",
            first_step=self._step + 1 if resumed else 0,
            settings=self._settings.model_dump(mode="json"),
            needed=not resumed,
        )

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
        except NotFinite as error:
            self._leave_evidence(error)
            raise
        if number := self._distiller.stopped_by or self._signals.pending():
            self._save_unless_saved()
            if not self._world.leads:
                raise Dismissed(128 + number)
            raise Interrupted(
                f"{signal.Signals(number).name} after step {self._step} of {total}; a checkpoint is saved.",
                number,
                hint=self._run.how_to_go_on(),
            )

    def _take_steps(self) -> None:
        total = self._job.total_steps
        steps = self._distiller.steps(self._job.stream, first=self._step + 1, last=total, stop=self._signals.pending)
        for report in steps:
            self._step = report.step
            done = self._since
            self._since = Since(**{name: value + getattr(report, name) for name, value in done})
            for told in self._watch.look(report.step, report.loss, report.grad_norm):
                logger.warning("Step %d: %s", report.step, told)
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
        since, self._since = self._since, Since()
        record: dict[str, float] = {
            "step": self._step,
            **report.metrics(self._settings.relations.weights),
            "sequences_per_second": since.sequences / seconds,
            "tokens_per_second": since.tokens / seconds,
            "padding_fraction": 1 - since.tokens / since.padded_tokens,
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
        losses = self._distiller.evaluate(self._job.stream, stop=self._signals.pending)
        if not losses:
            return  # a signal came somewhere: the evaluation is made up for when the run goes on
        self._mark += time.monotonic() - started  # rates are those of training
        self._evaluated = self._step
        self._sinks.write({"step": self._step, **losses})
        self._progress.update(self._step, losses)
        logger.debug("Step %d: held-out loss %.4f", self._step, losses["eval_loss"])
        if self._step and (self._best is None or losses["eval_loss"] < self._best.eval_loss):
            self._best = Best(step=self._step, eval_loss=losses["eval_loss"])
            self._save()

    def _save_if_due(self) -> None:
        saving = self._settings.checkpoint
        late = time.monotonic() - self._last_save >= 60 * saving.minutes
        due = self._step == self._job.total_steps or self._step % saving.every == 0
        asked = self._signals.take_save()
        if due or late or asked:
            self._save_unless_saved()
        if asked and self._world.leads:
            logger.info("SIGUSR1: the checkpoint of step %d is saved.", self._step)

    def _save_unless_saved(self) -> None:
        if self._saved != self._step:
            self._save()

    def _save(self) -> None:
        """Save a checkpoint; if that fails, once more after removing older ones. Raises `RunError`."""
        if not self._world.leads:
            return
        started = time.monotonic()
        notes = Notes(
            evaluated=self._evaluated,
            best=self._best,
            elapsed=self._elapsed,
            since=self._since,
            since_seconds=started - self._mark,
            first_loss=self._watch.first_loss,
            backed_off=BackedOff(wanted=self._budget, became=self._job.stream.micro_batch_tokens),
        )
        try:
            self._write_checkpoint(notes)
        except RunError as error:
            logger.warning("Step %d: no checkpoint: %s. Trying once more, with fewer kept.", self._step, error.message)
            newest = self._make_room()
            try:
                self._write_checkpoint(notes)
            except RunError as again:
                raise self._not_saved(again, newest) from again
        best = None if self._best is None else self._best.step
        keep = self._settings.checkpoint.keep
        checkpoint.prune(self._run.checkpoints, newest=self._step, keep=keep, best=best)
        self._saved = self._step
        self._last_save = time.monotonic()
        self._mark += time.monotonic() - started
        logger.debug("Step %d: checkpoint saved", self._step)

    def _write_checkpoint(self, notes: Notes) -> None:
        if self._lock is not None and not self._lock.in_place():
            raise RunError("the run's folder is not there any more", where=str(self._run.path))
        assert self._metrics is not None, "rank 0 saves"
        self._metrics.flush()  # a checkpoint that outlives a power cut has its metrics
        checkpoint.save(self._run.checkpoints, self._step, self._distiller.state(), notes.model_dump())

    def _make_room(self) -> checkpoint.Checkpoint | None:
        """Remove all checkpoints but the newest sound one, which is returned, and the best."""
        try:
            newest = checkpoint.latest(self._run.checkpoints)
        except RunError:
            return None
        if newest is not None:
            best = Notes.of(newest).best
            checkpoint.prune(
                self._run.checkpoints, newest=newest.step, keep=1, best=None if best is None else best.step
            )
        return newest

    def _not_saved(self, error: MinilmError, newest: checkpoint.Checkpoint | None) -> RunError:
        there = "There is no earlier one." if newest is None else f"That of step {newest.step} is whole."
        return RunError(
            f"step {self._step}: the checkpoint cannot be saved: {error.message}",
            where=error.where,
            hint=mended(error, self._run, there),
        )

    def _leave_evidence(self, error: NotFinite) -> None:
        """Keep what it takes to see again what is not finite, and say where, and what to try."""
        error.hint = self._what_to_try(error.finding)
        sequences = {index: self._job.stream.sequence(index) for index in error.finding.sequences}
        file = self._run.evidence_file(self._step + 1)
        try:
            nonfinite.keep(file, error, sequences, self._distiller.state()["student"])
        except MinilmError as failed:
            logger.warning("The batch cannot be kept: %s", failed)
        else:
            error.hint = f"The batch, and the student before the step, are in {file}\n{error.hint}"

    def _what_to_try(self, finding: Finding) -> str:
        """What may be changed so that the step comes out finite; no rate mends a teacher."""
        changes = [] if finding.teacher else [f"optimizer.lr={self._settings.optimizer.lr / 2:g}"]
        if self._settings.training.precision != "fp32":
            changes.append("training.precision=fp32")
        if not changes:
            return "No setting helps against that: start a new run, without these sequences or with another teacher."
        command = " --set ".join([self._run.how_to_resume(), *changes])
        return f"Resuming would meet it again. This may help:\n    {command}"


def mended(error: MinilmError, run: RunFolder, kept: str) -> str:
    """The hint of an error that stops a run which can go on: what is kept, and how."""
    return f"{error.hint or ''}\n{kept} Once that is mended:\n    {run.how_to_resume()}".strip()
