"""The memory of the relation loss, measured in separate processes."""

from __future__ import annotations

import json

import pytest

from .conftest import Commands


def extra_mb(minilm: Commands, which: str, length: int, batch: int) -> float:
    """Peak memory of the relation loss beyond its inputs and their gradients."""
    done = minilm("loss", which, str(length), str(batch), "0", program=("-m", "tests.benchmarks.measure"))
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout)["extra_mb"])


@pytest.mark.slow
def test_the_memory_of_the_relation_loss_does_not_grow_with_the_batch(minilm: Commands) -> None:
    # Measured: about 60. The scores of the larger batch alone are 201 MB for each model and relation.
    small, large = extra_mb(minilm, "ours", 512, 1), extra_mb(minilm, "ours", 512, 4)
    assert small < 100
    assert large < 100
    assert large - small < 20
    assert extra_mb(minilm, "plain", 512, 1) > 400
