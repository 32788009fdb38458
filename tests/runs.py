"""Commands as processes, and what the runs they leave have in common."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.forkserver import SETTLED, Process, forks, server

AnyProcess = Process | subprocess.Popen[str]

#: Only a guard against hanging.
PATIENCE = 300


class Commands:
    """Runs `minilm` in a folder; whatever still runs at the end is ended."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the current one of every command."""
        self.folder = folder
        self.started: list[AnyProcess] = []

    def start(
        self,
        *words: str | os.PathLike[str],
        launcher: Sequence[str] = (),
        program: Sequence[str] = ("-m", "minilm_cli"),
        cold: bool = False,
        stdout: int | None = None,
        stderr: int | None = None,
        **environment: str,
    ) -> AnyProcess:
        """Start `python LAUNCHER... PROGRAM... WORDS...` and return at once.

        The process is forked from one that has imported torch and transformers; `cold` starts Python instead, as do
        variables that are read by imports. `end` returns the streams, except those that go to a given descriptor.
        """
        given = [*launcher, *program, *map(os.fspath, words)]
        env = os.environ | SETTLED | {"COLUMNS": "200", "TMPDIR": str(self.folder)} | environment
        process: AnyProcess
        if forks(environment) and not cold:
            process = server().start(given, cwd=self.folder, environment=env, stdout=stdout, stderr=stderr)
        else:
            process = subprocess.Popen(
                [sys.executable, *given],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if stdout is None else stdout,
                stderr=subprocess.PIPE if stderr is None else stderr,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def end(self, process: AnyProcess) -> subprocess.CompletedProcess[str]:
        """Wait for a process."""
        out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.wait(), out, err)

    def __call__(self, *words: str | os.PathLike[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; the options are those of `start`."""
        return self.end(self.start(*words, **options))

    def close(self) -> None:
        """End what still runs."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


#: What a clock says in a line of metrics.
CLOCKED = {"elapsed", "sequences_per_second", "tokens_per_second", "waiting_fraction"}


def lasting_metrics(folder: Path) -> str:
    """The bytes of `metrics.jsonl` but for what a clock says."""
    return "\n".join(json.dumps({k: v for k, v in record.items() if k not in CLOCKED}) for record in metrics(folder))


def lasting_files(folder: Path, step: int) -> dict[str, bytes]:
    """The bytes that a run ends with: its student, and the tensors of its last checkpoint."""
    names = (
        "student/model.safetensors",
        f"checkpoints/step-{step:08}/student.safetensors",
        f"checkpoints/step-{step:08}/optimizer.safetensors",
    )
    return {name: (folder / name).read_bytes() for name in names}
