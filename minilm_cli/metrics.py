"""Where the numbers of a run go. Standard library only; optional sinks load their package when they are asked for."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from minilm_cli.errors import MinilmError

logger = logging.getLogger(__name__)

Record = Mapping[str, float | int]


class Sink(Protocol):
    """Takes records: mappings of metric names to numbers, with the `step` they belong to."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """No more will come."""


class Progress(Protocol):
    """Shows a person how far a job is: `done` of `total`, and what is worth knowing beside it."""

    def start(self, title: str, total: float, *, done: float = 0, unit: str = "steps") -> None:
        """A job begins, of which `done` of `total` units (`steps` or `bytes`) are behind it."""

    def update(self, done: float, shown: Record | None = None) -> None:
        """`done` units are behind it; `shown` replaces what stands beside the bar."""

    def stop(self) -> None:
        """The job is over."""


class NoProgress:
    """Progress that nobody sees."""

    def start(self, title: str, total: float, *, done: float = 0, unit: str = "steps") -> None:
        """Nothing."""

    def update(self, done: float, shown: Record | None = None) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


class JsonlSink:
    """Appends each record as a line of JSON, flushed at once so that a reader may follow the file."""

    def __init__(self, path: Path, *, keep_steps: int) -> None:
        """Open `path`, dropping the lines of steps after `keep_steps`: a resumed run writes those again."""
        self._drop_after(path, keep_steps)
        self._file = path.open("a", encoding="utf-8")

    @staticmethod
    def _drop_after(path: Path, step: int) -> None:
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = []
        for line in lines:
            # A line cut short by a crash does not parse, and belongs to a step after the checkpoint's anyway.
            with suppress(ValueError, KeyError, TypeError):
                if line.endswith("\n") and json.loads(line)["step"] <= step:
                    kept.append(line)
        if len(kept) != len(lines):
            temporary = path.with_name(f".tmp-{path.name}")
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(path)

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """Scalars for TensorBoard, in the run's `tensorboard/` folder."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None
        self._writer = SummaryWriter(log_dir=str(folder / "tensorboard"))

    def write(self, record: Record) -> None:
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(record["step"]))

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Weights & Biases; it is set up by its own environment variables (`WANDB_PROJECT`, `WANDB_MODE` …)."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise _missing("wandb") from None
        # The id is the folder's name, so that a resumed run goes on in the same chart.
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "minilm"),
            id=folder.name,
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


def open_sinks(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> list[Sink]:
    """The optional sinks of these names, writing beside or about the run in `folder`."""
    try:
        return [TensorBoardSink(folder) if name == "tensorboard" else WandbSink(folder, settings) for name in names]
    except MinilmError:
        raise
    except Exception as error:  # whatever a service's own package raises where there is no login or network
        raise MinilmError(f"reporting.sinks: {' and '.join(names)} cannot be started: {error}") from error


class Fanout:
    """Gives each record to several sinks. One that fails is dropped with a warning; the run goes on."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def write(self, record: Record) -> None:
        for sink in list(self._sinks):
            try:
                sink.write(record)
            except Exception as error:  # noqa: BLE001  # whatever it is, a report must not end days of work
                logger.warning("%s failed and is left out from now on: %s", type(sink).__name__, error)
                self._sinks.remove(sink)

    def close(self) -> None:
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:  # noqa: BLE001  # as above
                logger.warning("%s could not be closed: %s", type(sink).__name__, error)
