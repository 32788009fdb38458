"""How long a run still takes: steps, evaluations and checkpoints, each at its own mean."""

from __future__ import annotations

from minilm_cli.settings.distill import CheckpointSettings, EvaluationSettings

#: Weight of the newest step in the running mean: a run follows a change of the machine's speed in some 50 steps.
_NEWEST = 0.02


class _Mean:
    """A running mean: of all values at first, then mostly of the newest."""

    def __init__(self) -> None:
        self.value, self._count = 0.0, 0

    def add(self, value: float) -> None:
        self._count += 1
        self.value += (value - self.value) * max(1 / self._count, _NEWEST)


class Pace:
    """Takes the seconds of what a run does, and estimates those of what is left."""

    def __init__(self, total_steps: int, evaluation: EvaluationSettings, checkpoint: CheckpointSettings) -> None:
        self._total, self._evaluation, self._checkpoint = total_steps, evaluation, checkpoint
        self.step, self.evaluation, self.checkpoint = _Mean(), _Mean(), _Mean()

    def left(self, step: int) -> float:
        """Seconds from the end of `step` to that of the run, with the evaluation and the checkpoint due at `step`."""
        evaluations = self._due(step, self._evaluation.every) if self.evaluation.value else 0
        working = (self._total - step) * self.step.value + evaluations * self.evaluation.value
        by_time = working / (60 * self._checkpoint.minutes)
        # An evaluation that is the best so far saves a checkpoint too.
        saves = max(evaluations, self._due(step, self._checkpoint.every), by_time)
        return working + saves * self.checkpoint.value

    def _due(self, step: int, every: int) -> int:
        """How many times something that is due `every` so many steps, and at the end, is due from `step` on."""
        return -(-self._total // every) - max(0, step - 1) // every
