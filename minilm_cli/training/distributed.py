"""The processes that train together: which of them this is, how they meet, and what they add up.

torchrun starts them and sets who is who in the environment. Rank 0 leads: it alone reads the command line, checks,
writes and speaks; the others wait to be told of the run (`World.tell`, `World.hear`) and then compute their share.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minilm_cli.base.errors import MinilmError
from minilm_cli.training.rendezvous import POLL, Rendezvous, losing_the_store, missing_ranks, torch_distributed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Seconds that processes wait for one another, unless `MINILM_TIMEOUT` says otherwise.
TIMEOUT = 600

#: Seconds that rank 0, if there is nothing to do, stays until the others have heard so.
_STAY = 10.0


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
        self._rendezvous = Rendezvous(rank, size, timeout)
        self._met = False
        self._given_up: set[int] = set()  # ranks that did not come in time
        self._collectives = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> World:
        """As torchrun, or another launcher, sets it; one process without. Raises `MinilmError` for nonsense."""
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

    def tell(self, message: Mapping[str, Any]) -> None:
        """As rank 0, tell the others what they need to start."""
        if self.size > 1:
            self._rendezvous.store.set("told", json.dumps(message))

    def hear(self) -> dict[str, Any]:
        """What rank 0 tells, once it has checked everything; raises `Dismissed` if there is nothing to do."""
        with losing_the_store():
            while not self._rendezvous.store.check(["told"]):
                self._rendezvous.leave_if_dismissed()
                time.sleep(POLL)
            message: dict[str, Any] = json.loads(self._rendezvous.store.get("told"))
        return message

    def meet(self, device: torch.device) -> None:
        """Wait until all processes are ready, and connect them; raises `Lost` naming those that do not come."""
        if self.size == 1:
            return
        self._wait_until_ready()
        self._rendezvous.start_heartbeat()
        # A collective that is late raises here instead of ending the process from another thread.
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
        self._met = True

    def _wait_until_ready(self) -> None:
        with losing_the_store():
            for key, number in (("beats", 0), ("at", 0), ("ready", 1)):
                self._rendezvous.mark(key, number)
            # Rank 0 is the first to give up, and says so.
            deadline = time.monotonic() + self.timeout + (0 if self.leads else _STAY)
            while missing := self._rendezvous.behind("ready"):
                self._rendezvous.welcome()
                self._rendezvous.leave_if_dismissed()
                if time.monotonic() > deadline:
                    self._given_up = set(missing)
                    raise missing_ranks(missing, f"not ready after {self.timeout:.0f} s")
                time.sleep(POLL)

    # --- Training ------------------------------------------------------------------------------------------------

    def add_up(self, tensor: Tensor) -> None:
        """Replace the tensor by its sum over all processes; raises `Lost` if one does not come."""
        if self.size == 1:
            return
        started = time.monotonic()
        self._together("all_reduce", tensor)
        self.waited += time.monotonic() - started

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace these tensors by rank 0's."""
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

    def _together(self, collective: str, *arguments: object) -> None:
        """Call a collective operation; each process first marks that it has come so far."""
        try:
            self._collectives += 1
            self._rendezvous.mark("at", self._collectives)
            getattr(torch_distributed(), collective)(*arguments)
        except RuntimeError as error:
            raise self._rendezvous.lost(self._collectives) from error

    # --- The end -------------------------------------------------------------------------------------------------

    def part(self, status: int, *, told_why: bool) -> None:
        """Leave the others, with this exit status; those that wait for something that will not come are told so.

        told_why: this process has told the user why it ends.
        """
        if self.size == 1:
            return
        with suppress(MinilmError, RuntimeError):  # the host of the store may be gone
            if self.leads and not self._met:
                self._rendezvous.dismiss(status)
                deadline = time.monotonic() + _STAY
                while set(self._rendezvous.behind("left")) - {0} - self._given_up and time.monotonic() < deadline:
                    self._rendezvous.welcome()
                    time.sleep(POLL)
            elif status and told_why:
                self._rendezvous.dismiss(status)
        self._rendezvous.stop_heartbeat(_STAY)
        if self._met and not status:
            torch_distributed().destroy_process_group()


# --- Launches ----------------------------------------------------------------------------------------------------


def launch() -> dict[str, str | None] | None:
    """What tells this launch of torchrun from others: its job's id, if it has one, and the launching process."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if job is None:
        return None
    parent = os.getppid()
    began = ""
    with suppress(OSError, IndexError):  # without /proc the number must do
        began = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return {"job": None if job == "none" else job, "launcher": f"{socket.gethostname()}/{parent}/{began}"}


def same_launch(
    one: Mapping[str, str | None] | None, other: Mapping[str, str | None] | None, *, finished: bool = False
) -> bool:
    """Whether both are the same launch, before and after torchrun restarted its processes.

    A job's id says so when another machine leads by then; but not of a job that is `finished`: ids are used again.
    """
    if one is None or other is None:
        return False
    return one["launcher"] == other["launcher"] or (
        not finished and one["job"] is not None and one["job"] == other["job"]
    )


def _number(environment: Mapping[str, str], name: str, default: int, *, most: int = 10**6) -> int:
    text = environment.get(name, "") or str(default)
    # Compared by its length first: Python does not read numbers of thousands of digits.
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(most)) or int(text) > most:
        raise MinilmError(
            f"the environment variable {name} is {text[:40]!r}, which is not a number up to {most:,}",
            hint="Unset it if it is left from elsewhere; torchrun sets what it needs.",
        )
    return int(text)
