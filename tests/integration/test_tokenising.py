"""Tokenising that is killed and continued; memory for tokenising and for opening a store."""

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

from tests.integration.conftest import PATIENCE, Commands, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

#: The command with small shards, so that some are complete soon.
SMALL_SHARDS = (
    "from minilm_cli.tokens import store; store.SHARD_TOKENS = 20_000; from minilm_cli.cli.app import main; main()"
)

#: The same, but it never ends: after 20 shards it waits for a signal.
ENDLESS = """
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
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_corpus: Path) -> dict[str, bytes]:
    """The store that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
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
def test_a_killed_tokenisation_can_be_continued(
    minilm: Commands, place: Path, whole: dict[str, bytes], number: signal.Signals, status: int, kills: tuple[int, ...]
) -> None:
    for least in kills:
        process = minilm.start(*COMMAND, "--workers", "2", "--continue", program=("-c", ENDLESS + SMALL_SHARDS))
        wait_until(lambda: shards(place) >= least, process)  # noqa: B023
        os.killpg(process.pid, number)
        done = minilm.end(process)
        assert (done.returncode, done.stdout) == (status, "")
        assert "Traceback" not in done.stderr
        assert ("--continue" in done.stderr) == (number != signal.SIGKILL)
        assert not (place / "tokens").exists()
    done = minilm.end(minilm.start(*COMMAND, "--workers", "1", "--continue", program=("-c", SMALL_SHARDS)))
    assert (done.returncode, done.stdout) == (0, "tokens\n")
    assert contents(place / "tokens") == whole
    assert {path.name for path in place.iterdir()} == {"corpus.txt", "teacher", "tokens"}


@pytest.fixture
def waiting(place: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Tokenising whose two workers are idle because no more text comes; and their process ids."""
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
        looks: list[list[str]] = []

        def idle() -> bool:
            looks.append([time_taken(pid) for pid in workers(process.pid)])
            return len(looks[-1]) == 2 and looks[-200:].count(looks[-1]) == 200

        wait_until(idle, process)
        yield process, workers(process.pid)
        process.kill()
        with suppress(BrokenPipeError):
            process.stdin.close()


def workers(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
    return [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text(encoding="ascii")]


def has_ended(pid: int) -> bool:
    """Whether a process has ended, perhaps as a zombie."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    return True


def time_taken(pid: int) -> str:
    """CPU time of the main thread of a process, in nanoseconds."""
    return Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]


@pytest.mark.parametrize("which", [0, 1])
def test_a_worker_that_dies_while_it_waits_is_reported(
    waiting: tuple[subprocess.Popen[str], list[int]], which: int
) -> None:
    process, found = waiting
    os.kill(found[which], signal.SIGKILL)
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write("one more\n" * 2**10)
        process.stdin.close()
    assert process.wait(timeout=PATIENCE) == 1
    assert process.stderr is not None
    assert "a worker process died" in process.stderr.read()


def test_workers_end_with_their_parent(waiting: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, found = waiting
    process.kill()
    process.wait(timeout=PATIENCE)
    wait_until(lambda: all(has_ended(pid) for pid in found))


def measured(*words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.tokenise", *words], check=True, stdout=subprocess.PIPE, cwd=ROOT
    )
    return json.loads(done.stdout)


def test_more_text_takes_no_more_memory() -> None:
    some, more = (measured("memory", megabytes, "a-token-a-line") for megabytes in ("5", "65"))
    assert more["megabytes"] - some["megabytes"] > 50  # and the token ids take 25
    assert more["tokens"] > 10 * some["tokens"]
    assert more["peak_mb"] - some["peak_mb"] < 20


def test_ten_million_sequences_are_opened_in_little_memory() -> None:
    store = measured("store", "10000000")
    assert store["sequences"] == 10_000_000
    assert store["peak_mb"] < 200
    assert store["extra_mb"] < 150  # where the sequences begin takes 80
