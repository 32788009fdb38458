"""Interrupted and continued tokenization, killed workers, and the memory of tokenization and of token stores."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import TIMEOUT, Commands, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

#: The command with small shards, so that the first are complete soon.
SMALL_SHARDS = (
    "from minilm_cli.tokens import store; store.SHARD_TOKENS = 20_000; from minilm_cli.cli.app import main; main()"
)

#: Makes the command wait for a signal after 20 shards.
WAIT = """
import signal
from minilm_cli.corpus.resume import Unfinished

save = Unfinished.save

def save_or_wait(self, standing):
    if len(self.shards) >= 20:
        signal.pause()
    save(self, standing)

Unfinished.save = save_or_wait
"""

COMMAND = ("tokenize", "corpus.txt", "--tokenizer", "teacher", "--max-length", "64")


def prepare(folder: Path, teacher: Path, corpus: Path) -> None:
    """Write a teacher and a few megabytes of text into a folder."""
    shutil.copytree(teacher, folder / "teacher")
    text = corpus.read_text(encoding="utf-8")
    (folder / "corpus.txt").write_text(text * (2**22 // len(text)), encoding="utf-8")


@pytest.fixture
def place(minilm: Commands, tiny_teacher: Path, tiny_corpus: Path) -> Path:
    """A folder to tokenise in."""
    prepare(minilm.folder, tiny_teacher, tiny_corpus)
    return minilm.folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_corpus: Path) -> dict[str, bytes]:
    """The files of the same store, made without interruption."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    prepare(folder, tiny_teacher, tiny_corpus)
    commands = Commands(folder)
    assert commands.end(commands.start(*COMMAND, program=("-c", SMALL_SHARDS))).returncode == 0
    return contents(folder / "tokens")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def shards(place: Path) -> int:
    """Number of complete shards."""
    with suppress(FileNotFoundError):
        state = (place / ".unfinished-tokens" / "unfinished.json").read_text(encoding="utf-8")
        return len(json.loads(state)["shards"])
    return 0


@pytest.mark.parametrize(
    ("number", "status", "kills"),
    [
        (signal.SIGKILL, -signal.SIGKILL, (2, 6)),
        (signal.SIGINT, 130, (2,)),
        (signal.SIGTERM, 143, (2,)),
        (signal.SIGHUP, 129, (2,)),
    ],
)
def test_interrupted_tokenization_can_be_continued(
    minilm: Commands,
    place: Path,
    uninterrupted: dict[str, bytes],
    number: signal.Signals,
    status: int,
    kills: tuple[int, ...],
) -> None:
    for number_of_shards in kills:
        process = minilm.start(*COMMAND, "--workers", "2", "--continue", program=("-c", WAIT + SMALL_SHARDS))
        wait_until(lambda: shards(place) >= number_of_shards, process)  # noqa: B023
        os.killpg(process.pid, number)
        done = minilm.end(process)
        assert (done.returncode, done.stdout) == (status, "")
        assert "Traceback" not in done.stderr
        assert ("--continue" in done.stderr) == (number != signal.SIGKILL)
        assert not (place / "tokens").exists()
    done = minilm.end(minilm.start(*COMMAND, "--workers", "1", "--continue", program=("-c", SMALL_SHARDS)))
    assert (done.returncode, done.stdout) == (0, "tokens\n")
    assert contents(place / "tokens") == uninterrupted
    assert {path.name for path in place.iterdir()} == {"corpus.txt", "teacher", "tokens"}


@pytest.fixture
def two_workers(place: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process that waits for more text, and the process ids of its two workers."""
    words = ("tokenize", "-", "--tokenizer", "teacher", "--workers", "2", "--batch-size", "1")
    with subprocess.Popen(
        [sys.executable, "-m", "minilm_cli", *words],
        cwd=place,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        process.stdin.write("the man\n" * 2**10)
        process.stdin.flush()
        wait_until(lambda: len(workers(process.pid)) == 2, process)
        yield process, workers(process.pid)
        process.kill()
        with suppress(BrokenPipeError):
            process.stdin.close()


def workers(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
    return [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text(encoding="ascii")]


def has_ended(pid: int) -> bool:
    """Whether a process has ended; it may be a zombie."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    return True


def test_a_killed_worker_is_reported(two_workers: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, pids = two_workers
    os.kill(pids[1], signal.SIGKILL)
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write("one more\n" * 2**10)
        process.stdin.close()
    assert process.wait(timeout=TIMEOUT) == 1
    assert process.stderr is not None
    assert "a worker process died" in process.stderr.read()


def test_workers_end_when_their_parent_is_killed(two_workers: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, pids = two_workers
    process.kill()
    process.wait(timeout=TIMEOUT)
    wait_until(lambda: all(has_ended(pid) for pid in pids))


def measured(*words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.tokenise", *words], check=True, stdout=subprocess.PIPE, cwd=ROOT
    )
    return json.loads(done.stdout)


def test_the_memory_of_tokenization_does_not_grow_with_the_text() -> None:
    small, large = (measured("memory", megabytes, "a-token-a-line") for megabytes in ("5", "65"))
    assert large["megabytes"] - small["megabytes"] > 50  # the token ids take 25
    assert large["tokens"] > 10 * small["tokens"]
    assert large["peak_mb"] - small["peak_mb"] < 20


def test_a_store_of_ten_million_sequences_opens_in_little_memory() -> None:
    store = measured("store", "10000000")
    assert store["sequences"] == 10_000_000
    assert store["peak_mb"] < 200
    assert store["extra_mb"] < 150  # the offsets take 80
