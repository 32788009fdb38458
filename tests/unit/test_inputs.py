"""One batch, read by models of several families as each counts padding and positions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, MPNetConfig, PreTrainedConfig, PreTrainedModel, RobertaConfig

from minilm_cli.models.inputs import InputAdapter, Inputs
from minilm_cli.models.student import random_model
from minilm_cli.models.student_config import student_config
from minilm_cli.models.tap import Tap
from minilm_cli.models.trials import layout
from tests.families import FAMILIES, LAYER

from .model_configs import VOCABULARY, small

#: Three that read 16 tokens.
TEACHERS = {
    "bert": BertConfig(vocab_size=VOCABULARY, max_position_embeddings=16, mask_token_id=3),
    "roberta": RobertaConfig(vocab_size=VOCABULARY, max_position_embeddings=18, type_vocab_size=1, mask_token_id=3),
    "mpnet": MPNetConfig(vocab_size=VOCABULARY, max_position_embeddings=18, mask_token_id=3),
}
STUDENTS = ("bert", "roberta", "distilbert", "electra", "mpnet", "deberta-v2", "modernbert", "nomic_bert", "eurobert")
CASES = {family.name: family for family in FAMILIES}
LENGTHS = (16, 5, 1, 9)


def sequences() -> list[np.ndarray]:
    """Real tokens, at most as many as the teachers read."""
    rng = np.random.default_rng(0)
    return [rng.integers(5, VOCABULARY, length) for length in LENGTHS]


def model_of(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = random_model(config).eval()
        for parameter in model.parameters():  # no zeros: the padding's embedding must matter
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("teacher", TEACHERS)
@torch.no_grad()
def test_a_student_reads_its_teachers_tokens_as_a_plain_pass_does(tmp_path: Path, teacher: str, student: str) -> None:
    case, file = CASES[student], tmp_path / "config.json"
    sizes = {"num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 4}
    file.write_text(json.dumps({"model_type": student} | sizes | case.config), encoding="utf-8")
    config = student_config(str(file), TEACHERS[teacher])
    assert config.pad_token_id == TEACHERS[teacher].pad_token_id
    model = model_of(config)
    alone = [case.projections(model, torch.from_numpy(sequence)) for sequence in sequences()]
    expected = [torch.cat(parts) for parts in zip(*alone, strict=True)]
    tap, padded = Tap(model, [LAYER]).eval(), Inputs.padded(sequences())
    assert padded.mask is not None
    real = padded.mask.bool().flatten()
    torch.testing.assert_close([part[real] for part in tap(padded)[0]], expected, rtol=1e-4, atol=1e-4)
    assert layout(tap) == case.layout
    if case.layout == "packed":
        torch.testing.assert_close([*tap(Inputs.packed(sequences()))[0]], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["roberta", "mpnet", "xlm-roberta", "bert"])
@torch.no_grad()
def test_a_token_with_the_paddings_id_is_counted_as_the_model_counts_it(family: str) -> None:
    model = model_of(small(family))
    rows = sequences()
    for row, places in zip(rows, ([0], [1, 4], [0], [2, 3, 8]), strict=True):
        row[places] = 1
    packed = InputAdapter(model)(Inputs.packed(rows))
    found = model.embeddings(**packed)[0]
    alone = [model.embeddings(input_ids=torch.from_numpy(row)[None])[0] for row in rows]
    torch.testing.assert_close(found, torch.cat(alone))
