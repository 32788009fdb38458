"""A process of `minilm` that kills itself at a chosen event.

python -m tests.soak.killed_process REGION N -- -m minilm_cli WORDS...    at the N-th event in a region
python -m tests.soak.killed_process count FILE -- -m minilm_cli WORDS...  never; counts the events into FILE

An event is a call or return that Python's profiler sees. In a region that writes files, only calls of C functions that
may change a file count: between two of them, a killed process leaves the same files.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from io import IOBase
from pathlib import Path
from types import FrameType
from typing import Any

#: The parts of a command in which a process can kill itself.
REGIONS = ("begin", "checkpoint", "evaluation", "metrics", "student", "export")

#: Functions of posix, safetensors and open files, by name, that may change a file.
_CHANGES = (
    *("open", "write", "flush", "truncate", "close", "__exit__", "fsync", "sendfile", "serialize_file", "mkdir"),
    *("rename", "replace", "link", "symlink", "unlink", "remove", "rmdir", "chmod", "utime", "flock", "lockf"),
)


class Watch:
    """Counts events while a region is on the stack."""

    def __init__(self, region: str | None = None, last: int = 0) -> None:
        """region: the only region to count, or None for all. last: the number of the event that kills this process."""
        self.region, self.last = region, last
        self.counts: Counter[str] = Counter()

    @contextmanager
    def inside(self, region: str) -> Iterator[None]:
        """Count the events of the block for a region."""
        if self.region not in (None, region):
            yield
            return

        def event(_frame: FrameType, kind: str, what: Any) -> None:
            if region == "evaluation" or (kind in ("c_call", "c_return") and _may_change_a_file(what)):
                self.counts[region] += 1
                if self.counts[region] == self.last:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(event)
        try:
            yield
        finally:
            sys.setprofile(None)

    def watched(self, region: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as part of a region."""

        @wraps(function)
        def counted(*values: Any, **named: Any) -> Any:
            with self.inside(region):
                return function(*values, **named)

        return counted

    def patch(self) -> None:
        """Mark the regions in minilm's functions."""
        from minilm_cli.export import exporting
        from minilm_cli.runs import checkpoint, sinks
        from minilm_cli.training import distiller, run

        staged = run.staged

        @contextmanager
        def staged_and_watched(path: Path, **options: Any) -> Iterator[Path]:
            # Writing the files is watched already; flushing and renaming them is not.
            with ExitStack() as stack, staged(path, **options) as built:
                yield built
                stack.enter_context(self.inside("student" if path.name == "student" else "begin"))

        run.staged = staged_and_watched
        for region, owner, name in (
            ("begin", run, "_write_folder"),
            ("checkpoint", checkpoint, "save"),
            ("checkpoint", checkpoint, "prune"),
            ("evaluation", distiller.Distiller, "evaluate"),
            ("metrics", sinks.JsonlSink, "__init__"),
            ("metrics", sinks.JsonlSink, "write"),
            ("student", run, "write_verified"),
            ("export", exporting, "export"),
        ):
            setattr(owner, name, self.watched(region, getattr(owner, name)))


def _may_change_a_file(function: Any) -> bool:
    # `str.replace` and the release of a lock have the same names.
    return function.__name__ in _CHANGES and (function.__module__ is not None or isinstance(function.__self__, IOBase))


def main() -> None:
    """Run the command, until it ends or kills itself."""
    match sys.argv[1:]:
        case ["count", file, "--", "-m", "minilm_cli", *words]:
            watch, counts = Watch(), Path(file)
        case [region, number, "--", "-m", "minilm_cli", *words] if region in REGIONS:
            watch, counts = Watch(region, int(number)), None
        case _:
            raise SystemExit(__doc__)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # like `minilm`, before it imports torch
    watch.patch()
    from minilm_cli.cli import app

    sys.argv = ["minilm", *words]
    try:
        app.main()
    finally:
        if counts is not None:
            counts.write_text(json.dumps(watch.counts), encoding="utf-8")


if __name__ == "__main__":
    main()
