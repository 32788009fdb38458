"""A model that is evaluated, in whatever form it comes: a run, an export, a folder, a name on the Hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minilm_cli.base.checksums import sha256
from minilm_cli.base.errors import MinilmError
from minilm_cli.base.jsonio import read_json
from minilm_cli.base.overwrite import EXPORT_MARK
from minilm_cli.base.packages import missing_package
from minilm_cli.export.consumers import Array
from minilm_cli.export.source import Source, choose_head, source_of_checkpoint, source_of_name
from minilm_cli.models.hub import load_tokenizer
from minilm_cli.models.sentence_head import SentenceHead, read_head
from minilm_cli.models.size import count_parameters
from minilm_cli.models.state import checksum
from minilm_cli.models.weight_files import has_weights, weight_files
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.lookup import find_model

Embed = Callable[[Sequence[str], int | None], Array]
"""Texts of one batch, and tokens that longer ones are cut to, to embeddings in fp32, (texts, width)."""

#: How sentence embeddings are made where nothing says it.
MEAN = SentenceHead(("mean",))


@dataclass(frozen=True)
class Candidate:
    """A model, and what an evaluation needs of it."""

    name: str
    """As it was given."""
    embed: Embed
    longest: int | None
    """Tokens of the longest text that it reads."""
    checksum: str
    """SHA-256 of its weights."""
    megabytes: float
    """Of its weights, in millions of bytes."""
    head: SentenceHead = MEAN
    source: Source | None = None
    """The model in torch; `None` for an ONNX file, which cannot be trained."""
    parameters: int | None = None
    """`None` for an ONNX file."""
    means_little: bool = False
    """Whether its embeddings mean little before it is fine-tuned, as its last part has random weights."""

    @property
    def short(self) -> str:
        """The last part of the name."""
        return Path(self.name).name

    def length(self, wanted: int | None) -> int | None:
        """Tokens that texts are cut to; raises `MinilmError` if more are wanted than the model reads."""
        if wanted is not None and self.longest is not None and wanted > self.longest:
            raise MinilmError(
                f"{self.name} reads at most {self.longest} tokens",
                where="--max-length",
                hint=f"Use --max-length {self.longest}, or a smaller one.",
            )
        return wanted or self.longest


def load_candidate(
    name: str, device: torch.device, *, pooling: str | None = None, revision: str | None = None
) -> Candidate:
    """The model of this name on a device; raises `MinilmError`.

    name: folder of a run (its last checkpoint), of an export or of a model; an ONNX file of an export; a Hub name.
    """
    path = Path(name)
    if (file := _onnx_file(path)) is not None:
        if pooling is not None:
            raise MinilmError("an ONNX model has its own pooling", where=name, hint="Leave out --pooling.")
        return _of_onnx(name, file)
    if path.exists() and isinstance(found := find_model(path), RunFolder):
        source = source_of_checkpoint(found, "last")
    else:
        source, _ = source_of_name(name, revision)
    head = choose_head(source, pooling) or MEAN
    source = replace(source, head=head)
    source.model.to(device)
    return Candidate(
        name,
        embedding(source.model, source.tokenizer, head),
        source.longest,
        checksum(source.model),
        _megabytes(path, source),
        head,
        source,
        count_parameters(source.model),
        source.has_untrained_tail or _mark(path).get("untrained_tail", False),
    )


def _onnx_file(path: Path) -> Path | None:
    """The ONNX model that a path names: the file, or that of a folder without another model."""
    if path.suffix == ".onnx":
        return path
    inside = path / "onnx" / "model.onnx"
    return inside if inside.is_file() and not has_weights(path) else None


def _of_onnx(name: str, file: Path) -> Candidate:
    folder = file.parent.parent
    if not file.is_file() or file.parent.name != "onnx":
        hint = "minilm export --format onnx writes onnx/model.onnx next to the tokenizer."
        raise MinilmError("this is not the ONNX file of an export", where=name, hint=hint)
    try:
        from onnxruntime import InferenceSession
    except ImportError:
        raise missing_package("onnx", "an ONNX model", where=name) from None
    session, tokenizer = InferenceSession(file, providers=["CPUExecutionProvider"]), load_tokenizer(str(folder))
    wanted = {node.name for node in session.get_inputs()}
    makes_embeddings = "sentence_embedding" in {node.name for node in session.get_outputs()}

    def embed(texts: Sequence[str], longest: int | None) -> Array:
        inputs = tokenizer(
            list(texts), padding=True, truncation=longest is not None, max_length=longest, return_tensors="np"
        )
        output = "sentence_embedding" if makes_embeddings else "last_hidden_state"
        [found] = session.run([output], {key: inputs[key] for key in wanted})
        if not makes_embeddings:
            found = MEAN(torch.from_numpy(found), torch.from_numpy(inputs["attention_mask"])).numpy()
        return np.asarray(found)

    longest = tokenizer.model_max_length if tokenizer.model_max_length < 2**31 else None
    megabytes = sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*")) / 1e6
    head, means_little = read_head(str(folder)) or MEAN, _mark(folder).get("untrained_tail", False)
    return Candidate(name, embed, longest, sha256(file), megabytes, head, means_little=means_little)


def _megabytes(path: Path, source: Source) -> float:
    """Of the weights: of their files if there are some here, else of fp32."""
    files = [] if source.run else weight_files(path)
    return (sum(file.stat().st_size for file in files) or count_parameters(source.model) * 4) / 1e6


def _mark(folder: Path) -> dict[str, Any]:
    """What an export says of itself; nothing of another folder."""
    file = folder / EXPORT_MARK
    content = read_json(file, kind="export's file") if file.is_file() else {}
    return content if isinstance(content, dict) else {}


def embedding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, head: SentenceHead) -> Embed:
    """A function that embeds texts by a model in torch, with its head, on the device where it is then."""

    def embed(texts: Sequence[str], longest: int | None) -> Array:
        inputs = tokenizer(
            [head.prepare(text) for text in texts],
            padding=True,
            truncation=longest is not None,
            max_length=longest,
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            states = model(**inputs).last_hidden_state.float()
            found: Array = head(states, inputs["attention_mask"]).cpu().numpy()
        return found

    return embed
