"""The memory of the relation loss, measured in separate processes."""

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


def test_the_memory_of_the_relation_loss_does_not_grow_with_the_batch() -> None:
    # Measured: about 50. The scores of the larger batch alone are 201 MB for each model and relation.
    small, large = extra_mb("ours", 512, 1), extra_mb("ours", 512, 4)
    assert small < 64
    assert large < 64
    assert large - small < 20
    assert extra_mb("plain", 512, 1) > 400
