"""Tokenizers of each kind, trimmed, give what they gave before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.kept_vocabulary import KeptVocabulary
from minilm_cli.models.trimmed_tokenizer import trim
from tests.multilingual import TOKENIZERS, lines

LINES = lines()


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return TOKENIZERS[request.param]()


def ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Any:
    return tokenizer(texts)["input_ids"]


def chosen(tokenizer: PreTrainedTokenizerBase, preferred: Any, limit: int | None = None) -> KeptVocabulary:
    return KeptVocabulary.chosen(tokenizer, len(tokenizer), preferred, limit)


def test_text_within_the_kept_tokens_is_split_as_before(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = LINES[::10]
    used = {token for row in ids(tokenizer, texts) for token in row}
    kept = chosen(tokenizer, used)
    assert len(kept.tokenizer) == len(kept) < len(tokenizer)
    assert used <= {*kept.former_ids}
    found = ids(kept.tokenizer, texts)
    assert [[kept.former_ids[token] for token in row] for row in found] == ids(tokenizer, texts)
    assert kept.tokenizer.batch_decode(found) == tokenizer.batch_decode(ids(tokenizer, texts))
    assert kept.compare(tokenizer, LINES) >= len(texts)


def test_it_is_the_same_after_it_was_saved(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    trimmed = trim(tokenizer, range(0, len(tokenizer), 3))
    assert type(trimmed) is type(tokenizer)
    trimmed.save_pretrained(tmp_path)
    assert ids(AutoTokenizer.from_pretrained(tmp_path), LINES) == ids(trimmed, LINES)


def test_special_tokens_are_those_of_before(tokenizer: PreTrainedTokenizerBase) -> None:
    kept = chosen(tokenizer, [len(tokenizer) - 10])
    assert len(tokenizer) - 10 in kept.former_ids
    assert kept.tokenizer.special_tokens_map == tokenizer.special_tokens_map
    assert [kept.former_ids[token] for token in kept.tokenizer.all_special_ids] == tokenizer.all_special_ids
    assert kept.tokenizer.model_max_length == tokenizer.model_max_length
    text = f"a{tokenizer.mask_token}b"
    assert [kept.former_ids[token] for token in kept.tokenizer(text)["input_ids"]] == tokenizer(text)["input_ids"]


def test_other_text_falls_into_smaller_pieces(tokenizer: PreTrainedTokenizerBase) -> None:
    smallest = trim(tokenizer, [])
    assert len(smallest) < 600
    for text in ("the history of the world", "быстрая лиса"):
        row = smallest(text)["input_ids"]
        assert len(row) > len(tokenizer(text)["input_ids"])
        assert smallest.unk_token_id not in row


def test_all_tokens_leave_the_tokenizer_as_it_is(tokenizer: PreTrainedTokenizerBase) -> None:
    kept = chosen(tokenizer, range(len(tokenizer)))
    assert kept.former_ids == list(range(len(tokenizer)))
    assert ids(kept.tokenizer, LINES) == ids(tokenizer, LINES)


def test_the_first_tokens_are_taken_up_to_the_limit(tokenizer: PreTrainedTokenizerBase) -> None:
    preferred = range(len(tokenizer) - 1, 0, -1)
    needed = len(trim(tokenizer, []))
    for limit in (needed, needed + 100):
        kept = chosen(tokenizer, preferred, limit)
        assert limit - 10 < len(kept) <= limit  # a token of BPE may need several
    assert {*preferred[:5]} <= {*kept.former_ids}
    with pytest.raises(MinilmError, match=f"{needed - 1:,} tokens are too few: {needed:,} are always kept"):
        trim(tokenizer, preferred, needed - 1)


def test_tokens_that_are_left_out_are_spelt_by_others(tokenizer: PreTrainedTokenizerBase) -> None:
    kept = chosen(tokenizer, range(0, len(tokenizer), 2))
    for former, spelling in enumerate(kept.spellings):
        assert kept.tokenizer.decode(spelling).split() == tokenizer.decode([former]).split()
        assert (len(spelling) == 1) == (former in kept.former_ids)


def test_most_texts_are_spelt_as_the_trimmed_tokenizer_splits_them(tokenizer: PreTrainedTokenizerBase) -> None:
    kept = chosen(tokenizer, range(0, len(tokenizer), 2))
    spelt = [[part for token in row for part in kept.spellings[token]] for row in ids(tokenizer, LINES)]
    split = ids(kept.tokenizer, LINES)
    assert sum(map(len, spelt)) == pytest.approx(sum(map(len, split)), rel=0.06)


def test_added_tokens_stay_behind_the_others(tokenizer: PreTrainedTokenizerBase) -> None:
    more = trim(tokenizer, range(len(tokenizer)))
    more.add_tokens(["<extra>"])
    kept = chosen(more, [])
    assert kept.former_ids[-1] == len(more) - 1
    assert kept.tokenizer.convert_ids_to_tokens(len(kept) - 1) == "<extra>"
    assert [kept.former_ids[token] for token in kept.tokenizer("a<extra>")["input_ids"]] == more("a<extra>")[
        "input_ids"
    ]


def test_between_finds_the_vocabulary_again(tokenizer: PreTrainedTokenizerBase) -> None:
    kept = chosen(tokenizer, range(0, len(tokenizer), 2))
    found = KeptVocabulary.between(tokenizer, len(tokenizer), kept.tokenizer)
    assert (found.former_ids, found.spellings) == (kept.former_ids, kept.spellings)


def test_an_id_without_a_token_is_read_as_the_unknown_one(tokenizer: PreTrainedTokenizerBase) -> None:
    kept = KeptVocabulary.chosen(tokenizer, len(tokenizer) + 2, [])
    assert [*kept.spellings[-2:]] == [[kept.tokenizer.unk_token_id]] * 2


def test_another_kind_of_tokenizer_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(MinilmError, match="a tokenizer of the kind WordLevel cannot be trimmed"):
        trim(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]"), {1})
