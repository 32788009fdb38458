"""A student of another family than its teacher's: its configuration, three steps, and the export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase, RobertaTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from minilm_cli.base.progress import NoProgress
from minilm_cli.models.families import family_of
from minilm_cli.models.student_config import saved_config
from minilm_cli.models.vocabulary import SPECIAL_IDS
from minilm_cli.settings.load import load_distill_settings
from minilm_cli.training import run
from tests import tiny

#: Tokens that each teacher reads.
LONGEST = 64

PAIRS = [
    ("bert", "roberta"),
    ("bert", "distilbert"),
    ("bert", "modernbert"),
    ("bert", "eurobert"),
    ("roberta", "bert"),
    ("roberta", "nomic_bert"),
    ("modernbert", "bert"),
    ("modernbert", "xlm-roberta"),
    ("distilbert", "electra"),
]


def wordpieces() -> PreTrainedTokenizerBase:
    """BERT's kind: padding 0, token types."""
    return BertTokenizer(vocab={token: number for number, token in enumerate(tiny.VOCABULARY)})


def bytes_only() -> PreTrainedTokenizerBase:
    """RoBERTa's kind: padding 1, no token types; a token a byte."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *bytes_to_unicode().values(), "<mask>"]
    return RobertaTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[])


#: The tokenizer of each teacher's family, and the table of positions for `LONGEST` tokens.
TEACHERS: dict[str, tuple[Callable[[], PreTrainedTokenizerBase], dict[str, Any]]] = {
    "bert": (wordpieces, {"max_position_embeddings": LONGEST}),
    "distilbert": (wordpieces, {"max_position_embeddings": LONGEST}),
    "modernbert": (wordpieces, {"max_position_embeddings": LONGEST}),
    "roberta": (bytes_only, {"max_position_embeddings": LONGEST + 2, "type_vocab_size": 1}),
}


def save_teacher(folder: Path, family: str) -> None:
    """A teacher of 3 layers, 48 wide, its tokenizer, and the tokens of a text."""
    make_tokenizer, positions = TEACHERS[family]
    tokenizer = make_tokenizer()
    default = AutoConfig.for_model(family)
    values = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        family_of(default).feed_forward: 96,
        "vocab_size": len(tokenizer),
        **{name: getattr(tokenizer, name) for name in SPECIAL_IDS if hasattr(default, name)},
        **positions,
    }
    names = default.attribute_map
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **{names.get(name, name): value for name, value in values.items()})
        AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    lines = (" ".join(tiny.WORDS[number : number + 9]) for number in range(40))
    (folder / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    tiny.write_store(folder / "tokens", corpus=folder / "corpus.txt", tokenizer=str(folder))


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each family's teacher."""
    folders = {family: tmp_path_factory.mktemp(family) for family in TEACHERS}
    for family, folder in folders.items():
        save_teacher(folder, family)
    return folders


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_a_student_of_another_family_is_trained_and_exported(
    tmp_path: Path, teachers: dict[str, Path], teacher: str, student: str
) -> None:
    flags = {
        "teacher.name": str(teachers[teacher]),
        "student.config": f"{student}:l2-h24",
        "data.path": teachers[teacher] / "tokens",
        "training.steps": 3,
        "training.batch_size": 4,
        "evaluation.fraction": 0.1,
        "output": tmp_path / "run",
    }
    report = run.distill(load_distill_settings(flags=flags), NoProgress())
    assert report.plan.student.family == student
    assert report.losses["loss"] > 0

    theirs = AutoTokenizer.from_pretrained(teachers[teacher])
    config = saved_config(tmp_path / "run" / "student-config.json")
    assert config.vocab_size == len(theirs)
    for name in SPECIAL_IDS:
        assert getattr(config, name, getattr(theirs, name)) == getattr(theirs, name)

    folder = report.path / "student"  # as an export in the format hf is written
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert family_of(model.config).longest_input(model) in (LONGEST, None)
    check_export(model, tokenizer, theirs, has_types=getattr(config, "type_vocab_size", 0) > 1)


@torch.no_grad()
def check_export(model: Any, tokenizer: Any, theirs: Any, *, has_types: bool) -> None:
    """The model reads all that its tokenizer gives: texts and pairs, short and too long, alone and padded."""
    gives_types = has_types and "token_type_ids" in theirs.model_input_names
    assert ("token_type_ids" in tokenizer.model_input_names) == gives_types
    assert tokenizer.model_max_length == LONGEST
    long = " ".join(tiny.WORDS)
    pairs = [("the people", "of this world"), ("a", "b"), (long, "her state"), ("", "out")]
    for inputs in ([[first for first, _ in pairs]], [list(column) for column in zip(*pairs, strict=True)]):
        batch = tokenizer(*inputs, padding=True, truncation=True, return_tensors="pt")
        states = model(**batch).last_hidden_state
        assert states.isfinite().all()
        for row, texts in enumerate(zip(*inputs, strict=True)):
            alone = tokenizer(*texts, truncation=True, return_tensors="pt")
            assert alone["input_ids"][0].tolist() == theirs(*texts, truncation=True, max_length=LONGEST)["input_ids"]
            expected = model(**alone).last_hidden_state[0]
            torch.testing.assert_close(states[row][batch["attention_mask"][row].bool()], expected, rtol=1e-4, atol=1e-4)
