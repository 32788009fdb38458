"""Evaluates models on tasks, next to their teacher and under the same protocol."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from minilm_cli.base.errors import Interrupted, MinilmError
from minilm_cli.base.packages import require
from minilm_cli.base.progress import Progress
from minilm_cli.evaluate.candidate import Candidate, load_candidate
from minilm_cli.evaluate.frozen import needs_probe
from minilm_cli.evaluate.measuring import Job, Measuring, Protocol
from minilm_cli.evaluate.mteb import find_tasks
from minilm_cli.evaluate.reading import read_tasks
from minilm_cli.evaluate.task import MtebTask, RetrievalTask, Task
from minilm_cli.runs.evaluations import FILE, Evaluations, Result
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.lookup import find_model
from minilm_cli.settings.evaluate import EvaluateSettings
from minilm_cli.training.devices import choose_device, has_bf16, repeat_exactly
from minilm_cli.training.distributed import World

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """The outcome of `evaluate`."""

    path: Path
    """Of the file of results."""
    results: list[Result]


def evaluate(settings: EvaluateSettings, progress: Progress) -> Report:
    """Measure every model, and the teacher, on every task; raises `MinilmError` about what cannot be measured."""
    require("evaluate", "minilm evaluate")
    trains = settings.probe or not settings.zero_shot
    find_tasks(settings.mteb)
    tasks: list[Task] = [*read_tasks(settings.tasks, settings.data, training=trains), *map(MtebTask, settings.mteb)]
    protocols = [(task, protocol) for task in tasks for protocol in _protocols(task, settings)]
    for task in tasks:
        if task.found:
            logger.info("%s.", task.found)
    runs = [found for name in settings.models if (found := _run(name)) is not None]
    results = Evaluations(settings.output or (runs[0].path / FILE if runs else Path(FILE)))
    device = choose_device(settings.device, World(), setting="device")
    repeat_exactly(device)
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and has_bf16(device))
    teacher = _teacher(settings, runs, device)
    names = [name for name in dict.fromkeys(settings.models) if teacher is None or name != teacher.name]
    models = [load_candidate(name, device, pooling=settings.pooling) for name in names]
    everyone = [*([] if teacher is None else [teacher]), *models]
    if settings.mteb:
        _refuse_unloadable(everyone)
    jobs = [Job(candidate, task, protocol) for task, protocol in protocols for candidate in everyone]
    try:
        measured = Measuring(settings, results, progress, device, bf16=bf16).run(jobs, teacher)
    except KeyboardInterrupt:
        raise Interrupted(
            f"what was measured is kept in {results.path}", signal.SIGINT, hint="Repeat the command to continue."
        ) from None
    results.add_results(measured)
    return Report(results.path, measured)


def _protocols(task: Task, settings: EvaluateSettings) -> Sequence[Protocol]:
    """How a model is measured on a task; raises `MinilmError` if the task allows none that was asked for."""
    if isinstance(task, MtebTask):
        return ["mteb"]
    if isinstance(task, RetrievalTask):
        return ["zero-shot"]
    if not settings.zero_shot and not settings.probe:
        return ["fine-tuning"]
    found: list[Protocol] = []
    if settings.zero_shot and not needs_probe(task):
        found.append("zero-shot")
    if settings.probe:
        found.append("probe")
    if not found:
        raise MinilmError(
            f"--zero-shot compares the embeddings of two texts with a score; this is a task of {task.kind}",
            where=task.name,
            hint="Use --probe, which trains a logistic regression on the embeddings.",
        )
    return found


def _refuse_unloadable(candidates: Sequence[Candidate]) -> None:
    """Raise `MinilmError` about a model that sentence-transformers, and so mteb, does not load."""
    for candidate in candidates:
        if candidate.source is None or candidate.source.run is not None:
            raise MinilmError(
                "--mteb takes models that SentenceTransformer loads",
                where=candidate.name,
                hint="Export it with --format sentence-transformers, and name the export.",
            )


def _run(name: str) -> RunFolder | None:
    path = Path(name)
    if not (path / "settings.json").is_file():
        return None
    found = find_model(path)
    return found if isinstance(found, RunFolder) else None


def _teacher(settings: EvaluateSettings, runs: Sequence[RunFolder], device: torch.device) -> Candidate | None:
    """The teacher that was named, else that of the first run; raises `MinilmError` if it cannot be loaded."""
    if settings.no_teacher:
        return None
    if settings.teacher is not None:
        return load_candidate(settings.teacher, device, pooling=settings.pooling)
    if not runs:
        return None
    teacher = runs[0].settings().teacher
    try:
        return load_candidate(teacher.name, device, pooling=settings.pooling, revision=teacher.revision)
    except MinilmError as error:
        error.hint = f"{error.hint or ''}\nName it with --teacher, or leave it out with --no-teacher.".lstrip()
        raise
