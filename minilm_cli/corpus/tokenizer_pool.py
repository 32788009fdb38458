"""Worker processes that compute a function of one value after the other, results in order. Ignores what is computed.

Each worker has a pipe of its own, and values are dealt to them in turn. The process that they work for takes no lock
and has no thread for it, so that a signal may raise anywhere in it: a lock could stay taken for ever.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.resource_tracker import ensure_running
from queue import SimpleQueue
from types import FrameType
from typing import Any, TypeVar

from minilm_cli.base.errors import MinilmError, RunError

#: Values that a worker has at a time: one it computes, one to go on with.
_AHEAD = 2


Tag = TypeVar("Tag")


Value = TypeVar("Value")


Result = TypeVar("Result")


@contextmanager
def workers(
    prepare: Callable[[], Callable[[Value], Result]], count: int
) -> Iterator[Callable[[Iterable[tuple[Tag, Value]]], Iterator[tuple[Tag, Result]]]]:
    """A function that computes tagged values in `count` processes, each with a function that it has `prepare`d.

    Values and results are pickled, and so is `prepare`. What the values' iterator or the function raises as a
    `MinilmError` is raised when all before it is done, and likewise as a `RuntimeError`, with the traceback, what else
    the function raises. Raises `RunError` if a process dies, or has not the memory.
    """
    # Spawned, not forked: forking a process that has threads (tokenizers, BLAS) may hang.
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(count)]
    processes = [context.Process(target=_work, args=(theirs,), daemon=True) for _, theirs in pipes]
    try:
        ensure_running()  # else the first process to start does it, which lets signals through to all
        with _undisturbed():
            for process, (_, theirs) in zip(processes, pipes, strict=True):
                process.start()
                theirs.close()
        for ours, _ in pipes:  # not as an argument: each would be waited for until it has read that
            with _alive():
                ours.send(prepare)
        yield lambda tagged: _in_order([ours for ours, _ in pipes], tagged)
    finally:
        with _undisturbed():
            for process, (ours, _) in zip(processes, pipes, strict=True):
                ours.close()
                if process.pid is not None:
                    process.kill()
                    process.join()


def _in_order(pipes: Sequence[Connection], tagged: Iterable[tuple[Tag, Any]]) -> Iterator[tuple[Tag, Any]]:
    under_way: deque[tuple[Tag, Connection]] = deque()
    wrong = None
    reading, turns = iter(tagged), itertools.cycle(pipes)
    while True:
        try:
            tag, value = next(reading)
        except StopIteration:
            break
        except MinilmError as error:  # told when all before it is done
            wrong = error
            break
        pipe = next(turns)
        with _alive():
            pipe.send(value)
        under_way.append((tag, pipe))
        if len(under_way) == _AHEAD * len(pipes):
            yield _received(*under_way.popleft())
    while under_way:
        yield _received(*under_way.popleft())
    if wrong is not None:
        raise wrong


def _received(tag: Tag, pipe: Connection) -> tuple[Tag, Any]:
    with _alive():
        result = pipe.recv()
    if isinstance(result, MinilmError):
        raise result
    if isinstance(result, _Bug):
        raise RuntimeError(f"in a worker process:\n\n{result.traceback}")  # noqa: TRY004  # a worker's bug is no wrong type here
    return tag, result


@contextmanager
def _alive() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError):
        raise RunError(
            "a worker process died", hint="Was memory short? Try fewer --workers or a smaller --batch-size."
        ) from None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals that end the program come when the block has ended; processes started in it never hear of them.

    Those are this process's, which ends the others.
    """
    ending = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    came: list[int] = []

    def later(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    # One that is set by other than Python, for which there is None, could not be put back.
    handlers = {number: handler for number in ending if callable(handler := signal.getsignal(number))}
    try:
        for number in handlers:
            signal.signal(number, later)
        # The mask is for the processes: to this one a thread that does not have it may bring a signal all the same.
        signal.pthread_sigmask(signal.SIG_BLOCK, ending)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)


# --- In a worker -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Bug:
    """What a worker was not meant to raise, as text: not every exception can be pickled."""

    traceback: str


def _work(pipe: Connection) -> None:
    values: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, values), daemon=True).start()
    prepare = values.get()
    compute = None
    while True:
        value, result = values.get(), None
        try:
            compute = compute or prepare()
            result = compute(value)
        except MinilmError as error:
            result = error
        except MemoryError:  # ends this process, as the system would have done
            raise
        except Exception:  # noqa: BLE001  # told by whom this works for
            result = _Bug(traceback.format_exc())
        with suppress(ConnectionError):  # nobody is left to have it: see below
            pipe.send(result)


def _receive(pipe: Connection, values: SimpleQueue[Any]) -> None:
    """Take values as they come, so that whoever sends them never waits for one that is being computed."""
    with suppress(EOFError, OSError):
        while True:
            values.put(pipe.recv())
    os._exit(0)  # whoever sent them is gone, or wants no more
