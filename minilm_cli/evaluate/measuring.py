"""Measures one model after another on one task after another; what is in the file of results is not repeated."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

import torch
from transformers import __version__ as transformers_version

from minilm_cli import __version__
from minilm_cli.base.progress import Progress
from minilm_cli.base.sample import SAMPLE
from minilm_cli.evaluate.candidate import Candidate
from minilm_cli.evaluate.finetune import FineTuner, Setting, best_setting, settings_to_try
from minilm_cli.evaluate.frozen import score_frozen
from minilm_cli.evaluate.mteb import mteb_score
from minilm_cli.evaluate.pace import Pace, embedding_cost, text_cost, training_cost
from minilm_cli.evaluate.task import LabelledTask, MtebTask, Task
from minilm_cli.runs.evaluations import Evaluations, Result, Scores, deviation, retention
from minilm_cli.settings.evaluate import EvaluateSettings

logger = logging.getLogger(__name__)

Protocol = Literal["fine-tuning", "zero-shot", "probe", "mteb"]

#: Texts that the speed is measured on, and how many are computed at once.
_TIMED, _BATCH = 256, 32

#: Share of cut texts from which on they are mentioned.
_MANY_CUT = 0.01

_VERSIONS = {"minilm": __version__, "torch": torch.__version__, "transformers": transformers_version}


@dataclass(frozen=True)
class Job:
    """A model on a task."""

    candidate: Candidate
    task: Task
    protocol: Protocol


class Measuring:
    """Measures jobs."""

    def __init__(
        self, settings: EvaluateSettings, results: Evaluations, progress: Progress, device: torch.device, *, bf16: bool
    ) -> None:
        """bf16: whether to fine-tune in bf16."""
        self._settings, self._results, self._progress = settings, results, progress
        self._device, self._bf16 = device, bf16
        self._teacher: dict[tuple[str, str, str], list[float]] = {}
        self._speeds: dict[str, float] = {}
        self._new: list[dict[str, Any]] = []

    def run(self, jobs: Sequence[Job], teacher: Candidate | None) -> list[Result]:
        """The results of all jobs; those of the teacher come before those of other models on the same task."""
        costs = sum(map(self._cost, jobs))
        self._pace = Pace(self._progress, sum(map(self._measurements, jobs)), costs)
        try:
            return [result for job in jobs for result in self._job(job, teacher)]
        finally:
            self._pace.stop()

    def _job(self, job: Job, teacher: Candidate | None) -> Iterator[Result]:
        candidate, task = job.candidate, job.task
        setting, measured = (self._fine_tune if job.protocol == "fine-tuning" else self._use_embeddings)(job)
        for metric in task.metrics:
            scores = [each[task.scored][metric] for each in measured]
            reference = (task.name, job.protocol, metric)
            is_teacher = candidate is teacher
            if is_teacher:
                self._teacher[reference] = scores
            theirs = [] if is_teacher else self._teacher.get(reference, [])
            yield Result(
                task=task.name,
                protocol=job.protocol,
                metric=metric,
                model=candidate.name,
                is_teacher=is_teacher,
                mean=fmean(scores),
                std=deviation(scores),
                scores=scores,
                retention=retention(fmean(scores), theirs),
                teacher=teacher.name if teacher is not None and theirs else None,
                teacher_mean=fmean(theirs) if theirs else None,
                parameters=candidate.parameters,
                megabytes=candidate.megabytes,
                sentences_per_second=self._speed(candidate),
                split=task.scored,
                setting=setting,
                weights=candidate.checksum,
                data=task.checksum,
                means_little=candidate.means_little and job.protocol != "fine-tuning",
            )

    def _fine_tune(self, job: Job) -> tuple[dict[str, Any], list[Scores]]:
        """The setting that is best on the dev split with the first seed, and the scores with every seed."""
        candidate, task, tuning = job.candidate, job.task, self._settings.tuning
        assert isinstance(task, LabelledTask)
        tuner = FineTuner(
            candidate,
            task,
            device=self._device,
            bf16=self._bf16,
            batch_size=tuning.batch_size,
            max_length=self._settings.max_length,
        )
        if tuner.cut >= _MANY_CUT:
            logger.info(
                "%s: %.0f%% of the texts have %s tokens or more, and are cut to that (--max-length).",
                candidate.name,
                100 * tuner.cut,
                tuner.length,
            )
        fixed = {
            "batch_size": tuning.batch_size,
            "max_length": tuner.length,
            "precision": "bf16" if self._bf16 else "fp32",
            "device": self._device.type,
        }

        def measure(setting: Setting, seed: int) -> Scores:
            text = f"{candidate.short} on {task.name}: lr {setting.lr:g}, seed {seed}"
            steps, cost = tuner.steps(setting), training_cost(candidate, task, setting.epochs)

            def show(step: int) -> None:
                self._pace.show(f"{text}, {step}/{steps}", cost * step / steps)

            return self._measure(
                job, {**fixed, **asdict(setting), "seed": seed}, cost, lambda: tuner.train(setting, seed, show)
            )

        best, *others = self._grid(task)
        if others:
            best = best_setting({each: measure(each, 1)["dev"][task.metrics[0]] for each in (best, *others)})
        return {**asdict(best), **fixed}, [measure(best, seed) for seed in range(1, tuning.seeds + 1)]

    def _use_embeddings(self, job: Job) -> tuple[dict[str, Any], list[Scores]]:
        """The settings and the scores without fine-tuning."""
        candidate, task = job.candidate, job.task
        length = candidate.length(self._settings.max_length)
        text, spent = f"{candidate.short} on {task.name}: {job.protocol}", 0.0

        def done(texts: int) -> None:
            nonlocal spent
            spent += texts * text_cost(candidate)
            self._pace.show(text, spent)

        def compute() -> Scores:
            self._pace.show(text)
            if isinstance(task, MtebTask):
                return {task.scored: {"main": mteb_score(candidate.name, task.name, device=str(self._device))}}
            probes = job.protocol == "probe"
            return {task.scored: score_frozen(task, candidate.embed, candidate.head, length, probes=probes, done=done)}

        fixed = {"head": candidate.head.checksum, "max_length": length}
        scores = self._measure(job, fixed, embedding_cost(candidate, task), compute)
        return {"pooling": " ".join(candidate.head.pooling), "max_length": length}, [scores]

    def _measure(self, job: Job, fixed: Mapping[str, Any], cost: float, compute: Callable[[], Scores]) -> Scores:
        """The scores of a measurement with fixed settings, computed unless they are in the file."""
        key = {"protocol": job.protocol, "weights": job.candidate.checksum, "data": job.task.checksum, **fixed}
        is_wanted = not self._settings.force or key in self._new
        known = self._results.scores_of(key) if is_wanted else None
        scores = compute() if known is None else known
        if known is None:
            self._results.add_scores(key, scores, _VERSIONS)
            self._new.append(key)
        self._pace.finish(cost, was_known=known is not None)
        return scores

    def _grid(self, task: LabelledTask) -> list[Setting]:
        return settings_to_try(self._settings.tuning, len(task.splits["train"]))

    def _measurements(self, job: Job) -> int:
        if job.protocol != "fine-tuning":
            return 1
        assert isinstance(job.task, LabelledTask)
        grid = len(self._grid(job.task))
        return self._settings.tuning.seeds + (grid if grid > 1 else 0)

    def _cost(self, job: Job) -> float:
        if job.protocol != "fine-tuning":
            return embedding_cost(job.candidate, job.task)
        assert isinstance(job.task, LabelledTask)
        epochs = fmean(setting.epochs for setting in self._grid(job.task))
        return self._measurements(job) * training_cost(job.candidate, job.task, epochs)

    def _speed(self, candidate: Candidate) -> float:
        """Texts a second of the sample, with tokenisation; measured once for each model."""
        if candidate.name not in self._speeds:
            texts, length = SAMPLE.read_text(encoding="utf-8").splitlines()[:_TIMED], candidate.length(None)
            batches = [texts[begin : begin + _BATCH] for begin in range(0, len(texts), _BATCH)]
            candidate.embed(batches[0], length)
            began = time.perf_counter()
            for batch in batches:
                candidate.embed(batch, length)
            self._speeds[candidate.name] = len(texts) / (time.perf_counter() - began)
        return self._speeds[candidate.name]
