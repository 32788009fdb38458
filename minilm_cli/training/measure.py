"""Time and memory of a few real steps, of an evaluation and of a checkpoint, for a dry run."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

from minilm_cli.base.errors import RunError
from minilm_cli.runs import checkpoint
from minilm_cli.runs.plan import Measured
from minilm_cli.training.distiller import Distiller
from minilm_cli.training.loop import Judge
from minilm_cli.training.pace import Pace
from minilm_cli.training.setup import PreparedRun

#: Steps that are measured; the first is a warm-up.
MEASURED_STEPS = 3

#: Seconds after which the evaluation is broken off; what is left is estimated.
_EVALUATION_SECONDS = 5.0


def measure(prepared: PreparedRun, judge: Judge | None = None) -> Measured:
    """Time and peak memory of a few real steps, at a learning rate of zero; `judge` belongs to an evaluation."""
    distiller = prepared.distiller
    distiller.optimizer.learning_rate.peak = 0.0
    started, sequences, tokens = 0.0, 0, 0
    for report in distiller.steps(prepared.stream, first=1, last=MEASURED_STEPS):
        if report.step == 1:
            started = time.perf_counter()
        else:
            sequences += report.sequences
            tokens += report.tokens
    seconds = time.perf_counter() - started
    if distiller.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(distiller.device)
    else:
        # Kilobytes on Linux, bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    pace = Pace(prepared.total_steps, prepared.settings.evaluation, prepared.settings.checkpoint)
    pace.step.add(seconds / (MEASURED_STEPS - 1))
    evaluation = _seconds_per_evaluation(prepared)
    if judge is not None:
        started = time.perf_counter()
        judge(distiller.student.model, prepared.student.tokenizer)
        evaluation = (evaluation or 0.0) + time.perf_counter() - started
    saving = _seconds_per_checkpoint(distiller)
    pace.evaluation.add(evaluation or 0.0)
    pace.checkpoint.add(saving or 0.0)
    return Measured(
        seconds_per_step=pace.step.value,
        sequences_per_second=sequences / seconds,
        tokens_per_second=tokens / seconds,
        peak_memory_gib=peak / 2**30,
        seconds_per_evaluation=evaluation,
        seconds_per_checkpoint=saving,
        hours_in_all=((evaluation or 0.0) + pace.left(0)) / 3600,  # one evaluation before the first step
    )


def _seconds_per_evaluation(prepared: PreparedRun) -> float | None:
    """Of the held-out sequences, estimated from their first micro-batches; `None` without any."""
    stream, distiller = prepared.stream, prepared.distiller
    started, sequences = time.perf_counter(), 0

    def done(count: int) -> None:
        nonlocal sequences
        sequences = count

    distiller.evaluate(stream, stop=lambda: int(time.perf_counter() - started > _EVALUATION_SECONDS), done=done)
    if not sequences:
        return None
    return (time.perf_counter() - started) * stream.held_out_sequences / sequences


def _seconds_per_checkpoint(distiller: Distiller) -> float | None:
    """Of one that is written to a temporary folder; `None` if there is no room for it."""
    with tempfile.TemporaryDirectory(prefix="minilm-") as folder:
        started = time.perf_counter()
        try:
            checkpoint.save(Path(folder), MEASURED_STEPS, distiller.state(), {})
        except RunError:
            return None
        return time.perf_counter() - started
