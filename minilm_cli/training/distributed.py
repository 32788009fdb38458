"""The processes of a launch: their ranks, how they connect, and their collective operations.

torchrun starts them and sets their ranks in the environment. Rank 0 leads: it alone reads the command line, checks
everything, writes files and prints. The others wait for its announcement of the run (`World.announce`,
`World.wait_for_announcement`) and then compute their share.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from minilm_cli.base.errors import MinilmError
from minilm_cli.training.rendezvous import POLL, Rendezvous, losing_the_store, missing_ranks, torch_distributed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Seconds that processes wait for one another, unless `MINILM_TIMEOUT` says otherwise.
TIMEOUT = 600

#: Seconds that rank 0, if there is nothing to train, waits until the others have been dismissed.
_STAY = 10.0

Result = TypeVar("Result")


class World:
    """The processes of a launch, seen from one of them."""

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        local_rank: int = 0,
        local_size: int = 1,
        timeout: float = TIMEOUT,
    ) -> None:
        """`local_rank` of `local_size` on this machine; `timeout`: seconds that processes wait for one another."""
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self.timeout = timeout
        self.waited = 0.0
        """Seconds spent in all-reduces, mostly waiting for other processes."""
        self._rendezvous = Rendezvous(rank, size, timeout)
        self._connected = False
        self._under_way: tuple[Any, _Stopwatch] | None = None
        self._given_up: set[int] = set()  # ranks that were not ready in time
        self._collectives = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> World:
        """As torchrun or another launcher sets it, else one process; raises `MinilmError` for invalid values."""
        size = _number(environment, "WORLD_SIZE", 1)
        if size == 1:
            return cls()
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
        if missing:
            raise MinilmError(f"WORLD_SIZE is {size}, but {' and '.join(missing)} not set", hint="Start with torchrun.")
        rank = _number(environment, "RANK", 0)
        _number(environment, "MASTER_PORT", 0, most=2**16 - 1)
        world = cls(
            rank,
            size,
            local_rank=_number(environment, "LOCAL_RANK", rank),
            local_size=_number(environment, "LOCAL_WORLD_SIZE", size),
            timeout=_number(environment, "MINILM_TIMEOUT", TIMEOUT),
        )
        if size < 1 or not 0 <= rank < size:
            raise MinilmError(f"RANK is {rank}, but WORLD_SIZE is {size}", hint="Start with torchrun.")
        return world

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    # --- Before training -----------------------------------------------------------------------------------------

    def announce(self, message: Mapping[str, Any]) -> None:
        """As rank 0, send the others what they need to start."""
        if self.size > 1:
            self._rendezvous.store.set("announcement", json.dumps(message))

    def wait_for_announcement(self) -> dict[str, Any]:
        """What rank 0 announces after all checks; raises `Dismissed` if there is nothing to train."""
        with losing_the_store():
            while not self._rendezvous.store.check(["announcement"]):
                self._rendezvous.raise_if_dismissed()
                time.sleep(POLL)
            message: dict[str, Any] = json.loads(self._rendezvous.store.get("announcement"))
        return message

    def connect(self, device: torch.device) -> None:
        """Wait until all processes are ready, and connect them; raises `Lost` naming those that are not."""
        if self.size == 1:
            return
        self._wait_until_ready()
        self._rendezvous.start_heartbeat()
        # A collective that fails or times out raises in this thread, where the host waits for it. Otherwise a thread of
        # torch's notices it, sleeps for a minute, and ends the process.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        distributed = torch_distributed()
        try:
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=distributed.PrefixStore("group", self._rendezvous.store),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=self.timeout),
            )
        except RuntimeError as error:
            raise self._rendezvous.lost(self._collectives) from error
        self._connected = True

    def _wait_until_ready(self) -> None:
        with losing_the_store():
            for key, number in (("beats", 0), ("at", 0), ("ready", 1)):
                self._rendezvous.mark(key, number)
            # Rank 0 gives up first, and reports it.
            deadline = time.monotonic() + self.timeout + (0 if self.leads else _STAY)
            while missing := self._rendezvous.behind("ready"):
                self._rendezvous.answer()
                self._rendezvous.raise_if_dismissed()
                if time.monotonic() > deadline:
                    self._given_up = set(missing)
                    raise missing_ranks(missing, f"not ready after {self.timeout:.0f} s")
                time.sleep(POLL)

    # --- Training ------------------------------------------------------------------------------------------------

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace the tensor by its sum over all processes; raises `Lost` if one does not take part.

        A GPU does this while the host goes on, up to `finish`, which raises `Lost` then.
        """
        if self.size == 1:
            return
        stopwatch = _Stopwatch(tensor.device)
        work = self._collective("all_reduce", tensor, async_op=True)
        self._under_way = work, stopwatch
        if tensor.is_cuda:
            work.synchronize()  # the device waits, not the host
            stopwatch.stop()
        else:
            self.finish()

    def finish(self) -> None:
        """Wait for the last all-reduce; raises `Lost` if a process does not take part."""
        if self._under_way is None:
            return
        (work, stopwatch), self._under_way = self._under_way, None
        self._reporting_the_lost(work.wait)
        self.waited += stopwatch.seconds()

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Replace these tensors by rank 0's."""
        if self.size == 1:
            return
        for tensor in tensors:
            self._collective("broadcast", tensor, 0)

    def all_gather(self, values: list[int]) -> list[int]:
        """The values of all processes, concatenated."""
        if self.size == 1:
            return values
        gathered: list[list[int]] = [[]] * self.size
        self._collective("all_gather_object", gathered, values)
        return [value for one in gathered for value in one]

    def _collective(self, name: str, *arguments: object, **options: object) -> Any:
        """Call a collective operation; each process first marks that it has reached it."""

        def call() -> Any:
            self._rendezvous.mark("at", self._collectives)
            return getattr(torch_distributed(), name)(*arguments, **options)

        self._collectives += 1
        return self._reporting_the_lost(call)

    def _reporting_the_lost(self, call: Callable[[], Result]) -> Result:
        """The result of a call that fails if a process is lost; raises `Lost` then."""
        try:
            return call()
        except RuntimeError as error:
            raise self._rendezvous.lost(self._collectives) from error

    # --- The end -------------------------------------------------------------------------------------------------

    def leave(self, status: int, *, reported: bool) -> None:
        """Leave with this exit status, and dismiss the processes that would wait for this one.

        reported: this process has told the user why it ends.
        """
        if self.size == 1:
            return
        with suppress(MinilmError, RuntimeError):  # the host of the store may be gone
            if self.leads and not self._connected:
                self._rendezvous.dismiss(status)
                deadline = time.monotonic() + _STAY
                while set(self._rendezvous.behind("left")) - {0} - self._given_up and time.monotonic() < deadline:
                    self._rendezvous.answer()
                    time.sleep(POLL)
            elif status and reported:
                self._rendezvous.mark("left")
                self._rendezvous.dismiss(status)
        self._rendezvous.stop_heartbeat(_STAY)
        if self._connected and not status:
            torch_distributed().destroy_process_group()


