"""Saving checkpoints: on a full disk once more with fewer kept, and what to tell if that fails too."""

from __future__ import annotations

import logging

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.locks import Lock
from minilm_cli.runs import checkpoint
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.run_state import RunState
from minilm_cli.runs.sinks import JsonlSink
from minilm_cli.training.distiller import Distiller

logger = logging.getLogger(__name__)


class CheckpointSaver:
    """Writes the checkpoints of a run and prunes older ones."""

    def __init__(self, run: RunFolder, lock: Lock, metrics: JsonlSink, *, keep: int) -> None:
        """`metrics` are flushed first. keep: checkpoints kept besides the best."""
        self._run, self._lock, self._metrics, self._keep = run, lock, metrics, keep

    def save(self, step: int, distiller: Distiller, state: RunState) -> None:
        """Save the checkpoint of `step`; raises `RunError` if that fails twice."""
        try:
            self._write(step, distiller, state)
        except RunError as error:
            logger.warning("Step %d: no checkpoint: %s. Trying again with fewer kept.", step, error.message)
            newest = self._make_room()
            try:
                self._write(step, distiller, state)
            except RunError as again:
                raise self._failed(step, again, newest) from again
        checkpoint.prune(self._run.checkpoints, newest=step, keep=self._keep, best=state.best_step)
        logger.debug("Step %d: checkpoint saved", step)

    def _write(self, step: int, distiller: Distiller, state: RunState) -> None:
        if not self._lock.in_place():
            raise RunError("the run's folder has been moved or removed", where=str(self._run.path))
        self._metrics.flush()  # a checkpoint that survives a power cut has its metrics
        checkpoint.save(self._run.checkpoints, step, distiller.state(), state.model_dump())

    def _make_room(self) -> checkpoint.Checkpoint | None:
        """Remove all checkpoints but the best and the newest sound one, which is returned."""
        try:
            newest = checkpoint.latest(self._run.checkpoints)
        except RunError:
            return None
        if newest is not None:
            checkpoint.prune(self._run.checkpoints, newest=newest.step, keep=1, best=RunState.of(newest).best_step)
        return newest

    def _failed(self, step: int, error: MinilmError, newest: checkpoint.Checkpoint | None) -> RunError:
        there = "There is no earlier one." if newest is None else f"The checkpoint of step {newest.step} is intact."
        return RunError(
            f"step {step}: the checkpoint cannot be saved: {error.message}",
            where=error.where,
            hint=resume_after(error, self._run, there),
        )


def resume_after(error: MinilmError, run: RunFolder, kept: str) -> str:
    """The hint of an error after which a run can be resumed: the error's own, what is kept, and the command."""
    return f"{error.hint or ''}\n{kept} Once that is fixed:\n    {run.resume_command}".strip()
