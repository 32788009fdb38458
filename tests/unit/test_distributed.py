from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from minilm_cli.base.errors import MinilmError
from minilm_cli.training import distributed
from minilm_cli.training.distributed import TIMEOUT, World, launch, same_launch
from minilm_cli.training.rendezvous import Lost

ENVIRONMENT = {"WORLD_SIZE": "4", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_process_without_a_launcher_is_alone() -> None:
    world = World.from_environment({})
    assert (world.rank, world.size, world.leads) == (0, 1, True)


def test_ranks_come_from_torchrun() -> None:
    world = World.from_environment(ENVIRONMENT)
    assert (world.rank, world.size, world.leads) == (2, 4, False)
    assert (world.local_rank, world.local_size, world.timeout) == (2, 4, TIMEOUT)
    optional = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MINILM_TIMEOUT": "20"}
    world = World.from_environment(ENVIRONMENT | optional)
    assert (world.local_rank, world.local_size, world.timeout) == (1, 2, 20)


def test_world_of_one_needs_no_rank() -> None:
    assert World.from_environment({"WORLD_SIZE": "1", "RANK": "x"}).size == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"RANK": "4"}, "RANK is 4, but WORLD_SIZE is 4"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": ""}, "RANK not set"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE is 0"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR not set"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "MASTER_ADDR and MASTER_PORT not set"),
        ({"MINILM_TIMEOUT": "1.5"}, "MINILM_TIMEOUT is '1.5'"),
        ({"WORLD_SIZE": "1" + 30 * "0"}, "WORLD_SIZE is '1000"),
        ({"WORLD_SIZE": 10_000 * "9"}, "WORLD_SIZE is '999"),
        ({"WORLD_SIZE": "²"}, "WORLD_SIZE is '²'"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT is 'x'"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT is '99999', which is not a number up to 65,535"),
        ({"MINILM_TIMEOUT": "99999999"}, "MINILM_TIMEOUT is '99999999'"),
    ],
)
def test_invalid_variable_is_named(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(MinilmError, match=message) as raised:
        World.from_environment(ENVIRONMENT | wrong)
    assert raised.value.exit_status == 2


def test_collectives_of_one_process_do_nothing() -> None:
    world, tensor = World(), torch.ones(3)
    world.connect(torch.device("cpu"))
    world.announce({"run": "somewhere"})
    world.all_reduce(tensor)
    world.broadcast([tensor])
    assert tensor.tolist() == [1, 1, 1]
    assert world.all_gather([3, 4]) == [3, 4]
    assert world.waited == 0
    world.leave(1, reported=True)


class Device:
    """Records the order in which an all-reduce on a GPU is queued and waited for."""

    is_cuda, device = True, torch.device("cuda")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
        self.calls: list[str] = []
        self._fails = fails
        self.world = World(0, 2)
        rendezvous = SimpleNamespace(mark=lambda *_: None, lost=lambda number: Lost(f"lost in {number}"))
        monkeypatch.setattr(self.world, "_rendezvous", rendezvous)
        monkeypatch.setattr(distributed, "torch_distributed", lambda: self)
        monkeypatch.setattr(distributed, "_Stopwatch", lambda _: self)

    def all_reduce(self, tensor: object, *, async_op: bool) -> Device:
        assert tensor is self
        assert async_op
        self.calls.append("all-reduce")
        return self

    def synchronize(self) -> None:
        self.calls.append("device waits")

    def stop(self) -> None:
        self.calls.append("clock stops")

    def wait(self) -> None:
        self.calls.append("host waits")
        if self._fails:
            raise RuntimeError("timed out in blocking wait")

    def seconds(self) -> float:
        return 0.25


def test_host_waits_for_the_all_reduce_of_gpus_only_when_it_reads_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    device.world.all_reduce(cast("Any", device))
    assert device.calls == ["all-reduce", "device waits", "clock stops"]
    device.world.finish()
    assert device.calls[3:] == ["host waits"]
    assert device.world.waited == 0.25
    device.world.finish()  # nothing is under way
    assert len(device.calls) == 4


def test_process_that_misses_the_all_reduce_of_gpus_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, fails=True)
    device.world.all_reduce(cast("Any", device))
    with pytest.raises(Lost, match="lost in 1"):
        device.world.finish()


def test_processes_restarted_by_torchrun_are_of_the_same_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    ours = launch()
    assert ours is not None
    assert ours["job"] is None
    assert str(os.getppid()) in str(ours["launcher"])
    assert same_launch(ours, launch())
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert launch() is None


def of(job: str | None, launcher: str) -> dict[str, Any]:
    return {"job": job, "launcher": launcher}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (of("a", "x"), of("a", "y"), True),  # its leader moved to another machine
        (of(None, "x"), of(None, "x"), True),
        (of(None, "x"), of(None, "y"), False),
        (of("a", "x"), of("b", "y"), False),
        (None, of("a", "x"), False),
        (None, None, False),
    ],
)
def test_launches_are_distinguished(one: Any, other: Any, same: bool) -> None:
    assert same_launch(one, other) is same
    assert same_launch(one, other, finished=True) is (same and one == other)  # a job's id may be used again
