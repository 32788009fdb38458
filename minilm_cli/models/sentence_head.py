"""What makes a sentence embedding of token states, read from and written as the files of sentence-transformers.

They are written as version 5 of that library names modules and settings, which version 6, text-embeddings-inference
and others read too. What version 6 writes itself, the others do not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import cached_file

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.jsonio import read_json, write_json
from minilm_cli.models.hub import reason
from minilm_cli.ops.pooling import POOLING_MODES, pool

_MODULES = "modules.json"
_SETTINGS = "config_sentence_transformers.json"
_FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "camembert", "albert")
_TEXTS = tuple(f"sentence_{family}_config.json" for family in _FAMILIES)

#: The pooling modes in the configuration of a pooling module, each true or false, in the order of their vectors.
#: Later versions have a list of names instead.
_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


@dataclass(frozen=True)
class Normalize:
    """Scales embeddings to length 1."""

    def __call__(self, embeddings: Tensor) -> Tensor:
        """`embeddings`: (batch, width)."""
        return nn.functional.normalize(embeddings, dim=1)


@dataclass(frozen=True)
class Dense:
    """A linear layer with an activation function."""

    weight: Tensor
    """(width after, width before)."""
    bias: Tensor | None
    activation: str
    """Full name of its class in `torch.nn`."""

    def __call__(self, embeddings: Tensor) -> Tensor:
        """`embeddings`: (batch, width before)."""
        activation = getattr(nn, self.activation.rpartition(".")[2])()
        found: Tensor = activation(nn.functional.linear(embeddings, self.weight, self.bias))
        return found


@dataclass(frozen=True)
class SentenceHead:
    """Pooling and what comes after it, and how texts are prepared."""

    pooling: tuple[str, ...]
    """Modes of `ops.pooling`; the vectors of several are put one after the other."""
    layers: tuple[Normalize | Dense, ...] = ()
    include_prompt: bool = True
    """Whether the tokens of the prompt are pooled too."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str = "cosine"
    max_length: int | None = None
    """Tokens of the longest text, special tokens included; longer ones are cut."""
    lowercase: bool = False
    """Whether texts are made lower case before they are tokenised."""

    def prepare(self, text: str) -> str:
        """A text as its tokenizer reads it."""
        return text.lower() if self.lowercase else text

    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        """Sentence embeddings, (batch, width), of states (batch, tokens, width) and their mask (batch, tokens)."""
        found = torch.cat([pool(states, mask, mode) for mode in self.pooling], dim=1)
        for layer in self.layers:
            found = layer(found)
        return found

    @property
    def checksum(self) -> str:
        """SHA-256 of all that decides about embeddings."""
        digest = hashlib.sha256()
        for layer in self.layers:
            for tensor in (layer.weight, layer.bias) if isinstance(layer, Dense) else ():
                digest.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
        kinds = [layer.activation if isinstance(layer, Dense) else "" for layer in self.layers]
        digest.update(repr((self.pooling, kinds, self.include_prompt, sorted(self.prompts.items()))).encode())
        digest.update(f"{self.default_prompt}{'lowercase' if self.lowercase else ''}".encode())
        return digest.hexdigest()

    def width(self, hidden_size: int) -> int:
        """Width of the embeddings of a model."""
        widths = [layer.weight.shape[0] for layer in self.layers if isinstance(layer, Dense)]
        return widths[-1] if widths else len(self.pooling) * hidden_size

    def fitted(self, hidden_size: int) -> SentenceHead:
        """The head for a model of another width than the teacher: without a dense layer that does not fit it."""
        width = len(self.pooling) * hidden_size
        first = next((layer for layer in self.layers if isinstance(layer, Dense)), None)
        if first is None or first.weight.shape[1] == width:
            return self
        return replace(self, layers=tuple(layer for layer in self.layers if isinstance(layer, Normalize)))


# --- Reading -----------------------------------------------------------------------------------------------------


