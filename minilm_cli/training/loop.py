"""The loop around the engine: what is evaluated, saved, reported and stopped, and when."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Mapping

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minilm_cli.base.errors import Dismissed, Interrupted, MinilmError
from minilm_cli.base.locks import Lock
from minilm_cli.base.progress import Progress, Record
from minilm_cli.runs.checkpoint import Checkpoint
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.lookup import final_losses
from minilm_cli.runs.run_state import BackedOff, Best, Done, RunState
from minilm_cli.runs.sinks import Fanout, JsonlSink, open_sinks
from minilm_cli.training import nonfinite
from minilm_cli.training.distiller import StepNotFinite, StepReport
from minilm_cli.training.monitor import Monitor
from minilm_cli.training.pace import Pace
from minilm_cli.training.rendezvous import Lost
from minilm_cli.training.saving import CheckpointSaver
from minilm_cli.training.setup import PreparedRun
from minilm_cli.training.signals import Signals

logger = logging.getLogger(__name__)

Judge = Callable[[PreTrainedModel, PreTrainedTokenizerBase], Mapping[str, float]]
"""Scores of a student with its tokenizer, by name; the loop does not know how they are found."""


class TrainingLoop:
    """Takes a run from its newest checkpoint, or the beginning, to its last step."""

    def __init__(
        self,
        prepared: PreparedRun,
        run: RunFolder,
        progress: Progress,
        signals: Signals,
        newest: Checkpoint | None,
        lock: Lock | None,
        judge: Judge | None = None,
    ) -> None:
        """`newest`: the checkpoint to start from. lock: on the run's folder; rank 0 alone has it, and writes.

        judge: scores the student at each evaluation, in rank 0.
        """
        self._judge = judge if lock is not None else None
        self._run, self._progress, self._signals = run, progress, signals
        self._settings, self._distiller, self._stream = prepared.settings, prepared.distiller, prepared.stream
        self._world, self._total = prepared.distiller.world, prepared.total_steps
        self._tokenizer = prepared.student.tokenizer
        state = RunState.of(newest)
        self._step = 0 if newest is None else newest.step
        self._saved = None if newest is None else newest.step
        self._evaluated, self._best = state.evaluated, state.best
        self._elapsed, self._since, self._since_seconds = state.elapsed, state.since, state.since_seconds
        self.tokens = state.tokens
        self._began = time.monotonic() - state.wall_seconds
        self._pace = Pace(self._total, self._settings.evaluation, self._settings.checkpoint)
        self._budget = self._stream.micro_batch_tokens
        if state.backed_off is not None and state.backed_off.wanted == self._budget:
            self._stream.micro_batch_tokens = state.backed_off.became
        self._monitor = Monitor(
            warmup_steps=self._distiller.optimizer.learning_rate.warmup_steps, first_loss=state.first_loss
        )
        if newest is not None:
            self._distiller.load_state({group: newest.tensors(group) for group in ("student", "optimizer")})
            logger.info("Resuming from step %d.", newest.step)
        self._distiller.broadcast_student()
        self._saver: CheckpointSaver | None = None
        self._sinks = Fanout([])
        if lock is not None:
            self._open_files(lock, resumed=newest is not None)
        self._last_save = time.monotonic()

    def _open_files(self, lock: Lock, *, resumed: bool) -> None:
        def written_before(record: Record) -> bool:
            done = self._step if "loss" in record else (self._evaluated or 0)
            return resumed and record["step"] <= done

        metrics = JsonlSink(self._run.metrics_file, written_before)
        optional = open_sinks(
            self._settings.reporting.sinks,
            self._run.path,
            run_id=f"{self._run.path.name}-{self._run.environment().get('id', '')}",
            first_step=self._step + 1 if resumed else 0,
            settings=self._settings.model_dump(mode="json"),
            needed=not resumed,  # a report that does not start must not keep a run from resuming
        )
        self._sinks = Fanout([metrics, *optional])
        self._saver = CheckpointSaver(self._run, lock, metrics, keep=self._settings.checkpoint.keep)

    def close(self) -> None:
        """Close the sinks."""
        self._sinks.close()

    @property
    def seconds(self) -> float:
        """Since the run was started, interruptions not counted."""
        return time.monotonic() - self._began

    def run(self) -> None:
        """Train to the last step; raises `Interrupted` after a signal, once a checkpoint is saved."""
        self._progress.start("Distilling", self._total, done=self._step)
        if self._step and self._saver is not None:
            self._progress.update(self._step, final_losses(self._run.metrics()))
        self._mark = time.monotonic() - self._since_seconds
        try:
            self._evaluate_if_due()
            if not self._distiller.stopped_by:
                self._take_steps()
        except (Lost, Dismissed):
            self._save_unless_saved()  # this process's own steps are complete
            raise
        except StepNotFinite as error:
            raise self._not_finite(error) from error
        if number := self._distiller.stopped_by or self._signals.pending():
            self._save_unless_saved()
            if not self._world.leads:
                raise Dismissed(128 + number)
            raise Interrupted(
                f"{signal.Signals(number).name} after step {self._step} of {self._total}; a checkpoint is saved.",
                number,
                hint=self._run.resume_hint,
            )

    # --- Steps ---------------------------------------------------------------------------------------------------

    def _take_steps(self) -> None:
        steps = self._distiller.steps(self._stream, first=self._step + 1, last=self._total, stop=self._signals.pending)
        ready = time.monotonic()
        for report in steps:
            self._pace.step.add(time.monotonic() - ready)
            self._step = report.step
            self._add(report)
            for warning in self._monitor.look(report.step, report.loss, report.grad_norm):
                logger.warning("Step %d: %s", report.step, warning)
            shown = None
            if report.step in (1, self._total) or report.step % self._settings.reporting.log_every == 0:
                shown = self._log(report)
            self._progress.update(report.step, shown, left=self._pace.left(report.step))
            self._evaluate_if_due()
            if self._distiller.stopped_by:
                break
            self._save_if_due()
            ready = time.monotonic()

    def _add(self, report: StepReport) -> None:
        since = self._since
        self._since = Done(
            steps=since.steps + 1,
            sequences=since.sequences + report.sequences,
            tokens=since.tokens + report.tokens,
            padded_tokens=since.padded_tokens + report.padded_tokens,
            loss=since.loss + report.loss,
        )
        self.tokens += report.tokens

    def _log(self, report: StepReport) -> dict[str, float]:
        """Write a line of metrics over the steps since the last one; returns it."""
        now = time.monotonic()
        seconds, self._mark = max(now - self._mark, 1e-9), now
        self._elapsed += seconds
        since, self._since = self._since, Done()
        record: dict[str, float] = {
            "step": self._step,
            **report.metrics(self._distiller.objective.parts),
            "mean_loss": since.loss / since.steps,
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

    # --- Evaluation ----------------------------------------------------------------------------------------------

    def _evaluate_if_due(self) -> None:
        due = self._step in (0, self._total) or self._step % self._settings.evaluation.every == 0
        if not due or self._evaluated == self._step or not (self._stream.held_out_sequences or self._judge):
            return
        started = time.monotonic()
        losses: Mapping[str, float] = {}
        if self._stream.held_out_sequences:
            losses = self._distiller.evaluate(self._stream, stop=self._signals.pending, done=self._show_evaluation)
            if not losses:
                self._progress.activity("")
                return  # a signal stopped it: the evaluation is repeated when the run resumes
        if self._judge is not None:
            self._progress.activity("Scoring")
            losses = {**losses, **self._judge(self._distiller.student.model, self._tokenizer)}
        self._progress.activity("")
        self._mark += time.monotonic() - started  # rates are those of training
        self._pace.evaluation.add(time.monotonic() - started)
        self._evaluated = self._step
        self._sinks.write({"step": self._step, **losses})
        self._progress.update(self._step, losses)
        if "eval_loss" not in losses:
            return
        logger.debug("Step %d: held-out loss %.4f", self._step, losses["eval_loss"])
        if self._step and (self._best is None or losses["eval_loss"] < self._best.eval_loss):
            self._best = Best(step=self._step, eval_loss=losses["eval_loss"])
            self._save()

    def _show_evaluation(self, done: int) -> None:
        """The other processes are about as far with their shares."""
        held_out = self._stream.held_out_sequences
        self._progress.activity(f"Evaluating {min(done * self._world.size, held_out):,}/{held_out:,}")

    # --- Checkpoints ---------------------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        saving = self._settings.checkpoint
        late = time.monotonic() - self._last_save >= 60 * saving.minutes
        due = self._step == self._total or self._step % saving.every == 0
        asked = self._signals.take_save()
        if due or late or asked:
            self._save_unless_saved()
        if asked and self._world.leads:
            logger.info("SIGUSR1: the checkpoint of step %d is saved.", self._step)

    def _save_unless_saved(self) -> None:
        if self._saved != self._step:
            self._save()

    def _save(self) -> None:
        if self._saver is None:
            return
        started = time.monotonic()
        self._progress.activity("Saving")
        self._saver.save(
            self._step,
            self._distiller,
            RunState(
                evaluated=self._evaluated,
                best=self._best,
                elapsed=self._elapsed,
                since=self._since,
                since_seconds=started - self._mark,
                tokens=self.tokens,
                wall_seconds=self.seconds,
                first_loss=self._monitor.first_loss,
                backed_off=BackedOff(wanted=self._budget, became=self._stream.micro_batch_tokens),
            ),
        )
        self._progress.activity("")
        self._saved = self._step
        self._last_save = time.monotonic()
        self._mark += time.monotonic() - started
        self._pace.checkpoint.add(time.monotonic() - started)

    # --- A step that is not finite -------------------------------------------------------------------------------

    def _not_finite(self, error: StepNotFinite) -> MinilmError:
        """What to raise: where it is not finite, what is kept of the step, and what to try."""
        found = nonfinite.explain(self._distiller, error)  # with all processes
        if not self._world.leads:
            return Dismissed(found.exit_status)
        found.hint = self._what_to_try(found.finding)
        sequences = {index: self._stream.sequence(index) for index in found.finding.sequences}
        file = self._run.not_finite_file(error.step)
        try:
            nonfinite.keep(file, found, sequences, self._distiller.state()["student"])
        except MinilmError as failed:
            logger.warning("The batch cannot be kept: %s", failed)
        else:
            found.hint = f"The batch, and the student before the step, are in {file}\n{found.hint}"
        return found

    def _what_to_try(self, finding: nonfinite.Finding) -> str:
        """Settings that may make the step finite; no learning rate helps a teacher."""
        changes = [] if finding.teacher else [f"optimizer.lr={self._settings.optimizer.lr / 2:g}"]
        if self._settings.training.precision != "fp32":
            changes.append("training.precision=fp32")
        if not changes:
            return "No setting helps: start a new run, without these sequences or with another teacher."
        command = " --set ".join([self._run.resume_command, *changes])
        return f"Resuming would repeat it. This may help:\n    {command}"
