"""Several processes on one run: the same result for any number of them, signals, and lost processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch.distributed import TCPStore

from minilm_cli.base.progress import NoProgress
from minilm_cli.runs import checkpoint
from minilm_cli.training import run
from tests.pause_after_step import PAUSE, PAUSED

from .conftest import (
    TIME_METRICS,
    Commands,
    Settings,
    has_done_a_step,
    metrics,
    metrics_without_times,
    result_files,
    wait_until,
)

pytestmark = pytest.mark.slow

#: Relative difference of numbers that are equal except for rounding.
ROUNDING = 2e-5

STEPS = 12

#: torchrun itself, and torchrun that forks its workers.
TORCHRUN, FORKING = ("-m", "torch.distributed.run"), ("-m", "tests.torchrun")

#: A run that does not end by itself.
ENDLESS = ("--steps", "100000")


def torchrun(processes: int, *options: str, program: tuple[str, ...] = FORKING) -> tuple[str, ...]:
    """The launcher of processes on this machine."""
    return (*program, "--nproc-per-node", str(processes), *(options or ("--standalone",)))


def before_traceback(ended: subprocess.CompletedProcess[str]) -> str:
    """What a launch wrote before torchrun's traceback; after it, the last message may come once more."""
    return ended.stderr.partition("Traceback (most recent call last)")[0]


def free_port() -> str:
    """A free port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def torchrun_store(processes: int) -> tuple[TCPStore, dict[str, str]]:
    """A store as torchrun hosts it, open as long as it is referenced, and the environment of its processes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return store, {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(processes),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "none",
    }


