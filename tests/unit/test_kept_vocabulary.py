"""Models and configurations with fewer tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, RobertaConfig, RobertaModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.kept_vocabulary import KeptVocabulary
from tests.families import FAMILIES, FamilyCase

from .model_configs import VOCABULARY, small


@pytest.fixture
def tokenizer(tiny_teacher: Path) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_teacher)
    return found


def keeping(tokenizer: PreTrainedTokenizerBase, former: list[int]) -> KeptVocabulary:
    """These ids; models do not ask for the tokens."""
    new = {number: place for place, number in enumerate(former)}
    return KeptVocabulary(tokenizer, former, [[new.get(number, 4)] for number in range(VOCABULARY)])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_trimmed_model_computes_the_same(family: FamilyCase, tokenizer: PreTrainedTokenizerBase) -> None:
    whole, trimmed = family.model(), family.model()
    former = [0, 1, 2, 3, 4, *range(7, VOCABULARY, 3)]
    keeping(tokenizer, former).trim_model(trimmed)
    new = torch.tensor([[0, 8, 5, 11, 20, 6, 2]])
    with torch.inference_mode():
        expected = whole(input_ids=torch.tensor(former)[new], attention_mask=torch.ones_like(new)).last_hidden_state
        found = trimmed(input_ids=new, attention_mask=torch.ones_like(new)).last_hidden_state
    assert torch.equal(found, expected)
    assert trimmed.config.vocab_size == len(former)
    assert sum(p.numel() for p in trimmed.parameters()) < sum(p.numel() for p in whole.parameters())
    assert not [name for name, p in trimmed.named_parameters() if p.shape[0] == VOCABULARY]


def test_special_ids_of_a_configuration_are_numbered_anew(tokenizer: PreTrainedTokenizerBase) -> None:
    config = small("bert", pad_token_id=5, cls_token_id=7, eos_token_id=[9, 7], bos_token_id=None, mask_token_id=6)
    keeping(tokenizer, [5, 7, 9]).trim_config(config)
    assert (config.pad_token_id, config.cls_token_id, config.eos_token_id, config.vocab_size) == (0, 1, [2, 1], 3)
    assert config.bos_token_id is None
    assert config.mask_token_id is None


def test_another_padding_id_is_refused_where_positions_are_counted_from_it(tokenizer: PreTrainedTokenizerBase) -> None:
    model = RobertaModel(small("roberta", pad_token_id=5))
    with pytest.raises(MinilmError, match="from the id of the padding token, 5, which would become 1"):
        keeping(tokenizer, [4, 5, 6]).trim_model(model)
    assert isinstance(model.config, RobertaConfig)


def test_shares_are_those_of_the_data(tokenizer: PreTrainedTokenizerBase) -> None:
    unknown = tokenizer.unk_token_id
    spellings = [[number] for number in range(5)] + [[3, 4], [unknown], [3, unknown]]
    kept = KeptVocabulary(tokenizer, [0, 1, 2, 3, 4], spellings)
    assert kept.shares(np.array([0, 1, 10, 2, 2, 3, 1, 1])) == (4 / 20, 2 / 20)
    assert kept.shares(np.array([0, 5, 5, 0, 0, 0, 0, 0])) == (0, 0)


def test_a_tokenizer_that_splits_otherwise_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    kept = KeptVocabulary.chosen(tokenizer, len(tokenizer), range(len(tokenizer)))
    assert kept.compare(tokenizer, ["the man", "was here", "Ω"]) == 3
    assert kept.compare(tokenizer, []) == 0
    former = [*kept.former_ids]
    man = former.index(tokenizer.convert_tokens_to_ids("man"))
    former[man], former[man - 1] = former[man - 1], former[man]
    with pytest.raises(MinilmError, match="splits this text differently: 'the man'"):
        KeptVocabulary(kept.tokenizer, former, kept.spellings).compare(tokenizer, ["was here", "the man"])
