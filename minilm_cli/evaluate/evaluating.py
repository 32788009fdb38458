"""Evaluates models on tasks, next to their teacher and under the same protocol."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch

from minilm_cli.base.errors import Interrupted, MinilmError
from minilm_cli.base.packages import require
from minilm_cli.base.progress import Progress
from minilm_cli.evaluate.candidate import Candidate, load_candidate
from minilm_cli.evaluate.finetune import refuse_untrainable
from minilm_cli.evaluate.frozen import needs_probe
from minilm_cli.evaluate.measuring import Job, Measuring, Protocol
from minilm_cli.evaluate.mteb import find_tasks
from minilm_cli.evaluate.reading import read_tasks
from minilm_cli.evaluate.task import MtebTask, RetrievalTask, Task
from minilm_cli.runs.evaluations import FILE, Evaluations, Result
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.lookup import find_model
from minilm_cli.settings.evaluate import EvaluateSettings
from minilm_cli.settings.flags import options
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
    find_tasks(settings.mteb)
    trains = settings.probe or not settings.zero_shot
    tasks: list[Task] = [*read_tasks(settings.tasks, settings.data, training=trains), *map(MtebTask, settings.mteb)]
    protocols = [(task, protocol) for task in tasks for protocol in _protocols(task, settings)]
    _refuse_unused(settings, {protocol for _, protocol in protocols})
    for task in tasks:
        if task.found:
            logger.info("%s.", task.found)
    runs = [found for name in settings.models if (found := _run(name)) is not None]
    results = Evaluations(settings.output or (runs[0].path / FILE if runs else Path(FILE)))
    results.prepare()
    device = choose_device(settings.device, World(), setting="device")
    repeat_exactly(device, strictly=False)
    teacher = _teacher(settings, runs, device)
    names = [name for name in dict.fromkeys(settings.models) if teacher is None or name != teacher.name]
    models = [load_candidate(name, device, pooling=settings.pooling) for name in names]
    everyone = [*([] if teacher is None else [teacher]), *models]
    jobs = [Job(candidate, task, protocol) for task, protocol in protocols for candidate in everyone]
    _refuse_unsuitable(jobs)
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and has_bf16(device))
    try:
        measured = Measuring(settings, results, progress, device, bf16=bf16).run(jobs, teacher)
    except KeyboardInterrupt:
        raise Interrupted(
            f"what was measured is kept in {results.path}", signal.SIGINT, hint="Repeat the command to continue."
        ) from None
    results.add_results(measured)
    if settings.output is None:
        _keep_in_runs(measured, runs[1:])
    return Report(results.path, measured)


def _keep_in_runs(results: Sequence[Result], runs: Sequence[RunFolder]) -> None:
    """Write the results of each further run, and of the teacher, into its own folder too."""
    for run in runs:
        own = [result for result in results if result.is_teacher or Path(result.model) == run.path]
        Evaluations(run.path / FILE).add_results(own)


def _refuse_unused(settings: EvaluateSettings, protocols: Set[Protocol]) -> None:
    """Raise `MinilmError` about an option that would be ignored."""
    fine_tuning = "fine-tuning" in protocols
    given = {option.path: option.name for option in options(EvaluateSettings) if option.path.startswith("tuning.")}
    typed = [given[f"tuning.{name}"] for name in settings.tuning.model_fields_set]
    if typed and not fine_tuning:
        raise MinilmError(
            f"{typed[0]} applies to fine-tuning", hint="Leave it out, or leave out --zero-shot and --probe."
        )
    if settings.pooling is not None and protocols <= {"fine-tuning", "mteb"}:
        raise MinilmError("--pooling applies to embeddings as they are", hint="Add --zero-shot or --probe.")


def _refuse_unsuitable(jobs: Sequence[Job]) -> None:
    """Raise `MinilmError` about a model that cannot be measured so, before the first is."""
    for job in jobs:
        source = job.candidate.source
        if job.protocol == "fine-tuning":
            refuse_untrainable(job.candidate)
        if job.protocol == "mteb" and (source is None or source.run is not None):
            raise MinilmError(
                "--mteb takes models that SentenceTransformer loads",
                where=job.candidate.name,
                hint="Export it with --format sentence-transformers, and name the export.",
            )


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
    teachers = [run.settings().teacher for run in runs]
    teacher = teachers[0]
    if others := [other for other in teachers if (other.name, other.revision) != (teacher.name, teacher.revision)]:
        raise MinilmError(
            f"these runs have different teachers: {teacher.name} and {others[0].name}",
            hint="Evaluate them one by one, or name what to compare with: --teacher.",
        )
    try:
        return load_candidate(teacher.name, device, pooling=settings.pooling, revision=teacher.revision)
    except MinilmError as error:
        error.hint = f"{error.hint or ''}\nName it with --teacher, or leave it out with --no-teacher.".lstrip()
        raise
