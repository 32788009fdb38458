from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from minilm_cli.base.errors import MinilmError
from minilm_cli.training import micro_batch_budget
from minilm_cli.training.batches import BatchStream
from minilm_cli.training.micro_batches import MicroBatch

from .stores import store_of
from .stores import stream as stream_of

LONG = 10_000_000
FACTS = {"teacher": "bert", "student": "small"}


class FakeDistiller:
    """Its work takes `per_batch` and `per_token` seconds on a simulated clock."""

    device = torch.device("cpu")

    def __init__(self, *, per_batch: float = 0.0, per_token: float = 1.0, memory: float = float("inf")) -> None:
        self.per_batch, self.per_token, self.memory = per_batch, per_token, memory
        self.now, self.rehearsed = 0.0, 0

    def rehearse(self, batch: MicroBatch) -> None:
        if batch.tokens > self.memory:
            raise torch.OutOfMemoryError("no room")
        self.rehearsed += 1
        self.now += self.per_batch + self.per_token * batch.tokens


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "minilm"


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> BatchStream:
    store = store_of(tmp_path_factory.mktemp("store"), [64] * 1000, shard_tokens=10**6)
    return stream_of(store, batch_size=500, micro_batch_tokens=2048, max_length=64, layout="packed")


def settle(distiller: FakeDistiller, stream: BatchStream, monkeypatch: pytest.MonkeyPatch, **options: Any) -> int:
    monkeypatch.setattr(micro_batch_budget.time, "perf_counter", lambda: distiller.now)
    stream.micro_batch_tokens = 2048
    micro_batch_budget.settle(distiller, stream, **{"run_tokens": LONG, "facts": FACTS} | options)  # type: ignore[arg-type]
    return stream.micro_batch_tokens


@pytest.mark.parametrize(
    ("per_batch", "best"),
    # Overhead worth 16 tokens makes doubling the smallest gain 1%; worth 300, 13%, 7%, and then 3.5%.
    [(0, 1024), (16, 1024), (300, 4096), (10**6, 16384)],
)
def test_budget_is_doubled_while_throughput_grows(
    stream: BatchStream, monkeypatch: pytest.MonkeyPatch, per_batch: float, best: int
) -> None:
    assert settle(FakeDistiller(per_batch=per_batch), stream, monkeypatch) == best


def test_budget_fits_into_memory(stream: BatchStream, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle(FakeDistiller(per_batch=10**6, memory=5000), stream, monkeypatch) == 4096


def test_too_little_memory_is_an_error(stream: BatchStream, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    with pytest.raises(MinilmError, match="memory is too small for micro-batches of 1,024 tokens"):
        settle(FakeDistiller(memory=10), stream, monkeypatch)
    assert not cache.exists()


def test_other_errors_are_raised(stream: BatchStream, monkeypatch: pytest.MonkeyPatch) -> None:
    distiller = FakeDistiller()
    monkeypatch.setattr(distiller, "rehearse", Mock(side_effect=RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        settle(distiller, stream, monkeypatch)


def test_short_run_measures_nothing(stream: BatchStream, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    distiller = FakeDistiller(per_batch=10**6)
    assert settle(distiller, stream, monkeypatch, run_tokens=100_000) == 2048
    assert distiller.rehearsed == 0
    assert not cache.exists()


def test_budget_does_not_exceed_the_step(stream: BatchStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "batch_size", 40)  # 2,560 tokens
    assert settle(FakeDistiller(per_batch=10**6), stream, monkeypatch) == 4096


def test_result_is_cached(stream: BatchStream, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert settle(FakeDistiller(per_batch=300), stream, monkeypatch) == 4096
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["micro_batch_tokens"] == 4096
    busy = FakeDistiller(per_batch=0)
    assert settle(busy, stream, monkeypatch) == 4096
    assert busy.rehearsed == 0
    assert settle(busy, stream, monkeypatch, facts={**FACTS, "bf16": True}) == 1024
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"micro_batch_tokens": 3}', '{"micro_batch_tokens": "x"}', "\0", "[" * 100_000],
    ids=lambda content: content[:30],
)
def test_damaged_cache_is_replaced(
    stream: BatchStream, monkeypatch: pytest.MonkeyPatch, cache: Path, content: str
) -> None:
    settle(FakeDistiller(per_batch=300), stream, monkeypatch)
    (file,) = cache.iterdir()
    file.write_text(content)
    assert settle(FakeDistiller(per_batch=300), stream, monkeypatch) == 4096
    assert json.loads(file.read_text())["micro_batch_tokens"] == 4096


def test_unwritable_cache_is_no_error(stream: BatchStream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert settle(FakeDistiller(per_batch=300), stream, monkeypatch) == 4096


def test_cache_is_in_the_temporary_folder_without_a_home(
    stream: BatchStream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    monkeypatch.setattr(micro_batch_budget.tempfile, "gettempdir", lambda: str(tmp_path))
    assert settle(FakeDistiller(per_batch=300), stream, monkeypatch) == 4096
    assert len(list((tmp_path / "minilm").iterdir())) == 1


def test_measurements_are_logged(
    stream: BatchStream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="minilm_cli"):
        settle(FakeDistiller(per_batch=300), stream, monkeypatch)
    assert "Micro-batches of 4,096 tokens" in caplog.text
    assert "8,192" in caplog.text
