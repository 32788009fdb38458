"""Metrics of predictions as GLUE uses them, in fractions of 1.

scikit-learn and scipy define them. Of predictions that are all the same, they leave correlations undefined or warn;
here these are 0: such predictions say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Metric = Callable[[npt.ArrayLike, npt.ArrayLike], float]


def accuracy(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """The share of right classes."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(truth, predicted))


def f1(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Harmonic mean of precision and recall of class 1; 0 if it is neither there nor predicted."""
    from sklearn.metrics import f1_score

    return float(f1_score(np.equal(truth, 1), np.equal(predicted, 1), zero_division=0.0))


def macro_f1(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Mean of every class's F1, over the classes that are there or predicted."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predicted, average="macro", zero_division=0.0))


def matthews(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Matthews correlation, −1 … 1, of two or more classes."""
    from sklearn.metrics import matthews_corrcoef

    return 0.0 if _any_constant(truth, predicted) else float(matthews_corrcoef(truth, predicted))


def pearson(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Linear correlation, −1 … 1."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, truth, predicted)


def spearman(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Correlation of ranks, −1 … 1; equal values share the mean of their ranks."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, truth, predicted)


def _correlation(statistic: Callable[..., Any], truth: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    # In fp64: scipy keeps fp32, which is exact to some six digits.
    both = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    return 0.0 if _any_constant(*both) else float(statistic(*both).statistic)


def _any_constant(*arrays: npt.ArrayLike) -> bool:
    """Whether the values of an array are all the same, but for rounding errors of fp64."""
    return any(np.ptp(array) <= 1e-12 * np.max(np.abs(array)) for array in arrays)


#: By the names in `LabelledTask.metrics`: functions of the true and the predicted classes or scores, one a row.
METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro-f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
