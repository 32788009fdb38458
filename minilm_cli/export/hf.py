"""The format `hf`: a folder that transformers' `AutoModel` and `AutoTokenizer` load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from transformers import AutoModel

from minilm_cli.base.jsonio import read_json, write_json
from minilm_cli.export.formats import Encode, Source
from minilm_cli.models.hub import ABOUT_LOADING, loading, quiet


class HuggingFace:
    """Weights, configuration and tokenizer, as `save_pretrained` writes them."""

    tolerance: Mapping[str, float] = MappingProxyType({"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1})

    def write(self, source: Source, folder: Path) -> None:
        """As every format."""
        with quiet():
            source.student().to(getattr(torch, source.dtype)).save_pretrained(folder)
        copy_files(source.run.tokenizer, folder)
        _forget_loading(folder / "tokenizer_config.json")

    def load(self, folder: Path, dtype: str) -> Encode:
        """As every format."""
        with loading("export", str(folder)):
            model = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

        def encode(ids: Tensor, mask: Tensor | None) -> Tensor:
            states: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
            return states

        return encode


def _forget_loading(file: Path) -> None:
    """Remove entries about loading from a tokenizer's configuration; older runs have them."""
    if file.exists() and ABOUT_LOADING & (entries := read_json(file, kind="configuration of a tokenizer")).keys():
        write_json(file, {name: value for name, value in entries.items() if name not in ABOUT_LOADING})


def copy_files(source: Path, target: Path) -> None:
    """Copy a folder's files into another; `OSError` names the first that fails, where `shutil` lists them all."""
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_dir():
            copy_files(path, target / path.name)
        elif path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
