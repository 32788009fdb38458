"""Runs on several token stores: their outputs, resumption, and changed stores."""

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

from .conftest import Commands, Crash, Settings, assert_same_result, crash_at, metrics, metrics_without_times


@pytest.fixture
def ids(tmp_path: Path, tiny_store: Path) -> Path:
    """Thirty sequences of the tiny store as lists of token ids."""
    store = TokenStore(tiny_store)
    path = tmp_path / "ids.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(b"%s\n" % json.dumps(store[n].tolist()).encode() for n in range(30))))
    return path


@pytest.fixture
def mixed(tmp_path: Path, small_settings: Settings, tiny_store: Path, ids: Path) -> Callable[..., Any]:
    """Settings of a run on both stores, with weights by default."""

    def make(name: str, **changes: Any) -> Any:
        return small_settings(tmp_path / name, **{"data__path": {tiny_store: 0.7, ids: 0.3}} | changes)

    return make


@pytest.mark.slow
def test_commands_accept_weighted_stores_and_name_them_in_their_outputs(
    minilm: Commands, tiny_teacher: Path, tiny_student_config: Path, tiny_store: Path, ids: Path
) -> None:
    words = ("distill", "--teacher", tiny_teacher, "--student-config", tiny_student_config, "--steps", "4")
    words = (*words, "--batch-size", "10", "--data", f"{tiny_store}:7", "--data", f"{ids}:3", "-o", "run")
    planned = minilm(*words, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    shown = [" ".join(line.split()) for line in planned.stderr.splitlines()]
    size = len(TokenStore(tiny_store))
    assert any(f"{size} sequences" in line and "70.00% of the sequences seen" in line for line in shown)
    assert any("ids.jsonl.gz" in line and "30 sequences" in line and "30.00%" in line for line in shown)
    assert not (minilm.folder / "run").exists()

    done = minilm(*words)
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    run_folder = RunFolder(minilm.folder / "run")
    settings = json.loads(run_folder.settings_file.read_text(encoding="utf-8"))
    assert settings["data"]["path"] == {str(tiny_store): 7.0, str(ids): 3.0}
    plan = run_folder.plan()
    assert [(store.name, store.sequences, store.share, store.weight) for store in plan.data.stores] == [
        ("tokens", size, 0.7, 7.0),
        ("ids.jsonl.gz", 30, 0.3, 3.0),
    ]
    assert (plan.data.sequences, plan.data.name) == (size + 30, "tokens, ids.jsonl.gz")
    assert plan.data.held_out == -(-size // 100) + 1
    assert plan.training.epochs == pytest.approx(40 / (size + 30 - plan.data.held_out))
    assert len(TokenStore(run_folder.path / "tokens-2")) == 30
    assert not run_folder.tokens.exists()
    card = (run_folder.student / "README.md").read_text(encoding="utf-8")
    assert "| tokens | ids.jsonl.gz (30 sequences, " in card

    assert minilm("resume", "run", "--steps", "6").returncode == 0
    assert [record["step"] for record in metrics(run_folder.path)][-1] == 6


def test_stores_without_weights_train_like_one_store(
    tmp_path: Path, mixed: Callable[..., Any], tiny_store: Path, ids: Path
) -> None:
    store = TokenStore(tiny_store)
    writer = TokenStoreWriter(tmp_path / "one", store.manifest.tokenizer, 32)
    for sequence in (store[n] for n in [*range(len(store)), *range(30)]):
        writer.add(sequence, np.array([len(sequence)]))
    writer.close()
    one = run.distill(mixed("run-one", data__path=tmp_path / "one"), NoProgress()).path
    several = run.distill(mixed("run-several", data__path=(tiny_store, ids)), NoProgress()).path
    assert_same_result(several, one)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [True, False])
def test_a_crashed_run_on_several_stores_has_the_same_result_when_resumed(
    tmp_path: Path, mixed: Callable[..., Any], tiny_store: Path, ids: Path, weights: bool
) -> None:
    data = {tiny_store: 0.7, ids: 0.3} if weights else (tiny_store, ids)
    uninterrupted = run.distill(mixed("uninterrupted", data__path=data, reporting__log_every=3), NoProgress()).path
    for step in (0, 3, 5):
        folder = tmp_path / f"failed-{step}"
        settings = mixed(folder.name, data__path=data, reporting__log_every=3)
        with pytest.raises(Crash):
            run.distill(settings, crash_at(step))
        run.resume(RunFolder(folder), NoProgress())
        assert_same_result(folder, uninterrupted)


def test_weights_change_the_training(mixed: Callable[..., Any], tiny_store: Path, ids: Path) -> None:
    runs = [run.distill(mixed(f"run-{n}", data__path={tiny_store: n, ids: 1}), NoProgress()).path for n in (1, 2)]
    assert metrics_without_times(runs[0]) != metrics_without_times(runs[1])


# --- Changed stores ----------------------------------------------------------------------------------------------

Paths = dict[str, float] | list[str]

CHANGES: dict[str, tuple[Callable[[str, str, str], Paths], str]] = {
    "weight": (
        lambda one, two, _: {one: 0.7, two: 0.4},
        "two: the token store's weight changed since the run began, from 0.3 to 0.4",
    ),
    "no weights": (lambda one, two, _: [one, two], "one: the token store's weight changed since the run began"),
    "another store": (lambda one, _, other: {one: 0.7, other: 0.3}, "other: the token store changed"),
    "order": (lambda one, two, _: {two: 0.3, one: 0.7}, "two: the token store changed"),
    "an additional store": (
        lambda one, two, other: {one: 0.7, two: 0.3, other: 1},
        "other: this token store was not used when the run began",
    ),
    "a missing store": (lambda one, _, __: [one], "the token store's weight changed"),
}


@pytest.fixture
def three_stores(tmp_path: Path, tiny_store: Path) -> tuple[str, str, str]:
    """Three stores: the tiny one, and two parts of it."""
    store = TokenStore(tiny_store)
    for name, begin in (("two", 0), ("other", 30)):
        writer = TokenStoreWriter(tmp_path / name, store.manifest.tokenizer, 32)
        for sequence in (store[n] for n in range(begin, begin + 30)):
            writer.add(sequence, np.array([len(sequence)]))
        writer.close()
    shutil.copytree(tiny_store, tmp_path / "one")
    return str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path / "other")


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_changed_stores_and_weights_are_refused_by_name(
    mixed: Callable[..., Any],
    three_stores: tuple[str, str, str],
    change: Callable[[str, str, str], Paths],
    message: str,
) -> None:
    one, two, _ = three_stores
    run_folder = RunFolder(run.distill(mixed("run", data__path={one: 0.7, two: 0.3}), NoProgress()).path)
    settings = json.loads(run_folder.settings_file.read_text(encoding="utf-8"))
    settings["data"]["path"] = change(*three_stores)
    run_folder.settings_file.write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(MinilmError) as caught:
        run.resume(run_folder, NoProgress(), {"training.steps": 9})
    assert message in str(caught.value)
    assert "Restore it" in str(caught.value)


def test_a_missing_store_is_refused_by_name(mixed: Callable[..., Any], three_stores: tuple[str, str, str]) -> None:
    run_folder = RunFolder(run.distill(mixed("run", data__path=three_stores), NoProgress()).path)
    settings = json.loads(run_folder.settings_file.read_text(encoding="utf-8"))
    settings["data"]["path"] = list(three_stores[:2])
    run_folder.settings_file.write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(MinilmError, match="token store other, used when the run began, is missing"):
        run.resume(run_folder, NoProgress(), {"training.steps": 9})
