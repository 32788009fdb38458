"""The format `hf`: a folder that transformers' `AutoModel` and `AutoTokenizer` load."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch

from minilm_cli.export.consumers import encode_elsewhere
from minilm_cli.export.formats import Verified
from minilm_cli.export.source import Source
from minilm_cli.export.tokenizer_files import write_tokenizer
from minilm_cli.export.verify import Run, verify
from minilm_cli.models.hub import quiet


class HuggingFace:
    """Weights, configuration and tokenizer, as `save_pretrained` writes them; nothing about sentence embeddings."""

    def __init__(self, run: Run = encode_elsewhere) -> None:
        """`run` uses the folder for the verification."""
        self._run = run

    def check(self, source: Source) -> None:
        """As every format; there is nothing to refuse."""

    def write(self, source: Source, folder: Path) -> None:
        """As every format."""
        write_model(source, folder)
        write_tokenizer(source.new_tokenizer(), folder, replace(source, head=None).longest)

    def verify(self, source: Source, folder: Path) -> Verified:
        """As every format."""
        return Verified(verify(replace(source, head=None), folder, "transformers", self._run))


def write_model(source: Source, folder: Path) -> None:
    """Write weights and configuration, in the type of the export."""
    model = source.model
    if source.dtype != "float32":
        model = deepcopy(model).to(getattr(torch, source.dtype))
    with quiet():
        model.save_pretrained(folder)
