"""Models by Hub name or local folder: tokenizer, model card, and one message for all the ways loading can fail.

Imports transformers only when it is used, and torch never.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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


def reason(error: BaseException) -> str:
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


# --- Model cards -------------------------------------------------------------------------------------------------

#: YAML between two lines of dashes, then text.
_FRONT_MATTER = re.compile(r"\s*---[ \t]*\n(.*?)(?:^|\n)---[ \t]*(?:\n(.*)|\Z)", flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """A model card, whose content is not trusted."""

    entries: Mapping[str, Any] = field(default_factory=dict)
    """The front matter; every scalar is a string."""
    text: str = ""
    """What follows the front matter."""

    def words(self, key: str) -> list[str]:
        """The printable strings of an entry, which is a string or a list."""
        value = self.entries.get(key)
        found = value if isinstance(value, list) else [value]
        return [word for word in found if isinstance(word, str) and word.strip() and word.isprintable()]

    def word(self, key: str) -> str | None:
        """The first of them, if there is one."""
        return next(iter(self.words(key)), None)


def read_card(name: str, revision: str | None = None) -> Card:
    """The model card of a folder or Hub name; empty if there is none, without entries if its front matter is broken."""
    from transformers.utils import cached_file

    try:
        with quiet():
            file = cached_file(name, "README.md", revision=revision)
        text = Path(file).read_text(encoding="utf-8-sig", errors="replace") if file else ""
    except OSError:
        return Card()
    found = _FRONT_MATTER.match(text)
    return Card(_entries(found[1]), found[2] or "") if found else Card(text=text)


def _entries(front_matter: str) -> Mapping[str, Any]:
    import yaml

    try:
        # It makes only strings, lists and dicts: the language `no` is no boolean.
        found = yaml.load(front_matter, yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
