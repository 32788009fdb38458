"""Tokenizers of each kind, trimmed, give what they gave before."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.kept_vocabulary import KeptVocabulary
from minilm_cli.models.trimmed_tokenizer import can_trim, trim
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
    rows = ids(tokenizer, LINES)
    frequent = [token for token, _ in Counter(itertools.chain(*rows)).most_common(len(tokenizer) // 2)]
    kept = chosen(tokenizer, frequent)
    spelt = [[part for token in row for part in kept.spellings[token]] for row in rows]
    same = [ours == theirs for ours, theirs in zip(spelt, ids(kept.tokenizer, LINES), strict=True)]
    assert 0.6 < sum(same) / len(LINES) < 1  # a third of the tokens used are left out


def test_tokens_that_no_merges_lead_to_are_spelt_too() -> None:
    tokenizer = TOKENIZERS["roberta"]()
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    description["model"]["vocab"] |= {"madeupword0000": len(tokenizer), "madeupword0001": len(tokenizer) + 1}
    more = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(description)), unk_token="<unk>")
    kept = chosen(more, [len(tokenizer)])
    assert len(tokenizer) in kept.former_ids
    assert kept.tokenizer.decode(kept.spellings[-1]) == "madeupword0001"


def test_merges_are_those_that_a_text_takes() -> None:
    """Every split of a token is a merge, as in tokenizers that were converted from SentencePiece."""
    merges = [("c", "d"), ("a", "bcd"), ("b", "cd"), ("ab", "cd"), ("b", "c"), ("a", "b"), ("abc", "d"), ("bc", "d")]
    tokens = ["<unk>", *"abcd", "cd", "abcd", "bcd", "ab", "bc", "abc"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    bpe = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>")
    kept = chosen(tokenizer, [vocabulary["abcd"]])
    assert tokenizer.tokenize("abcd") == kept.tokenizer.tokenize("abcd") == ["abcd"]
    assert kept.tokenizer.get_vocab().keys() == {"<unk>", *"abcd", "cd", "bcd", "abcd"}
    assert [kept.tokenizer.convert_ids_to_tokens(part) for part in kept.spellings[vocabulary["abc"]]] == [*"abc"]


def test_ends_of_words_are_kept() -> None:
    tokens = ["<unk>", *"abc", "c</w>", "b</w>", "bc</w>", "ab", "abc</w>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [("b", "c</w>"), ("a", "b"), ("a", "bc</w>")]
    bpe = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>")
    kept = chosen(tokenizer, [vocabulary["bc</w>"]])
    assert kept.tokenizer.tokenize("abc bc") == ["a", "bc</w>", "bc</w>"]
    assert [kept.tokenizer.convert_ids_to_tokens(part) for part in kept.spellings[-1]] == ["a", "bc</w>"]
    assert [kept.tokenizer.convert_ids_to_tokens(part) for part in kept.spellings[vocabulary["ab"]]] == ["a", "b"]


def test_what_cannot_be_spelt_is_unknown() -> None:
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("a", -2.0), ("ab", -3.0), ("zz", -9.0)]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=0)), unk_token="<unk>")
    kept = chosen(tokenizer, [])
    assert kept.tokenizer.get_vocab().keys() == {"<unk>", "▁", "a", "zz"}
    assert [*kept.spellings[3]] == [kept.tokenizer.convert_tokens_to_ids("a"), 0]


def test_tokens_that_are_put_around_texts_are_kept() -> None:
    tokenizer = TOKENIZERS["bert"]()
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    description["added_tokens"] = []
    bare = Tokenizer.from_str(json.dumps(description))
    last = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)
    bare.post_processor = processors.Sequence(
        [processors.TemplateProcessing(single=f"$A {last}", special_tokens=[(last, len(tokenizer) - 1)])]
    )
    kept = chosen(PreTrainedTokenizerFast(tokenizer_object=bare), [])
    assert last in kept.tokenizer.get_vocab()
    assert kept.tokenizer.convert_ids_to_tokens(kept.tokenizer("a")["input_ids"]) == ["a", last]


def test_a_table_with_fewer_rows_than_tokens_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(MinilmError, match="embeddings for 100 ids, and its tokenizer more tokens"):
        KeptVocabulary.chosen(tokenizer, 100, range(len(tokenizer)))


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


def test_another_kind_of_tokenizer_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    other = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    with pytest.raises(MinilmError, match="a tokenizer of the kind WordLevel cannot be trimmed"):
        trim(other, {1})
    assert not can_trim(other)
    assert can_trim(tokenizer)
