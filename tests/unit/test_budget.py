from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from minilm_cli.base.errors import MinilmError
from minilm_cli.tokens.store import TokenizerInfo, TokenStore, TokenStoreWriter
from minilm_cli.training import micro_batch_budget
from minilm_cli.training.batches import BatchStream
from minilm_cli.training.micro_batches import MicroBatch

LONG = 10_000_000
FACTS = {"teacher": "bert", "student": "small"}


class Clock:
    """A distiller whose work takes as long as `per_batch` and `per_token` say, on a clock of its own."""

    device = torch.device("cpu")

    def __init__(self, *, per_batch: float = 0.0, per_token: float = 1.0, room: float = float("inf")) -> None:
        self.per_batch, self.per_token, self.room = per_batch, per_token, room
        self.now, self.rehearsed = 0.0, 0

    def rehearse(self, batch: MicroBatch) -> None:
        if batch.tokens > self.room:
            raise torch.OutOfMemoryError("no room")
        self.rehearsed += 1
        self.now += self.per_batch + self.per_token * batch.tokens


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "minilm"


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> BatchStream:
    folder = tmp_path_factory.mktemp("store")
    writer = TokenStoreWriter(folder, TokenizerInfo(vocabulary_size=100), 64)
    writer.add(torch.zeros(64 * 1000, dtype=torch.uint8).numpy(), torch.full((1000,), 64).numpy())
    writer.close()
    return BatchStream(TokenStore(folder), seed=0, batch_size=500, micro_batch_tokens=2048, max_length=64, pack=True)


def settle(clock: Clock, stream: BatchStream, monkeypatch: pytest.MonkeyPatch, **options: Any) -> int:
    monkeypatch.setattr(micro_batch_budget.time, "perf_counter", lambda: clock.now)
    stream.micro_batch_tokens = 2048
    micro_batch_budget.settle(clock, stream, **{"run_tokens": LONG, "facts": FACTS} | options)  # type: ignore[arg-type]
    return stream.micro_batch_tokens


@pytest.mark.parametrize(
    ("per_batch", "best"),
    # Overhead worth 16 tokens makes doubling the smallest gain 1%; worth 300, 13%, 7%, and then 3.5%.
    [(0, 1024), (16, 1024), (300, 4096), (10**6, 16384)],
)
def test_budgets_are_doubled_as_long_as_that_pays(
    stream: BatchStream, monkeypatch: pytest.MonkeyPatch, per_batch: float, best: int
) -> None:
    assert settle(Clock(per_batch=per_batch), stream, monkeypatch) == best


def test_what_does_not_fit_into_memory_is_not_taken(stream: BatchStream, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle(Clock(per_batch=10**6, room=5000), stream, monkeypatch) == 4096


def test_memory_too_small_for_the_smallest_budget_is_an_error(
    stream: BatchStream, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    with pytest.raises(MinilmError, match="memory is too small for micro-batches of 1,024 tokens"):
        settle(Clock(room=10), stream, monkeypatch)
    assert not cache.exists()


def test_another_error_is_not_taken_for_a_want_of_memory(stream: BatchStream, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(clock, "rehearse", lambda _: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        settle(clock, stream, monkeypatch)


def test_a_short_run_tries_nothing_and_remembers_nothing(
    stream: BatchStream, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    clock = Clock(per_batch=10**6)
    assert settle(clock, stream, monkeypatch, run_tokens=100_000) == 2048
    assert clock.rehearsed == 0
    assert not cache.exists()


def test_no_budget_beyond_the_whole_step_is_tried(stream: BatchStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "batch_size", 40)  # 2,560 tokens
    assert settle(Clock(per_batch=10**6), stream, monkeypatch) == 4096


def test_what_was_found_is_remembered_even_if_the_machine_is_busy_the_next_time(
    stream: BatchStream, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    assert settle(Clock(per_batch=300), stream, monkeypatch) == 4096
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["micro_batch_tokens"] == 4096
    busy = Clock(per_batch=0)
    assert settle(busy, stream, monkeypatch) == 4096
    assert busy.rehearsed == 0
    assert settle(busy, stream, monkeypatch, facts={**FACTS, "bf16": True}) == 1024
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"micro_batch_tokens": 3}', '{"micro_batch_tokens": "x"}', "\0", "[" * 100_000],
    ids=lambda content: content[:30],
)
def test_a_spoilt_memory_is_made_anew(
    stream: BatchStream, monkeypatch: pytest.MonkeyPatch, cache: Path, content: str
) -> None:
    settle(Clock(per_batch=300), stream, monkeypatch)
    (file,) = cache.iterdir()
    file.write_text(content)
    assert settle(Clock(per_batch=300), stream, monkeypatch) == 4096
    assert json.loads(file.read_text())["micro_batch_tokens"] == 4096


def test_a_cache_folder_that_cannot_be_written_is_no_error(
    stream: BatchStream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert settle(Clock(per_batch=300), stream, monkeypatch) == 4096


def test_a_user_without_a_home_remembers_among_the_temporary_files(
    stream: BatchStream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(micro_batch_budget.tempfile, "gettempdir", lambda: str(tmp_path))
    assert settle(Clock(per_batch=300), stream, monkeypatch) == 4096
    assert len(list((tmp_path / "minilm").iterdir())) == 1


def test_what_was_tried_is_told(
    stream: BatchStream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="minilm_cli"):
        settle(Clock(per_batch=300), stream, monkeypatch)
    assert "Micro-batches of 4,096 tokens" in caplog.text
    assert "8,192" in caplog.text
