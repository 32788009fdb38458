from __future__ import annotations

import contextlib
import logging
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertTokenizer
from transformers.utils import logging as transformers_logging

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.hub import load_tokenizer, loading, quiet, reason, tokenizer_info

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b")


def test_a_tokenizer_is_known_by_its_vocabulary_wherever_it_lies(tiny_teacher: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(tiny_teacher, tmp_path / "copied")
    one, other = (tokenizer_info(load_tokenizer(str(folder))) for folder in (tiny_teacher, copied))
    assert one == other


def test_another_vocabulary_of_the_same_size_is_another() -> None:
    one, other = (
        tokenizer_info(BertTokenizer(vocab={word: number for number, word in enumerate(words)}))
        for words in (WORDS, (*WORDS[:5], "b", "a"))
    )
    assert one.vocabulary_size == other.vocabulary_size == 7
    assert one.vocabulary_sha256 != other.vocabulary_sha256


def test_the_largest_id_counts_where_ids_have_gaps() -> None:
    vocabulary = {word: number for number, word in enumerate(WORDS)} | {"c": 100}
    assert tokenizer_info(BertTokenizer(vocab=vocabulary)).vocabulary_size == 101


def test_a_tokenizer_says_its_name_revision_and_special_ids(tiny_teacher: Path) -> None:
    info = tokenizer_info(AutoTokenizer.from_pretrained(tiny_teacher), "some/name", "main")
    assert (info.name, info.revision, info.special_ids) == ("some/name", "main", [0, 1, 2, 3, 4])


def test_a_folder_without_a_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="the tokenizer cannot be loaded") as caught:
        load_tokenizer(str(tmp_path))
    assert caught.value.where == str(tmp_path)


@pytest.mark.parametrize(
    "error",
    [OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError, EOFError, AssertionError, ZeroDivisionError],
)
def test_a_failure_to_load_is_told_in_one_line_with_a_hint(error: type[Exception]) -> None:
    with pytest.raises(MinilmError) as caught, loading("teacher", "some/name"):
        raise error("\n  it is broken  \nand so on")
    assert "\n" not in caught.value.message
    assert "broken" in caught.value.message
    assert caught.value.where == "some/name"
    assert caught.value.hint is not None


def test_an_error_that_is_told_already_is_left_as_it_is() -> None:
    told = MinilmError("told", where="here")
    with pytest.raises(MinilmError) as caught, loading("teacher", "some/name"):
        raise told
    assert caught.value is told


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(MinilmError, match="there is no such teacher folder"),
        loading("teacher", str(tmp_path / "file")),
    ):
        pass


@pytest.mark.parametrize(
    ("error", "said"),
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
def test_what_a_library_says_is_told_in_a_line(error: Exception, said: str) -> None:
    assert reason(error) == said


@pytest.mark.parametrize("kind", ["teacher", "tokenizer"])
@pytest.mark.parametrize("bits", [0o000, 0o300, 0o600])
@pytest.mark.usefixtures("ordinary_user")
def test_a_folder_that_may_not_be_looked_into_is_refused(tmp_path: Path, kind: str, bits: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").touch()
    folder.chmod(bits)
    with (
        pytest.raises(MinilmError, match=f"the {kind} folder cannot be read: Permission denied") as caught,
        loading(kind, str(folder)),
    ):
        pytest.fail("it was looked into")
    assert caught.value.where == str(folder)


@pytest.mark.usefixtures("ordinary_user")
def test_a_file_that_may_not_be_read_is_named_whatever_the_library_says(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch(mode=0)
    (tmp_path / "config.json").touch()
    with (
        pytest.raises(MinilmError, match=r"cannot be loaded: model\.safetensors cannot be read") as caught,
        loading("teacher", str(tmp_path)),
    ):
        raise OSError("No such file or directory")
    assert caught.value.hint == "Check its permissions."


def test_a_name_too_long_for_a_file_is_refused() -> None:
    with pytest.raises(MinilmError, match="the teacher folder cannot be read"), loading("teacher", "x" * 5000):
        pytest.fail("it was loaded")


@pytest.mark.parametrize("error", [None, ValueError])
def test_transformers_is_quiet_within_and_as_it_was_after(error: type[Exception] | None) -> None:
    def state() -> tuple[int, bool]:
        return transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()

    before = state()
    with contextlib.suppress(ValueError), quiet():
        assert state() == (logging.ERROR, False)
        if error is not None:
            raise error
    assert state() == before
