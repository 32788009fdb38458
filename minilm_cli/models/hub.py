"""Models and tokenizers by Hub name or local folder: the tokenizer, and one message for all the ways loading can fail.

Imports transformers only when it is used, and torch never.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from minilm_cli.base.checksums import sha256_of_text
from minilm_cli.base.errors import MinilmError, remedy
from minilm_cli.tokens.store import TokenizerInfo

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Entries about how a tokenizer was loaded, which transformers saves with it.
ABOUT_LOADING = frozenset({"is_local", "local_files_only"})


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' own progress bars and reports, which would interrupt ours; what matters is checked here."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def reason(error: Exception) -> str:
    """A library's error message in one line."""
    if isinstance(error, KeyError):
        return f"{error} is missing or unknown"
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{first} {rest[0]}" if first.endswith(":") and rest else first


@contextmanager
def loading(kind: str, name: str, revision: str | None = None) -> Iterator[None]:
    """Turn the ways transformers and the Hub fail into one `MinilmError`; refuse a revision that would be ignored."""
    local = _is_folder(kind, name)
    if local and revision is not None:
        raise MinilmError(
            f"a folder has no revision {revision}", where=name, hint="Leave out --revision, or give a Hub name."
        )
    if not local and (name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()):
        raise MinilmError(f"there is no such {kind} folder", where=name)
    try:
        with quiet():
            yield
    except MinilmError:
        raise
    except Exception as error:  # nothing of ours runs inside, and libraries raise anything at a damaged file
        said = reason(error)
        if "trust_remote_code" in str(error):
            hint = "Its code comes with it, and runs only with --trust-remote-code."
        elif local and (unreadable := _unreadable(Path(name))):
            said, hint = f"{unreadable} cannot be read", "Check its permissions."
        elif local:
            files = "tokenizer.json" if kind == "tokenizer" else "config.json and model.safetensors"
            hint = f"A folder written by save_pretrained is expected, with {files}."
            if "ignore_mismatched_sizes" in said:
                said = "the shapes of its weights differ from its config.json"
        else:
            hint = (
                "Check the name and the connection to the Hub (HF_HUB_OFFLINE, HF_TOKEN, HF_HOME),"
                " or give a local folder."
            )
        raise MinilmError(f"the {kind} cannot be loaded: {said}", where=name, hint=hint) from error


def _is_folder(kind: str, name: str) -> bool:
    """Whether this names a folder; raises `MinilmError` if the folder cannot be listed."""
    try:
        if not (folder := Path(name)).is_dir():
            return False
        next(folder.iterdir(), folder).lstat()
    except OSError as error:
        message = f"the {kind} folder cannot be read: {error.strerror}"
        raise MinilmError(message, where=name, hint=remedy(error)) from None
    return True


def _unreadable(folder: Path) -> str | None:
    """The name of a file in the folder without read permission: transformers often takes it for missing."""
    for file in sorted(folder.iterdir()):
        try:
            if file.is_file():
                file.open("rb").close()
        except PermissionError:
            return file.name
    return None


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of this name or folder; raises `MinilmError`."""
    with loading("tokenizer", name, revision):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        for entry in ABOUT_LOADING:
            tokenizer.init_kwargs.pop(entry, None)
    if len(tokenizer.get_vocab()) <= len(set(tokenizer.all_special_tokens)):
        # For a folder without tokenizer files, transformers makes one up with an empty vocabulary.
        raise MinilmError(
            "there is no tokenizer here: its vocabulary is empty",
            where=name,
            hint="Give a folder with a tokenizer.json, or a Hub name.",
        )
    return cast("PreTrainedTokenizerBase", tokenizer)


def tokenizer_info(
    tokenizer: PreTrainedTokenizerBase, name: str | None = None, revision: str | None = None
) -> TokenizerInfo:
    """The description of a tokenizer in the manifest of a token store."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return TokenizerInfo(
        name=name,
        revision=revision,
        vocabulary_sha256=sha256_of_text(json.dumps(vocabulary)),
        # Ids may have gaps, so the largest one counts.
        vocabulary_size=1 + max(token_id for _, token_id in vocabulary),
        special_ids=sorted(set(tokenizer.all_special_ids)),
    )
