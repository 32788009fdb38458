"""Encode batches of lines in order, in this process or in worker processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.corpus.encoder import Encoder, Recipe, sentence_splitter
from minilm_cli.corpus.packing import Units
from minilm_cli.corpus.sources import Batch

#: Batches in progress for each worker: one that it encodes, and one that is ready for it.
_AHEAD = 2

Tag = TypeVar("Tag")

Encode = Callable[[Iterable[tuple[Tag, Batch]]], Iterator[tuple[Tag, Units]]]


@contextmanager
def encoders(recipe: Recipe, count: int, scratch: Path) -> Iterator[Encode[Any]]:
    """A function that encodes tagged batches in order, in `count` processes; in this one if `count` is 1.

    Errors come in order too: what the iterator of batches raises as a `MinilmError` is raised after the results before
    it. Raises `RunError` if a worker process dies or runs out of memory. `scratch` is a folder for a temporary file.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process
    if count <= 1:
        encoder = Encoder(recipe)
        yield lambda batches: ((tag, encoder(batch)) for tag, batch in batches)
        return
    if recipe.sentences:
        sentence_splitter(recipe.sentences)  # a missing package is reported here, not by each worker
    # Workers read the tokenizer, which may have megabytes, from a file: as an argument, starting a process would wait
    # until the process before it has read that.
    file = scratch / "tokenizer.json"
    file.write_text(recipe.tokenizer, encoding="utf-8")
    plan = replace(recipe, tokenizer=str(file.absolute()))
    with _without_terminal_signals():  # the pool starts the resource tracker
        # Spawned, because forking a process that has threads may hang.
        pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        yield lambda batches: _in_order(_submitted(pool, plan, batches), _AHEAD * count)
    except BaseException as error:
        _end_workers(pool)
        if isinstance(error, BrokenProcessPool | MemoryError):
            raise RunError(
                "a worker process died, or ran out of memory", hint="Try fewer --workers or a smaller --batch-size."
            ) from None
        raise
    finally:
        if sys.version_info < (3, 11, 5):  # it waits for ever if workers were killed while it wrote to them (gh-94777)
            pool._call_queue._reader.close()  # type: ignore[attr-defined]  # it is private
        pool.shutdown(cancel_futures=True)
        file.unlink(missing_ok=True)


def _end_workers(pool: ProcessPoolExecutor) -> None:
    """End all workers at once.

    One that is killed while it sends a result leaves half of it. The pool waits for the rest as long as any process can
    write to the pipe, and this process can too.
    """
    for process in [*(pool._processes or {}).values()]:
        process.kill()
    pool._result_queue._writer.close()  # type: ignore[attr-defined]  # it is private


def _submitted(
    pool: ProcessPoolExecutor, plan: Recipe, batches: Iterable[tuple[Tag, Batch]]
) -> Iterator[tuple[Tag | None, Future[Units]]]:
    try:
        for tag, batch in batches:
            with _without_terminal_signals():  # this may start a worker
                future = pool.submit(_encode, plan, batch)
            yield tag, future
    except MinilmError as error:  # of the input: in its turn
        failed: Future[Units] = Future()
        failed.set_exception(error)
        yield None, failed


def _in_order(futures: Iterator[tuple[Any, Future[Units]]], ahead: int) -> Iterator[tuple[Any, Units]]:
    """The results of the futures; at most `ahead` are in progress."""
    waiting = deque(itertools.islice(futures, ahead))
    while waiting:
        tag, future = waiting.popleft()
        yield tag, future.result()
        waiting.extend(itertools.islice(futures, 1))


@contextmanager
def _without_terminal_signals() -> Iterator[None]:
    """Processes that are started here never receive SIGINT and SIGHUP; this process does afterwards.

    A terminal sends these to all processes. Workers would print tracebacks, and this process ends them anyway. Not
    SIGTERM, with which the pool ends workers after one has died.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- In a worker -------------------------------------------------------------------------------------------------
def _encode(plan: Recipe, batch: Batch) -> Units:
    return _encoder(plan)(batch)


@cache
def _encoder(plan: Recipe) -> Encoder:
    """The encoder of a recipe whose tokenizer is a file."""
    return Encoder(replace(plan, tokenizer=Path(plan.tokenizer).read_text(encoding="utf-8")))


def _end_with_parent() -> None:
    """End this process when its parent dies: it would wait for work for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
