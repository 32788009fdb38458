"""How far an evaluation is, and how long the rest takes: what a measurement costs is known beforehand."""

from __future__ import annotations

import time

from minilm_cli.base.progress import Progress
from minilm_cli.evaluate.candidate import Candidate
from minilm_cli.evaluate.task import LabelledTask, MtebTask, RetrievalTask, Task

#: What a step of training costs, as forward passes.
_TRAINING = 3

#: Texts of a task of mteb, of which nothing is known beforehand.
_MTEB_TEXTS = 10_000


class Pace:
    """Shows measurements that are done, and the time left by their costs."""

    def __init__(self, progress: Progress, measurements: int, cost: float) -> None:
        """`cost`: of all measurements, in the unit of `training_cost` and `embedding_cost`."""
        self._progress, self._total, self._began = progress, cost, time.monotonic()
        self._done, self._spent = 0, 0.0
        progress.start("Evaluating", measurements, unit="measurements")

    def show(self, text: str, spent: float = 0.0) -> None:
        """Show what is done now; `spent`: the cost of the current measurement so far."""
        spent += self._spent
        left = None
        if spent:
            left = (time.monotonic() - self._began) * max(0.0, self._total / spent - 1)
        self._progress.activity(text)
        self._progress.update(self._done, left=left)

    def finish(self, cost: float, *, was_known: bool) -> None:
        """A measurement of this cost is done; `was_known`: it took no time."""
        if was_known:
            self._total -= cost
        else:
            self._spent += cost
        self._done += 1
        self.show("")

    def stop(self) -> None:
        """The evaluation is over."""
        self._progress.stop()


def training_cost(candidate: Candidate, task: LabelledTask, epochs: float) -> float:
    """Of fine-tuning."""
    return _TRAINING * epochs * len(task.splits["train"]) * text_cost(candidate)


def embedding_cost(candidate: Candidate, task: Task) -> float:
    """Of embedding all texts of a task."""
    match task:
        case RetrievalTask():
            texts = len(task.documents) + len(task.queries)
        case LabelledTask():
            texts = sum(len(split) * (1 if split.pairs is None else 2) for split in task.splits.values())
        case MtebTask():
            texts = _MTEB_TEXTS
    return texts * text_cost(candidate)


def text_cost(candidate: Candidate) -> float:
    """Of a forward pass over a text, in an arbitrary unit: the layers' parameters decide."""
    if candidate.source is None:
        return candidate.megabytes * 1e6 / 4
    layers = [tensor.numel() for name, tensor in candidate.source.model.named_parameters() if "embeddings" not in name]
    return float(sum(layers))
