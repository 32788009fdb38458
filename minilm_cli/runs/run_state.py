"""What a checkpoint keeps of a run, other than tensors."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from minilm_cli.base.errors import RunError
from minilm_cli.base.jsonio import first_wrong
from minilm_cli.runs.checkpoint import Checkpoint


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Best(_Part):
    """The best evaluation so far."""

    step: int
    eval_loss: float


class Done(_Part):
    """What some steps have done, added up."""

    steps: int = 0
    sequences: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    loss: float = 0.0
    """Sum over the steps."""


class BackedOff(_Part):
    """A budget of tokens that memory was too small for, and what it was reduced to."""

    wanted: int
    became: int


class RunState(_Part):
    """The counters of a run at a checkpoint."""

    evaluated: int | None = None
    """Step of the last evaluation."""
    best: Best | None = None
    elapsed: float = 0.0
    """Seconds of training until the last line of metrics."""
    since: Done = Done()
    """Since the last line of metrics."""
    since_seconds: float = 0.0
    tokens: int = 0
    """All that were trained on, each as often as it came."""
    wall_seconds: float = 0.0
    """Since the run was started, evaluations and checkpoints included, interruptions not."""
    backed_off: BackedOff | None = None
    first_loss: float | None = None
    """Mean loss of the first steps, for `training.monitor`."""
    unwritten: list[str] = Field(default_factory=list)
    """Always empty; earlier versions kept lines of metrics here that could not be written."""

    @property
    def best_step(self) -> int | None:
        """Step of the best evaluation."""
        return None if self.best is None else self.best.step

    @classmethod
    def of(cls, checkpoint: Checkpoint | None) -> RunState:
        """That of a checkpoint, or of a new run; raises `RunError` if the checkpoint holds something else."""
        if checkpoint is None:
            return cls()
        try:
            return cls.model_validate(checkpoint.notes)
        except ValidationError as error:
            message = f"its notes are not those of a run: {first_wrong(error)}"
            raise RunError(message, where=str(checkpoint.path)) from None
