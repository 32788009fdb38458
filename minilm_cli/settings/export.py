"""All settings of `minilm export`. The string below a field documents it; `--help` shows its first sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from minilm_cli.settings.flags import Flag
from minilm_cli.settings.types import NonNegativeInt, Section


class ExportSettings(Section):
    """All settings of `minilm export`."""

    run: Annotated[Path, Flag("RUN", default="the newest in runs/")]
    """Folder of the run."""
    format: Annotated[Literal["hf"], Flag("--format")] = "hf"
    """Format of the export; hf: a folder that `transformers.AutoModel` loads."""
    checkpoint: Annotated[Literal["last", "best"] | NonNegativeInt, Flag("--checkpoint")] = "last"
    """Checkpoint to export: the last, the best by held-out loss, or that of step N."""
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], Flag("--dtype")] = "float32"
    """Number format of the weights."""
    output: Annotated[Path | None, Flag("--output", short="-o", default="RUN/export/FORMAT")] = None
    """Folder of the export."""
    push_to_hub: Annotated[str | None, Flag("--push-to-hub", metavar="REPO")] = None
    """Also upload the export to this Hub repository."""
    private: Annotated[bool, Flag("--private")] = False
    """Make that repository private if it is new."""
    force: Annotated[bool, Flag("--force")] = False
    """Replace an existing output."""
