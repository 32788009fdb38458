"""Model cards of real exports: what they inherit, and that the code in them runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from minilm_cli.base.progress import NoProgress
from minilm_cli.export import exporting
from minilm_cli.models.sentence_head import Normalize, SentenceHead, write_head
from minilm_cli.settings.export import ExportSettings
from minilm_cli.training import run

from .conftest import Settings, verify_here

pytestmark = pytest.mark.slow

CARD = """---
license: cc-by-4.0
language: [en, no]
tags: [not-inherited]
---
# Teacher
"""


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, small_settings: Settings) -> dict[str, Path]:
    """The exports of a run whose teacher is a model for sentence embeddings, by format."""
    folder = tmp_path_factory.mktemp("card")
    teacher = shutil.copytree(tiny_teacher, folder / "teacher")
    (teacher / "README.md").write_text(CARD, encoding="utf-8")
    write_head(SentenceHead(("mean",), (Normalize(),), prompts={"query": "the "}), teacher, hidden_size=48)
    done = run.distill(small_settings(folder / "run", teacher__name=str(teacher)), NoProgress())
    formats = ("hf", "sentence-transformers", "onnx")
    settings = ExportSettings(model=done.path, formats=formats)
    with pytest.MonkeyPatch.context() as patch:
        verify_here(patch)
        report = exporting.export(settings, NoProgress())
    return {each.format: each.path for each in report.exports}


def test_the_card_inherits_from_the_card_of_the_teacher(exports: dict[str, Path]) -> None:
    for folder in (*exports.values(), exports["hf"].parents[1] / "student"):
        data = ModelCard((folder / "README.md").read_text(encoding="utf-8")).data
        assert (data.license, data.language, data.base_model) == ("cc-by-4.0", ["en", "no"], None)
        assert "not-inherited" not in data.tags


def test_files_in_the_card_exist(exports: dict[str, Path]) -> None:
    for folder in exports.values():
        text = (folder / "README.md").read_text(encoding="utf-8")
        [picture] = re.findall(r"!\[.*?\]\((.*?)\)", text)
        files = re.findall(r"^\| `(.*?)` \| .* MB \|$", text, flags=re.MULTILINE)
        assert len(files) == 1
        assert all((folder / name).is_file() for name in (picture, *files))


def test_code_in_the_card_runs(exports: dict[str, Path]) -> None:
    found: dict[str, list[Any]] = {}
    for form, folder in exports.items():
        text = (folder / "README.md").read_text(encoding="utf-8").replace("THIS_FOLDER", str(folder))
        for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            if 'backend="onnx"' in code:
                continue  # takes optimum-onnx, which needs an older version of transformers
            names: dict[str, Any] = {}
            exec(code, names)
            found.setdefault(form, []).append(names.get("embeddings", names.get("states")))
    assert found["hf"][0].shape[::2] == (1, 24)
    [one], others = found["sentence-transformers"], found["onnx"]
    assert (one.shape, len(others)) == ((2, 24), 2)
    for other in others:
        assert np.abs(one - np.array(other)).max() < 1e-5
