from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from minilm_cli.evaluate import probe as probing
from minilm_cli.evaluate.embedding import Array
from minilm_cli.evaluate.probe import probe
from minilm_cli.evaluate.task import LabelledTask, Split

WIDTH = 6


def encode(texts: Sequence[str]) -> Array:
    """Noise that depends on the text alone; the first element is its number, if it begins with one."""
    found = np.array([np.random.default_rng(list(text.encode())).normal(size=WIDTH) for text in texts], np.float32)
    for row, text in zip(found, texts, strict=True):
        row[0] = float(text.split()[0])
    return found


def numbers(name: str, count: int) -> list[float]:
    return np.random.default_rng(list(name.encode())).uniform(-1, 1, count).round(3).tolist()


def of_texts(name: str, count: int, noise: float = 0.0) -> Split:
    """Two classes by the sign of the number, some of them wrong."""
    found = numbers(name, count)
    wrong = np.random.default_rng(1).uniform(size=count) < noise
    return Split([f"{n} {name}" for n in found], None, [float((n > 0) != w) for n, w in zip(found, wrong, strict=True)])


def of_pairs(name: str, count: int, label: str) -> Split:
    first, second = numbers(name, count), numbers(name + "+", count)
    apart = [abs(a - b) for a, b in zip(first, second, strict=True)]
    labels = [float(gap > 0.6) for gap in apart] if label == "class" else apart
    return Split([f"{n} {name}" for n in first], [f"{n} +{name}" for n in second], labels)


def classification(splits: dict[str, Split], metrics: tuple[str, ...] = ("accuracy", "f1")) -> LabelledTask:
    return LabelledTask("signs", "classification", splits, metrics, ("negative", "positive"))


def test_classes_of_texts_are_learnt() -> None:
    found = probe(classification({"train": of_texts("train", 200), "test": of_texts("test", 100)}), encode)
    assert list(found) == ["accuracy", "f1"]
    assert min(found.values()) > 0.9


def test_classes_of_pairs_need_the_difference_of_the_embeddings() -> None:
    splits = {"train": of_pairs("train", 300, "class"), "test": of_pairs("test", 200, "class")}
    task = LabelledTask("gaps", "pair-classification", splits, ("accuracy",), ("near", "far"))
    assert probe(task, encode)["accuracy"] > 0.9


def test_scores_of_pairs_are_learnt_by_ridge_regression() -> None:
    splits = {name: of_pairs(name, 200, "score") for name in ("train", "dev", "test")}
    task = LabelledTask("gaps", "similarity", splits, ("pearson", "spearman"))
    found = probe(task, encode)
    assert list(found) == ["pearson", "spearman"]
    assert min(found.values()) > 0.95


def test_features_of_one_scale_weigh_no_more_than_others() -> None:
    def scaled(texts: Sequence[str]) -> Array:
        return encode(texts) * np.float32([1e-4, 1e4, 1, 1, 1, 1]) + np.float32(3)

    splits = {"train": of_texts("train", 200), "test": of_texts("test", 100)}
    assert probe(classification(splits), scaled) == pytest.approx(probe(classification(splits), encode), abs=0.02)


@pytest.mark.parametrize(
    ("scored", "tried"), [(["dev", "test"], probing._INVERSE_STRENGTHS), (["dev"], ()), (["test"], ())]
)
def test_the_regularisation_is_chosen_on_dev_unless_dev_is_scored(
    scored: list[str], tried: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    fits, fit = [], probing._fit

    def recorded(task: LabelledTask, features: Array, inverse_strength: float) -> object:
        fits.append(inverse_strength)
        return fit(task, features, inverse_strength)

    monkeypatch.setattr(probing, "_fit", recorded)
    splits = {name: of_texts(name, 60) for name in ("train", *scored)}
    probe(classification(splits), encode)
    assert fits[:-1] == list(tried)
    if not tried:
        assert fits == [probing._DEFAULT]


def test_the_best_on_dev_by_the_first_metric_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    # With 10 rows of class 1 in 100, a strong regularisation predicts class 0 alone: its F1 is 0.
    monkeypatch.setattr(probing, "_INVERSE_STRENGTHS", (1e-4, 1.0))
    monkeypatch.setattr(probing, "_DEFAULT", 1e-4)
    labels = [float(row < 10) for row in range(100)]
    train = Split([f"{2 * label - 1} train {row}" for row, label in enumerate(labels)], None, labels)
    splits = {"train": train, "dev": of_texts("dev", 60), "test": of_texts("test", 60)}
    assert probe(classification(splits, ("f1",)), encode)["f1"] > 0.5


@pytest.mark.parametrize("kind", ["class", "score"])
def test_a_smaller_inverse_strength_means_smaller_weights(kind: str) -> None:
    train = of_pairs("train", 50, kind)
    task = LabelledTask("gaps", "similarity", {"train": train}, (), ("near", "far") if kind == "class" else ())
    features = encode(train.texts)
    weights = [np.abs(probing._fit(task, features, tried).coef_).sum() for tried in probing._INVERSE_STRENGTHS]
    assert weights == sorted(weights)
    assert weights[0] < weights[-1] / 2


def test_nothing_is_random() -> None:
    splits = {name: of_texts(name, 80, noise=0.2) for name in ("train", "dev", "test")}
    task = classification(splits, ("matthews",))
    assert probe(task, encode) == probe(task, encode)


def test_a_regression_of_single_texts_uses_their_embeddings() -> None:
    def scores(name: str) -> Split:
        found = numbers(name, 100)
        return Split([f"{n} {name}" for n in found], None, [3 * n + 1 for n in found])

    task = LabelledTask("lengths", "regression", {"train": scores("train"), "dev": scores("dev")}, ("pearson",))
    assert probe(task, encode)["pearson"] > 0.99
