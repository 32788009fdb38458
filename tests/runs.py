"""Commands as processes, and the results of runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.forkserver import FIXED_ENVIRONMENT, Process, can_fork, server

AnyProcess = Process | subprocess.Popen[str]

#: Seconds after which a hang becomes a failure.
TIMEOUT = 300


class Commands:
    """Runs `minilm` in a folder, and at the end kills the processes that still run."""

    def __init__(self, folder: Path) -> None:
        """folder: the current folder of every command."""
        self.folder = folder
        self.started: list[AnyProcess] = []

    def start(
        self,
        *words: str | os.PathLike[str],
        launcher: Sequence[str] = (),
        program: Sequence[str] = ("-m", "minilm_cli"),
        cold: bool = False,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        **environment: str,
    ) -> AnyProcess:
        """Start `python LAUNCHER... PROGRAM... WORDS...` and return at once.

        The process is forked from one that has imported torch and transformers. With `cold`, or with environment
        variables that are read during imports, Python is started instead. stdin, stdout, stderr: file descriptors;
        None for an empty stdin, and for outputs that `end` returns.
        """
        command = [*launcher, *program, *map(os.fspath, words)]
        env = os.environ | FIXED_ENVIRONMENT | {"COLUMNS": "200", "TMPDIR": str(self.folder)} | environment
        process: AnyProcess
        if can_fork(environment) and not cold:
            streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
            process = server().start(command, cwd=self.folder, environment=env, **streams)
        else:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL if stdin is None else stdin,
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
        out, err = process.communicate(timeout=TIMEOUT)
        return subprocess.CompletedProcess(process.args, process.wait(), out, err)

    def __call__(self, *words: str | os.PathLike[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; the options are those of `start`."""
        return self.end(self.start(*words, **options))

    def close(self) -> None:
        """Kill the processes that still run."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


#: Metrics that depend on the time.
TIME_METRICS = {"elapsed", "sequences_per_second", "tokens_per_second", "waiting_fraction"}


def metrics_without_times(folder: Path) -> str:
    """The lines of `metrics.jsonl` without the metrics that depend on the time."""
    records = ({k: v for k, v in record.items() if k not in TIME_METRICS} for record in metrics(folder))
    return "\n".join(map(json.dumps, records))


def result_files(folder: Path, step: int) -> dict[str, bytes]:
    """The bytes of a run's student and of its last checkpoint's tensors."""
    names = (
        "student/model.safetensors",
        f"checkpoints/step-{step:08}/student.safetensors",
        f"checkpoints/step-{step:08}/optimizer.safetensors",
    )
    return {name: (folder / name).read_bytes() for name in names}
