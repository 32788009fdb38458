"""Several processes on one run: the same result, however many they are and whatever befalls them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch.distributed import TCPStore

from minilm_cli.base.progress import NoProgress
from minilm_cli.runs import checkpoint
from minilm_cli.training import run
from tests.held import HOLD

from .conftest import CLOCKED, Commands, Settings, lasting_files, lasting_metrics, metrics, wait_until

pytestmark = pytest.mark.slow

#: What is equal to rounding is equal to this, relatively.
ROUNDING = 2e-5

STEPS = 12

HELD = ("-m", "tests.held")

#: torchrun itself, and the one whose workers are forked.
TORCHRUN, FORKING = ("-m", "torch.distributed.run"), ("-m", "tests.torchrun")

#: A run that does not end by itself.
ENDLESS = ("--steps", "100000")


def torchrun(processes: int, *options: str, program: tuple[str, ...] = FORKING) -> tuple[str, ...]:
    """The launcher of so many processes on this machine."""
    return (*program, "--nproc-per-node", str(processes), *(options or ("--standalone",)))


def free_port() -> str:
    """A port that nobody listens to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@pytest.fixture
def student_without_dropout(tmp_path: Path, tiny_student_config: Path) -> Path:
    """The tiny student's config, but for dropout."""
    values = json.loads(tiny_student_config.read_text(encoding="utf-8"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    return path


@pytest.fixture
def distill(tiny_teacher: Path, student_without_dropout: Path, tiny_store: Path) -> tuple[str, ...]:
    """The words of a run in the folder `run`."""
    return (
        *("distill", "--teacher", str(tiny_teacher), "--student-config", str(student_without_dropout)),
        *("--data", str(tiny_store), "--steps", str(STEPS), "--warmup-steps", "1", "--precision", "fp32"),
        *("--eval-fraction", "0.05", "--eval-every", "8", "--save-every", "4", "--log-every", "1", "--output", "run"),
    )


@pytest.fixture
def alone(
    tmp_path: Path, small_settings: Settings, student_without_dropout: Path
) -> Callable[..., list[dict[str, float]]]:
    """The metrics of that run in one process."""

    def train(**changes: object) -> list[dict[str, float]]:
        settings = small_settings(
            tmp_path / "alone",
            student__config=str(student_without_dropout),
            **{"training__steps": STEPS, "training__precision": "fp32"} | changes,
            evaluation__every=8,
            checkpoint__every=4,
            reporting__log_every=1,
        )
        return metrics(run.distill(settings, NoProgress()).path)

    return train


@pytest.fixture(autouse=True)
def nothing_stays(minilm: Commands) -> Iterator[None]:
    """No process of a test is left behind."""
    yield
    assert processes_in(minilm.folder) == []


def processes_in(folder: Path) -> list[int]:
    """The processes whose current folder this is."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == folder and "Z" not in (entry / "stat").read_text().split()[2]:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def saved(folder: Path, step: int) -> Callable[[], bool]:
    """Whether a run has come to a checkpoint of this step, or a later one: they do not stay for long."""
    return lambda: max(checkpoint.steps(folder / "checkpoints"), default=0) >= step


def first_process(folder: Path) -> int:
    """Rank 0 of a run that trains."""
    return int((folder / "lock").read_text(encoding="utf-8").splitlines()[0])


def rank(number: int, folder: Path) -> int:
    """The process of this rank: a forked one has it in its name, another in its environment."""

    def is_it(process: Path) -> bool:
        started_as = (process / "environ").read_bytes().split(b"\0")
        return f"RANK={number}".encode() in started_as or (process / "comm").read_text() == f"minilm-{number}\n"

    (found,) = (process for process in processes_in(folder) if is_it(Path("/proc", str(process))))
    return found


def is_the_same(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    """The same losses, gradients and evaluations at every step, to rounding."""
    others = CLOCKED | {"work_imbalance"}
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() - others == other.keys() - others
        for name in one.keys() - others:
            assert one[name] == pytest.approx(other[name], rel=ROUNDING, abs=1e-9), (one["step"], name)


def test_the_sequences_of_several_stores_are_shared_too(
    minilm: Commands,
    distill: tuple[str, ...],
    alone: Callable[..., list[dict[str, float]]],
    tmp_path: Path,
    tiny_store: Path,
) -> None:
    more = shutil.copytree(tiny_store, tmp_path / "more")
    words = [f"{tiny_store}:0.7" if word == str(tiny_store) else word for word in distill]
    done = minilm(*words, "--data", f"{more}:0.3", "--batch-size", "9", launcher=torchrun(2))
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    is_the_same(metrics(minilm.folder / "run"), alone(training__batch_size=9, data__path={tiny_store: 0.7, more: 0.3}))


@pytest.mark.parametrize(("processes", "batch_size", "program"), [(2, 16, TORCHRUN), (3, 7, FORKING), (4, 3, FORKING)])
def test_the_result_does_not_depend_on_how_many_computed_it(
    minilm: Commands,
    distill: tuple[str, ...],
    alone: Callable[..., list[dict[str, float]]],
    processes: int,
    batch_size: int,
    program: tuple[str, ...],
) -> None:
    launcher = torchrun(processes, program=program)
    done = minilm(*distill, "--batch-size", str(batch_size), launcher=launcher, cold=program == TORCHRUN)
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    assert done.stderr.count("The student is in") == 1
    ours = metrics(minilm.folder / "run")
    is_the_same(ours, alone(training__batch_size=batch_size))
    trained = [record for record in ours if "loss" in record]
    assert all(record["work_imbalance"] >= 0 and 0 <= record["waiting_fraction"] <= 1 for record in trained)
    assert not list((minilm.folder / "run").glob("log-rank-*"))


def test_a_run_goes_on_in_another_number_of_processes(
    minilm: Commands, distill: tuple[str, ...], alone: Callable[..., list[dict[str, float]]]
) -> None:
    words = (*ENDLESS, "--schedule", "constant", "--batch-size", "7", "--set", "reporting.log_ranks=true")
    process = minilm.start(*distill, *words, launcher=torchrun(3))
    folder = minilm.folder / "run"
    wait_until(saved(folder, 8), process)
    process.send_signal(signal.SIGTERM)
    stopped = minilm.end(process)
    assert stopped.returncode != 0
    assert stopped.stderr.count("a checkpoint is saved") == 1
    assert "Stopped: SIGTERM after step" in stopped.stderr
    assert sorted(path.name for path in folder.glob("log-rank-*")) == ["log-rank-00001.txt", "log-rank-00002.txt"]
    assert "waiting for the others" in (folder / "log-rank-00002.txt").read_text(encoding="utf-8")
    steps = max(checkpoint.steps(folder / "checkpoints")) + 4
    done = minilm("resume", "run", "--steps", str(steps), launcher=torchrun(2))
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    assert "Resuming from step" in done.stderr
    is_the_same(metrics(folder), alone(training__batch_size=7, training__steps=steps, schedule__kind="constant"))


@pytest.mark.parametrize("meeting", ["--standalone", "--master-port"])
def test_after_a_kill_torchrun_starts_them_anew_and_they_end_where_they_would_have(
    minilm: Commands, distill: tuple[str, ...], meeting: str
) -> None:
    words = ("--batch-size", "8")
    done = minilm(*distill[:-1], "undisturbed", *words, launcher=torchrun(2))
    assert done.returncode == 0, done.stderr
    folder, hold = minilm.folder / "run", minilm.folder / HOLD
    options = ("--max-restarts", "2", meeting, *([free_port()] if "port" in meeting else []))
    hold.write_text("4")
    process = minilm.start(*distill, *words, launcher=torchrun(2, *options), program=HELD)
    wait_until(saved(folder, 4), process)
    before = first_process(folder)
    hold.write_text("8")
    os.kill(rank(1, minilm.folder), signal.SIGKILL)
    wait_until(lambda: before not in processes_in(minilm.folder), process)
    wait_until(saved(folder, 8), process)
    hold.unlink()
    os.kill(first_process(folder), signal.SIGKILL)
    ended = minilm.end(process)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("Restarted: resuming") == 2
    assert lasting_metrics(folder) == lasting_metrics(minilm.folder / "undisturbed")
    assert lasting_files(folder, STEPS) == lasting_files(minilm.folder / "undisturbed", STEPS)


def test_sigusr1_saves_and_ctrl_c_ends_all_with_a_checkpoint(minilm: Commands, distill: tuple[str, ...]) -> None:
    words = ("--batch-size", "8", *ENDLESS, "--save-every", "100000", "--eval-fraction", "0")
    process = minilm.start(*distill, *words, launcher=torchrun(2))
    folder = minilm.folder / "run"
    wait_until((folder / "metrics.jsonl").exists, process)
    os.kill(rank(1, minilm.folder), signal.SIGUSR1)  # does no harm
    os.kill(first_process(folder), signal.SIGUSR1)
    wait_until(lambda: checkpoint.steps(folder / "checkpoints"), process)
    process.send_signal(signal.SIGINT)
    ended = minilm.end(process)
    assert ended.returncode != 0
    assert ended.stderr.count("Stopped: SIGINT after step") == 1
    assert re.search(r"SIGUSR1: the checkpoint of step \d+ is saved\.", ended.stderr)
    last = checkpoint.latest(folder / "checkpoints")
    assert last is not None
    assert f"SIGINT after step {last.step} of 100000; a checkpoint is saved." in ended.stderr


def test_a_second_signal_ends_all_at_once(minilm: Commands, distill: tuple[str, ...]) -> None:
    # A single micro-batch that takes longer than the second signal is away.
    words = ("--batch-size", "12000", "--micro-batch-tokens", "10000000", "--eval-fraction", "0")
    process = minilm.start(*distill, *words, launcher=torchrun(2))
    folder = minilm.folder / "run"
    wait_until((folder / "metrics.jsonl").exists, process)
    first = first_process(folder)
    os.kill(first, signal.SIGTERM)
    wait_until(lambda: "once more stops" in (folder / "log.txt").read_text(encoding="utf-8"), process)
    os.kill(first, signal.SIGTERM)
    ended = minilm.end(process)
    assert ended.returncode != 0
    assert "Stopped: at once, without saving." in ended.stderr
    assert checkpoint.steps(folder / "checkpoints") == []


def test_a_process_that_is_lost_is_named_and_the_work_of_the_others_is_kept(
    minilm: Commands, distill: tuple[str, ...]
) -> None:
    process = minilm.start(*distill, "--batch-size", "8", *ENDLESS, launcher=torchrun(3))
    folder = minilm.folder / "run"
    wait_until(saved(folder, 4), process)
    os.kill(rank(1, minilm.folder), signal.SIGKILL)
    ended = minilm.end(process)
    assert ended.returncode != 0
    errors = [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]
    assert [error.rpartition(": ")[2] for error in errors] == ["rank 1 is lost."]
    assert "Continue with minilm resume" in ended.stderr
    written = [record["step"] for record in metrics(folder)]
    assert (folder / "checkpoints" / f"step-{int(written[-1]):08}").exists()


def test_a_mistake_is_told_once_and_all_end_with_its_status(minilm: Commands, distill: tuple[str, ...]) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "3"}
    words = (*distill, "--lr", "-1")
    ended = [minilm.end(process) for process in [minilm.start(*words, RANK=str(n), **address) for n in range(3)]]
    assert [done.returncode for done in ended] == [2, 2, 2]
    assert [done.stderr for done in ended[1:]] == ["", ""]
    assert "--lr: must be greater than 0" in ended[0].stderr
    assert not (minilm.folder / "run").exists()


def test_what_goes_wrong_in_one_process_alone_is_told_by_it(
    minilm: Commands, distill: tuple[str, ...], tmp_path: Path, tiny_teacher: Path
) -> None:
    # Another folder of the same name, as on a machine whose copy is not the first's.
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


def test_what_an_earlier_attempt_left_in_torchruns_store_does_no_harm(
    minilm: Commands, distill: tuple[str, ...], alone: Callable[..., list[dict[str, float]]]
) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launched = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "none",
    }
    words = (*distill, "--batch-size", "7")
    folder = minilm.folder / "run"
    (minilm.folder / HOLD).write_text("4")
    first = [minilm.start(*words, program=HELD, RANK=str(number), **launched) for number in range(2)]
    wait_until(saved(folder, 4), first[0])
    for process in first:
        process.send_signal(signal.SIGKILL)
        assert minilm.end(process).returncode == -signal.SIGKILL
    # The same processes' places, with the follower there first.
    follower = minilm.start(*words, RANK="1", **launched)
    ended = minilm.end(minilm.start(*words, RANK="0", **launched))
    assert ended.returncode == 0, ended.stderr
    assert minilm.end(follower).returncode == 0
    assert "Restarted: resuming" in ended.stderr
    is_the_same(metrics(folder), alone(training__batch_size=7))


def test_another_run_of_the_same_launch_is_a_new_one(minilm: Commands, distill: tuple[str, ...]) -> None:
    launched = {"TORCHELASTIC_RUN_ID": "100"}
    words = (*distill, "--batch-size", "8", "--steps", "2")
    assert minilm(*words, **launched).returncode == 0
    again = minilm(*words, **launched)
    assert (again.returncode, again.stdout) == (0, "run\n")
    assert "run is finished: 2 steps" in again.stderr
    other = minilm(*words, "--lr", "0.001", **launched)
    assert other.returncode == 2
    assert "run: this output exists already" in other.stderr


@pytest.mark.parametrize("comes", [0, 1])
def test_a_process_that_never_comes_is_named_in_bounded_time(
    minilm: Commands, distill: tuple[str, ...], comes: int
) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "MINILM_TIMEOUT": "2"}
    ended = minilm(*distill, RANK=str(comes), **address)
    assert ended.returncode == 1
    assert ("rank 1 is not ready after 2 s" if comes == 0 else "no rendezvous at 127.0.0.1:") in ended.stderr
    assert "Traceback" not in ended.stderr


def test_other_commands_are_run_by_one_process(minilm: Commands, tiny_teacher: Path, tiny_corpus: Path) -> None:
    done = minilm("tokenize", tiny_corpus, "--tokenizer", tiny_teacher, "--workers", "1", launcher=torchrun(2))
    assert (done.returncode, done.stdout) == (0, "tokens\n"), done.stderr
