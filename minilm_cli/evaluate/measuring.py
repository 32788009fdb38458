"""Measures one model after another on one task after another; what is in the file of results is not repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

import torch
from transformers import __version__ as transformers_version

from minilm_cli import __version__
from minilm_cli.base.progress import Progress
from minilm_cli.evaluate.candidate import Candidate
from minilm_cli.evaluate.finetune import FineTuner, Setting, best_setting, settings_to_try
from minilm_cli.evaluate.frozen import score_frozen
from minilm_cli.evaluate.task import LabelledTask, RetrievalTask, Task
from minilm_cli.runs.evaluations import Evaluations, Result, Scores, deviation, retention
from minilm_cli.settings.evaluate import EvaluateSettings

Protocol = Literal["fine-tuning", "zero-shot", "probe"]

#: Texts that the speed is measured on, and how many are computed at once.
_TIMED, _BATCH = 256, 32

#: What a step of training costs, as forward passes.
_TRAINING = 3

_VERSIONS = {"minilm": __version__, "torch": torch.__version__, "transformers": transformers_version}


@dataclass(frozen=True)
class Job:
    """A model on a task."""

    candidate: Candidate
    task: Task
    protocol: Protocol


class Measuring:
    """Measures jobs, and shows how far it is."""

    def __init__(
        self, settings: EvaluateSettings, results: Evaluations, progress: Progress, device: torch.device, *, bf16: bool
    ) -> None:
        """bf16: whether to fine-tune in bf16."""
        self._settings, self._results, self._progress = settings, results, progress
        self._device, self._bf16 = device, bf16
        self._done, self._cost, self._total_cost = 0, 0.0, 0.0
        self._teacher: dict[tuple[str, str, str], list[float]] = {}
        self._speeds: dict[str, float] = {}

    def run(self, jobs: Sequence[Job], teacher: Candidate | None) -> list[Result]:
        """The results of all jobs; those of the teacher come before those of other models on the same task."""
        self._began = time.monotonic()
        self._total_cost = sum(self._cost_of(job) for job in jobs)
        self._progress.start("Evaluating", sum(self._measurements(job) for job in jobs), unit="measurements")
        try:
            return [result for job in jobs for result in self._job(job, teacher)]
        finally:
            self._progress.stop()

    def _job(self, job: Job, teacher: Candidate | None) -> Iterator[Result]:
        candidate, task = job.candidate, job.task
        if job.protocol == "fine-tuning":
            assert isinstance(task, LabelledTask)
            setting, measured = self._fine_tune(candidate, task)
        else:
            setting, measured = self._use_embeddings(job)
        split = task.scored if isinstance(task, LabelledTask) else "test"
        for metric in task.metrics:
            scores = [each[split][metric] for each in measured]
            reference = (task.name, job.protocol, metric)
            if candidate is teacher:
                self._teacher[reference] = scores
            yield Result(
                task=task.name,
                protocol=job.protocol,
                metric=metric,
                model=candidate.name,
                is_teacher=candidate is teacher,
                mean=fmean(scores),
                std=deviation(scores),
                scores=scores,
                retention=None if candidate is teacher else retention(fmean(scores), self._teacher.get(reference, ())),
                parameters=candidate.parameters,
                megabytes=candidate.megabytes,
                sentences_per_second=self._speed(candidate, task),
                split=split,
                setting=setting,
                weights=candidate.checksum,
                data=task.checksum,
                means_little=candidate.means_little and job.protocol != "fine-tuning",
            )

    # --- Fine-tuning ---------------------------------------------------------------------------------------------

    def _fine_tune(self, candidate: Candidate, task: LabelledTask) -> tuple[dict[str, Any], list[Scores]]:
        """The setting that is best on the dev split with the first seed, and the scores with every seed."""
        tuning = self._settings.tuning
        tuner = FineTuner(
            candidate,
            task,
            device=self._device,
            bf16=self._bf16,
            batch_size=tuning.batch_size,
            max_length=self._settings.max_length,
        )
        fixed = {
            "protocol": "fine-tuning",
            "weights": candidate.checksum,
            "data": task.checksum,
            "batch_size": tuning.batch_size,
            "max_length": tuner.length,
            "precision": "bf16" if self._bf16 else "fp32",
            "device": self._device.type,
        }

        def measure(setting: Setting, seed: int) -> Scores:
            key = {**fixed, **asdict(setting), "seed": seed}
            text = f"{candidate.name} on {task.name}, lr {setting.lr:g}, {setting.epochs} epochs, seed {seed}"
            steps, before = tuner.steps(setting), self._cost
            cost = self._training_cost(candidate, task, setting.epochs)

            def show(step: int) -> None:
                self._cost = before + cost * step / steps
                self._show(f"{text}: step {step}/{steps}")

            return self._measure(key, cost, lambda: tuner.train(setting, seed, show))

        grid = settings_to_try(tuning, len(task.splits["train"]))
        best = grid[0]
        if len(grid) > 1:
            best = best_setting({setting: measure(setting, 1)["dev"][task.metrics[0]] for setting in grid})
        measured = [measure(best, seed) for seed in range(1, tuning.seeds + 1)]
        return {**asdict(best), **{name: fixed[name] for name in ("batch_size", "max_length", "precision")}}, measured

    # --- Embeddings as they are ----------------------------------------------------------------------------------

    def _use_embeddings(self, job: Job) -> tuple[dict[str, Any], list[Scores]]:
        candidate, task = job.candidate, job.task
        length = candidate.length(self._settings.max_length)
        pooling = " ".join(candidate.head.pooling)
        key = {
            "protocol": job.protocol,
            "weights": candidate.checksum,
            "data": task.checksum,
            "head": candidate.head.checksum,
            "max_length": length,
        }

        text = f"{candidate.name} on {task.name}, {job.protocol}"

        def done(texts: int) -> None:
            self._cost += texts * _size(candidate)
            self._show(text)

        def compute() -> Scores:
            self._show(text)
            probes = job.protocol == "probe"
            return {split: score_frozen(task, candidate.embed, candidate.head, length, probes=probes, done=done)}

        split = task.scored if isinstance(task, LabelledTask) else "test"
        scores = self._measure(key, self._embedding_cost(candidate, task), compute)
        return {"pooling": pooling, "max_length": length}, [scores]

    # --- Measurements --------------------------------------------------------------------------------------------

    def _measure(self, key: Mapping[str, Any], cost: float, compute: Callable[[], Scores]) -> Scores:
        """The scores of a measurement, computed unless they are in the file."""
        scores = None if self._settings.force else self._results.scores_of(key)
        if scores is None:
            before = self._cost
            scores = compute()
            self._cost = before + cost
            self._results.add_scores(key, scores, _VERSIONS)
        else:
            self._total_cost -= cost
        self._done += 1
        self._show("")
        return scores

    def _show(self, text: str) -> None:
        self._progress.activity(text)
        left = None
        if self._cost:
            left = (time.monotonic() - self._began) * max(0.0, self._total_cost / self._cost - 1)
        self._progress.update(self._done, left=left)

    def _measurements(self, job: Job) -> int:
        if job.protocol != "fine-tuning":
            return 1
        assert isinstance(job.task, LabelledTask)
        grid = len(settings_to_try(self._settings.tuning, len(job.task.splits["train"])))
        return self._settings.tuning.seeds + (grid if grid > 1 else 0)

    def _cost_of(self, job: Job) -> float:
        if job.protocol != "fine-tuning":
            return self._embedding_cost(job.candidate, job.task)
        assert isinstance(job.task, LabelledTask)
        grid = settings_to_try(self._settings.tuning, len(job.task.splits["train"]))
        epochs = fmean(setting.epochs for setting in grid)
        return self._measurements(job) * self._training_cost(job.candidate, job.task, epochs)

    def _training_cost(self, candidate: Candidate, task: LabelledTask, epochs: float) -> float:
        return _TRAINING * epochs * len(task.splits["train"]) * _size(candidate)

    def _embedding_cost(self, candidate: Candidate, task: Task) -> float:
        if isinstance(task, RetrievalTask):
            texts = len(task.documents) + len(task.queries)
        else:
            texts = sum(len(split) * (1 if split.pairs is None else 2) for split in task.splits.values())
        return texts * _size(candidate)

    def _speed(self, candidate: Candidate, task: Task) -> float:
        """Texts a second, of the first task's, with tokenisation."""
        if candidate.name not in self._speeds:
            self._speeds[candidate.name] = self._measure_speed(candidate, task)
        return self._speeds[candidate.name]

    def _measure_speed(self, candidate: Candidate, task: Task) -> float:
        texts = [*(task.documents.values() if isinstance(task, RetrievalTask) else task.splits[task.scored].texts)]
        texts, length = texts[:_TIMED], candidate.length(self._settings.max_length)
        batches = [texts[begin : begin + _BATCH] for begin in range(0, len(texts), _BATCH)]
        candidate.embed(batches[0], length)
        began = time.perf_counter()
        for batch in batches:
            candidate.embed(batch, length)
        return len(texts) / (time.perf_counter() - began)


def _size(candidate: Candidate) -> float:
    """What a pass over a text costs, in an arbitrary unit: the layers' parameters decide."""
    if candidate.source is None:
        return candidate.megabytes * 1e6 / 4
    layers = [tensor.numel() for name, tensor in candidate.source.model.named_parameters() if "embeddings" not in name]
    return float(sum(layers))
