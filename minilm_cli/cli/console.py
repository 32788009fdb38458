"""Messages, progress and tables for a person, on stderr.

On a terminal progress is drawn live; elsewhere it is plain lines, at first one every ten seconds, later fewer. The
terminal may go away during a run of days: output that cannot be written is then dropped, and the run continues.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, cast

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
)
from rich.table import Table
from rich.text import Text

from minilm_cli.base.errors import Interrupted, MinilmError
from minilm_cli.base.progress import Record

#: Seconds between two plain lines of progress, and for how long after the start; later ones are rarer, so that the log
#: of a run of days can be read.
PLAIN_INTERVALS = ((10.0, 120.0), (60.0, 3600.0), (600.0, float("inf")))

#: Metrics shown next to the progress bar, in this order: label and format.
_SHOWN = {
    "loss": ("loss", "{:.4f}"),
    "mean_loss": ("mean", "{:.4f}"),
    "eval_loss": ("held-out", "{:.4f}"),
    "task_spearman": ("spearman", "{:.3f}"),
    "task_accuracy": ("accuracy", "{:.3f}"),
    "task_ndcg@10": ("ndcg@10", "{:.3f}"),
    "lr": ("lr", "{:.1e}"),
    "sequences_per_second": ("seq/s", "{:.1f}"),
    "tokens_per_second": ("tok/s", "{:,.0f}"),
    "padding_fraction": ("pad", "{:.0%}"),
    "tokens": ("tokens", "{:,.0f}"),
}

#: Control characters, except tabs and new lines.
_CONTROLS = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "�")

#: First columns of a table that are words; the others are numbers.
_NAMES = 3

#: Columns of the narrowest screen; a smaller number in COLUMNS is a mistake.
_NARROWEST = 20


class _Stderr:
    """stderr as a stream that never fails: a terminal may hang up, a pipe may close, a disk may be full."""

    def __init__(self) -> None:
        # While progress is drawn, rich replaces sys.stderr.
        self._stream: IO[str] | None = getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if self._stream is not None:  # it is None if stderr was closed before the start
            with suppress(OSError, ValueError):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.flush()


@atexit.register
def _discard_unwritten() -> None:
    """Discard buffered text that cannot be written: Python would retry at exit, fail, and exit with status 120."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class Console:
    """Messages, tables and progress on stderr."""

    def __init__(self) -> None:
        self._rich = RichConsole(file=cast(IO[str], _Stderr()), highlight=False)
        if self._rich.width < _NARROWEST:  # noqa: PLR1730  # a width that is set no longer follows the terminal
            self._rich.width = _NARROWEST
        self.progress = ProgressSink(self._rich)

    def say(self, text: str) -> None:
        """Print a message; indented lines are for copying, and are not wrapped."""
        for line in text.splitlines():
            self._print(Text(line), copied=line.startswith("    "))

    def _print(self, text: Text, *, copied: bool = False) -> None:
        text.plain = _harmless(text.plain)
        # In a file or pipe, lines are not wrapped: the width of the reader's screen is unknown.
        self._rich.print(text, soft_wrap=copied or not self._rich.is_terminal)

    def command(self, words: str) -> None:
        """Print a command that is about to run."""
        self._print(Text(f"\n$ {words}", style="bold"), copied=True)

    def error(self, error: MinilmError) -> None:
        """Print what went wrong or stopped the run, and what to do about it."""
        where = f"{error.where}: " if error.where else ""
        label = ("Stopped: ", "bold yellow") if isinstance(error, Interrupted) else ("Error: ", "bold red")
        self._print(Text.assemble(label, f"{where}{error.message}"))
        self.say(error.hint or "")

    def table(self, title: str, rows: Iterable[Sequence[str]]) -> None:
        """Print names and values in two columns."""
        _print_table(self._rich, title, rows)

    def columns(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table with a header. In a file or pipe, lines are not wrapped."""
        lines = [[_harmless(value) for value in line] for line in (header, *rows)]
        if self._rich.is_terminal:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
            for number, name in enumerate(lines[0]):
                table.add_column(escape(name), overflow="fold", justify="left" if number < _NAMES else "right")
            for line in lines[1:]:
                table.add_row(*map(escape, line))
            self._rich.print(table)
            return
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = [
                value.ljust(width) if number < _NAMES else value.rjust(width)
                for number, (value, width) in enumerate(zip(line, widths, strict=True))
            ]
            self._rich.print(Text("  ".join(cells).rstrip()), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._print(_warning(text))

    def listen(self, *, verbose: bool = False) -> None:
        """Show the package's log messages of level INFO and above, or of all levels."""
        root = logging.getLogger("minilm_cli")
        root.setLevel(logging.DEBUG)
        root.propagate = False
        for handler in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
            root.removeHandler(handler)
        root.addHandler(_Handler(self._print, logging.DEBUG if verbose else logging.INFO))


def _print_table(rich: RichConsole, title: str, rows: Iterable[Sequence[str]]) -> None:
    """Names and values in two columns. In a file or pipe, lines are neither wrapped nor padded."""
    rows = [(_harmless(name), _harmless(value)) for name, value in rows]
    rich.print(Text(_harmless(title), style="bold"), soft_wrap=not rich.is_terminal)
    if rich.is_terminal:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(escape(name), escape(value))
        rich.print(table)
    else:
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            rich.print(Text(f"  {name:<{width}}    {value}"), soft_wrap=True)


def _warning(text: str) -> Text:
    return Text.assemble(("Warning: ", "yellow"), text)


def _harmless(text: str) -> str:
    """Text without control characters, which names in files may contain and a terminal would obey."""
    return text.translate(_CONTROLS)


class _Handler(logging.Handler):
    def __init__(self, show: Callable[[Text], None], level: int) -> None:
        super().__init__(level)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self._show(_warning(text) if record.levelno >= logging.WARNING else Text(text))


class ProgressSink:
    """A live bar with a line of metrics, or plain lines; implements `minilm_cli.base.progress.Progress`."""

    def __init__(self, rich: RichConsole) -> None:
        self._rich = rich
        self._live: Live | None = None

    def announce(self, title: str, rows: Iterable[Sequence[str]]) -> None:
        """Print what the job is going to do."""
        _print_table(self._rich, title, rows)

    def start(self, title: str, total: float | None, *, done: float = 0, unit: str = "steps") -> None:
        """Begin a job, of which `done` of `total` units are done already."""
        self._title, self._total, self._unit = title, total, unit
        self._began, self._began_at, self._done = time.monotonic(), done, done
        self._last_line = time.monotonic()
        self._activity, self._left = "", ""
        self._shown: dict[str, float] = {}
        if self._rich.is_terminal:
            count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                count,
                *([] if total is None else [TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.fields[left]}")]),
                console=self._rich,
                expand=True,
            )
            self._task: TaskID = self._bar.add_task(title, total=total, completed=int(done), left="")
            self._live = Live(get_renderable=self._render, console=self._rich, refresh_per_second=4, transient=True)
            self._live.start()

    def update(self, done: float, shown: Record | None = None, *, left: float | None = None) -> None:
        """Show that `done` units are done; `shown` replaces the metrics of the same names."""
        self._done = done
        self._shown.update(shown or {})
        if self._total is not None:
            if left is None and done > self._began_at:
                left = (time.monotonic() - self._began) / (done - self._began_at) * (self._total - done)
            self._left = "" if left is None else f"{duration(left)} left"
        self._show()

    def activity(self, text: str) -> None:
        """Show this in place of the job's title, until it is empty."""
        self._activity = text
        self._show()

    def stop(self) -> None:
        """End the job."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self) -> None:
        now = time.monotonic()
        if self._live is not None:
            title = self._activity or self._title
            self._bar.update(self._task, completed=self._done, description=title, left=self._left)
        elif now - self._last_line >= _plain_interval(now - self._began):
            self._last_line = now
            self._rich.print(Text(self._plain_line()), soft_wrap=True)

    def _render(self) -> RenderableType:
        return Group(self._bar, Text(f"  {_describe(self._shown)}", style="dim", overflow="ellipsis", no_wrap=True))

    def _plain_line(self) -> str:
        if self._unit == "bytes":
            count = f"{self._done / 1e6:.1f}{'' if self._total is None else f'/{self._total / 1e6:.1f}'} MB"
        else:
            count = f"step {self._done:.0f}{'' if self._total is None else f'/{self._total:.0f}'}"
        parts = [f"{self._title}: {count}", self._activity.lower(), _describe(self._shown), self._left]
        return "  ".join(part for part in parts if part)


def _plain_interval(elapsed: float) -> float:
    return next(interval for interval, until in PLAIN_INTERVALS if elapsed < until)


def _describe(shown: Mapping[str, float]) -> str:
    return "  ".join(f"{label} {form.format(shown[name])}" for name, (label, form) in _SHOWN.items() if name in shown)


def duration(seconds: float) -> str:
    """Seconds as `1:05` or `2:00:00`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
