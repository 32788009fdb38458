"""Text in several scripts, tokenizers of each kind trained on it, and small teachers that have them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from minilm_cli.base.sample import SAMPLE

#: Tokens of each vocabulary.
SIZE = 3000

#: Words of other scripts than the sample's.
WORDS = (
    "быстрая лиса прыгает через ленивую собаку утром город река дом вода человек время рука дорога",
    "η γρήγορη αλεπού πηδάει πάνω από το τεμπέλικο σκυλί πόλη νερό σπίτι δρόμος άνθρωπος χρόνος",
    "الثعلب السريع يقفز فوق الكلب الكسول مدينة نهر بيت ماء رجل وقت يد طريق",
    "तेज़ लोमड़ी आलसी कुत्ते के ऊपर कूदती है शहर नदी घर पानी आदमी समय हाथ सड़क",
    "素早い 狐が のろまな 犬を 飛び越える 町 川 家 水 人 時間 手 道",
    "naïve café — œuvre Straße 🦊 🐕 ½ £5",
)

_SPECIAL = {
    "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
}


def lines(count: int = 1500) -> list[str]:
    """Sentences: one of the sample, then one of generated text, and so on."""
    pick, english = random.Random(0), SAMPLE.read_text(encoding="utf-8").splitlines()
    scripts = [words.split() for words in WORDS]
    return [
        " ".join(pick.choices(scripts[number // 2 % len(scripts)], k=pick.randint(3, 12)))
        if number % 2
        else english[number]
        for number in range(count)
    ]


def wordpiece() -> PreTrainedTokenizerBase:
    """As BERT has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=_SPECIAL["bert"], show_progress=False)
    tokenizer.train_from_iterator(lines(), trainer)
    return BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=False, model_max_length=126)


def unigram() -> PreTrainedTokenizerBase:
    """As XLM-R has it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=SIZE, special_tokens=_SPECIAL["roberta"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(lines(), trainer)
    return XLMRobertaTokenizer(vocab=[tuple(entry) for entry in _model(tokenizer)["vocab"]], model_max_length=126)


def byte_level_bpe() -> PreTrainedTokenizerBase:
    """As RoBERTa has it."""
    model = _model(_byte_level(_SPECIAL["roberta"]))
    return RobertaTokenizer(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], model_max_length=126
    )


def byte_level_bpe_without_class() -> PreTrainedTokenizerBase:
    """As ModernBERT has it: special tokens behind the others, and no class of its own in transformers."""
    tokenizer = _byte_level([])
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    ids = {token: tokenizer.token_to_id(token) for token in _SPECIAL["bert"]}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[*ids.items()]
    )
    names = {f"{token[1:-1].lower()}_token": token for token in ids}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=126, **names)


def _byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 5, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines(), trainer)
    return tokenizer


def _model(tokenizer: Tokenizer) -> dict[str, Any]:
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


#: Makes a tokenizer, by the family of models that has such a one.
TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "bert": wordpiece,
    "xlm-roberta": unigram,
    "roberta": byte_level_bpe,
    "modernbert": byte_level_bpe_without_class,
}


def save_teacher(family: str, folder: Path) -> None:
    """A model of 4 layers, 48 wide, 4 heads, random weights, and a tokenizer as the family has it."""
    import torch
    from transformers import AutoConfig, AutoModel

    tokenizer = TOKENIZERS[family]()
    default = AutoConfig.for_model(family)
    values = {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")},
    }
    known = {name: value for name, value in values.items() if hasattr(default, name)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model(family, **known)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
