"""A run on several token stores: what it leaves, that it goes on as if it had never stopped, and on nothing else."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.progress import NoProgress
from minilm_cli.runs.folder import RunFolder
from minilm_cli.tokens.store import TokenStore, TokenStoreWriter
from minilm_cli.training import run

from .conftest import At, Commands, Settings, is_the_same, lasting_metrics, metrics


class Fault(Exception):
    """What a run does not expect."""


def fail() -> None:
    raise Fault


@pytest.fixture
def ids(tmp_path: Path, tiny_store: Path) -> Path:
    """Thirty sequences of the tiny store once more, as lists of token ids."""
    store = TokenStore(tiny_store)
    path = tmp_path / "ids.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(b"%s\n" % json.dumps(store[n].tolist()).encode() for n in range(30))))
    return path


@pytest.fixture
def mixed(tmp_path: Path, small_settings: Settings, tiny_store: Path, ids: Path) -> Callable[..., Any]:
    """Settings of a run on both, by weight unless they say otherwise."""

    def make(name: str, **changes: Any) -> Any:
        return small_settings(tmp_path / name, **{"data__path": {tiny_store: 0.7, ids: 0.3}} | changes)

    return make


@pytest.mark.slow
def test_commands_take_stores_with_weights_and_name_them_in_what_they_make(
    minilm: Commands, tiny_teacher: Path, tiny_student_config: Path, tiny_store: Path, ids: Path
) -> None:
    words = ("distill", "--teacher", tiny_teacher, "--student-config", tiny_student_config, "--steps", "4")
    words = (*words, "--batch-size", "10", "--data", f"{tiny_store}:7", "--data", f"{ids}:3", "-o", "run")
    tried = minilm(*words, "--dry-run")
    assert tried.returncode == 0, tried.stderr
    shown = [" ".join(line.split()) for line in tried.stderr.splitlines()]
    size = len(TokenStore(tiny_store))
    assert any(f"{size} sequences" in line and "70.00% of the sequences seen" in line for line in shown)
    assert any("ids.jsonl.gz" in line and "30 sequences" in line and "30.00%" in line for line in shown)
    assert not (minilm.folder / "run").exists()

    done = minilm(*words)
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    made = RunFolder(minilm.folder / "run")
    settings = json.loads(made.settings_file.read_text(encoding="utf-8"))
    assert settings["data"]["path"] == {str(tiny_store): 7.0, str(ids): 3.0}
    plan = made.plan()
    assert [(store.name, store.sequences, store.share, store.weight) for store in plan.data.stores] == [
        ("tokens", size, 0.7, 7.0),
        ("ids.jsonl.gz", 30, 0.3, 3.0),
    ]
    assert (plan.data.sequences, plan.data.name) == (size + 30, "tokens, ids.jsonl.gz")
    assert plan.data.held_out == -(-size // 100) + 1
    assert plan.training.epochs == pytest.approx(40 / (size + 30 - plan.data.held_out))
    assert len(TokenStore(made.path / "tokens-2")) == 30
    assert not made.tokens.exists()
    card = (made.student / "README.md").read_text(encoding="utf-8")
    assert "| tokens | ids.jsonl.gz (30 sequences, " in card

    assert minilm("resume", "run", "--steps", "6").returncode == 0
    assert [record["step"] for record in metrics(made.path)][-1] == 6


def test_stores_without_weights_are_learnt_from_as_from_one(
    tmp_path: Path, mixed: Callable[..., Any], tiny_store: Path, ids: Path
) -> None:
    store = TokenStore(tiny_store)
    writer = TokenStoreWriter(tmp_path / "one", store.manifest.tokenizer, 32)
    for sequence in (store[n] for n in [*range(len(store)), *range(30)]):
        writer.add(sequence, np.array([len(sequence)]))
    writer.close()
    one = run.distill(mixed("run-one", data__path=tmp_path / "one"), NoProgress()).path
    several = run.distill(mixed("run-several", data__path=(tiny_store, ids)), NoProgress()).path
    is_the_same(several, one)


@pytest.mark.parametrize("weights", [True, False])
def test_a_run_on_several_stores_that_fails_ends_as_one_that_did_not(
    tmp_path: Path, mixed: Callable[..., Any], tiny_store: Path, ids: Path, weights: bool
) -> None:
    data = {tiny_store: 0.7, ids: 0.3} if weights else (tiny_store, ids)
    whole = run.distill(mixed("whole", data__path=data, reporting__log_every=3), NoProgress()).path
    for step in (0, 3, 5):
        folder = tmp_path / f"failed-{step}"
        settings = mixed(folder.name, data__path=data, reporting__log_every=3)
        with pytest.raises(Fault):
            run.distill(settings, At(**{f"step_{step}": fail}))
        run.resume(RunFolder(folder), NoProgress())
        is_the_same(folder, whole)


def test_weights_decide_what_is_learnt_from(mixed: Callable[..., Any], tiny_store: Path, ids: Path) -> None:
    runs = [run.distill(mixed(f"run-{n}", data__path={tiny_store: n, ids: 1}), NoProgress()).path for n in (1, 2)]
    assert lasting_metrics(runs[0]) != lasting_metrics(runs[1])


# --- What a run began with ---------------------------------------------------------------------------------------

Paths = dict[str, float] | list[str]

CHANGES: dict[str, tuple[Callable[[str, str, str], Paths], str]] = {
    "weight": (
        lambda one, two, _: {one: 0.7, two: 0.4},
        "two: the token store's weight changed since the run began, from 0.3 to 0.4",
    ),
    "no weights": (lambda one, two, _: [one, two], "one: the token store's weight changed since the run began"),
    "another store": (lambda one, _, other: {one: 0.7, other: 0.3}, "other: the token store changed"),
    "order": (lambda one, two, _: {two: 0.3, one: 0.7}, "two: the token store changed"),
    "a store more": (
        lambda one, two, other: {one: 0.7, two: 0.3, other: 1},
        "other: this token store was not used when the run began",
    ),
    "a store less": (lambda one, _, __: [one], "the token store's weight changed"),
}


@pytest.fixture
def three(tmp_path: Path, tiny_store: Path) -> tuple[str, str, str]:
    """Three stores: the tiny one, and two parts of it."""
    store = TokenStore(tiny_store)
    for name, begin in (("two", 0), ("other", 30)):
        writer = TokenStoreWriter(tmp_path / name, store.manifest.tokenizer, 32)
        for sequence in (store[n] for n in range(begin, begin + 30)):
            writer.add(sequence, np.array([len(sequence)]))
        writer.close()
    shutil.copytree(tiny_store, tmp_path / "one")
    return str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path / "other")


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_other_stores_and_other_weights_are_refused_by_name(
    mixed: Callable[..., Any], three: tuple[str, str, str], change: Callable[[str, str, str], Paths], said: str
) -> None:
    one, two, _ = three
    made = RunFolder(run.distill(mixed("run", data__path={one: 0.7, two: 0.3}), NoProgress()).path)
    settings = json.loads(made.settings_file.read_text(encoding="utf-8"))
    settings["data"]["path"] = change(*three)
    made.settings_file.write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(MinilmError) as caught:
        run.resume(made, NoProgress(), {"training.steps": 9})
    assert said in str(caught.value)
    assert "Restore it" in str(caught.value)


def test_a_store_less_is_refused_by_the_name_of_the_one_that_is_gone(
    mixed: Callable[..., Any], three: tuple[str, str, str]
) -> None:
    made = RunFolder(run.distill(mixed("run", data__path=three), NoProgress()).path)
    settings = json.loads(made.settings_file.read_text(encoding="utf-8"))
    settings["data"]["path"] = list(three[:2])
    made.settings_file.write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(MinilmError, match="token store other, used when the run began, is missing"):
        run.resume(made, NoProgress(), {"training.steps": 9})
