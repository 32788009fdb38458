"""`minilm` that waits after a checkpoint while the file `hold` names its step or an earlier one.

`python -m tests.held WORDS...`: a test can kill such a run in the middle, however fast the run or slow the test is.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from minilm_cli.cli.app import main
from minilm_cli.runs import checkpoint

HOLD = Path("hold")

_save = checkpoint.save


def _save_and_wait(folder: Path, step: int, *values: Any) -> Any:
    saved = _save(folder, step, *values)
    while _held(step):
        time.sleep(0.01)
    return saved


def _held(step: int) -> bool:
    with suppress(FileNotFoundError, ValueError):  # ValueError: it is being written
        return step >= int(HOLD.read_text(encoding="ascii"))
    return False


if __name__ == "__main__":
    checkpoint.save = _save_and_wait
    main()
