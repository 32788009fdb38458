"""The options of `minilm resume`. The string below a field documents it; `--help` shows its first sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from minilm_cli.settings.flags import Flag
from minilm_cli.settings.types import PositiveInt, Section


class ResumeSettings(Section):
    """What `minilm resume` takes besides `--set`."""

    run: Annotated[Path | None, Flag("RUN", default="the newest in runs/")] = None
    """Folder of the run."""
    steps: Annotated[PositiveInt | None, Flag("--steps", default="the run's")] = None
    """New total number of optimiser steps."""
