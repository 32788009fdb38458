"""The library `mteb` is large, so most tests have a module in its place; the last one runs it where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.evaluate import mteb as ours
from minilm_cli.evaluate.mteb import find_tasks, mteb_score
from tests.tiny import save_teacher

SCORES = {"STS12": 0.625, "Banking77Classification": 0.5}


def get_task(name: str) -> Any:
    if name not in SCORES:
        raise KeyError(f"KeyError: '{name}' not found. Did you mean: 'STS12'?")
    return SimpleNamespace(metadata=SimpleNamespace(name=name))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module `mteb` whose scores are known, and a `SentenceTransformer` that is its folder."""

    def evaluate(model: Any, task: Any, *, cache: object, **_: object) -> Any:
        assert (model, cache) == (("student", "cpu"), None)
        return SimpleNamespace(task_results=[SimpleNamespace(main_score=SCORES[task.metadata.name])])

    module: Any = ModuleType("mteb")
    module.__spec__ = ModuleSpec("mteb", None)
    module.get_task, module.evaluate = get_task, evaluate
    loader = SimpleNamespace(SentenceTransformer=lambda folder, device: (Path(folder).name, device))
    monkeypatch.setitem(sys.modules, "mteb", module)
    monkeypatch.setitem(sys.modules, "sentence_transformers", loader)
    return module


def failing(error: Exception) -> Callable[..., Any]:
    def evaluate(*_: object, **__: object) -> Any:
        raise error

    return evaluate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "student"
    found.mkdir()
    return found


def test_main_scores_are_returned_by_task(library: ModuleType, folder: Path) -> None:
    del library
    assert {name: mteb_score(str(folder), name, device="cpu") for name in SCORES} == SCORES


def test_an_unknown_task_is_refused_with_the_closest_name(library: ModuleType) -> None:
    del library
    with pytest.raises(MinilmError) as error:
        find_tasks(["STS12", "STS_12"])
    assert str(error.value).splitlines() == [
        "--mteb STS_12: 'STS_12' not found. Did you mean: 'STS12'?",
        "List the tasks: mteb available-tasks",
    ]


def test_data_that_cannot_be_fetched_is_told_from_a_task_that_fails(library: Any, folder: Path) -> None:
    library.evaluate = failing(ConnectionError("Couldn't reach 'mteb/sts12' on the Hub"))
    with pytest.raises(MinilmError, match=r"--mteb STS12: the data cannot be loaded: Couldn't reach.*\n.*connection"):
        mteb_score(str(folder), "STS12", device="cpu")
    library.evaluate = failing(ValueError("supports ['text'], but the task is on images"))
    with pytest.raises(RunError, match=r"--mteb STS12: mteb failed: supports \['text'\]"):
        mteb_score(str(folder), "STS12", device="cpu")


def test_the_package_is_named_if_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minilm_cli.base.packages.find_spec", lambda _: None)
    with pytest.raises(MinilmError, match=r"--mteb needs the package mteb\npip install mteb"):
        find_tasks(["STS12"])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what its import warns of is not ours
def test_the_library_itself_scores_a_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mteb", reason="mteb is not installed")
    from mteb.mocks.mock_tasks.sts import MockSTSTask

    save_teacher(folder)
    monkeypatch.setattr(ours, "find_tasks", lambda _: [MockSTSTask()])
    assert -1 <= mteb_score(str(folder), "MockSTSTask", device="cpu") <= 1
