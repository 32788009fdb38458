"""One batch, read by models of several families as each counts padding and positions."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    BertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from minilm_cli.models.inputs import InputAdapter, Inputs
from minilm_cli.models.student_config import student_config
from minilm_cli.models.tap import ATTENTION, RegistryTap

from .model_configs import VOCABULARY, small

TEACHERS = {
    "bert": BertConfig(vocab_size=VOCABULARY, max_position_embeddings=16, mask_token_id=3),
    "roberta": RobertaConfig(vocab_size=VOCABULARY, max_position_embeddings=18, type_vocab_size=1, mask_token_id=3),
}
STUDENTS = ("bert", "roberta", "distilbert", "electra", "albert", "modernbert", "nomic_bert", "eurobert")
LENGTHS = (16, 5, 1, 9)


def sequences(seed: int = 0) -> list[np.ndarray]:
    """Real tokens of any length that the teachers read."""
    rng = np.random.default_rng(seed)
    return [rng.integers(5, VOCABULARY, length) for length in LENGTHS]


@pytest.fixture
def seen() -> Iterator[list[list[Tensor]]]:
    """What reaches the attention function `record`, call by call: queries, keys and values."""
    calls: list[list[Tensor]] = []

    def record(module: Any, *tensors: Any, **options: Any) -> Any:
        calls.append([tensor.transpose(1, 2).flatten(2) for tensor in tensors[:3]])
        return sdpa_attention_forward(module, *tensors, **{"is_causal": False} | options)

    AttentionInterface.register("record", record)
    AttentionMaskInterface.register("record", sdpa_mask)
    yield calls
    AttentionInterface._global_mapping.pop("record")
    AttentionMaskInterface._global_mapping.pop("record")


def model_of(config: PreTrainedConfig, attention: str) -> PreTrainedModel:
    """Always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModel.from_config(deepcopy(config), attn_implementation=attention).eval()
        for parameter in model.parameters():  # no zeros: biases and the padding's embedding must matter
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("teacher", TEACHERS)
@torch.no_grad()
def test_projections_are_those_of_a_plain_pass(teacher: str, student: str, seen: list[list[Tensor]]) -> None:
    config = student_config(f"{student}:l2-h48", TEACHERS[teacher])
    config.pad_token_id = TEACHERS[teacher].pad_token_id
    plain, tap = model_of(config, "record"), RegistryTap(model_of(config, ATTENTION), 2).eval()
    ids = torch.full((len(LENGTHS), max(LENGTHS)), config.pad_token_id)
    mask = torch.zeros_like(ids)
    for number, sequence in enumerate(sequences()):
        ids[number, : len(sequence)] = torch.from_numpy(sequence)
        mask[number, : len(sequence)] = 1
    plain(input_ids=ids, attention_mask=mask)
    expected = [tensor[mask.bool()] for tensor in seen[1]]
    padded = [tensor[mask.bool().flatten()] for tensor in tap(Inputs.padded(sequences()))]
    torch.testing.assert_close(padded, expected, rtol=1e-4, atol=1e-4)
    assert tap.packs()
    torch.testing.assert_close([*tap(Inputs.packed(sequences()))], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["roberta", "mpnet", "xlm-roberta", "bert"])
@torch.no_grad()
def test_a_token_with_the_paddings_id_is_counted_as_the_model_counts_it(family: str) -> None:
    model = model_of(small(family), "eager")
    rows = sequences()
    for row, places in zip(rows, ([0], [1, 4], [0], [2, 3, 8]), strict=True):
        row[places] = 1
    packed = InputAdapter(model)(Inputs.packed(rows))
    found = model.embeddings(**packed)[0]
    alone = [model.embeddings(input_ids=torch.from_numpy(row)[None])[0] for row in rows]
    torch.testing.assert_close(found, torch.cat(alone))
