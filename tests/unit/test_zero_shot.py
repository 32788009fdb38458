from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from minilm_cli.base.errors import MinilmError
from minilm_cli.evaluate.embedding import Array
from minilm_cli.evaluate.task import LabelledTask, Split
from minilm_cli.evaluate.zero_shot import similarity

#: Cosines with `east`: 1, 0.8, 0, −1; the lengths differ.
DIRECTIONS = {"east": (2.0, 0.0), "near": (4.0, 3.0), "north": (0.0, 0.1), "west": (-5.0, 0.0)}


def encode(texts: Sequence[str]) -> Array:
    return np.array([DIRECTIONS[text] for text in texts], np.float32)


def task(scores: Sequence[float], split: str = "test") -> LabelledTask:
    test = Split(["east"] * 4, ["east", "near", "north", "west"], scores)
    other = Split(["east", "east"], ["west", "east"], [5, 0])
    return LabelledTask("pairs", "similarity", {split: test, "train": other}, ("pearson", "spearman"))


def test_cosines_that_agree_with_the_scores() -> None:
    found = similarity(task([5, 4.5, 2.5, 0]), encode)
    assert list(found) == ["spearman", "pearson"]
    assert found == pytest.approx({"spearman": 1.0, "pearson": 1.0})


def test_only_the_order_counts_for_spearman() -> None:
    found = similarity(task([100, 3, 2, 1], "dev"), encode)
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(np.corrcoef([1, 0.8, 0, -1], [100, 3, 2, 1])[0, 1], abs=1e-6)


def test_classes_cannot_be_compared_with_cosines() -> None:
    classes = LabelledTask(
        "mrpc", "pair-classification", {"test": Split(["east"], ["west"], [1])}, ("accuracy", "f1"), ("0", "1")
    )
    with pytest.raises(MinilmError, match=r"mrpc: .*pair-classification\n.*--probe"):
        similarity(classes, encode)
