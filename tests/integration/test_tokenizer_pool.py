"""Batches encoded by worker processes: their order, errors, killed workers and signals."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.corpus import tokenizer_pool
from minilm_cli.corpus.encoder import Recipe
from minilm_cli.corpus.lines import Place
from minilm_cli.corpus.packing import Units
from minilm_cli.corpus.sources import Batch
from minilm_cli.corpus.tokenizer_pool import encoders

from .conftest import TIMEOUT, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def recipe() -> Recipe:
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "the": 1, "man": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return Recipe(tokenizer.to_str(), "uint8")


def batch(number: int, *lines: bytes) -> Batch:
    return Batch("x.txt", Place(number=number), list(lines), 0)


def batches(*numbers: int) -> Iterator[tuple[int, Batch]]:
    """Tagged batches for `misbehave`."""
    return ((tag, batch(number)) for tag, number in enumerate(numbers))


def misbehave(_recipe: Recipe, batch: Batch) -> Units:
    """Takes longer for some batches, and fails for negative numbers."""
    match batch.place.number:
        case -1:
            raise MinilmError("a mistake", where="here")
        case -2:
            raise ZeroDivisionError("a bug")
        case -3:
            os.kill(os.getpid(), signal.SIGKILL)
        case -4:
            raise MemoryError
    time.sleep(0.005 * (batch.place.number % 3))
    return Units(np.arange(batch.place.number, dtype=np.uint16), np.array([batch.place.number]))


@pytest.fixture(autouse=True)
def no_process_or_file_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_pool, "_encode", misbehave)


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_order_with_their_tags(count: int, tmp_path: Path) -> None:
    tagged = [(f"tag {number}", batch(number, *[b"the man"] * number, b"man ?")) for number in range(20)]
    with encoders(recipe(), count, tmp_path) as encode:
        results = [(tag, units.ids.tolist(), units.lengths.tolist()) for tag, units in encode(tagged)]
        assert list(encode([])) == []
    assert results == [(tag, [1, 2] * n + [2, 0], [2] * (n + 1)) for n, (tag, _) in enumerate(tagged)]


def test_batches_may_be_larger_than_a_pipe_buffer(tmp_path: Path) -> None:
    with encoders(recipe(), 2, tmp_path) as encode:
        results = [units.ids.sum() for _, units in encode((None, batch(1, b"the man " * 2**17)) for _ in range(6))]
    assert results == [3 * 2**17] * 6


@pytest.mark.usefixtures("misbehaving")
def test_few_batches_are_read_ahead(tmp_path: Path) -> None:
    read = []

    def draw() -> Iterator[tuple[int, Batch]]:
        for number in range(50):
            read.append(number)
            yield number, batch(number)

    with encoders(recipe(), 2, tmp_path) as encode:
        for number, _ in enumerate(encode(draw())):
            assert len(read) <= number + 4


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.parametrize(
    ("number", "kind", "message"), [(-1, MinilmError, "a mistake"), (-2, ZeroDivisionError, "a bug")]
)
def test_worker_error_is_raised_after_earlier_results(
    number: int, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    done = []
    with pytest.raises(kind, match=message) as caught, encoders(recipe(), 2, tmp_path) as encode:
        done.extend(tag for tag, _ in encode(batches(7, 8, 9, number, 10, -1)))
    assert done == [0, 1, 2]
    assert getattr(caught.value, "where", "here") == "here"
    assert "in misbehave" in str(caught.value.__cause__)


@pytest.mark.usefixtures("misbehaving")
def test_input_error_is_raised_after_earlier_results(tmp_path: Path) -> None:
    def give() -> Iterator[tuple[int, Batch]]:
        yield from batches(*range(9))
        raise MinilmError("it ends too early")

    done = []
    with pytest.raises(MinilmError, match="it ends too early"), encoders(recipe(), 2, tmp_path) as encode:
        done.extend(tag for tag, _ in encode(give()))
    assert done == list(range(9))


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.parametrize("number", [-3, -4])
def test_killed_worker_or_memory_error_is_reported(
    number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = []
    with pytest.raises(RunError, match="a worker process died") as caught, encoders(recipe(), 2, tmp_path) as encode:
        done.extend(tag for tag, _ in encode(batches(1, 2, number, *range(50))))
    assert done in ([], [0], [0, 1])
    assert "--workers" in str(caught.value.hint)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("victim", [0, 1])
def test_worker_killed_while_large_batches_wait_is_reported(victim: int, tmp_path: Path) -> None:
    def give() -> Iterator[tuple[int, Batch]]:
        for number in itertools.count():
            if number == 9:
                os.kill(sorted(process.pid or 0 for process in multiprocessing.active_children())[victim], 9)
            yield number, batch(number, b"the man " * 2**17)

    with pytest.raises(RunError, match="a worker process died"), encoders(recipe(), 2, tmp_path) as encode:
        for _ in encode(give()):
            pass


def test_invalid_tokenizer_is_reported(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="expected ident"), encoders(Recipe("no JSON", "uint8"), 2, tmp_path) as encode:
        list(encode(batches(*range(9))))


def test_workers_ignore_signals_of_the_terminal(tmp_path: Path) -> None:
    # In a process of its own, which has not started the resource tracker: starting that changes the signal mask.
    code = """
import multiprocessing, pathlib, sys
from minilm_cli.corpus.tokenizer_pool import encoders
from tests.integration.test_tokenizer_pool import batch, recipe
if __name__ == "__main__":
    with encoders(recipe(), 2, pathlib.Path(sys.argv[1])) as encode:
        for _ in encode((None, batch(1, b"the")) for _ in range(9)):
            pass
        for process in multiprocessing.active_children():
            print(pathlib.Path(f"/proc/{process.pid}/status").read_text())"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    masks = [int(line.split()[1], base=16) for line in done.stdout.splitlines() if line.startswith("SigBlk:")]
    terminal = 1 << (signal.SIGINT - 1) | 1 << (signal.SIGHUP - 1)
    assert [mask & terminal for mask in masks] == [terminal] * len(masks) != []


class SignalReceived(BaseException):
    """Raised by a signal handler."""


@pytest.fixture
def raising() -> Iterator[None]:
    """SIGTERM raises `SignalReceived`."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        raise SignalReceived

    before = signal.signal(signal.SIGTERM, handle)
    yield
    signal.signal(signal.SIGTERM, before)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


@pytest.mark.usefixtures("raising")
@pytest.mark.parametrize("delay", [0.05, 0.5])
def test_workers_end_if_a_signal_raises(delay: float, tmp_path: Path) -> None:
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGTERM))
    batches = ((None, batch(1, b"the man")) for _ in itertools.count())

    def work() -> None:
        timer.start()
        with encoders(recipe(), 2, tmp_path) as encode:
            for _ in encode(batches):
                pass

    with pytest.raises(SignalReceived):
        work()
    timer.join()


def send_half_a_result(file: Path) -> None:
    """Begin to send a result, and never end."""
    queue = sys._getframe(1).f_locals["result_queue"]
    queue._writer._send(struct.pack("!i", 1000))
    file.touch()
    time.sleep(TIMEOUT)


def test_a_worker_that_is_ended_while_it_sends_a_result_is_not_waited_for(tmp_path: Path) -> None:
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    pool.submit(send_half_a_result, tmp_path / "sent")
    wait_until((tmp_path / "sent").exists)

    def end() -> None:
        tokenizer_pool._end_workers(pool)
        pool.shutdown(cancel_futures=True)

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    (tmp_path / "sent").unlink()
