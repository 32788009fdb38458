from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import pytest

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.corpus.tokenizer_pool import workers

ROOT = Path(__file__).parents[2]


def prepare() -> Callable[[int], bytes]:
    return compute


def compute(value: int) -> bytes:
    """What takes longer, and is more, by turns."""
    if value == -1:
        raise MinilmError("a mistake", where="here")
    if value == -2:
        raise ZeroDivisionError("a bug")
    if value == -3:
        os.kill(os.getpid(), signal.SIGKILL)
    if value == -4:
        raise MemoryError
    time.sleep(0.005 * (value % 3))
    return bytes(value * 1000)


def prepare_length() -> Callable[[bytes], int]:
    return len


def fail(error: Exception) -> Callable[[int], bytes]:
    raise error


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_order_with_their_tags(count: int) -> None:
    given = [(f"tag {value}", value) for value in range(20)]
    with workers(prepare, count) as run:
        assert list(run(given)) == [(tag, bytes(1000 * value)) for tag, value in given]
        assert list(run([])) == []
        assert list(run(given[:1])) == [("tag 0", b"")]


def test_values_and_results_may_be_larger_than_a_pipe_holds() -> None:
    with workers(prepare_length, 2) as run:
        assert [length for _, length in run((None, bytes(2**22)) for _ in range(6))] == [2**22] * 6
    with workers(prepare, 2) as run:
        assert [len(result) for _, result in run((None, 5_000) for _ in range(6))] == [5_000_000] * 6


def test_few_values_are_drawn_ahead() -> None:
    drawn = []

    def draw() -> Iterator[tuple[None, int]]:
        for value in range(50):
            drawn.append(value)
            yield None, value

    with workers(prepare, 2) as run:
        for number, _ in enumerate(run(draw())):
            assert len(drawn) <= number + 4


def test_a_mistake_is_told_when_all_before_it_is_done() -> None:
    done = []
    with workers(prepare, 2) as run, pytest.raises(MinilmError, match="a mistake") as caught:
        done.extend(tag for tag, _ in run(enumerate([7, 8, 9, -1, 10, -1])))
    assert (done, caught.value.where) == ([0, 1, 2], "here")


def test_a_mistake_in_what_is_given_is_told_when_all_before_it_is_done() -> None:
    def give() -> Iterator[tuple[int, int]]:
        yield from enumerate(range(9))
        raise MinilmError("it ends too early")

    done = []
    with workers(prepare, 2) as run, pytest.raises(MinilmError, match="it ends too early"):
        done.extend(tag for tag, _ in run(give()))
    assert done == list(range(9))


@pytest.mark.parametrize("value", [-3, -4])
def test_a_worker_that_dies_is_missed(value: int, capfd: pytest.CaptureFixture[str]) -> None:
    done = []
    with workers(prepare, 2) as run, pytest.raises(RunError, match="a worker process died") as caught:
        done.extend(tag for tag, _ in run(enumerate([1, 2, value, *range(50)])))
    assert done in ([], [0], [0, 1])  # what was under way may be lost
    assert "--workers" in str(caught.value.hint)
    assert ("MemoryError" in capfd.readouterr().err) == (value == -4)


def test_a_bug_in_a_worker_is_told_with_its_traceback_when_all_before_it_is_done() -> None:
    done = []
    with workers(prepare, 2) as run, pytest.raises(RuntimeError, match=r"compute(?s:.*)ZeroDivisionError: a bug"):
        done.extend(tag for tag, _ in run(enumerate([1, 2, -2, *range(50)])))
    assert done == [0, 1]


@pytest.mark.parametrize(("error", "raised"), [(MinilmError("a mistake"), MinilmError), (KeyError(1), RuntimeError)])
def test_what_cannot_be_prepared_is_told(error: Exception, raised: type[Exception]) -> None:
    with workers(partial(fail, error), 2) as run, pytest.raises(raised, match=r"a mistake|KeyError"):
        list(run(enumerate(range(9))))


def test_workers_hear_of_no_signal_that_ends_the_program() -> None:
    # In a process that has started none before, as the first to be started may let signals through.
    code = """
import multiprocessing, pathlib
from minilm_cli.corpus.tokenizer_pool import workers
from tests.unit.test_workers import prepare
with workers(prepare, 2):
    for process in multiprocessing.active_children():
        print(pathlib.Path(f"/proc/{process.pid}/status").read_text())"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    masks = [int(line.split()[1], base=16) for line in done.stdout.splitlines() if line.startswith("SigBlk:")]
    ending = sum(1 << (number - 1) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    assert [mask & ending for mask in masks] == [ending] * 2


def test_handlers_that_are_not_pythons_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    get, replaced = signal.getsignal, []
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGHUP else get(number))
    put = signal.signal
    monkeypatch.setattr(signal, "signal", lambda number, handler: replaced.append(number) or put(number, handler))
    with workers(prepare, 1) as run:
        assert len(list(run(enumerate(range(3))))) == 3
    assert signal.SIGINT in replaced
    assert signal.SIGHUP not in replaced


class Came(BaseException):
    """A signal."""


@pytest.fixture
def raising() -> Iterator[None]:
    """SIGTERM raises `Came`; in the end signals are let through as before."""

    def come(_number: int, _frame: FrameType | None) -> None:
        raise Came

    before, mask = signal.signal(signal.SIGTERM, come), signal.pthread_sigmask
    yield
    signal.signal(signal.SIGTERM, before)
    assert mask(signal.SIG_BLOCK, ()) == set()


@pytest.mark.usefixtures("raising")
def test_a_signal_that_comes_just_before_the_workers_are_ended_raises_when_they_have_been(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask = signal.pthread_sigmask

    def with_one_pending(how: int, signals: Iterable[int]) -> set[int]:
        if how == signal.SIG_BLOCK and signals:
            os.kill(os.getpid(), signal.SIGTERM)
        return set(mask(how, signals))

    def work() -> None:
        with workers(prepare, 2) as run:
            assert len(list(run(enumerate(range(3))))) == 3
            monkeypatch.setattr(signal, "pthread_sigmask", with_one_pending)

    with pytest.raises(Came):
        work()


@pytest.mark.usefixtures("raising")
@pytest.mark.parametrize("seed", range(4))
def test_a_signal_may_raise_at_any_moment(seed: int) -> None:
    # From a thread that lets it through, so that it gets to this one wherever this one is.
    timer = threading.Timer(random.Random(seed).uniform(0, 0.6), os.kill, (os.getpid(), signal.SIGTERM))

    def work() -> None:
        timer.start()
        with workers(prepare, 2) as run:
            for _ in run(enumerate(itertools.cycle(range(5)))):
                pass

    with pytest.raises(Came):
        work()
    timer.join()
