"""Where the numbers of a run go. No torch; optional sinks load their package when they are asked for."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from minilm_cli.base.atomic import sync
from minilm_cli.base.errors import Interrupted, MinilmError
from minilm_cli.base.jsonio import replace_text
from minilm_cli.base.progress import Record

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes records: mappings of metric names to numbers, with the `step` they belong to."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """No more will come."""


class JsonlSink:
    """Appends each record as a line of JSON, at once, so that a reader may follow the file.

    Lines that cannot be written (a full disk, a file system that is gone) are told of, kept, and written as soon as
    they can be.
    """

    def __init__(
        self, path: Path, keep: Callable[[Record], bool] = lambda _: True, waiting: Iterable[str] = ()
    ) -> None:
        """Go on with `path`, dropping the records that are not to be kept: a resumed run writes those again.

        waiting: what was when the run was interrupted.
        """
        self._path = path
        self._told = False
        there = self._drop(keep)
        self.waiting = [line for line in waiting if line not in there]
        """Lines that could not be written yet."""

    def _drop(self, keep: Callable[[Record], bool]) -> list[str]:
        """Leave the lines to be kept, and return them."""
        before = self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else None
        kept = []
        for line in (before or "").splitlines(keepends=True):
            # A line cut short by a crash does not parse, and belongs to a step after the checkpoint's anyway.
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                if line.endswith("\n") and keep(json.loads(line)):
                    kept.append(line)
        if before != "".join(kept):
            replace_text(self._path, "".join(kept))
        return kept

    def write(self, record: Record) -> None:
        self.waiting.append(json.dumps(record) + "\n")
        try:
            self._append_waiting()
        except OSError as error:
            if not self._told:
                logger.warning("%s cannot be written for now: %s", self._path, error.strerror)
            self._told = True

    def _append_waiting(self) -> None:
        lines = "".join(self.waiting).encode()
        # Opened each time: a file system that was gone may be back. Not created: its folder may be another one.
        with self._path.open("r+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while lines:  # a disk that fills up takes a part of them first
                    lines = lines[file.write(lines) :]
                self.waiting.clear()
            except BaseException:  # or a second signal came, and `close` will write them
                file.truncate(end)
                raise
        self._told = False

    def flush(self) -> None:
        """Put on disk what can be: what is still `waiting` then is not there."""
        with suppress(OSError):
            self._append_waiting()
            sync(self._path)

    def close(self) -> None:
        try:
            self._append_waiting()
        except OSError as error:
            logger.warning("%s lacks its last %d lines: %s", self._path, len(self.waiting), error.strerror)


class TensorBoardSink:
    """Scalars for TensorBoard, in the run's `tensorboard/` folder."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """`first_step`: what was written of it and later, before the run was resumed, is void."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None
        self._writer = SummaryWriter(log_dir=str(folder / "tensorboard"), purge_step=first_step)

    def write(self, record: Record) -> None:
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(record["step"]))

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Weights & Biases; it is set up by its own environment variables (`WANDB_PROJECT`, `WANDB_MODE` …)."""

    def __init__(self, folder: Path, run_id: str, settings: Mapping[str, Any]) -> None:
        """`run_id`: always the same for a run, so that it goes on in the same chart when it is resumed."""
        try:
            import wandb
        except ImportError:
            raise _missing("wandb") from None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "minilm"),
            id=run_id,
            name=folder.name,
            dir=str(folder),
            config=dict(settings),
            resume="allow",
        )

    def write(self, record: Record) -> None:
        self._run.log({name: value for name, value in record.items() if name != "step"}, step=int(record["step"]))

    def close(self) -> None:
        self._run.finish()


def _missing(package: str) -> MinilmError:
    return MinilmError(
        f"--report-to {package} needs the package {package}", hint=f"pip install 'minilm-cli[{package}]'"
    )


def check_sinks(names: Iterable[str]) -> None:
    """Raise `MinilmError` if the package of an optional sink is not installed."""
    from importlib.util import find_spec

    for name in names:
        if find_spec(name) is None:
            raise _missing(name)


def open_sinks(
    names: Sequence[str], folder: Path, *, run_id: str, first_step: int, settings: Mapping[str, Any], needed: bool
) -> list[Sink]:
    """The optional sinks of these names, writing beside or about the run in `folder` from step `first_step` on.

    One that does not start is left out with a warning, or if they are `needed` raises `MinilmError`.
    """
    sinks: list[Sink] = []
    for name in names:
        try:
            sinks.append(
                TensorBoardSink(folder, first_step) if name == "tensorboard" else WandbSink(folder, run_id, settings)
            )
        except MinilmError:
            raise
        except Exception as error:  # whatever a service's own package raises where there is no login or network
            if needed:
                raise MinilmError(f"reporting.sinks: {name} cannot be started: {error}") from error
            logger.warning("%s cannot be started, and is left out: %s", name, error)
    return sinks


class Fanout:
    """Gives each record to several sinks. One that fails is dropped with a warning; the run goes on."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def write(self, record: Record) -> None:
        for sink in list(self._sinks):
            try:
                sink.write(record)
            except Interrupted:
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is, a report must not end days of work
                logger.warning("%s failed and is left out from now on: %s", type(sink).__name__, error)
                self._sinks.remove(sink)

    def close(self) -> None:
        for sink in self._sinks:
            try:
                sink.close()
            except Interrupted:
                raise
            except Exception as error:  # noqa: BLE001  # as above
                logger.warning("%s could not be closed: %s", type(sink).__name__, error)
