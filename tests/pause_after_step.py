"""`minilm` that pauses after a step, saved if that is due, while the file `pause` names it or an earlier one.

`python -m tests.pause_after_step WORDS...`: a test can signal or kill such a run at a known step.
Of several processes the first pauses; the others wait for it in their next collective operation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from minilm_cli.cli.app import main
from minilm_cli.training.distiller import Distiller

PAUSE = Path("pause")

#: The program for `tests.runs.Commands`.
PAUSED = ("-m", "tests.pause_after_step")

_steps = Distiller.steps


def _steps_and_pause(self: Distiller, *values: Any, **named: Any) -> Iterator[Any]:
    for report in _steps(self, *values, **named):
        yield report
        while self.world.leads and _is_paused(report.step):
            time.sleep(0.01)


def _is_paused(step: int) -> bool:
    with suppress(FileNotFoundError, ValueError):  # ValueError: the file is being written
        return step >= int(PAUSE.read_text(encoding="ascii"))
    return False


if __name__ == "__main__":
    Distiller.steps = _steps_and_pause
    main()
