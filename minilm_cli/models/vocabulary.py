"""The tokens that teacher and student share: their special ones, and a tokenizer that comes with a student.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.hub import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_OTHER_TEACHER = (
    "Choose a teacher with the student's vocabulary. Or let the student read the teacher's tokens: copy its config.json"
    " to a folder without tokenizer files. A student that keeps some of them: --keep-vocab FOLDER."
)

#: Entries of a model's configuration that name a token, and attributes of its tokenizer.
SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")

#: Files that hold a vocabulary, by the names that tokenizers of transformers give them.
_VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


def refuse_other_tokens(teacher: PreTrainedTokenizerBase, folder: Path, *, hint: str = _OTHER_TEACHER) -> None:
    """Raise `MinilmError` if a student's folder has a tokenizer with another vocabulary than the teacher's.

    teacher: its tokenizer, or what the student keeps of it. If that of the folder cannot be loaded, a warning says that
    it is not compared. That does no harm: the student is trained and exported with the teacher's.
    """
    if not any((folder / name).is_file() for name in _VOCABULARY_FILES):
        return
    try:
        student = load_tokenizer(str(folder))
    except MinilmError as error:
        logger.warning("%s: its tokenizer is not compared with the teacher's: %s", folder, error.message)
        return
    difference = first_difference(teacher, student)
    if difference is None:
        return
    token_id, *tokens = difference
    theirs, ours = ("missing" if token is None else repr(token) for token in tokens)
    raise MinilmError(
        f"the student's tokenizer has another vocabulary than the teacher's: token {token_id} is {ours}, and {theirs}"
        " in the teacher's",
        where=str(folder),
        hint=hint,
    )


def first_difference(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase
) -> tuple[int, str | None, str | None] | None:
    """The lowest id that is not the same token in both, and the two tokens, `None` if missing; `None` if all agree."""
    vocabularies = [tokenizer.get_vocab() for tokenizer in (first, second)]
    differing = vocabularies[0].items() ^ vocabularies[1].items()
    if not differing:
        return None
    lowest = min(token_id for _, token_id in differing)
    theirs, ours = (
        next((token for token, token_id in vocabulary.items() if token_id == lowest), None)
        for vocabulary in vocabularies
    )
    return lowest, theirs, ours
