"""Commands as processes, and what the runs they leave have in common."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

#: Only a guard against hanging.
PATIENCE = 300


class Commands:
    """Runs `minilm` in a folder; whatever still runs at the end is ended."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the current one of every command."""
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self,
        *words: str | os.PathLike[str],
        launcher: tuple[str, ...] = (),
        program: tuple[str, ...] = ("-m", "minilm_cli"),
        **environment: str,
    ) -> subprocess.Popen[str]:
        """Start `minilm WORDS...`, as a launcher would if one is given, and go on at once.

        program: what Python is told to run instead.
        """
        env = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "TMPDIR": str(self.folder),
            **environment,
        }
        process = subprocess.Popen(
            [sys.executable, *launcher, *program, *map(os.fspath, words)],
            cwd=self.folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        """Wait for a process."""
        out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def __call__(
        self, *words: str | os.PathLike[str], launcher: tuple[str, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `minilm WORDS...` to its end."""
        return self.end(self.start(*words, launcher=launcher, **environment))

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
