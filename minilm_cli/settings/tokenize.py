"""All settings of `minilm tokenize`. The string below a field documents it; `--help` shows its first sentence."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from minilm_cli.settings.flags import Flag
from minilm_cli.settings.types import Length, NotBool, PositiveInt, Section


def _check_language(value: str) -> str:
    if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*", value):
        raise ValueError("must be a language code, such as en, de or zh-Hant")
    return value


def _cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class TokenizeSettings(Section):
    """All settings of `minilm tokenize`."""

    ONLY_READ = frozenset({"inputs"})

    inputs: Annotated[tuple[str, ...], Flag("INPUT", repeatable=True), Field(min_length=1)]
    """Text (a line is a sample), `.jsonl`, `.json`, `.csv` or `.tsv` files, each also as `.gz`, `.bz2`, `.xz` or
    `.zst`; `.parquet` files; a quoted pattern of such files; `-` for standard input; `hf://datasets/NAME[:SPLIT]` for a
    data set of the Hub."""
    tokenizer: Annotated[str, Flag("--tokenizer", metavar="NAME"), Field(min_length=1)] = "bert-base-uncased"
    """Hub name or local folder of the tokenizer."""
    teacher: Annotated[str | None, Flag("--teacher", metavar="NAME"), Field(min_length=1)] = None
    """Hub name or local folder of the teacher: its tokenizer is used, and a teacher that `distill` would refuse is
    refused before any text is read."""
    revision: Annotated[str | None, Flag("--revision")] = None
    """Branch, tag or commit of the tokenizer or teacher on the Hub."""
    trust_remote_code: Annotated[bool, Flag("--trust-remote-code")] = False
    """Run tokenizer code that comes with the tokenizer. Only for sources you trust."""
    output: Annotated[Path, Flag("--output", short="-o")] = Path("tokens")
    """Folder of the token store; or a file name ending in `.jsonl.gz`, for a list of token ids on each line."""
    max_length: Annotated[Length, Flag("--max-length")] = 512
    """Longest sequence in tokens, special tokens included."""
    overflow: Annotated[Literal["split", "truncate", "drop"], Flag("--overflow")] = "split"
    """What to do with a longer line: split it into several sequences, truncate it, or drop it."""
    pack: Annotated[bool, Flag("--pack")] = False
    """Join successive lines of a document, up to the maximum length; a blank line, and each row or JSON object, ends a
    document."""
    join_rows: Annotated[bool, Flag("--join-rows")] = False
    """With `--pack`, join rows and JSON objects as lines are joined; otherwise each is a document of its own."""
    split_sentences: Annotated[bool, Flag("--split-sentences")] = False
    """Make each sentence a sample, instead of each line."""
    language: Annotated[str, Flag("--language"), AfterValidator(_check_language)] = "en"
    """Language whose rules split sentences."""
    text_field: Annotated[str | None, Flag("--text-field", default="text"), Field(min_length=1)] = None
    """Field or column that holds the text; if given, standard input is read as JSON lines."""
    errors: Annotated[Literal["strict", "replace"], Flag("--errors")] = "strict"
    """What to do with bytes that are not UTF-8: refuse the file, or replace them by U+FFFD."""
    workers: Annotated[int, Flag("--workers", default="all cores"), Field(gt=0, le=4096), NotBool] = Field(
        default_factory=_cores
    )
    """Number of worker processes; the output does not depend on it."""
    batch_size: Annotated[PositiveInt, Flag("--batch-size")] = 1000
    """Lines that a worker gets at once."""
    continued: Annotated[bool, Flag("--continue")] = False
    """Continue an interrupted token store after its last complete shard."""
    force: Annotated[bool, Flag("--force")] = False
    """Replace an existing output, or the rest of an interrupted one."""

    @model_validator(mode="after")
    def _packed_rows(self) -> Self:
        if self.join_rows and not self.pack:
            raise ValueError("--join-rows only affects --pack; add --pack")
        return self

    @model_validator(mode="after")
    def _language_of_sentences(self) -> Self:
        if "language" in self.model_fields_set and not self.split_sentences:
            raise ValueError("--language only affects how sentences are split; add --split-sentences")
        return self

    @model_validator(mode="after")
    def _one_tokenizer(self) -> Self:
        if self.teacher is not None and "tokenizer" in self.model_fields_set:
            raise ValueError("--teacher names the tokenizer too; leave --tokenizer out")
        return self

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer, or the teacher that has it."""
        return self.teacher or self.tokenizer
