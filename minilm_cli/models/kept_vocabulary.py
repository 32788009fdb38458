"""The tokens of a teacher's vocabulary that a student keeps, and what becomes of the others.

A token that is left out is read as smaller ones, by the teacher too: so both read the same tokens, as everywhere else,
and the student learns of the pieces that its own tokenizer will mostly give it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.families import family_of
from minilm_cli.models.trimmed_tokenizer import TokenModel, describe, trim
from minilm_cli.tokens.respelling import Respelling


def count_kept(tokenizer: PreTrainedTokenizerBase, preferred: Iterable[int]) -> int:
    """How many tokens `KeptVocabulary.chosen` would keep."""
    return len(TokenModel(describe(tokenizer)).choose(preferred, None))


@dataclass(frozen=True)
class KeptVocabulary:
    """A smaller vocabulary, and how it comes from the teacher's."""

    tokenizer: PreTrainedTokenizerBase
    """With the kept tokens, numbered anew in their order."""
    former_ids: Sequence[int]
    """The teacher's id of each new one."""
    spellings: Sequence[Sequence[int]]
    """For each of the teacher's ids, the new ids that it is read as."""

    @classmethod
    def chosen(
        cls, tokenizer: PreTrainedTokenizerBase, size: int, preferred: Iterable[int], limit: int | None = None
    ) -> KeptVocabulary:
        """These tokens, and those that `trim` keeps always; raises `MinilmError` as it does.

        size: of the teacher's table, which may have more rows than there are tokens.
        """
        return cls.between(tokenizer, size, trim(tokenizer, preferred, limit))

    @classmethod
    def between(cls, tokenizer: PreTrainedTokenizerBase, size: int, trimmed: PreTrainedTokenizerBase) -> KeptVocabulary:
        """The vocabulary of a tokenizer that `trim` has made of the teacher's; raises what `chosen` raises."""
        theirs, ours = tokenizer.get_vocab(), trimmed.get_vocab()
        former = [theirs[token] for token in sorted(ours, key=ours.__getitem__)]
        if max(former) >= size:
            raise MinilmError(
                f"student.keep_vocab: the teacher has embeddings for {size:,} ids, and its tokenizer more tokens",
                hint="Leave it out: the student then has the teacher's vocabulary.",
            )
        split = TokenModel(describe(tokenizer)).splitter(trimmed)
        # For what cannot be spelt, and for ids without a token, which no tokenizer gives.
        unknown = trimmed.unk_token_id or 0
        spellings = [[unknown]] * size
        for token, number in theirs.items():
            if number < size:
                parts = [token] if token in ours else split(token)
                spellings[number] = [ours.get(part, unknown) for part in parts] or [unknown]
        return cls(trimmed, former, spellings)

    def __len__(self) -> int:
        return len(self.former_ids)

    def respelling(self) -> Respelling:
        """What writes the sequences of a token store in the new ids."""
        return Respelling(self.spellings)

    def shares(self, counts: npt.NDArray[np.float64]) -> tuple[float, float]:
        """Of a text's tokens, by how often each occurs: the shares read as several, and as the unknown one."""
        unknown, split, lost = self.tokenizer.unk_token_id, 0, 0
        was_unknown = None if unknown is None else self.former_ids[unknown]
        for number in counts.nonzero()[0].tolist():
            spelling = self.spellings[number]
            split += counts[number] * (len(spelling) > 1)
            lost += counts[number] * (unknown in spelling and number != was_unknown)
        return float(split / counts.sum()), float(lost / counts.sum())

    def compare(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> int:
        """How many of these texts need none of the tokens that are left out.

        Raises `MinilmError` if the teacher's tokenizer and this one split one of them differently.
        """
        if not texts:
            return 0
        compared, kept = 0, set(self.former_ids)
        for text, theirs in zip(texts, tokenizer(texts)["input_ids"], strict=True):
            if kept.issuperset(theirs):
                compared += 1
                if [self.former_ids[number] for number in self.tokenizer(text)["input_ids"]] != theirs:
                    raise MinilmError(
                        f"student.keep_vocab: the trimmed tokenizer splits this text differently: {text[:100]!r}",
                        hint="Leave it out: the student then has the teacher's vocabulary.",
                    )
        return compared

    # --- Configuration and model ---------------------------------------------------------------------------------

    def trim_config(self, config: PreTrainedConfig) -> None:
        """Change the configuration of a model with the teacher's vocabulary into one for this vocabulary."""
        new = {former: number for number, former in enumerate(self.former_ids)}

        def renumbered(value: Any) -> Any:
            return [renumbered(one) for one in value] if isinstance(value, list) else new.get(value)

        for name, value in config.to_dict().items():
            if name.endswith("_token_id"):
                setattr(config, name, renumbered(value))
        config.vocab_size = len(self)

    @torch.no_grad()
    def trim_model(self, model: PreTrainedModel) -> None:
        """Leave only the rows of the kept tokens in a model's table; it computes the same of the new ids.

        Raises `MinilmError` if its positions are counted from a padding id that changes.
        """
        padding, family = model.config.pad_token_id, family_of(model.config)
        self.trim_config(model.config)
        if family.first_position(model) and padding != model.config.pad_token_id:
            raise MinilmError(
                f"student.keep_vocab: {family.name} models count positions from the id of the padding token, {padding},"
                f" which would become {model.config.pad_token_id}",
                hint="Leave it out: the student then has the teacher's vocabulary.",
            )
        table = model.get_input_embeddings()
        assert isinstance(table, nn.Embedding), "tokens are looked up in a table"
        whole = table.weight
        rows = nn.Parameter(whole[torch.tensor(self.former_ids)], requires_grad=whole.requires_grad)
        for part in model.modules():
            if isinstance(part, nn.Embedding) and part.weight is whole:  # T5 has it twice
                part.weight, part.num_embeddings = rows, len(rows)
                part.padding_idx = None if part.padding_idx is None else model.config.pad_token_id
