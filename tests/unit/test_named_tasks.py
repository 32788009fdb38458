from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minilm_cli.evaluate.named import NAMES
from minilm_cli.evaluate.reading import read_task
from minilm_cli.evaluate.task import LabelledTask
from minilm_cli.settings.evaluate import LabelledData

from .text_inputs import refused


def read(name: str, *, training: bool = True, **options: Any) -> LabelledTask:
    task = read_task(name, LabelledData(**options), training=training)
    assert isinstance(task, LabelledTask)
    return task


Put = Callable[[str, str | None, dict[str, dict[str, list[Any]]], list[str] | None], None]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Writes splits of a data set, which is then loaded in place of one of the Hub."""
    import datasets

    def folder(dataset: str, config: str | None) -> Path:
        return tmp_path / dataset / (config or "default")

    def put(
        dataset: str, config: str | None, splits: dict[str, dict[str, list[Any]]], classes: list[str] | None
    ) -> None:
        for split, columns in splits.items():
            rows = datasets.Dataset.from_dict(columns)
            if classes:
                rows = rows.cast_column("label", datasets.ClassLabel(names=classes))
            rows.save_to_disk(folder(dataset, config) / split)

    def load(dataset: str, config: str | None, *, split: str) -> Any:
        return datasets.load_from_disk(folder(dataset, config) / split)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    return put


def test_task_of_glue_is_scored_on_its_validation_split(put: Put) -> None:
    train = {"sentence1": ["A.", "B.", "C."], "sentence2": ["D.", "E.", "F."], "label": [1, 0, 1], "idx": [0, 1, 2]}
    dev = {"sentence1": ["G."], "sentence2": ["H."], "label": [0], "idx": [0]}
    put("nyu-mll/glue", "mrpc", {"train": train, "validation": dev}, ["not_equivalent", "equivalent"])
    task = read("glue/mrpc")
    assert (task.name, task.kind, task.metrics) == ("glue/mrpc", "pair-classification", ("f1", "accuracy"))
    assert (task.classes, task.scored) == (("not_equivalent", "equivalent"), "dev")
    assert task.splits["train"].texts == ["A.", "B.", "C."]
    assert task.splits["train"].pairs == ["D.", "E.", "F."]
    assert {split: part.labels for split, part in task.splits.items()} == {"train": [1, 0, 1], "dev": [0]}
    assert task.found == (
        "glue/mrpc: nyu-mll/glue from the Hub; 3 train and 1 dev rows; scored on validation, because GLUE keeps the"
        " labels of its test set to itself"
    )
    assert read("glue/mrpc", training=False).splits.keys() == {"dev"}


def test_mnli_is_scored_on_matched_pairs(put: Put) -> None:
    rows = {"premise": ["A."], "hypothesis": ["B."], "label": [2]}
    put("nyu-mll/glue", "mnli", {"validation_matched": rows}, ["entailment", "neutral", "contradiction"])
    task = read("glue/mnli", training=False)
    assert (task.splits["dev"].labels, task.metrics, len(task.classes)) == ([2], ("accuracy",), 3)


def test_single_sentences(put: Put) -> None:
    put("nyu-mll/glue", "cola", {"validation": {"sentence": ["A."], "label": [1]}}, ["unacceptable", "acceptable"])
    task = read("glue/cola", training=False)
    assert (task.kind, task.metrics, task.splits["dev"].pairs) == ("classification", ("matthews",), None)


def test_stsb_has_scores_up_to_5_and_a_test_split(put: Put) -> None:
    rows = {"sentence1": ["A.", "B."], "sentence2": ["C.", "D."], "score": [0.76, 0.0006]}
    put("sentence-transformers/stsb", None, dict.fromkeys(("train", "validation", "test"), rows), None)
    task = read("stsb")
    assert (task.kind, task.classes, task.metrics) == ("similarity", (), ("spearman", "pearson"))
    assert list(task.splits) == ["train", "dev", "test"]
    assert all(part.labels == [3.8, 0.003] for part in task.splits.values())
    assert (task.scored, task.found) == (
        "test",
        "stsb: sentence-transformers/stsb from the Hub; 2 train, 2 dev and 2 test rows",
    )
    glue = {"sentence1": ["A."], "sentence2": ["C."], "label": [3.8]}
    put("nyu-mll/glue", "stsb", {"validation": glue}, None)
    assert read("glue/stsb", training=False).splits["dev"].labels == [3.8]


def test_local_copy_is_read_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stsb").mkdir()
    Path("stsb/test.tsv").write_text("score\tsentence1\tsentence2\n1\tA b.\tC d.\n2\tE f.\tG h.\n")
    assert read("stsb", training=False).found.startswith("test.tsv: texts in columns sentence1 and sentence2")


@pytest.mark.parametrize("name", NAMES)
def test_task_that_cannot_be_loaded_is_reported(name: str) -> None:
    dataset = "sentence-transformers/stsb" if name == "stsb" else "nyu-mll/glue"
    hint = "HF_HUB_OFFLINE, HF_TOKEN, HF_HOME), or give a local copy: a folder with train.tsv"
    with refused(f"{dataset} cannot be loaded: Couldn't reach '{dataset}' on the Hub", name, hint):
        read(name)


def test_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refused("reading from the Hub needs the package datasets", "stsb", "pip install datasets"):
        read("stsb")


@pytest.mark.parametrize(
    ("option", "flag"), [({"dev": "dev.tsv"}, "--dev"), ({"label": "x"}, "--label"), ({"kind": "similarity"}, "--kind")]
)
def test_options_of_files_do_not_apply(option: dict[str, str], flag: str) -> None:
    with refused(f"{flag} does not apply: a known task has its own columns and splits", "stsb", "Leave it out."):
        read("stsb", **option)
