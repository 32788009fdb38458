"""All settings of `minilm tokenize`. Each field is documented by the string below it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from minilm_cli.settings.types import Flags, Length, PositiveInt, _cores, _Number


def _check_language(value: str) -> str:
    if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*", value):
        raise ValueError("must be the code of a language, such as en, de or zh-Hant")
    return value


class TokenizeSettings(Flags):
    """All settings of `minilm tokenize`."""

    TYPED: ClassVar = {"inputs": "INPUT", "continued": "--continue"}
    ONLY_READ = frozenset({"inputs"})

    inputs: tuple[str, ...] = Field(min_length=1)
    """Text (a line is a sample), `.jsonl` and `.csv` files, each also as `.gz`, `.bz2`, `.xz` or `.zst`; `.parquet`
    files; patterns of files; `-`, standard input; `hf://datasets/NAME[:SPLIT]`, a data set of the Hub."""
    tokenizer: str = Field(default="bert-base-uncased", min_length=1)
    """Hub name or local folder."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    trust_remote_code: bool = False
    """Run tokenizer code that comes with it. Only for sources you trust."""
    output: Path = Path("tokens")
    """The token store's folder, or a file whose name ends in `.jsonl.gz`."""
    max_length: Length = 512
    """Tokens in a sequence, special tokens counted."""
    overflow: Literal["split", "truncate", "drop"] = "split"
    """What becomes of a longer line."""
    pack: bool = False
    """Join successive lines, up to `max_length`; none across a blank line, which ends a document."""
    split_sentences: bool = False
    """Each sentence is a sample, instead of each line."""
    language: Annotated[str, AfterValidator(_check_language)] = "en"
    """The language whose rules sentences are split by."""
    text_field: str | None = Field(default=None, min_length=1)
    """The field or column that holds the text (default: `text`); with it, standard input is JSON lines."""
    errors: Literal["strict", "replace"] = "strict"
    """Bytes that are not UTF-8: refuse the file, or replace each by U+FFFD."""
    workers: Annotated[int, Field(gt=0, le=4096), _Number] = Field(default_factory=_cores)
    """Worker processes (default: one for each core); the output is the same whatever the number."""
    batch_size: PositiveInt = 1000
    """Lines handed to a worker at once."""
    continued: bool = False
    """Go on with a token store that was interrupted, from its last whole shard."""
    force: bool = False
    """Replace an existing output, or what is left of one that was interrupted."""

    @model_validator(mode="after")
    def _language_of_sentences(self) -> Self:
        if "language" in self.model_fields_set and not self.split_sentences:
            raise ValueError("--language says how sentences are split: give --split-sentences too")
        return self
