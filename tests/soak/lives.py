"""Runs that are killed and resumed until they end, held against one that was not.

A life is one process: `minilm distill` until there is a run, then `minilm resume` until there is a student, then
`minilm export`. Each is killed while kills are left: by this process after a random share of the time that such a life
usually takes (`anywhere`), or by itself, at a random event in one of the regions of `tests.soak.victim`.
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
from tests.soak.checks import differences, half_there, left_behind
from tests.soak.victim import REGIONS

ROOT = Path(__file__).parents[2]

KINDS = ("anywhere", *REGIONS)

#: Which kinds of kill a life can meet.
MEETS = {
    "distill": ("anywhere", "begin", "checkpoint", "evaluation", "metrics", "student"),
    "resume": ("anywhere", "checkpoint", "evaluation", "metrics", "student"),
    "export": ("anywhere", "export"),
}

#: Among how many of the kills that are left, in their random order, a life looks for one that it can meet. If there is
#: none, it is let live, so that runs end and others begin.
NEXT = 4


def training(teacher: str, student: str, data: str, *, steps: int) -> list[str]:
    """The options of `minilm distill`, but for `--output`: of a run that evaluates and saves every few steps."""
    return [
        *("--teacher", teacher, "--student-config", student, "--data", data, "--steps", str(steps)),
        *("--batch-size", "16", "--warmup-steps", "1", "--eval-fraction", "0.05"),
        *("--eval-every", "20", "--save-every", "10", "--log-every", "3"),
    ]


@dataclass
class Tally:
    """What came of it."""

    landed: Counter[str] = field(default_factory=Counter)
    """Kills, by kind."""
    missed: Counter[str] = field(default_factory=Counter)
    """Those that came too late: the life had ended as it should."""
    lives: int = 0
    runs: int = 0
    """That came to their end, and were compared."""
    identical: int = 0
    """Those among them that ended as the undisturbed run, and left nothing behind."""
    checkpoints: int = 0
    """How often one was verified."""
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    """What was found after a life, or at the end of a run, that should not be so."""

    def __str__(self) -> str:
        def kinds(counts: Counter[str]) -> str:
            return f"{counts.total()} ({', '.join(f'{kind} {counts[kind]}' for kind in KINDS)})"

        return (
            f"kills that landed     {kinds(self.landed)}\n"
            f"kills that missed     {kinds(self.missed)}\n"
            f"lives                 {self.lives}\n"
            f"runs compared         {self.runs}, identical {self.identical}\n"
            f"checkpoints verified  {self.checkpoints}\n"
            f"seconds               {self.seconds:.0f}\n"
            f"wrong                 {len(self.wrong)}"
        ) + "".join(f"\n  {what}" for what in self.wrong)


class Stuck(Exception):
    """A life that nobody killed failed, so that its run has no end."""


class Soak:
    """Kills runs until enough kills have landed."""

    def __init__(
        self,
        folder: Path,
        words: Sequence[str],
        *,
        kills: int,
        seed: int,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`words`: the options of `minilm distill`, but for `--output`. folder: for all that is made; empty."""
        self._folder, self._words, self._kills, self._say = folder, words, kills, say
        self._random = random.Random(seed)
        self._commands = Commands(folder)
        self._undisturbed = RunFolder(folder / "undisturbed" / "run")
        self._usual: dict[str, float] = {}
        self._events: Counter[str] = Counter()
        self.tally = Tally()

    def __call__(self) -> Tally:
        """All of it."""
        started = time.monotonic()
        left = list(KINDS * (self._kills // len(KINDS) + 1))[: self._kills]
        self._random.shuffle(left)
        try:
            self._measure()
            while left or not self.tally.runs:
                self._disturb(RunFolder(self._folder / f"run-{self.tally.runs + 1:03}" / "run"), left)
        except Stuck as error:
            self.tally.wrong.append(str(error))
        finally:
            self._commands.close()
        self.tally.seconds = time.monotonic() - started
        return self.tally

    def _measure(self) -> None:
        """The undisturbed run: how long a life takes, and how many events each region has."""
        counts = self._folder / "counts.json"
        while (command := following(self._undisturbed)) is not None:
            started = time.monotonic()
            process = self._start(self._undisturbed, command, "count", str(counts))
            self._ended_well(process, command, self._undisturbed)
            self._usual[command] = time.monotonic() - started
            self._events.update(json.loads(counts.read_text(encoding="utf-8")))
            self._say(f"undisturbed: {command}, {self._usual[command]:.1f} s")
        self._usual["resume"] = self._usual["distill"]
        assert all(self._events[region] for region in REGIONS), self._events

    def _disturb(self, run: RunFolder, left: list[str]) -> None:
        """One run, from its beginning to its export."""
        before, killed = len(self.tally.wrong), False
        # An export may be there before its process has cleared up: another, in its place, does that.
        while (command := following(run)) or killed:
            command = command or "export"
            kind = next((kind for kind in left[:NEXT] if kind in MEETS[command]), None)
            killed = self._killed(run, command, kind)
            if killed and kind is not None:
                left.remove(kind)
            self.tally.checkpoints += len(checkpoint.steps(run.checkpoints))
            self._found(f"life {self.tally.lives}", half_there(run, self._undisturbed))
        self._found(run.path.parent.name, [*differences(run, self._undisturbed), *left_behind(run)])
        self.tally.runs += 1
        if len(self.tally.wrong) == before:
            self.tally.identical += 1
            shutil.rmtree(run.path.parent)

    def _found(self, where: str, wrong: Iterable[str]) -> None:
        self.tally.wrong += [f"{where}: {what}" for what in wrong]

    def _killed(self, run: RunFolder, command: str, kind: str | None) -> bool:
        """One life; tells whether it was killed."""
        share = self._random.random()
        at = 1 + int(share * self._events[kind]) if kind in REGIONS else 0
        wait = share * self._usual[command] if kind == "anywhere" else None
        started = time.monotonic()
        process = self._start(run, command, kind, str(at)) if at else self._start(run, command)
        try:
            process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.kill()
        if not (killed := process.wait() == -signal.SIGKILL):
            self._ended_well(process, command, run)
        self.tally.lives += 1
        if kind is not None:
            (self.tally.landed if killed else self.tally.missed)[kind] += 1
        saved = checkpoint.steps(run.checkpoints)
        self._say(
            f"life {self.tally.lives}: {run.path.parent.name}, {command}"
            + (f", {kind}" if kind else "")
            + (f" {at} of {self._events[kind]}" if kind in REGIONS else "")
            + f": {'killed' if killed else 'ended'} after {time.monotonic() - started:.1f} s"
            + (f", step {saved[-1]} saved" if saved else "")
        )
        return killed

    def _start(self, run: RunFolder, command: str, *victim: str) -> AnyProcess:
        """Start a life; `victim`: what its process is told, if it is to do more than the command."""
        run.path.parent.mkdir(exist_ok=True)
        words = {
            "distill": (*self._words, "--output", run.path),
            "resume": (run.path,),
            "export": (run.path, "--force"),
        }[command]
        launcher = ("-m", "tests.soak.victim", *victim, "--") if victim else ()
        return self._commands.start(command, *words, launcher=launcher, PYTHONPATH=str(ROOT))

    def _ended_well(self, process: AnyProcess, command: str, run: RunFolder) -> None:
        """Wait for a life that has no reason to fail; raises `Stuck`."""
        error = process.communicate()[1]
        if process.returncode:
            raise Stuck(f"{run.path.parent.name}: {command} ended with status {process.returncode}: {error.strip()}")


def following(run: RunFolder) -> str | None:
    """The command that a run needs next."""
    if not run.settings_file.exists():
        return "distill"
    if not run.student.exists():
        return "resume"
    return None if (run.path / "export" / "hf").exists() else "export"
