"""Kill and resume runs until they end, and compare them with an uninterrupted run.

The processes of a run are `minilm distill` until there is a run, then `minilm resume` until there is a student, then
`minilm export`. Each is killed while kills remain: by this process after a random share of the usual time of the
command (`anywhere`), or by itself at a random event in one of the regions of `tests.soak.killed_process`.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minilm_cli.runs import checkpoint
from minilm_cli.runs.folder import RunFolder
from tests.runs import AnyProcess, Commands
from tests.soak.checks import differences, incomplete_outputs, temporary_files
from tests.soak.killed_process import REGIONS

ROOT = Path(__file__).parents[2]

KINDS = ("anywhere", *REGIONS)

#: The kinds of kill that are possible during a command.
POSSIBLE = {
    "distill": ("anywhere", "begin", "checkpoint", "evaluation", "metrics", "student"),
    "resume": ("anywhere", "checkpoint", "evaluation", "metrics", "student"),
    "export": ("anywhere", "export"),
}

#: A process takes the first possible kill among this number of remaining kills, in their random order. If there is
#: none, it is not killed, so that runs end and others begin.
LOOK_AHEAD = 4


def training(teacher: str, student: str, data: str, *, steps: int) -> list[str]:
    """The options of `minilm distill` except `--output`, for a run that evaluates and saves every few steps."""
    return [
        *("--teacher", teacher, "--student-config", student, "--data", data, "--steps", str(steps)),
        *("--batch-size", "16", "--warmup-steps", "1", "--eval-fraction", "0.05"),
        *("--eval-every", "20", "--save-every", "10", "--log-every", "3"),
    ]


@dataclass
class Tally:
    """The counts and the problems of a soak test."""

    landed: Counter[str] = field(default_factory=Counter)
    """Kills, by kind."""
    missed: Counter[str] = field(default_factory=Counter)
    """Kills that came too late, because the process had ended."""
    processes: int = 0
    runs: int = 0
    """Runs that ended, and were compared."""
    identical: int = 0
    """Runs that ended like the uninterrupted run, without temporary files."""
    checkpoints: int = 0
    """Verifications of checkpoints."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    """Problems found after a process or at the end of a run."""

    def __str__(self) -> str:
        def kinds(counts: Counter[str]) -> str:
            return f"{counts.total()} ({', '.join(f'{kind} {counts[kind]}' for kind in KINDS)})"

        return (
            f"kills that landed     {kinds(self.landed)}\n"
            f"kills that missed     {kinds(self.missed)}\n"
            f"processes             {self.processes}\n"
            f"runs compared         {self.runs}, identical {self.identical}\n"
            f"checkpoints verified  {self.checkpoints}\n"
            f"seconds               {self.seconds:.0f}\n"
            f"problems              {len(self.problems)}"
        ) + "".join(f"\n  {problem}" for problem in self.problems)


class Stuck(Exception):
    """A process that was not killed failed, so that its run cannot end."""


class Soak:
    """Kills runs until enough kills have landed."""

    def __init__(
        self,
        folder: Path,
        options: Sequence[str],
        *,
        kills: int,
        seed: int,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """options: of `minilm distill`, except `--output`. folder: an empty folder for all files."""
        self._folder, self._options, self._kills, self._say = folder, options, kills, say
        self._random = random.Random(seed)
        self._commands = Commands(folder)
        self._uninterrupted = RunFolder(folder / "uninterrupted" / "run")
        self._usual_seconds: dict[str, float] = {}
        self._events: Counter[str] = Counter()
        self.tally = Tally()

    def __call__(self) -> Tally:
        """Run the whole test."""
        started = time.monotonic()
        remaining = list(KINDS * (self._kills // len(KINDS) + 1))[: self._kills]
        self._random.shuffle(remaining)
        try:
            self._measure()
            while remaining or not self.tally.runs:
                self._kill_and_resume(RunFolder(self._folder / f"run-{self.tally.runs + 1:03}" / "run"), remaining)
        except Stuck as error:
            self.tally.problems.append(str(error))
        finally:
            self._commands.close()
        self.tally.seconds = time.monotonic() - started
        return self.tally

    def _measure(self) -> None:
        """Make the uninterrupted run, and measure the time of each command and the events of each region."""
        counts = self._folder / "counts.json"
        while (command := next_command(self._uninterrupted)) is not None:
            started = time.monotonic()
            process = self._start(self._uninterrupted, command, "count", str(counts))
            self._check_success(process, command, self._uninterrupted)
            self._usual_seconds[command] = time.monotonic() - started
            self._events.update(json.loads(counts.read_text(encoding="utf-8")))
            self._say(f"uninterrupted: {command}, {self._usual_seconds[command]:.1f} s")
        self._usual_seconds["resume"] = self._usual_seconds["distill"]
        assert all(self._events[region] for region in REGIONS), self._events

    def _kill_and_resume(self, run: RunFolder, remaining: list[str]) -> None:
        """One run, from its beginning to its export."""
        before, killed = len(self.tally.problems), False
        # If an export was killed after it wrote its output, another process removes the temporary files.
        while (command := next_command(run)) or killed:
            command = command or "export"
            kind = next((kind for kind in remaining[:LOOK_AHEAD] if kind in POSSIBLE[command]), None)
            killed = self._killed(run, command, kind)
            if killed and kind is not None:
                remaining.remove(kind)
            self.tally.checkpoints += len(checkpoint.steps(run.checkpoints))
            self._add_problems(f"process {self.tally.processes}", incomplete_outputs(run, self._uninterrupted))
        self._add_problems(run.path.parent.name, [*differences(run, self._uninterrupted), *temporary_files(run)])
        self.tally.runs += 1
        if len(self.tally.problems) == before:
            self.tally.identical += 1
            shutil.rmtree(run.path.parent)

    def _add_problems(self, where: str, problems: Iterable[str]) -> None:
        self.tally.problems += [f"{where}: {problem}" for problem in problems]

    def _killed(self, run: RunFolder, command: str, kind: str | None) -> bool:
        """Run one process; returns whether it was killed."""
        share = self._random.random()
        at = 1 + int(share * self._events[kind]) if kind in REGIONS else 0
        wait = share * self._usual_seconds[command] if kind == "anywhere" else None
        started = time.monotonic()
        process = self._start(run, command, kind, str(at)) if at else self._start(run, command)
        try:
            process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.kill()
        if not (killed := process.wait() == -signal.SIGKILL):
            self._check_success(process, command, run)
        self.tally.processes += 1
        if kind is not None:
            (self.tally.landed if killed else self.tally.missed)[kind] += 1
        steps = checkpoint.steps(run.checkpoints)
        self._say(
            f"process {self.tally.processes}: {run.path.parent.name}, {command}"
            + (f", {kind}" if kind else "")
            + (f" {at} of {self._events[kind]}" if kind in REGIONS else "")
            + f": {'killed' if killed else 'ended'} after {time.monotonic() - started:.1f} s"
            + (f", step {steps[-1]} saved" if steps else "")
        )
        return killed

    def _start(self, run: RunFolder, command: str, *kill: str) -> AnyProcess:
        """Start a process; `kill`: the arguments of `tests.soak.killed_process`, if it has any."""
        run.path.parent.mkdir(exist_ok=True)
        options = {
            "distill": (*self._options, "--output", run.path),
            "resume": (run.path,),
            "export": (run.path, "--force"),
        }[command]
        launcher = ("-m", "tests.soak.killed_process", *kill, "--") if kill else ()
        return self._commands.start(command, *options, launcher=launcher, PYTHONPATH=str(ROOT))

    def _check_success(self, process: AnyProcess, command: str, run: RunFolder) -> None:
        """Wait for a process that should succeed; raises `Stuck`."""
        error = process.communicate()[1]
        if process.returncode:
            raise Stuck(f"{run.path.parent.name}: {command} ended with status {process.returncode}: {error.strip()}")


def next_command(run: RunFolder) -> str | None:
    """The command that a run needs next."""
    if not run.settings_file.exists():
        return "distill"
    if not run.student.exists():
        return "resume"
    return None if (run.path / "export" / "hf").exists() else "export"
