"""Keeps the last word under torchrun, which prints a traceback of its own after a process has failed or was stopped."""

from __future__ import annotations

import os
import subprocess
import sys

#: Waits for a process to end, prints a text and ends. `pidfd_open` is Linux's. The text begins a line of its own: what
#: libraries print when torchrun ends may not end one.
_WAIT_AND_PRINT = """
import os, select, sys
try:
    torchrun = os.pidfd_open(int(sys.argv[1]))
except ProcessLookupError:
    pass
else:
    select.select([torchrun], [], [], 60)
print(f"\\n{sys.argv[2]}", file=sys.stderr)
"""


def repeat_after_torchrun(text: str) -> None:
    """Print `text` once more when torchrun has ended.

    Not if torchrun will start the processes again, nor if this process was started by something else.
    """
    restarts, allowed = (os.environ.get(f"TORCHELASTIC_{name}") for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    if restarts is None or restarts != allowed or not hasattr(os, "pidfd_open"):
        return
    subprocess.Popen(
        [sys.executable, "-S", "-c", _WAIT_AND_PRINT, str(os.getppid()), text],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
