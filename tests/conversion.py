"""Conversion of a model to ONNX, compared with torch: `python -m tests.conversion` tries every family."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from onnxruntime import InferenceSession
from transformers import PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.export import onnx
from minilm_cli.export.source import Source
from minilm_cli.models.sentence_head import Normalize, SentenceHead
from tests import tiny
from tests.families import FAMILIES
from tests.unit.model_configs import VOCABULARY


def check_conversion(model: PreTrainedModel, folder: Path) -> None:
    """Convert a small model in an empty folder, and compare states and embeddings of batches of several shapes.

    Raises `MinilmError` if torch cannot convert it, and `AssertionError` if the outputs differ by more than rounding.
    """
    tiny.save_tokenizer(folder)
    source = Source(model, folder, SentenceHead(("mean",), (Normalize(),)))
    onnx._convert(source, folder / "model.onnx")
    session = InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}
    generator = torch.Generator().manual_seed(0)
    for batch, tokens in ((1, 1), (3, 5), (2, 30)):
        ids = torch.randint(4, VOCABULARY, (batch, tokens), generator=generator)
        mask = torch.ones((batch, tokens), dtype=torch.long)
        if batch > 1:
            ids[0, tokens // 2 :], mask[0, tokens // 2 :] = 1, 0
        inputs = {"input_ids": ids, "attention_mask": mask}
        with torch.no_grad():
            expected = onnx._Graph(model, source.head)(**inputs)
        given = {name: inputs.get(name, torch.zeros_like(ids)).numpy() for name in names}
        states, embeddings = session.run(["last_hidden_state", "sentence_embedding"], given)
        real = mask.bool().numpy()
        np.testing.assert_allclose(states[real], expected[0].numpy()[real], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(embeddings, expected[1].numpy(), rtol=1e-4, atol=1e-5)


def main() -> int:
    """Print each family and whether it was converted; returns how many were not."""
    failed = 0
    for case in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                check_conversion(case.model(), Path(folder))
                print(case.name, "converted", flush=True)
            except (MinilmError, AssertionError) as error:
                print(case.name, str(error).strip().splitlines()[0], flush=True)
                failed += 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
