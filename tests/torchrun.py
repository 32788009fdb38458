"""torchrun, whose workers are forked instead of started: `-m tests.torchrun OPTIONS... -m MODULE WORDS...`.

For a command of `tests.forkserver`: what that has imported need not be imported again by any worker.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from tests.forkserver import Process, forked_server

if __name__ == "__main__":
    server = forked_server()

    def start(_: object, words: tuple[str, ...], environment: dict[str, str]) -> Process:
        """Start a worker in the place of `python -u WORDS...`."""
        assert words[1] == "-u"
        return server.start(words[2:], cwd=Path.cwd(), environment=environment, stdout=1, stderr=2)

    handler: Any = subprocess_handler.SubprocessHandler
    handler._popen = start
    run.main()
