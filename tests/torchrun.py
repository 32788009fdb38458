"""torchrun that forks its workers: `-m tests.torchrun OPTIONS... -m MODULE WORDS...`.

For a command of `tests.forkserver`: its workers need not import torch and transformers again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from tests.forkserver import Process, fork_server

if __name__ == "__main__":
    server = fork_server()

    def start(_: object, words: tuple[str, ...], environment: dict[str, str]) -> Process:
        """Fork a worker instead of starting `python -u WORDS...`."""
        assert words[1] == "-u"
        return server.start(words[2:], cwd=Path.cwd(), environment=environment, stdout=1, stderr=2)

    handler: Any = subprocess_handler.SubprocessHandler
    handler._popen = start
    run.main()
