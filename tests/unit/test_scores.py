from __future__ import annotations

import math

import numpy as np
import pytest

from minilm_cli.evaluate.scores import METRICS

#: Of class 1: two found, one missed, one too many. Of all: five of seven right.
TRUTH, PREDICTED = [1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0]
#: Class 0: precision 1, recall 1/2. Class 1: precision 1/2, recall 1. Class 2: precision and recall 1.
THREE, PREDICTED_THREE = [0, 0, 1, 2], [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("metric", "truth", "predicted", "expected"),
    [
        ("accuracy", TRUTH, PREDICTED, 5 / 7),
        ("accuracy", THREE, PREDICTED_THREE, 3 / 4),
        ("f1", TRUTH, PREDICTED, 2 / 3),
        ("f1", [0, 1], [1, 0], 0.0),
        ("macro-f1", TRUTH, PREDICTED, (2 / 3 + 3 / 4) / 2),
        ("macro-f1", THREE, PREDICTED_THREE, (2 / 3 + 2 / 3 + 1) / 3),
        # A class that is only predicted has F1 0 and counts.
        ("macro-f1", [0, 0, 1], [0, 2, 1], (2 / 3 + 1 + 0) / 3),
        # (TP · TN − FP · FN) / √((TP + FP)(TP + FN)(TN + FP)(TN + FN)), with 2, 3, 1, 1.
        ("matthews", TRUTH, PREDICTED, (2 * 3 - 1 * 1) / math.sqrt(3 * 3 * 4 * 4)),
        ("matthews", [0, 1, 0, 1], [1, 0, 1, 0], -1.0),
        # Deviations from the means: −1, 0, 1 and −4/3, −1/3, 5/3.
        ("pearson", [1, 2, 3], [0, 1, 3], (4 / 3 + 5 / 3) / math.sqrt(2 * (16 + 1 + 25) / 9)),
        ("spearman", [1, 2, 3], [0, 1, 300], 1.0),
        ("spearman", [1, 2, 3, 4], [1, 3, 2, 4], 1 - 6 * 2 / (4 * 15)),
        # Ranks 1, 2, 3 and 1.5, 1.5, 3: deviations −1, 0, 1 and −1/2, −1/2, 1.
        ("spearman", [1, 2, 3], [0, 0, 7], 1.5 / math.sqrt(2 * 1.5)),
    ],
)
def test_a_metric_is_what_is_computed_by_hand(
    metric: str, truth: list[float], predicted: list[float], expected: float
) -> None:
    assert METRICS[metric](truth, predicted) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", ["matthews", "pearson", "spearman"])
@pytest.mark.parametrize(("truth", "predicted"), [([0, 1, 1], [1, 1, 1]), ([1, 1, 1], [0, 1, 1]), ([1, 1], [1, 1])])
def test_what_is_always_the_same_correlates_with_nothing(
    metric: str, truth: list[float], predicted: list[float]
) -> None:
    assert METRICS[metric](truth, predicted) == 0.0


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_rounding_errors_are_no_predictions(metric: str) -> None:
    assert METRICS[metric]([1, 2, 3, 4], [0.3, 0.1 + 0.2, 0.3, 0.1 + 0.2]) == 0.0


@pytest.mark.parametrize(
    ("metric", "truth", "predicted", "expected"),
    [
        ("accuracy", [1, 1], [1, 1], 1.0),
        ("f1", [1, 1], [1, 1], 1.0),
        ("f1", [0, 0], [0, 0], 0.0),
        ("f1", [1, 0], [0, 0], 0.0),
        ("macro-f1", [0, 1], [0, 0], 1 / 3),
    ],
)
def test_one_class_alone_gives_no_warning(
    metric: str, truth: list[float], predicted: list[float], expected: float
) -> None:
    assert METRICS[metric](truth, predicted) == pytest.approx(expected)


def test_labels_may_be_floats() -> None:
    for metric in METRICS.values():
        assert metric([float(label) for label in TRUTH], PREDICTED) == metric(TRUTH, PREDICTED)


def test_scores_of_single_precision_are_compared_in_double_precision() -> None:
    predicted = np.array([1000.0001, 1000.0002, 1000.0003, 1000.0005], np.float32)
    expected = np.corrcoef(np.arange(4.0), predicted.astype(np.float64))[0, 1]
    assert METRICS["pearson"](range(4), predicted) == pytest.approx(expected, abs=1e-12)
