"""Memory stays flat where the sequences are long; each measurement in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def extra_mb(which: str, length: int, batch: int) -> float:
    """Peak memory of the relation loss beyond its inputs and their gradients."""
    words = ["tests.benchmarks.measure", "loss", which, str(length), str(batch), "0"]
    done = subprocess.run(
        [sys.executable, "-m", *words],
        check=True,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return float(json.loads(done.stdout)["extra_mb"])


def test_the_relation_loss_takes_the_memory_of_a_chunk_whatever_the_batch() -> None:
    # About 50 when it was measured; the scores of the batch alone would be 403 MB, of each model and relation.
    some, more = extra_mb("ours", 512, 1), extra_mb("ours", 512, 4)
    assert some < 64
    assert more < 64
    assert more - some < 20
    assert extra_mb("plain", 512, 1) > 400
