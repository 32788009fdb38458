"""Interrupted and continued tokenization, killed workers, and the memory of tokenization and of token stores."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.runs import AnyProcess

from .conftest import Commands, wait_until

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
def stdin() -> Iterator[tuple[int, BinaryIO]]:
    """Both ends of a pipe: a file descriptor to read from, and a file to write to."""
    reading, writing = os.pipe()
    with open(writing, "wb", buffering=0) as file:  # noqa: PTH123  # a file descriptor
        yield reading, file
    os.close(reading)


@pytest.fixture
def process(minilm: Commands, place: Path, stdin: tuple[int, BinaryIO]) -> AnyProcess:
    """A process that has two workers and waits for more text."""
    assert place == minilm.folder
    words = ("tokenize", "-", "--tokenizer", "teacher", "--workers", "2", "--batch-size", "1")
    process = minilm.start(*words, stdin=stdin[0])
    stdin[1].write(b"the man\n" * 2**10)
    wait_until(lambda: len(workers(process.pid)) == 2, process)
    return process


def workers(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
    return [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text(encoding="ascii")]


def has_ended(pid: int) -> bool:
    """Whether a process has ended; it may be a zombie."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    return True


def test_a_killed_worker_is_reported(minilm: Commands, process: AnyProcess, stdin: tuple[int, BinaryIO]) -> None:
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    stdin[1].write(b"one more\n" * 2**10)
    done = minilm.end(process)
    assert done.returncode == 1
    assert "a worker process died" in done.stderr


def test_workers_end_when_their_parent_is_killed(minilm: Commands, process: AnyProcess) -> None:
    pids = workers(process.pid)
    process.kill()
    minilm.end(process)
    wait_until(lambda: all(has_ended(pid) for pid in pids))


def measured(minilm: Commands, *words: str, cold: bool = False) -> Any:
    environment = {"PYTHONPATH": str(ROOT)}
    done = minilm(*words, program=("-m", "tests.benchmarks.tokenise"), cold=cold, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_memory_of_tokenization_does_not_grow_with_the_text(minilm: Commands) -> None:
    small, large = (measured(minilm, "memory", megabytes, "a-token-a-line") for megabytes in ("5", "40"))
    assert large["megabytes"] - small["megabytes"] > 30  # the token ids take 15
    assert large["tokens"] > 7 * small["tokens"]
    assert large["peak_mb"] - small["peak_mb"] < 10


def test_a_store_of_ten_million_sequences_opens_in_little_memory(minilm: Commands) -> None:
    store = measured(minilm, "store", "10000000", cold=True)
    assert store["sequences"] == 10_000_000
    assert store["peak_mb"] < 200
    assert store["extra_mb"] < 150  # the offsets take 80
