"""The processes that train together: which of them this is, how they meet, what they add up, how one is missed.

torchrun starts them and says in the environment who is who. Rank 0 leads: it alone reads the command line, checks,
writes and speaks; the others wait to be told of the run (`World.tell`, `World.hear`) and then compute their share.
torch is imported where processes meet, so that a single one need not wait for it. Ignores what is computed.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minilm_cli.base.errors import Dismissed, MinilmError, RunError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Seconds that processes wait for one another, unless `MINILM_TIMEOUT` says otherwise.
TIMEOUT = 600


#: Seconds between two looks at what the others have left word of.
_POLL = 0.1


#: Seconds between two signs of life, and without one until a process counts as lost.
_BEAT, _STILL = 0.5, 5.0


#: Seconds that rank 0, if it has nothing to tell of, stays for the others to hear so.
_STAY = 10.0


class Lost(RunError):
    """A process did not come to where the others add up: it has failed, was killed, or is out of reach."""


class World:
    """The processes that train together, and which of them this is."""

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
        """Seconds spent adding up, which is mostly waiting for the others."""
        self._attempt = secrets.token_hex(8)
        self._met = False
        self._given_up: set[int] = set()  # ranks that were waited for long enough
        self._sums = 0
        self._beater = threading.Thread(target=self._beat, name="beat", daemon=True)
        self._ends = threading.Event()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> World:
        """What torchrun, or another launcher, says; one process if nothing does. Raises `MinilmError` for nonsense."""
        size = _number(environment, "WORLD_SIZE", 1)
        if size == 1:
            return cls()
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
        if missing:
            raise MinilmError(f"WORLD_SIZE is {size}, and {' and '.join(missing)} not set", hint="Start with torchrun.")
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
            raise MinilmError(f"RANK is {rank}, and WORLD_SIZE {size}", hint="Start with torchrun.")
        return world

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    # --- Before training -----------------------------------------------------------------------------------------

    def tell(self, message: Mapping[str, Any]) -> None:
        """As rank 0, tell the others what they need to begin."""
        if self.size > 1:
            self._store.set("told", json.dumps(message))

    def hear(self) -> dict[str, Any]:
        """What rank 0 tells, once it has checked everything; raises `Dismissed` if there is nothing to do."""
        with _losing_the_store():
            while not self._store.check(["told"]):
                self._leave_if_dismissed()
                time.sleep(_POLL)
            message: dict[str, Any] = json.loads(self._store.get("told"))
        return message

    def meet(self, device: torch.device) -> None:
        """Wait until all processes are ready, and connect them; raises `Lost` naming those that do not come."""
        if self.size == 1:
            return
        distributed = _torch_distributed()
        with _losing_the_store():
            self._store.set(f"beats/{self.rank}", "0")
            self._store.set(f"at/{self.rank}", "0")
            self._store.set(f"ready/{self.rank}", "1")
            # Rank 0 is the first to give up, and says so.
            deadline = time.monotonic() + self.timeout + (0 if self.leads else _STAY)
            while missing := self._behind("ready", 1):
                self._welcome()
                self._leave_if_dismissed()
                if time.monotonic() > deadline:
                    self._given_up = set(missing)
                    raise self._missing(missing, f"not ready after {self.timeout:.0f} s")
                time.sleep(_POLL)
        self._beater.start()
        # A collective that is late raises here instead of ending the process from another thread.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        try:
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=distributed.PrefixStore("group", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=self.timeout),
            )
        except RuntimeError as error:
            raise self._lost() from error
        self._met = True

    # --- Training ------------------------------------------------------------------------------------------------

    def add_up(self, tensor: Tensor) -> None:
        """Put the sum over all processes in the tensor's place; raises `Lost` if one does not come."""
        if self.size == 1:
            return
        started = time.monotonic()
        self._together("all_reduce", tensor)
        self.waited += time.monotonic() - started

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Put rank 0's values in these tensors' places."""
        if self.size == 1:
            return
        for tensor in tensors:
            self._together("broadcast", tensor, 0)

    def gather(self, values: list[int]) -> list[int]:
        """The values of all processes, one after the other."""
        if self.size == 1:
            return values
        found: list[list[int]] = [[]] * self.size
        self._together("all_gather_object", found, values)
        return [value for some in found for value in some]

    # --- The end -------------------------------------------------------------------------------------------------

    def part(self, status: int, *, told_why: bool) -> None:
        """Leave the others, with this exit status; those that wait for what will not come are told so.

        told_why: this process has told the person why it ends.
        """
        if self.size == 1:
            return
        with suppress(MinilmError, RuntimeError):  # whoever hosts the store may be gone
            if self.leads and not self._met:
                self._store.set("dismissed", str(status))
                deadline = time.monotonic() + _STAY
                while set(self._behind("left", 1)) - {0} - self._given_up and time.monotonic() < deadline:
                    self._welcome()
                    time.sleep(_POLL)
            elif status and told_why:
                self._store.set("dismissed", str(status))
        if self._beater.is_alive():  # at the end of Python a thread within torch's code would abort the process
            self._ends.set()
            self._beater.join(_STAY)
        if self._met and not status:
            _torch_distributed().destroy_process_group()

    def _leave_if_dismissed(self) -> None:
        if self._store.check(["dismissed"]):
            status = int(self._store.get("dismissed"))
            self._store.set(f"left/{self.rank}", "1")
            raise Dismissed(status)

    # --- The meeting point ---------------------------------------------------------------------------------------

    @cached_property
    def _store(self) -> Any:
        """Where processes leave word for each other, in this attempt.

        torchrun keeps its store when it starts processes anew, and how often it has done so is not the same on all
        machines. So rank 0 draws a name for the attempt, and tells it to those that ask, each with a word of its own,
        for what was left in an earlier attempt is still there.
        """
        if not self.leads:
            asked = secrets.token_hex(8)
            self._launch_store.set(f"asks/{self.rank}", asked)
            while not self._launch_store.check([f"attempt/{asked}"]):
                time.sleep(_POLL)
            self._attempt = self._launch_store.get(f"attempt/{asked}").decode()
        return _torch_distributed().PrefixStore(self._attempt, self._launch_store)

    def _welcome(self) -> None:
        """As rank 0, tell the name of the attempt to those that ask for it."""
        for rank in range(1, self.size) if self.leads else ():
            if self._launch_store.check([f"asks/{rank}"]):
                asked = self._launch_store.get(f"asks/{rank}").decode()
                self._launch_store.set(f"attempt/{asked}", self._attempt)

    @cached_property
    def _launch_store(self) -> Any:
        """The key-value store of the launch."""
        distributed = _torch_distributed()
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun itself
        try:
            store = distributed.TCPStore(
                address,
                int(port),
                self.size,
                is_master=self.leads and not hosted,
                timeout=timedelta(seconds=self.timeout),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except (RuntimeError, ValueError) as error:
            raise Lost(
                f"no meeting point at {address}:{port} within {self.timeout:.0f} s: {str(error).splitlines()[0]}",
                hint="Rank 0, or torchrun where rank 0 runs, opens it: see its log, MASTER_ADDR and MASTER_PORT.",
            ) from None
        return distributed.PrefixStore("minilm", store)

    def _behind(self, key: str, number: int) -> list[int]:
        """The ranks whose `key` does not stand at `number` yet."""
        keys = [f"{key}/{rank}" for rank in range(self.size)]
        if number == 1 and self._store.check(keys):
            return []
        return [
            rank for rank, key in enumerate(keys) if not self._store.check([key]) or int(self._store.get(key)) < number
        ]

    def _together(self, collective: str, *arguments: object) -> None:
        """Call what all processes call at once; each first leaves word that it has come so far."""
        try:
            self._sums += 1
            self._store.set(f"at/{self.rank}", str(self._sums))
            getattr(_torch_distributed(), collective)(*arguments)
        except RuntimeError as error:
            raise self._lost() from error

    def _lost(self) -> MinilmError:
        """What to raise after something done together failed: `Lost` in the process that is the first to see it."""
        with _losing_the_store():
            before = self._beats()
            time.sleep(_STILL)
            still = [rank for rank, beats in enumerate(self._beats()) if beats == before[rank] and rank != self.rank]
            if self._store.check(["dismissed"]):
                return Dismissed(1)  # it has told why itself
            missing = still or self._behind("at", self._sums)
            if int(self._store.compare_set("lost", "", str(self.rank))) != self.rank:
                return Dismissed(1)
        return self._missing(missing, "lost")

    def _beats(self) -> list[int]:
        return [int(self._store.get(f"beats/{rank}")) for rank in range(self.size)]

    def _beat(self) -> None:
        """Show the others, until this process ends, that it is there."""
        with suppress(RuntimeError):  # the store is gone, as the process will find out
            for beats in itertools.count():
                self._store.set(f"beats/{self.rank}", str(beats))
                if self._ends.wait(_BEAT):
                    break

    def _missing(self, ranks: list[int], what: str) -> Lost:
        names = f"rank {ranks[0]} is" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} are"
        return Lost(
            f"{names if ranks else 'a process is'} {what}.",
            hint="Its own log says why, if it could still speak. Go on with minilm resume, or start with torchrun"
            " --max-restarts N.",
        )


def _torch_distributed() -> Any:
    return import_module("torch.distributed")


@contextmanager
def _losing_the_store() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise Lost("the meeting point is gone, and with it rank 0 or its torchrun.") from error


def launch() -> dict[str, str | None] | None:
    """What tells this launch of torchrun from others: its job's id, if it was given one, and the launching process."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if job is None:
        return None
    parent = os.getppid()
    began = ""
    with suppress(OSError, IndexError):  # where there is no /proc the number must do
        began = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return {"job": None if job == "none" else job, "launcher": f"{socket.gethostname()}/{parent}/{began}"}


def same_launch(
    one: Mapping[str, str | None] | None, other: Mapping[str, str | None] | None, *, finished: bool = False
) -> bool:
    """Whether both are the same launch, before and after torchrun started its processes anew.

    A job's id says so where another machine leads by now; but not of a job that is `finished`: ids are used again.
    """
    if one is None or other is None:
        return False
    return one["launcher"] == other["launcher"] or (
        not finished and one["job"] is not None and one["job"] == other["job"]
    )


def _number(environment: Mapping[str, str], name: str, default: int, *, most: int = 10**6) -> int:
    text = environment.get(name, "") or str(default)
    # Compared by its length first: Python reads no number of thousands of digits.
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(most)) or int(text) > most:
        raise MinilmError(
            f"the environment variable {name} is {text[:40]!r}, and not a number up to {most:,}",
            hint="Is it left from elsewhere? Unset it; torchrun sets what it needs.",
        )
    return int(text)
