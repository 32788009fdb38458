"""The format `sentence-transformers`: a folder that `SentenceTransformer` loads, pooling included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.packages import require
from minilm_cli.export.formats import Verified
from minilm_cli.export.hf import write_model
from minilm_cli.export.source import Source
from minilm_cli.export.tokenizer_files import write_tokenizer
from minilm_cli.export.verify import verify
from minilm_cli.models.sentence_head import write_head


class SentenceTransformers:
    """What the format `hf` has, and the modules that make sentence embeddings of token states."""

    def check(self, source: Source) -> None:
        """Raise `MinilmError` if the package is not installed, or it is not known how to pool."""
        require("sentence-transformers", "--format sentence-transformers")
        if source.head is None:
            whose = "model" if source.run is None else "teacher"
            raise MinilmError(
                f"nothing says how the {whose} makes sentence embeddings: it is no model of sentence-transformers",
                hint="Choose the pooling: --pooling mean, or --pooling cls.",
            )

    def write(self, source: Source, folder: Path) -> None:
        """As every format."""
        write_model(source, folder)
        write_sentence_files(source, folder)

    def verify(self, source: Source, folder: Path) -> Verified:
        """As every format."""
        return Verified(verify(source, folder, "sentence-transformers", pairs=False))  # it embeds single texts


def write_sentence_files(source: Source, folder: Path) -> None:
    """Write the tokenizer, and the modules after the model if they are known."""
    write_tokenizer(source.new_tokenizer(), folder, source.longest)
    if source.head is not None:
        head = replace(source.head, max_length=source.longest)
        write_head(head, folder, hidden_size=source.model.config.hidden_size)