class _Stopwatch:
    """Seconds between two points of a device's work, or of the host's if that is a CPU."""

    def __init__(self, device: torch.device) -> None:
        """Starts now."""
        self._events = [self._mark()] if device.type == "cuda" else []
        self._started = time.monotonic()

    def stop(self) -> None:
        """Mark the end in the device's work."""
        self._events.append(self._mark())

    def seconds(self) -> float:
        """Once the work is done."""
        if not self._events:
            return time.monotonic() - self._started
        start, end = self._events
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    @staticmethod
    def _mark() -> Any:
        event = import_module("torch").cuda.Event(enable_timing=True)
        event.record()
        return event


# --- Launches ----------------------------------------------------------------------------------------------------


def launch() -> dict[str, str | None] | None:
    """What identifies this launch of torchrun: its job's id, if it has one, and the launching process."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if job is None:
        return None
    parent = os.getppid()
    began = ""
    with suppress(OSError, IndexError):  # without /proc the process id must do
        began = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return {"job": None if job == "none" else job, "launcher": f"{socket.gethostname()}/{parent}/{began}"}


def same_launch(
    one: Mapping[str, str | None] | None, other: Mapping[str, str | None] | None, *, finished: bool = False
) -> bool:
    """Whether both are the same launch, before and after torchrun restarted its processes.

    The job's id shows it if rank 0 is now on another machine; not for a `finished` job, because ids are reused.
    """
    if one is None or other is None:
        return False
    return one["launcher"] == other["launcher"] or (
        not finished and one["job"] is not None and one["job"] == other["job"]
    )


def _number(environment: Mapping[str, str], name: str, default: int, *, most: int = 10**6) -> int:
    text = environment.get(name, "") or str(default)
    # The length first: Python refuses to read numbers of thousands of digits.
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(most)) or int(text) > most:
        raise MinilmError(
            f"the environment variable {name} is {text[:40]!r}, which is not a number up to {most:,}",
            hint="Unset it if another program left it; torchrun sets it.",
        )
    return int(text)
