"""All settings of `minilm evaluate`. The string below a field documents it; `--help` shows its first sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import model_validator

from minilm_cli.settings.flags import Flag
from minilm_cli.settings.types import Length, PositiveFloat, PositiveInt, Section

Kind = Literal["classification", "pair-classification", "similarity", "regression"]


class LabelledData(Section):
    """How labelled data is read."""

    PANEL: ClassVar = "Data"

    kind: Annotated[Kind | None, Flag("--kind", metavar="KIND", default="found")] = None
    """Classification, pair-classification, similarity (scores of pairs) or regression (scores of texts)."""
    text: Annotated[str | None, Flag("--text", metavar="COLUMN", default="found")] = None
    """Column of the text: a name of the header or of the JSON objects, or a number from 1."""
    pair: Annotated[str | None, Flag("--text-pair", metavar="COLUMN", default="found")] = None
    """Column of the second text of a pair."""
    label: Annotated[str | None, Flag("--label", metavar="COLUMN", default="found")] = None
    """Column of the class or score."""
    dev: Annotated[Path | None, Flag("--dev", metavar="FILE", default="a tenth of the rows")] = None
    """File of the rows that settings are chosen on."""
    test: Annotated[Path | None, Flag("--test", metavar="FILE", default="a fifth of the rows")] = None
    """File of the rows that are scored."""


class FineTuning(Section):
    """The settings that are tried, and how often."""

    PANEL: ClassVar = "Fine-tuning"

    lr: Annotated[tuple[PositiveFloat, ...], Flag("--lr", repeatable=True, default="1e-5 2e-5 4e-5")] = ()
    """Learning rate to try; repeat the option for several."""
    epochs: Annotated[
        tuple[PositiveInt, ...], Flag("--epochs", repeatable=True, default="3 5, and 10 for small data")
    ] = ()
    """Number of epochs to try; repeat the option for several."""
    seeds: Annotated[PositiveInt, Flag("--seeds")] = 4
    """Number of seeds that the best setting is trained with."""
    quick: Annotated[bool, Flag("--quick")] = False
    """Try a single setting."""
    batch_size: Annotated[PositiveInt, Flag("--batch-size")] = 32
    """Texts, or pairs, of an optimiser step."""


class EvaluateSettings(Section):
    """All settings of `minilm evaluate`."""

    PANEL: ClassVar = "Models and tasks"

    models: Annotated[tuple[str, ...], Flag("MODEL", repeatable=True, default="the newest run in runs/")]
    """Runs, exports, model folders or names on the Hub."""
    tasks: Annotated[tuple[str, ...], Flag("--task", metavar="SPEC", repeatable=True)] = ()
    """Labelled file (.tsv, .csv, .jsonl, also .gz), folder for retrieval, or known name, such as stsb or glue/mrpc;
    repeat the option for several."""
    mteb: Annotated[tuple[str, ...], Flag("--mteb", metavar="TASK", repeatable=True)] = ()
    """Task that the library mteb measures, without fine-tuning; repeat the option for several."""
    teacher: Annotated[str | None, Flag("--teacher", metavar="NAME", default="the run's")] = None
    """Model to compare with: folder, or name on the Hub."""
    no_teacher: Annotated[bool, Flag("--no-teacher")] = False
    """Compare with no teacher."""
    zero_shot: Annotated[bool, Flag("--zero-shot")] = False
    """Compare embeddings as they are instead of fine-tuning: similarity, and retrieval."""
    probe: Annotated[bool, Flag("--probe")] = False
    """Train a logistic regression on embeddings as they are instead of fine-tuning."""
    pooling: Annotated[
        Literal["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"] | None,
        Flag("--pooling", metavar="MODE", default="each model's, else mean"),
    ] = None
    """How token states become an embedding: mean, cls, max, lasttoken, mean_sqrt_len_tokens or weightedmean."""
    max_length: Annotated[Length | None, Flag("--max-length", default="128 for fine-tuning, else each model's")] = None
    """Tokens that longer texts are cut to."""
    data: LabelledData = LabelledData()
    tuning: FineTuning = FineTuning()
    device: Annotated[str, Flag("--device")] = "auto"
    """Device to compute on: auto (cuda, else mps, else cpu), cpu, cuda, cuda:1 or mps."""
    precision: Annotated[Literal["auto", "bf16", "fp32"], Flag("--precision")] = "auto"
    """Number format of the fine-tuning; auto: bf16 where the hardware has it. Embeddings are computed in fp32."""
    output: Annotated[Path | None, Flag("--output", short="-o", default="RUN/evaluations.json")] = None
    """File of the results, to which new ones are added."""
    force: Annotated[bool, Flag("--force")] = False
    """Measure again what the file has already."""

    @model_validator(mode="after")
    def _check(self) -> EvaluateSettings:
        if self.teacher is not None and self.no_teacher:
            raise ValueError("--teacher and --no-teacher exclude each other")
        return self
