"""All settings of `minilm export`. The string below a field documents it; `--help` shows its first sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from minilm_cli.settings.flags import Flag
from minilm_cli.settings.types import NonNegativeInt, Section


def _once(formats: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(formats)) < len(formats):
        raise ValueError("must name each format once")
    return formats


class ExportSettings(Section):
    """All settings of `minilm export`."""

    model: Annotated[Path, Flag("MODEL", default="the newest run in runs/")]
    """Folder of a run, or of a model that `save_pretrained` wrote."""
    formats: Annotated[
        tuple[Literal["hf", "sentence-transformers", "onnx"], ...],
        Flag("--format", repeatable=True),
        AfterValidator(_once),
    ] = ("hf",)
    """Format of the export: for transformers' AutoModel, for SentenceTransformer, or for ONNX Runtime; repeat the
    option for several."""
    checkpoint: Annotated[Literal["last", "best"] | NonNegativeInt, Flag("--checkpoint")] = "last"
    """Checkpoint to export: the last, the best by held-out loss, or that of step N."""
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], Flag("--dtype")] = "float32"
    """Number format of the weights."""
    pooling: Annotated[
        Literal["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"] | None,
        Flag("--pooling", metavar="MODE", default="the teacher's"),
    ] = None
    """How token states become a sentence embedding: mean, cls, max, lasttoken, mean_sqrt_len_tokens or weightedmean.
    The names are those of sentence-transformers; the result is scaled to length 1."""
    quantize: Annotated[Literal["int8", "int8-static"] | None, Flag("--quantize")] = None
    """Also write the ONNX model with 8-bit weights; int8-static: with ranges measured on held-out text."""
    accept_loss: Annotated[bool, Flag("--accept-loss")] = False
    """Keep a quantised model whose embeddings differ much from those in fp32."""
    benchmark: Annotated[bool, Flag("--benchmark")] = False
    """Measure size and speed of teacher, student and ONNX models on this machine's CPU; the model card states them."""
    output: Annotated[
        Path | None, Flag("--output", short="-o", default="RUN/export/FORMAT, or MODEL-export/FORMAT")
    ] = None
    """Folder of the export; of several formats, the folder that holds one for each."""
    push_to_hub: Annotated[str | None, Flag("--push-to-hub", metavar="REPO")] = None
    """Also upload the export to this Hub repository; all formats in one commit."""
    private: Annotated[bool, Flag("--private/--public")] = True
    """Make that repository private or public, if it is new."""
    force: Annotated[bool, Flag("--force")] = False
    """Replace an existing output."""
