from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.progress import NoProgress
from minilm_cli.corpus import sources
from minilm_cli.corpus.tokenize import tokenize
from minilm_cli.settings.tokenize import TokenizeSettings

TEXT = b"the of and\n\nto in is was\nit that he\n" * 30


def tokenized(tokenizer: Path, *inputs: Path, output: str = "tokens") -> dict[str, bytes]:
    """The bytes of the store that is made of these files."""
    folder = inputs[0].parent / output
    settings = TokenizeSettings(inputs=tuple(map(str, inputs)), tokenizer=str(tokenizer), output=folder, workers=1)
    tokenize(settings, NoProgress())
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("limit", [1, 10, 100])
def test_lines_that_are_handed_over_early_give_the_same_tokens(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    file = tmp_path / "corpus.txt"
    file.write_bytes(TEXT)
    whole = tokenized(tiny_teacher, file)
    monkeypatch.setattr(sources, "_BATCH_BYTES", limit)
    assert tokenized(tiny_teacher, file, output="in-parts") == whole


def test_a_name_in_capitals_is_read_as_one_in_small_letters(tiny_teacher: Path, tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "%s"}\n' % line for line in TEXT.splitlines())
    files = {
        "corpus.txt": TEXT,
        "CORPUS.TXT.GZ": gzip.compress(TEXT),
        "CORPUS.JSONL": lines,
        "CORPUS.JSONL.GZ": gzip.compress(lines),
    }
    found = []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        found.append(tokenized(tiny_teacher, tmp_path / name, output=f"of-{Path(name).stem}-{len(found)}"))
    assert found[1:] == found[:1] * 3


@pytest.mark.parametrize(
    ("text", "output", "named"),
    [
        ("folder/corpus.txt", "folder/corpus.txt", "corpus.txt"),
        ("folder/corpus.txt", "folder", "corpus.txt"),
        ("corpus.txt", "folder", "folder"),
    ],
)
def test_what_is_read_is_not_replaced(tiny_teacher: Path, tmp_path: Path, text: str, output: str, named: str) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "folder")
    for name in ("manifest.json", "shard-00000.npy"):
        (folder / name).touch()  # as if minilm had made it
    (tmp_path / text).write_bytes(TEXT)
    settings = TokenizeSettings(
        inputs=(str(tmp_path / text),), tokenizer=str(folder), output=tmp_path / output, workers=1, force=True
    )
    with pytest.raises(MinilmError, match=f"this output would replace .*{named}, which is an input") as caught:
        tokenize(settings, NoProgress())
    assert caught.value.where == str(tmp_path / output)
    assert (tmp_path / text).read_bytes() == TEXT


def test_a_link_to_what_is_read_is_replaced_and_what_is_read_stays(tiny_teacher: Path, tmp_path: Path) -> None:
    file, link = tmp_path / "corpus.txt", tmp_path / "link"
    file.write_bytes(TEXT)
    link.symlink_to(file)
    settings = TokenizeSettings(inputs=(str(file),), tokenizer=str(tiny_teacher), output=link, workers=1, force=True)
    assert tokenize(settings, NoProgress()).path == link
    assert link.is_dir()
    assert not link.is_symlink()
    assert file.read_bytes() == TEXT
