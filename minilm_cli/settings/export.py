"""All settings of `minilm export`. Each field is documented by the string below it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from minilm_cli.settings.types import Flags, NonNegativeInt


class ExportSettings(Flags):
    """All settings of `minilm export`."""

    TYPED: ClassVar = {"run": "RUN"}

    run: Path
    """The run's folder."""
    format: Literal["hf"] = "hf"
    """`hf`: a folder that `transformers.AutoModel` loads."""
    checkpoint: Literal["last", "best"] | NonNegativeInt = "last"
    """Which checkpoint: the last, the best by held-out loss, or the step's number."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the exported weights."""
    output: Path | None = None
    """Where it goes. Default: `RUN/export/FORMAT`."""
    push_to_hub: str | None = None
    """Upload the export to this Hub repository as well."""
    private: bool = False
    """Make that repository private if it is new."""
    force: bool = False
    """Replace an existing output."""
