"""Where the metrics of a run are written. No torch; an optional sink imports its package when it is opened."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from minilm_cli.base.atomic import sync
from minilm_cli.base.errors import Interrupted, MinilmError
from minilm_cli.base.jsonio import replace_text
from minilm_cli.base.packages import missing_package, require
from minilm_cli.base.progress import Record
from minilm_cli.base.write_errors import writing

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes records: mappings of metric names to numbers, with the `step` they belong to."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """Finish: no more records follow."""


class JsonlSink:
    """Appends each record as a line of JSON, immediately, so that others can follow the file.

    If a line cannot be written, on a full disk for example, a warning says so, and it is written with a later one.
    """

    def __init__(self, path: Path, keep: Callable[[Record], bool] = lambda _: True) -> None:
        """Continue `path` without the records that are not to be kept: a resumed run writes those again."""
        self._path = path
        self._waiting = ""
        before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
        kept = "".join(line for line in (before or "").splitlines(keepends=True) if _is_kept(line, keep))
        if before != kept:
            replace_text(path, kept)

    def write(self, record: Record) -> None:
        warned, self._waiting = bool(self._waiting), self._waiting + json.dumps(record) + "\n"
        try:
            self._append()
        except OSError as error:
            if not warned:
                logger.warning("%s cannot be written for now: %s", self._path, error.strerror)

    def flush(self) -> None:
        """Flush all lines to disk; raises `RunError` if they cannot be written."""
        with writing(self._path):
            self._append()
            sync(self._path)

    def _append(self) -> None:
        # Opened each time, because a file system may return; not created, because its mount point is another folder.
        with self._path.open("r+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            lines = self._waiting.encode()
            try:
                while lines:  # a disk that fills up takes a part of them first
                    lines = lines[file.write(lines) :]
            except BaseException:
                file.truncate(end)
                raise
        self._waiting = ""

    def close(self) -> None:
        """Lines that still wait belong to steps after the last checkpoint: a resumed run writes them again."""


def _is_kept(line: str, keep: Callable[[Record], bool]) -> bool:
    # A line that a crash cut short does not parse; it belongs to a step after the checkpoint.
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        return line.endswith("\n") and keep(json.loads(line))
    return False


class TensorBoardSink:
    """Scalars for TensorBoard, in the run's `tensorboard/` folder."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """first_step: earlier records of this and later steps, from before the run was resumed, are discarded."""
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
    """Weights & Biases, configured by its own environment variables (`WANDB_PROJECT`, `WANDB_MODE` …)."""

    def __init__(self, folder: Path, run_id: str, settings: Mapping[str, Any]) -> None:
        """run_id: the same whenever the run is resumed, so that it continues the same chart."""
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
    return missing_package(package, f"--report-to {package}")


def check_sinks(names: Iterable[str]) -> None:
    """Raise `MinilmError` if the package of an optional sink is not installed."""
    for name in names:
        require(name, f"--report-to {name}")


def log_in(names: Iterable[str], *, needed: bool) -> None:
    """Log in to Weights & Biases if it is among the sinks, before there is a run folder.

    Without a key it asks for one, and Ctrl-C at its question is a `KeyboardInterrupt`. needed: `MinilmError` if that
    fails; else `open_sinks` warns.
    """
    if "wandb" not in names or os.environ.get("WANDB_MODE", "online") not in {"online", "run"}:
        return
    import wandb

    try:
        wandb.login()
    except Exception as error:  # whatever the package raises
        if isinstance(error.__context__, KeyboardInterrupt):  # its prompt turns Ctrl-C into an exception of its own
            raise error.__context__ from None
        if needed:
            hint = "Log in with: wandb login. Or set WANDB_MODE=offline."
            raise MinilmError(f"reporting.sinks: no login to wandb: {error}", hint=hint) from error


def open_sinks(
    names: Sequence[str], folder: Path, *, run_id: str, first_step: int, settings: Mapping[str, Any], needed: bool
) -> list[Sink]:
    """Open the optional sinks of these names for the run in `folder`, from step `first_step` on.

    needed: a sink that cannot be started raises `MinilmError`; otherwise it is left out, with a warning.
    """
    sinks: list[Sink] = []
    for name in names:
        try:
            sinks.append(
                TensorBoardSink(folder, first_step) if name == "tensorboard" else WandbSink(folder, run_id, settings)
            )
        except MinilmError:
            raise
        except Exception as error:  # whatever the package raises without login or network
            if needed:
                hint = f"Training has not begun. To start it in any case: minilm resume {shlex.quote(str(folder))}"
                raise MinilmError(f"reporting.sinks: {name} cannot be started: {error}", hint=hint) from error
            logger.warning("%s cannot be started and is left out: %s", name, error)
    return sinks


class Fanout:
    """Gives each record to several sinks. One that fails is left out with a warning, and the run continues."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def write(self, record: Record) -> None:
        for sink in list(self._sinks):
            try:
                sink.write(record)
            except Interrupted:
                raise
            except Exception as error:  # noqa: BLE001  # no sink may end a run
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
