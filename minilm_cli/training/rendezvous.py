"""The key-value store that the processes of a launch share: which are ready, dismissed or lost.

torch is imported on use, so that a single process does not wait for it.
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from importlib import import_module
from typing import Any

from minilm_cli.base.errors import Dismissed, MinilmError, RunError

#: Seconds between two reads of the store.
POLL = 0.1

#: Seconds between two heartbeats, and seconds without one after which a process counts as lost.
_BEAT, _STILL = 0.5, 5.0


class Lost(RunError):
    """A process did not take part in a collective operation: it failed, was killed, or cannot be reached."""


def torch_distributed() -> Any:
    """The module `torch.distributed`, imported now."""
    return import_module("torch.distributed")


class Rendezvous:
    """What the processes of an attempt exchange besides tensors; torchrun makes a new attempt after a crash."""

    def __init__(self, rank: int, size: int, timeout: float) -> None:
        """`timeout`: seconds to wait for the store."""
        self._rank, self._size, self._timeout = rank, size, timeout
        self._attempt = secrets.token_hex(8)
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._ends = threading.Event()

    # --- The store -----------------------------------------------------------------------------------------------

    @cached_property
    def store(self) -> Any:
        """The store of this attempt.

        torchrun keeps its store when it restarts processes, and the number of restarts differs between machines. So
        rank 0 chooses a random name for the attempt. The others ask for it, each with a random token, because the
        questions of an earlier attempt are still in the store.
        """
        if self._rank:
            asked = secrets.token_hex(8)
            self._launch_store.set(f"asks/{self._rank}", asked)
            while not self._launch_store.check([f"attempt/{asked}"]):
                time.sleep(POLL)
            self._attempt = self._launch_store.get(f"attempt/{asked}").decode()
        return torch_distributed().PrefixStore(self._attempt, self._launch_store)

    def answer(self) -> None:
        """As rank 0, answer the processes that ask for the name of the attempt."""
        for rank in range(1, self._size) if self._rank == 0 else ():
            if self._launch_store.check([f"asks/{rank}"]):
                asked = self._launch_store.get(f"asks/{rank}").decode()
                self._launch_store.set(f"attempt/{asked}", self._attempt)

    @cached_property
    def _launch_store(self) -> Any:
        """The key-value store of the launch."""
        distributed = torch_distributed()
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun itself
        try:
            store = distributed.TCPStore(
                address,
                int(port),
                self._size,
                is_master=self._rank == 0 and not hosted,
                timeout=timedelta(seconds=self._timeout),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except (RuntimeError, ValueError) as error:
            raise Lost(
                f"no rendezvous at {address}:{port} within {self._timeout:.0f} s: {str(error).splitlines()[0]}",
                hint="Rank 0, or torchrun where rank 0 runs, opens it: see its log, MASTER_ADDR and MASTER_PORT.",
            ) from None
        return distributed.PrefixStore("minilm", store)

    # --- Progress ------------------------------------------------------------------------------------------------

    def mark(self, key: str, number: int = 1) -> None:
        """Record that this process has reached `number` of `key`."""
        self.store.set(f"{key}/{self._rank}", str(number))

    def behind(self, key: str, number: int = 1) -> list[int]:
        """The ranks that have not reached `number` of `key`."""
        keys = [f"{key}/{rank}" for rank in range(self._size)]
        if number == 1 and self.store.check(keys):
            return []
        return [
            rank for rank, key in enumerate(keys) if not self.store.check([key]) or int(self.store.get(key)) < number
        ]

    # --- Dismissal -----------------------------------------------------------------------------------------------

    def dismiss(self, status: int) -> None:
        """Tell the others to end with this exit status."""
        self.store.set("dismissed", str(status))

    def raise_if_dismissed(self) -> None:
        """Raise `Dismissed` if another process has told this one to end."""
        if self.store.check(["dismissed"]):
            status = int(self.store.get("dismissed"))
            self.mark("left")
            raise Dismissed(status)

    # --- Heartbeats ----------------------------------------------------------------------------------------------

    def start_heartbeat(self) -> None:
        """Show the others that this process is alive, until it ends."""
        self._heart.start()

    def stop_heartbeat(self, patience: float) -> None:
        """End the heartbeat: when Python ends, a thread inside torch's code would abort the process."""
        if self._heart.is_alive():
            self._ends.set()
            self._heart.join(patience)

    def _beat(self) -> None:
        with suppress(RuntimeError):  # the store is gone; the next collective operation reports it
            for beats in itertools.count():
                self.store.set(f"beats/{self._rank}", str(beats))
                if self._ends.wait(_BEAT):
                    break

    def _beats(self) -> list[int]:
        return [int(self.store.get(f"beats/{rank}")) for rank in range(self._size)]

    def lost(self, collective: int) -> MinilmError:
        """What to raise after a collective operation failed: `Lost` in the first process that sees it.

        collective: its number, which the processes that took part have recorded as `at`.
        """
        with losing_the_store():
            before = self._beats()
            time.sleep(_STILL)
            still = [rank for rank, beats in enumerate(self._beats()) if beats == before[rank] and rank != self._rank]
            if self.store.check(["dismissed"]):
                return Dismissed(1)  # the other has reported why
            missing = still or self.behind("at", collective)
            if int(self.store.compare_set("lost", "", str(self._rank))) != self._rank:
                return Dismissed(1)
        return missing_ranks(missing, "lost")


def missing_ranks(ranks: list[int], what: str) -> Lost:
    """The error that names the ranks which are not there."""
    names = f"rank {ranks[0]} is" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} are"
    return Lost(
        f"{names if ranks else 'a process is'} {what}.",
        hint="Its own log may say why. Continue with minilm resume, or start with torchrun --max-restarts N.",
    )


@contextmanager
def losing_the_store() -> Iterator[None]:
    """Turn a store that does not answer into `Lost`."""
    try:
        yield
    except RuntimeError as error:
        raise Lost("the rendezvous is gone, and with it rank 0 or its torchrun.") from error
