"""Loads an export as its users do, and computes with it: `python -m minilm_cli.export.consumers`, in a new process.

Nothing of the export is known here but its folder. Each consumer is a function of the folder that returns a function
of texts; only the libraries that the format's users have are used for it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from minilm_cli.base.errors import RunError
from minilm_cli.models.hub import quiet

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Outputs:
    """What a consumer made of one text, or one pair of texts; padding is left out."""

    ids: Array
    """Token ids."""
    states: Array
    """Last hidden states, (tokens, width), in fp32."""
    embedding: Array | None
    """Sentence embedding, (width,), in fp32, if the format has it."""


Text = str | tuple[str, str]
"""A text, or a pair of texts."""

Texts = Sequence[Text]
"""Those of one batch: all texts, or all pairs."""

Encode = Callable[[Texts], list[Outputs]]


def columns(texts: Texts) -> list[list[str]]:
    """The arguments of a tokenizer: the texts, or the first and the second texts of pairs."""
    rows = [(text,) if isinstance(text, str) else text for text in texts]
    return [list(column) for column in zip(*rows, strict=True)]


def transformers(folder: Path, longest: int | None) -> Encode:
    """The model by its auto class, and `AutoTokenizer`. longest: tokens that longer texts are cut to."""
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from minilm_cli.models.auto import auto_class

    model = auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(texts: Texts) -> list[Outputs]:
        inputs = tokenizer(
            *columns(texts), padding=len(texts) > 1, truncation=True, max_length=longest, return_tensors="pt"
        )
        with torch.inference_mode():
            states = model(**inputs).last_hidden_state.float()
        return [
            Outputs(ids[real].numpy(), found[real].numpy(), None)
            for ids, found, real in zip(inputs["input_ids"], states, inputs["attention_mask"].bool(), strict=True)
        ]

    return encode


def sentence_transformers(folder: Path, longest: int | None) -> Encode:  # noqa: ARG001  # the folder says it
    """`SentenceTransformer`, which reads pooling, prompts and the longest text from the folder."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")

    def encode(texts: Texts) -> list[Outputs]:
        found: Any = model.encode(list(texts), output_value=None, prompt="")
        return [
            Outputs(
                features["input_ids"][features["attention_mask"].bool()].numpy(),
                features["token_embeddings"][features["attention_mask"].bool()].float().numpy(),
                features["sentence_embedding"].float().numpy(),
            )
            for features in found
        ]

    return encode


def onnx(folder: Path, longest: int | None, file: str = "model.onnx") -> Encode:  # noqa: ARG001  # the folder says it
    """ONNX Runtime on the CPU, with the tokenizer as the folder sets it up."""
    from onnxruntime import InferenceSession
    from transformers import AutoTokenizer

    session = InferenceSession(folder / "onnx" / file, providers=["CPUExecutionProvider"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = {node.name for node in session.get_inputs()}
    names = [node.name for node in session.get_outputs()]

    def encode(texts: Texts) -> list[Outputs]:
        inputs = tokenizer(*columns(texts), padding=len(texts) > 1, truncation=True, return_tensors="np")
        found = session.run(names, {name: array for name, array in inputs.items() if name in wanted})
        outputs = dict(zip(names, found, strict=True))
        embeddings = outputs.get("sentence_embedding", [None] * len(texts))
        return [
            Outputs(ids[real], states[real], embedding)
            for ids, states, real, embedding in zip(
                inputs["input_ids"],
                outputs["last_hidden_state"],
                inputs["attention_mask"].astype(bool),
                embeddings,
                strict=True,
            )
        ]

    return encode


def onnx_int8(folder: Path, longest: int | None) -> Encode:
    """The same with the quantised model."""
    return onnx(folder, longest, "model_quantized.onnx")


CONSUMERS: Mapping[str, Callable[[Path, int | None], Encode]] = {
    "transformers": transformers,
    "sentence-transformers": sentence_transformers,
    "onnxruntime": onnx,
    "onnxruntime-int8": onnx_int8,
}


Batches = Sequence[Texts]


def encode_here(consumer: str, folder: Path, batches: Batches, longest: int | None) -> list[list[Outputs]]:
    """What the consumer makes of each batch of texts, in this process."""
    with quiet():
        encode = CONSUMERS[consumer](folder, longest)
        return [encode(texts) for texts in batches]


def encode_elsewhere(consumer: str, folder: Path, batches: Batches, longest: int | None) -> list[list[Outputs]]:
    """The same in a new process without network, of a copy of the folder in another place; raises `RunError`."""
    with tempfile.TemporaryDirectory(prefix="verify-", dir=folder.parent) as place:
        copy, task, result = (Path(place).resolve() / name for name in ("copy", "task.json", "outputs.safetensors"))
        shutil.copytree(folder, copy, copy_function=_link)
        task.write_text(
            json.dumps({"consumer": consumer, "folder": str(copy), "batches": batches, "longest": longest}),
            encoding="utf-8",
        )
        if failure := run_task_elsewhere(task, result):
            raise RunError(f"the export cannot be used with {consumer}: {failure}", where=str(folder))
        return _read(result, batches)


def _link(source: str, target: str) -> None:
    """Copy a file, without a second copy of its content where the file system allows that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def _read(file: Path, batches: Batches) -> list[list[Outputs]]:
    arrays = load_file(file)

    def outputs(place: str) -> Outputs:
        return Outputs(arrays[f"{place}-ids"], arrays[f"{place}-states"], arrays.get(f"{place}-embedding"))

    return [[outputs(f"{number}-{row}") for row in range(len(texts))] for number, texts in enumerate(batches)]


def run_task_elsewhere(task: Path, result: Path) -> str:
    """Run this module in a new process without network; returns why it failed, or an empty text."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", __spec__.name, task, result],  # -P: no modules of the current folder
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode < 0:
        return f"its process was ended by {signal.Signals(-done.returncode).name}; there may be too little memory"
    lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    return lines[-1] if done.returncode else ""


def run_task(task: Path, result: Path) -> str:
    """Do what the file `task` says, and write the arrays to the file `result`; returns an empty text."""
    given = json.loads(task.read_text(encoding="utf-8"))
    found = encode_here(given["consumer"], Path(given["folder"]), given["batches"], given["longest"])
    arrays = {
        f"{number}-{row}-{field}": np.ascontiguousarray(value)
        for number, batch in enumerate(found)
        for row, outputs in enumerate(batch)
        for field, value in vars(outputs).items()
        if value is not None
    }
    save_file(arrays, result)
    return ""


if __name__ == "__main__":
    run_task(*map(Path, sys.argv[1:]))
