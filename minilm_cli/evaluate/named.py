"""Tasks with a name, from the Hub by the package `datasets`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.packages import missing_package
from minilm_cli.evaluate.labelled import rows_of
from minilm_cli.evaluate.task import LabelledTask, Split
from minilm_cli.models.hub import reason
from minilm_cli.settings.evaluate import Kind


@dataclass(frozen=True)
class _Named:
    """A data set of the Hub, and how it is scored."""

    dataset: str
    config: str | None
    columns: tuple[str, ...]
    """Of the text, or of both texts of a pair."""
    metrics: tuple[str, ...] = ("accuracy",)
    label: str = "label"
    dev: str = "validation"
    test: str | None = None
    """Only if it has labels."""
    score: Callable[[float], float] | None = None
    """Labels are scores, to be converted by this; `None`: they are classes."""

    @property
    def kind(self) -> Kind:
        """The kind of the task."""
        if self.score:
            return "similarity"
        return "classification" if len(self.columns) == 1 else "pair-classification"


def _glue(config: str, *columns: str, **others: Any) -> _Named:
    return _Named("nyu-mll/glue", config, columns, **others)


_SENTENCES = ("sentence1", "sentence2")

#: With the metrics that GLUE reports, the one by which settings are chosen first.
_NAMED = {
    # This copy of STS-B has the labels of the test set, and scores from 0 to 1 instead of 5, of three decimals.
    "stsb": _Named(
        "sentence-transformers/stsb",
        None,
        _SENTENCES,
        ("spearman", "pearson"),
        label="score",
        test="test",
        score=lambda score: round(5 * score, 3),
    ),
    "glue/cola": _glue("cola", "sentence", metrics=("matthews",)),
    "glue/sst2": _glue("sst2", "sentence"),
    "glue/mrpc": _glue("mrpc", *_SENTENCES, metrics=("f1", "accuracy")),
    "glue/qqp": _glue("qqp", "question1", "question2", metrics=("f1", "accuracy")),
    "glue/stsb": _glue("stsb", *_SENTENCES, metrics=("spearman", "pearson"), score=float),
    "glue/mnli": _glue("mnli", "premise", "hypothesis", dev="validation_matched"),
    "glue/qnli": _glue("qnli", "question", "sentence"),
    "glue/rte": _glue("rte", *_SENTENCES),
    "glue/wnli": _glue("wnli", *_SENTENCES),
}

NAMES = tuple(_NAMED)


def read_named(name: str, *, training: bool) -> LabelledTask:
    """The task of one of `NAMES`; without `training`, only the split that is scored.

    Raises `MinilmError` if the package `datasets` is missing, or the data set cannot be loaded.
    """
    named = _NAMED[name]
    hub_names = {"train": "train", "dev": named.dev, "test": named.test}
    scored = "test" if named.test else "dev"
    wanted = [split for split, hub_name in hub_names.items() if hub_name and (training or split == scored)]
    splits: dict[str, Split] = {}
    classes: Sequence[str] = ()
    for split in wanted:
        loaded = _load(name, named, str(hub_names[split]))
        texts, *pairs = (list(loaded[column]) for column in named.columns)
        labels = [named.score(label) if named.score else float(label) for label in loaded[named.label]]
        splits[split] = Split(texts, pairs[0] if pairs else None, labels)
        classes = () if named.score else loaded.features[named.label].names
    task = LabelledTask(name, named.kind, splits, named.metrics, tuple(classes))
    found = f"{name}: {named.dataset} from the Hub; {rows_of(task)}"
    if scored == "dev":
        found += f"; scored on {named.dev}, because GLUE keeps the labels of its test set to itself"
    return replace(task, found=found)


def _load(name: str, named: _Named, split: str) -> Any:
    try:
        datasets = import_module("datasets")
    except ImportError:
        raise missing_package("datasets", "reading from the Hub", where=name) from None
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(named.dataset, named.config, split=split)
    except Exception as error:  # only the library's code runs here, and it raises anything
        raise MinilmError(
            f"{named.dataset} cannot be loaded: {reason(error)}",
            where=name,
            hint=(
                "Check the connection to the Hub (HF_HUB_OFFLINE, HF_TOKEN, HF_HOME), or give a local copy: a folder"
                " with train.tsv, dev.tsv and test.tsv."
            ),
        ) from error
