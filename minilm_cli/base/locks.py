"""Locks that die with their process, so that none is ever left behind. Ignores what is locked.

They are the kernel's (`flock`), on a file that may stay; what stands in it says who holds it.
"""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep


class Held(Exception):
    """Another process holds the lock; the message says which, as far as is known."""


class Lock:
    """A file that is this process's until it lets go of it, or ends in whatever way."""

    def __init__(self, path: Path, *, patience: float = 0.0) -> None:
        """Take the lock, making the file if need be; raises `Held`, and `OSError` if there can be no such file.

        patience: seconds to wait for another to let go, as one does at once that only looks (`holder`).
        """
        self.path = path
        self._file = path.open("a+", encoding="utf-8", errors="replace")
        self.holds = True
        """Whether it keeps others out; it does not on file systems that know no locks."""
        deadline = monotonic() + patience
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if monotonic() > deadline:
                    self._file.close()
                    raise Held(_who(path)) from None
                sleep(0.01)
            except OSError:
                self.holds = False
                break
        with suppress(OSError):  # a full disk is no reason: what is written is a courtesy
            self._file.truncate(0)
            self._file.write(f"{os.getpid()}\n{socket.gethostname()}\n")
            self._file.flush()

    @classmethod
    def claim(cls, path: Path, *, patience: float = 0.0) -> Lock | None:
        """Take the lock, or none if its folder is moved or removed just then; raises as the class does."""
        try:
            lock = cls(path, patience=patience)
        except FileNotFoundError:
            return None
        if lock.in_place():
            return lock
        lock.close()
        return None

    def in_place(self) -> bool:
        """Whether the file still stands where it was locked: not if it was moved, or its file system is gone."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except OSError:
            return False

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_ended: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it; the file stays, empty."""
        with suppress(OSError):
            self._file.truncate(0)
        with suppress(OSError):
            self._file.close()


def holder(path: Path) -> str | None:
    """Who holds the lock on this file, or `None` if nobody does, or there is no such file."""
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # others may look at the same time
            return None
    except BlockingIOError:
        return _who(path)
    except OSError:  # it may not be read, or knows no locks: nobody is known to be at work
        return None


def _who(path: Path) -> str:
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        if words := file.read(200).split():
            return f"process {' on '.join(words)}"
    return "another process"
