"""Time and memory of a few real steps, for a dry run."""

from __future__ import annotations

import resource
import sys
import time

import torch

from minilm_cli.runs.plan import Measured
from minilm_cli.training.setup import PreparedRun

#: Steps that are measured; the first is a warm-up.
MEASURED_STEPS = 3


def measure(prepared: PreparedRun) -> Measured:
    """Time and peak memory of a few real steps, at a learning rate of zero."""
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
    seconds_per_step = seconds / (MEASURED_STEPS - 1)
    return Measured(
        seconds_per_step=seconds_per_step,
        sequences_per_second=sequences / seconds,
        tokens_per_second=tokens / seconds,
        peak_memory_gib=peak / 2**30,
        hours_in_all=seconds_per_step * prepared.total_steps / 3600,
    )
