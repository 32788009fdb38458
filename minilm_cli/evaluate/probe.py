"""What a linear model can read from embeddings as they are."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from minilm_cli.evaluate.embedding import Array, Encode
from minilm_cli.evaluate.scores import METRICS
from minilm_cli.evaluate.task import LabelledTask, Split

#: Inverse strengths of the regularisation that are tried, the strongest first.
_INVERSE_STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)
_DEFAULT = 0.1


def probe(task: LabelledTask, encode: Encode) -> dict[str, float]:
    """The task's metrics, on its scored split, of a linear model that is trained on the embeddings of `train`.

    Classes: logistic regression. Scores: ridge regression. Its features are the embedding u of a text, or of a pair
    u, v, |u − v| and u · v (by element), each scaled to mean 0 and variance 1 on `train`. The strength of the
    regularisation is the best on `dev` by the task's first metric, or a fixed one if `dev` is scored or missing.
    Nothing is random.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(copy=False)
    train = scaler.fit_transform(_features(task.splits["train"], encode))
    scored = scaler.transform(_features(task.splits[task.scored], encode))
    chosen = _DEFAULT
    if task.scored != "dev" and "dev" in task.splits:
        dev = scaler.transform(_features(task.splits["dev"], encode))
        metric, truth = METRICS[task.metrics[0]], task.splits["dev"].labels
        chosen = max(_INVERSE_STRENGTHS, key=lambda tried: metric(truth, _fit(task, train, tried).predict(dev)))
    predicted = _fit(task, train, chosen).predict(scored)
    return {name: METRICS[name](task.splits[task.scored].labels, predicted) for name in task.metrics}


def _features(split: Split, encode: Encode) -> Array:
    """(rows, width) of texts, (rows, 4 · width) of pairs."""
    if split.pairs is None:
        return encode(split.texts)
    first, second = np.split(encode([*split.texts, *split.pairs]), 2)
    return np.concatenate([first, second, np.abs(first - second), first * second], axis=1)


def _fit(task: LabelledTask, features: Array, inverse_strength: float) -> Any:
    """A linear model of scikit-learn, trained on these features of `train`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

    labels = np.asarray(task.splits["train"].labels)
    if not task.classes:
        return Ridge(alpha=1 / inverse_strength).fit(features, labels)
    with warnings.catch_warnings():
        # After so many iterations the predictions change no more, whatever the gradient.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=inverse_strength, max_iter=1000).fit(features, labels)
