"""Exclusive locks on files.

The kernel holds them (`flock`), so a lock ends with its process, and no stale lock needs to be removed. The file stays:
while it is locked, its lines are the process id and the host name; then it is empty. (The package `filelock` would
replace the call of `flock` alone: it does not name the holder, and fails where a file system has no locks.)
"""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

#: Whoever holds the lock on a file of this name is using the folder that contains it.
LOCK = "lock"


class Held(Exception):
    """Another process holds the lock; the message names it if it is known."""


class Lock:
    """A file that this process has locked until it calls `close` or ends."""

    def __init__(self, path: Path, *, patience: float = 0.0) -> None:
        """Take the lock, creating the file if needed; raises `Held`, or `OSError` if the file cannot be opened.

        patience: seconds to wait for another holder, because `holder` and sweeps take locks for a moment.
        """
        self.path = path
        self.holds = True
        """Whether it keeps others out; false on file systems without locks."""
        self._file = path.open("a+", encoding="utf-8", errors="replace")
        deadline = monotonic() + patience
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if monotonic() > deadline:
                    self._file.close()
                    raise Held(_who(path)) from None
                sleep(0.01)
                continue
            except OSError:
                self.holds = False
            break
        with suppress(OSError):  # a full disk: the lock counts, its content is for information
            self._file.truncate(0)
            self._file.write(f"{os.getpid()}\n{socket.gethostname()}\n")
            self._file.flush()

    def in_place(self) -> bool:
        """Whether the locked file is still at `path`: not if it was moved or its file system was unmounted."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except OSError:
            return False

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; the file stays, empty."""
        with suppress(OSError):
            self._file.truncate(0)
        with suppress(OSError):
            self._file.close()


def holder(path: Path) -> str | None:
    """Who holds the lock on this file; `None` if nobody does, or if that cannot be determined."""
    try:
        with path.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: others may look at the same time
    except BlockingIOError:
        return _who(path)
    except OSError:
        return None
    return None


def _who(path: Path) -> str:
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        if words := file.read(200).split():
            return f"process {' on '.join(words)}"
    return "another process"