@pytest.fixture
def student_without_dropout(tmp_path: Path, tiny_student_config: Path) -> Path:
    """The tiny student's config without dropout."""
    values = json.loads(tiny_student_config.read_text(encoding="utf-8"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    return path


@pytest.fixture
def distill(tiny_teacher: Path, student_without_dropout: Path, tiny_store: Path) -> tuple[str, ...]:
    """The command of a run in the folder `run`."""
    return (
        *("distill", "--teacher", str(tiny_teacher), "--student-config", str(student_without_dropout)),
        *("--data", str(tiny_store), "--steps", str(STEPS), "--warmup-steps", "1", "--precision", "fp32"),
        *("--eval-fraction", "0.05", "--eval-every", "8", "--save-every", "4", "--log-every", "1", "--output", "run"),
    )


@pytest.fixture
def single_process(
    tmp_path: Path, small_settings: Settings, student_without_dropout: Path
) -> Callable[..., list[dict[str, float]]]:
    """Makes the metrics of that run in one process."""

    def train(**changes: object) -> list[dict[str, float]]:
        settings = small_settings(
            tmp_path / "single-process",
            student__config=str(student_without_dropout),
            **{"training__steps": STEPS, "training__precision": "fp32"} | changes,
            evaluation__every=8,
            checkpoint__every=4,
            reporting__log_every=1,
        )
        return metrics(run.distill(settings, NoProgress()).path)

    return train


@pytest.fixture(autouse=True)
def no_process_is_left(minilm: Commands) -> Iterator[None]:
    """Every process of a test has ended."""
    yield
    wait_until(lambda: processes_in(minilm.folder) == [])  # what repeats the last message ends just after torchrun


def processes_in(folder: Path) -> list[int]:
    """The processes whose current folder this is."""
    processes = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == folder and "Z" not in (entry / "stat").read_text().split()[2]:
                processes.append(int(entry.name))
        except OSError:
            continue
    return processes


def saved(folder: Path, step: int) -> Callable[[], bool]:
    """Whether a run has a checkpoint of this step or a later one: old checkpoints are removed."""
    return lambda: max(checkpoint.steps(folder / "checkpoints"), default=0) >= step


def first_process(folder: Path) -> int:
    """The process of rank 0 of a run that is under way."""
    return int((folder / "lock").read_text(encoding="utf-8").splitlines()[0])


def rank(number: int, folder: Path) -> int:
    """The process of this rank: a forked process has it in its name, a started one in its environment."""

    def has_rank(process: Path) -> bool:
        environment = (process / "environ").read_bytes().split(b"\0")
        return f"RANK={number}".encode() in environment or (process / "comm").read_text() == f"minilm-{number}\n"

    (process,) = (pid for pid in processes_in(folder) if has_rank(Path("/proc", str(pid))))
    return process


def assert_close_metrics(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    """The same losses, gradients and evaluations at every step, to rounding."""
    others = TIME_METRICS | {"work_imbalance"}
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() - others == other.keys() - others
        for name in one.keys() - others:
            assert one[name] == pytest.approx(other[name], rel=ROUNDING, abs=1e-9), (one["step"], name)


@pytest.mark.parametrize(("processes", "batch_size", "program"), [(2, 16, TORCHRUN), (3, 7, FORKING), (4, 3, FORKING)])
def test_the_result_does_not_depend_on_the_number_of_processes(
    minilm: Commands,
    distill: tuple[str, ...],
    single_process: Callable[..., list[dict[str, float]]],
    processes: int,
    batch_size: int,
    program: tuple[str, ...],
) -> None:
    launcher = torchrun(processes, program=program)
    done = minilm(*distill, "--batch-size", str(batch_size), launcher=launcher, cold=program == TORCHRUN)
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    assert done.stderr.count("The student is in") == 1
    ours = metrics(minilm.folder / "run")
    assert_close_metrics(ours, single_process(training__batch_size=batch_size))
    trained = [record for record in ours if "loss" in record]
    assert all(record["work_imbalance"] >= 0 and 0 <= record["waiting_fraction"] <= 1 for record in trained)
    assert not list((minilm.folder / "run").glob("log-rank-*"))


def test_a_run_can_be_resumed_with_another_number_of_processes(
    minilm: Commands, distill: tuple[str, ...], single_process: Callable[..., list[dict[str, float]]]
) -> None:
    words = (*ENDLESS, "--schedule", "constant", "--batch-size", "7", "--set", "reporting.log_ranks=true")
    process = minilm.start(*distill, *words, launcher=torchrun(3))
    folder = minilm.folder / "run"
    wait_until(saved(folder, 8), process)
    process.send_signal(signal.SIGTERM)
    stopped = minilm.end(process)
    assert stopped.returncode != 0
    assert before_traceback(stopped).count("a checkpoint is saved") == 1
    assert "Stopped: SIGTERM after step" in stopped.stderr
    assert sorted(path.name for path in folder.glob("log-rank-*")) == ["log-rank-00001.txt", "log-rank-00002.txt"]
    assert "waiting for the others" in (folder / "log-rank-00002.txt").read_text(encoding="utf-8")
    steps = max(checkpoint.steps(folder / "checkpoints")) + 4
    done = minilm("resume", "run", "--steps", str(steps), launcher=torchrun(2))
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    assert "Resuming from step" in done.stderr
    assert_close_metrics(
        metrics(folder), single_process(training__batch_size=7, training__steps=steps, schedule__kind="constant")
    )


@pytest.mark.parametrize("rendezvous", ["--standalone", "--master-port"])
def test_a_run_restarted_by_torchrun_has_the_same_result(
    minilm: Commands, distill: tuple[str, ...], rendezvous: str
) -> None:
    words = ("--batch-size", "8")
    done = minilm(*distill[:-1], "uninterrupted", *words, launcher=torchrun(2))
    assert done.returncode == 0, done.stderr
    folder, pause = minilm.folder / "run", minilm.folder / PAUSE
    options = ("--max-restarts", "2", rendezvous, *([free_port()] if "port" in rendezvous else []))
    pause.write_text("4")
    process = minilm.start(*distill, *words, launcher=torchrun(2, *options), program=PAUSED)
    wait_until(saved(folder, 4), process)
    before = first_process(folder)
    pause.write_text("8")
    os.kill(rank(1, minilm.folder), signal.SIGKILL)
    wait_until(lambda: before not in processes_in(minilm.folder), process)
    wait_until(saved(folder, 8), process)
    pause.unlink()
    os.kill(first_process(folder), signal.SIGKILL)
    ended = minilm.end(process)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("Restarted: resuming") == 2
    assert metrics_without_times(folder) == metrics_without_times(minilm.folder / "uninterrupted")
    assert result_files(folder, STEPS) == result_files(minilm.folder / "uninterrupted", STEPS)


def test_sigusr1_saves_a_checkpoint_and_ctrl_c_saves_and_ends_every_process(
    minilm: Commands, distill: tuple[str, ...]
) -> None:
    words = ("--batch-size", "8", *ENDLESS, "--save-every", "100000", "--eval-fraction", "0")
    process = minilm.start(*distill, *words, launcher=torchrun(2))
    folder = minilm.folder / "run"
    wait_until((folder / "metrics.jsonl").exists, process)
    os.kill(rank(1, minilm.folder), signal.SIGUSR1)  # only rank 0 reacts
    os.kill(first_process(folder), signal.SIGUSR1)
    wait_until(lambda: checkpoint.steps(folder / "checkpoints"), process)
    process.send_signal(signal.SIGINT)
    ended = minilm.end(process)
    assert ended.returncode != 0
    assert before_traceback(ended).count("Stopped: SIGINT after step") == 1
    assert re.search(r"SIGUSR1: the checkpoint of step \d+ is saved\.", ended.stderr)
    last = checkpoint.latest(folder / "checkpoints")
    assert last is not None
    assert f"SIGINT after step {last.step} of 100000; a checkpoint is saved." in ended.stderr


@pytest.mark.parametrize("to", ["torchrun", "rank 0"])
def test_the_message_of_a_stopped_run_is_the_last(minilm: Commands, distill: tuple[str, ...], to: str) -> None:
    reading, writing = os.pipe()
    process = minilm.start(*distill, *ENDLESS, "--eval-fraction", "0", launcher=torchrun(2), stderr=writing)
    os.close(writing)
    wait_until(has_done_a_step(minilm.folder / "run"), process)
    os.kill(process.pid if to == "torchrun" else first_process(minilm.folder / "run"), signal.SIGTERM)
    with os.fdopen(reading, encoding="utf-8") as stream:
        said = stream.read()  # until the last process that may write has ended
    message, traceback, after = said.partition("Traceback (most recent call last)")
    assert traceback
    stopped = (
        r"\nStopped: SIGTERM after step \d+ of 100000; a checkpoint is saved\.\nContinue with:\n    minilm resume run\n"
    )
    assert re.search(stopped, message)
    assert re.search(f"{stopped}$", after)


def test_a_second_signal_ends_every_process_at_once(minilm: Commands, distill: tuple[str, ...]) -> None:
    folder = minilm.folder / "run"
    (minilm.folder / PAUSE).write_text("1")
    words = ("--batch-size", "8", "--eval-fraction", "0")
    process = minilm.start(*distill, *words, launcher=torchrun(2), program=PAUSED)
    wait_until(has_done_a_step(folder), process)
    first = first_process(folder)
    os.kill(first, signal.SIGTERM)
    wait_until(lambda: "once more stops" in (folder / "log.txt").read_text(encoding="utf-8"), process)
    os.kill(first, signal.SIGTERM)
    ended = minilm.end(process)
    assert ended.returncode != 0
    assert before_traceback(ended).count("Stopped: at once, without saving.") == 1, ended.stderr
    assert checkpoint.steps(folder / "checkpoints") == []


def test_a_lost_process_is_named_and_a_checkpoint_is_saved(minilm: Commands, distill: tuple[str, ...]) -> None:
    process = minilm.start(*distill, "--batch-size", "8", *ENDLESS, launcher=torchrun(3))
    folder = minilm.folder / "run"
    wait_until(saved(folder, 4), process)
    os.kill(rank(1, minilm.folder), signal.SIGKILL)
    ended = minilm.end(process)
    assert ended.returncode != 0
    errors = [line for line in before_traceback(ended).splitlines() if line.startswith("Error: ")]
    assert [error.rpartition(": ")[2] for error in errors] == ["rank 1 is lost."]
    assert "Continue with minilm resume" in ended.stderr
    written = [record["step"] for record in metrics(folder)]
    assert (folder / "checkpoints" / f"step-{int(written[-1]):08}").exists()


def test_an_error_is_reported_once_and_every_process_exits_with_its_status(
    minilm: Commands, distill: tuple[str, ...]
) -> None:
    store, environment = torchrun_store(3)
    words = (*distill, "--lr", "-1")
    others = [minilm.start(*words, RANK=str(rank), **environment) for rank in (1, 2)]
    # Rank 0 does not wait long for processes that start late.
    wait_until(lambda: store.check(["minilm/asks/1", "minilm/asks/2"]))
    ended = [minilm.end(process) for process in (minilm.start(*words, RANK="0", **environment), *others)]
    assert [done.returncode for done in ended] == [2, 2, 2]
    assert [done.stderr for done in ended[1:]] == ["", ""]
    assert "--lr: must be greater than 0" in ended[0].stderr
    assert not (minilm.folder / "run").exists()


def test_an_error_of_one_process_is_reported_by_that_process(
    minilm: Commands, distill: tuple[str, ...], tmp_path: Path, tiny_teacher: Path
) -> None:
    # Another folder of the same name, as on a machine that has another copy.
    teacher = tmp_path / "teacher"
    elsewhere = shutil.copytree(tiny_teacher, tmp_path / "elsewhere")
    weights = load_file(elsewhere / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"][0] += 1e-3
    save_file(weights, elsewhere / "model.safetensors", {"format": "pt"})
    teacher.symlink_to(tiny_teacher)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    words = (*distill[:2], str(teacher), *distill[3:])
    first = minilm.start(*words, RANK="0", **address)
    wait_until((minilm.folder / "run" / "settings.json").exists, first)
    teacher.unlink()
    teacher.symlink_to(elsewhere)
    other = minilm.end(minilm.start("anything", RANK="1", LOCAL_RANK="1", **address))
    assert other.returncode == 2
    assert "rank 1: the teacher's weights changed since the run began" in other.stderr
    ended = minilm.end(first)
    assert (ended.returncode, ended.stderr.count("Error")) == (2, 0), ended.stderr


def test_keys_of_an_earlier_attempt_in_torchruns_store_do_no_harm(
    minilm: Commands, distill: tuple[str, ...], single_process: Callable[..., list[dict[str, float]]]
) -> None:
    _store, environment = torchrun_store(2)
    words = (*distill, "--batch-size", "7")
    folder = minilm.folder / "run"
    (minilm.folder / PAUSE).write_text("4")
    first = [minilm.start(*words, program=PAUSED, RANK=str(number), **environment) for number in range(2)]
    wait_until(saved(folder, 4), first[0])
    for process in first:
        process.send_signal(signal.SIGKILL)
        assert minilm.end(process).returncode == -signal.SIGKILL
    # The same ranks again, and rank 1 starts first.
    follower = minilm.start(*words, RANK="1", **environment)
    ended = minilm.end(minilm.start(*words, RANK="0", **environment))
    assert ended.returncode == 0, ended.stderr
    assert minilm.end(follower).returncode == 0
    assert "Restarted: resuming" in ended.stderr
    assert_close_metrics(metrics(folder), single_process(training__batch_size=7))


def test_a_second_run_of_the_same_launch_is_not_a_restart(minilm: Commands, distill: tuple[str, ...]) -> None:
    environment = {"TORCHELASTIC_RUN_ID": "100"}
    words = (*distill, "--batch-size", "8", "--steps", "2")
    assert minilm(*words, **environment).returncode == 0
    again = minilm(*words, **environment)
    assert (again.returncode, again.stdout) == (0, "run\n")
    assert "run is finished: 2 steps" in again.stderr
    other = minilm(*words, "--lr", "0.001", **environment)
    assert other.returncode == 2
    assert "run: this output exists already" in other.stderr


@pytest.mark.parametrize("present", [0, 1])
def test_a_missing_process_is_named_after_the_timeout(minilm: Commands, distill: tuple[str, ...], present: int) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "MINILM_TIMEOUT": "2"}
    ended = minilm(*distill, RANK=str(present), **address)
    assert ended.returncode == 1
    assert ("rank 1 is not ready after 2 s" if present == 0 else "no rendezvous at 127.0.0.1:") in ended.stderr
    assert "Traceback" not in ended.stderr


def test_other_commands_run_in_one_process_only(minilm: Commands, tiny_teacher: Path, tiny_corpus: Path) -> None:
    done = minilm("tokenize", tiny_corpus, "--tokenizer", tiny_teacher, "--workers", "1", launcher=torchrun(2))
    assert (done.returncode, done.stdout) == (0, "tokens\n"), done.stderr
