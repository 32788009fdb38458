"""`minilm` that pauses after a checkpoint while the file `pause` names its step or an earlier one.

`python -m tests.pause_after_checkpoint WORDS...`: a test can kill such a run after a known step.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from minilm_cli.cli.app import main
from minilm_cli.runs import checkpoint

PAUSE = Path("pause")

#: The program for `tests.runs.Commands`.
PAUSED = ("-m", "tests.pause_after_checkpoint")

_save = checkpoint.save


def _save_and_pause(folder: Path, step: int, *values: Any) -> Any:
    saved = _save(folder, step, *values)
    while _is_paused(step):
        time.sleep(0.01)
    return saved


def _is_paused(step: int) -> bool:
    with suppress(FileNotFoundError, ValueError):  # ValueError: the file is being written
        return step >= int(PAUSE.read_text(encoding="ascii"))
    return False


if __name__ == "__main__":
    checkpoint.save = _save_and_pause
    main()
