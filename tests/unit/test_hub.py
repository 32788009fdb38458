from __future__ import annotations

import contextlib
import logging
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer, BertTokenizer
from transformers.utils import logging as transformers_logging

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.hub import Card, load_tokenizer, loading, quiet, read_card, reason, tokenizer_info

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b")


def test_tokenizer_info_does_not_depend_on_the_folder(tiny_teacher: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(tiny_teacher, tmp_path / "copied")
    one, other = (tokenizer_info(load_tokenizer(str(folder))) for folder in (tiny_teacher, copied))
    assert one == other


def test_checksum_depends_on_the_vocabulary() -> None:
    one, other = (
        tokenizer_info(BertTokenizer(vocab={word: number for number, word in enumerate(words)}))
        for words in (WORDS, (*WORDS[:5], "b", "a"))
    )
    assert one.vocabulary_size == other.vocabulary_size == 7
    assert one.vocabulary_sha256 != other.vocabulary_sha256


def test_vocabulary_size_follows_from_the_largest_id() -> None:
    vocabulary = {word: number for number, word in enumerate(WORDS)} | {"c": 100}
    assert tokenizer_info(BertTokenizer(vocab=vocabulary)).vocabulary_size == 101


def test_tokenizer_info_has_name_revision_and_special_ids(tiny_teacher: Path) -> None:
    info = tokenizer_info(AutoTokenizer.from_pretrained(tiny_teacher), "some/name", "main")
    assert (info.name, info.revision, info.special_ids) == ("some/name", "main", [0, 1, 2, 3, 4])


def test_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="the tokenizer cannot be loaded") as caught:
        load_tokenizer(str(tmp_path))
    assert caught.value.where == str(tmp_path)


@pytest.mark.parametrize(
    "error",
    [OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError, EOFError, AssertionError, ZeroDivisionError],
)
def test_loading_error_is_one_line_with_a_hint(error: type[Exception]) -> None:
    with pytest.raises(MinilmError) as caught, loading("teacher", "some/name"):
        raise error("\n  it is broken  \nand so on")
    assert "\n" not in caught.value.message
    assert "broken" in caught.value.message
    assert caught.value.where == "some/name"
    assert caught.value.hint is not None


def test_own_errors_are_unchanged() -> None:
    error = MinilmError("it failed", where="here")
    with pytest.raises(MinilmError) as caught, loading("teacher", "some/name"):
        raise error
    assert caught.value is error


def test_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(MinilmError, match="there is no such teacher folder"),
        loading("teacher", str(tmp_path / "file")),
    ):
        pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("it is broken"), "it is broken"),
        (ValueError("\n it is broken \n\n and so on"), "it is broken"),
        (ValueError("of a field:\n  TypeError: no number\nand so on"), "of a field: TypeError: no number"),
        (ValueError("of a field:"), "of a field:"),
        (KeyError("wavy"), "'wavy' is missing or unknown"),
        (EOFError(), "EOFError"),
        (ValueError(" \n"), "ValueError"),
    ],
)
def test_library_message_becomes_one_line(error: Exception, message: str) -> None:
    assert reason(error) == message


@pytest.mark.parametrize("kind", ["teacher", "tokenizer"])
@pytest.mark.parametrize("bits", [0o000, 0o300, 0o600])
@pytest.mark.usefixtures("ordinary_user")
def test_unreadable_folder_is_refused(tmp_path: Path, kind: str, bits: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").touch()
    folder.chmod(bits)
    with (
        pytest.raises(MinilmError, match=f"the {kind} folder cannot be read: Permission denied") as caught,
        loading(kind, str(folder)),
    ):
        pytest.fail("the block was entered")
    assert caught.value.where == str(folder)


@pytest.mark.usefixtures("ordinary_user")
def test_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch(mode=0)
    (tmp_path / "config.json").touch()
    with (
        pytest.raises(MinilmError, match=r"cannot be loaded: model\.safetensors cannot be read") as caught,
        loading("teacher", str(tmp_path)),
    ):
        raise OSError("No such file or directory")
    assert caught.value.hint == "Check its permissions."


def test_too_long_name_is_refused() -> None:
    with pytest.raises(MinilmError, match="the teacher folder cannot be read"), loading("teacher", "x" * 5000):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("error", [None, ValueError])
def test_transformers_is_quiet_only_within_the_block(error: type[Exception] | None) -> None:
    def state() -> tuple[int, bool]:
        return transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()

    before = state()
    with contextlib.suppress(ValueError), quiet():
        assert state() == (logging.ERROR, False)
        if error is not None:
            raise error
    assert state() == before


# --- Model cards -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_card_has_front_matter_and_text(tmp_path: Path, end: str) -> None:
    text = """\ufeff---
license: mit
language:
- en
- no
- [nested]
- ""
- "a\\nb"
model-index: {x: 1.5}
---
# Title
---
more
"""
    (tmp_path / "README.md").write_bytes(text.replace("\n", end).encode())
    card = read_card(str(tmp_path))
    assert card.text == "# Title\n---\nmore\n"
    assert card.word("license") == "mit"
    assert card.words("language") == ["en", "no"]
    assert card.words("model-index") == card.words("missing") == []
    assert card.word("missing") is None
    assert card.entries["model-index"] == {"x": "1.5"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", Card()),
        (b"# Title\n---\n", Card(text="# Title\n---\n")),
        (b"---\n---\ntext", Card(text="text")),
        (b"---\nlicense: mit\n", Card(text="---\nlicense: mit\n")),
        (b"---\nlicense: mit\n---", Card({"license": "mit"})),
        (b"---\n- a\n---\ntext", Card(text="text")),
        (b"---\na: !!python/name:os.system x\n---\n", Card({"a": "x"})),
        (b"---\na: [\n---\ntext", Card(text="text")),
        (b"---\na: " + b"[" * 2_000 + b"\n---\ntext", Card(text="text")),
        (b'---\nb: x\na: "\\uD800"\n---\ntext', None),
        (b"---\na: &a [*a]\n---\ntext", None),
        (b"---\na: \xff\n---\n\xff", Card({"a": "\ufffd"}, "\ufffd")),
    ],
)
@pytest.mark.parametrize("in_c", [True, False])
def test_a_broken_card_is_no_error(
    tmp_path: Path, content: bytes, expected: Card | None, in_c: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_c:
        monkeypatch.delattr(yaml, "CBaseLoader", raising=False)
    (tmp_path / "README.md").write_bytes(content)
    card = read_card(str(tmp_path))
    assert expected is None or card == expected
    "".join(card.words("a")).encode()


@pytest.mark.usefixtures("ordinary_user")
def test_no_card_is_no_error(tmp_path: Path) -> None:
    assert read_card(str(tmp_path)) == read_card("no/such-model") == read_card("no/such-model", "main") == Card()
    (tmp_path / "README.md").mkdir()
    assert read_card(str(tmp_path)) == Card()
    (tmp_path / "README.md").rmdir()
    (tmp_path / "README.md").touch(mode=0)
    assert read_card(str(tmp_path)) == Card()