def read_head(name: str, revision: str | None = None) -> SentenceHead | None:
    """The head of a model of sentence-transformers, by folder or Hub name; `None` for another model.

    Raises `MinilmError` if it has parts that are not known here.
    """
    files = _Files(name, revision)
    try:
        return _read(files)
    except (KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise files.unsupported(f"cannot be read ({reason(error)})") from error


def _read(files: _Files) -> SentenceHead | None:
    modules = files.json(_MODULES)
    if not modules:
        return None
    pooling: dict[str, Any] = {}
    layers: list[Normalize | Dense] = []
    for module in modules[1:]:
        kind, path = module["type"].rpartition(".")[2], module["path"]
        if kind == "Pooling" and not layers:
            pooling = files.json(f"{path}/config.json")
        elif kind == "Normalize":
            layers.append(Normalize())
        elif kind == "Dense":
            layers.append(_dense(files, path))
        elif kind != "Dropout":
            raise files.unsupported(f"have a {kind} module, which is not supported")
    settings = files.json(_SETTINGS)
    texts = [files.json(file) for file in _TEXTS]
    return SentenceHead(
        pooling=_modes(pooling, files),
        layers=tuple(layers),
        include_prompt=pooling.get("include_prompt", True),
        prompts={task: prompt for task, prompt in settings.get("prompts", {}).items() if prompt},
        default_prompt=settings.get("default_prompt_name"),
        similarity=settings.get("similarity_fn_name") or "cosine",
        max_length=next(filter(None, (of_texts.get("max_seq_length") for of_texts in texts)), None),
        lowercase=any(of_texts.get("do_lower_case") for of_texts in texts),
    )


def _modes(pooling: Mapping[str, Any], files: _Files) -> tuple[str, ...]:
    if "pooling_mode" in pooling:
        modes = pooling["pooling_mode"]
        found = (modes,) if isinstance(modes, str) else tuple(modes)
    else:
        found = tuple(mode for mode, flag in _FLAGS.items() if pooling.get(flag))
    if not found:
        raise files.unsupported("name no pooling")
    if unknown := next((mode for mode in found if mode not in POOLING_MODES), None):
        raise files.unsupported(f"have the pooling mode {unknown}, which is not supported")
    return found


def _dense(files: _Files, path: str) -> Dense:
    config = files.json(f"{path}/config.json")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not activation.startswith("torch.nn.") or not hasattr(nn, activation.rpartition(".")[2]):
        raise files.unsupported(f"have the activation function {activation}, which is not supported")
    if config.get("use_residual") or config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise files.unsupported("have a dense layer of a kind that is not supported")
    weights = files.path(f"{path}/model.safetensors")
    if weights is None:
        raise files.unsupported(f"lack {path}/model.safetensors")
    tensors = load_file(weights)
    bias = tensors.get("linear.bias")
    return Dense(tensors["linear.weight"].float(), None if bias is None else bias.float(), activation)


@dataclass(frozen=True)
class _Files:
    """The files of a model, in a folder or on the Hub."""

    name: str
    revision: str | None

    def path(self, file: str) -> Path | None:
        """Where the file is, downloaded if need be; `None` if the model has none."""
        try:
            found = cached_file(self.name, file, revision=self.revision)
        except OSError:
            return None
        return None if found is None else Path(found)

    def json(self, file: str) -> Any:
        """The file's content, or an empty dict if the model has none."""
        found = self.path(file)
        return {} if found is None else read_json(found, kind="sentence-transformers file")

    def unsupported(self, what: str) -> MinilmError:
        """The error about a model whose files have, or lack, something."""
        return MinilmError(
            f"its sentence-transformers files {what}", where=self.name, hint="Choose the pooling with --pooling."
        )


# --- Writing -----------------------------------------------------------------------------------------------------


def write_head(head: SentenceHead, folder: Path, *, hidden_size: int) -> None:
    """Write the files of a head into the folder of a model of this width."""
    folder.mkdir(exist_ok=True)
    modules = ["Transformer", "Pooling", *(type(layer).__name__ for layer in head.layers)]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(modules[1:], start=1))]
    write_json(
        folder / _MODULES,
        [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (kind, path) in enumerate(zip(modules, paths, strict=True))
        ],
    )
    write_json(
        folder / _SETTINGS,
        {
            "model_type": "SentenceTransformer",
            "prompts": dict(head.prompts),
            "default_prompt_name": head.default_prompt,
            "similarity_fn_name": head.similarity,
        },
    )
    # text-embeddings-inference reads no null.
    longest = {} if head.max_length is None else {"max_seq_length": head.max_length}
    if longest or head.lowercase:
        write_json(folder / _TEXTS[0], {**longest, "do_lower_case": head.lowercase})
    pooling = {flag: mode in head.pooling for mode, flag in _FLAGS.items()}
    (folder / paths[1]).mkdir()
    write_json(
        folder / paths[1] / "config.json",
        {"word_embedding_dimension": hidden_size, **pooling, "include_prompt": head.include_prompt},
    )
    for path, layer in zip(paths[2:], head.layers, strict=True):
        if isinstance(layer, Dense):
            _write_dense(layer, folder / path)


def _write_dense(layer: Dense, folder: Path) -> None:
    folder.mkdir()
    after, before = layer.weight.shape
    write_json(
        folder / "config.json",
        {
            "in_features": before,
            "out_features": after,
            "bias": layer.bias is not None,
            "activation_function": layer.activation,
        },
    )
    bias = {} if layer.bias is None else {"linear.bias": layer.bias}
    save_file({"linear.weight": layer.weight.contiguous(), **bias}, folder / "model.safetensors")
