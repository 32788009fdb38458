"""The format sentence-transformers: pooling taken from the teacher, and the folder that comes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.progress import NoProgress
from minilm_cli.export import exporting, sentence_transformers
from minilm_cli.export.exporting import ExportReport
from minilm_cli.models.sentence_head import Dense, Normalize, SentenceHead, write_head
from minilm_cli.settings.export import ExportSettings
from minilm_cli.training import run

from .conftest import Settings

pytestmark = [pytest.mark.usefixtures("same_process"), pytest.mark.slow]

TEXTS = ["the people of this world", "work", "", "their hand " * 60]


def export(model: Path, **settings: Any) -> ExportReport:
    values = {"model": model, "formats": ["sentence-transformers"], **settings}
    return exporting.export(ExportSettings.model_validate(values), NoProgress())


RunOf = Callable[[SentenceHead], Path]


@pytest.fixture
def run_of(tmp_path: Path, tiny_teacher: Path, small_settings: Settings) -> RunOf:
    """Trains a student of a teacher that has the files of sentence-transformers for this head."""

    def train(head: SentenceHead) -> Path:
        teacher = Path(shutil.copytree(tiny_teacher, tmp_path / "teacher"))
        write_head(head, teacher, hidden_size=48)
        settings = small_settings(tmp_path / "run", teacher__name=str(teacher), training__steps=1)
        return run.distill(settings, NoProgress()).path

    return train


def test_pooling_prompts_and_length_are_the_teacher_s(run_of: RunOf, tmp_path: Path) -> None:
    head = SentenceHead(("cls",), (Normalize(),), prompts={"query": "find: "}, similarity="dot", max_length=77)
    folder = run_of(head)
    shutil.rmtree(tmp_path / "teacher")  # the run has what it needs
    exported = export(folder).path
    library = SentenceTransformer(str(exported), device="cpu")
    assert (library.max_seq_length, library.similarity_fn_name, library.prompts["query"]) == (77, "dot", "find: ")
    assert library.get_embedding_dimension() == 24
    model, tokenizer = (
        AutoModel.from_pretrained(folder / "student"),
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
    )
    for text, embedding in zip(TEXTS, library.encode(TEXTS, convert_to_tensor=True), strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, truncation=True, max_length=77, return_tensors="pt")).last_hidden_state
        by_hand = torch.nn.functional.normalize(states[0, 0], dim=0)
        torch.testing.assert_close(embedding, by_hand, rtol=1e-4, atol=1e-5)


def test_runs_of_earlier_versions_ask_the_teacher(run_of: RunOf, tmp_path: Path) -> None:
    folder = run_of(SentenceHead(("cls",), max_length=77))
    shutil.rmtree(folder / "sentence-head")
    pooling = json.loads((export(folder).path / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    assert (pooling["pooling_mode_cls_token"], pooling["pooling_mode_mean_tokens"]) == (True, False)
    shutil.rmtree(tmp_path / "teacher")
    with pytest.raises(MinilmError, match="nothing says how"):
        export(folder, force=True)


def test_pooling_can_be_chosen(run_of: RunOf) -> None:
    folder = run_of(SentenceHead(("cls",), prompts={"query": "find: "}, max_length=77))
    library = SentenceTransformer(str(export(folder, pooling="mean").path), device="cpu")
    assert (library.max_seq_length, library.prompts["query"]) == (77, "find: ")
    assert library[1].pooling_mode == "mean"
    assert torch.allclose(library.encode(TEXTS, convert_to_tensor=True).norm(dim=1), torch.ones(len(TEXTS)))


def test_unknown_modules_of_the_teacher_do_not_stop_the_training(
    run_of: RunOf,
) -> None:
    class LSTM(Normalize):
        """Its name is written to modules.json."""

    folder = run_of(SentenceHead(("cls",), (LSTM(),)))
    assert not (folder / "sentence-head").exists()
    with pytest.raises(MinilmError, match="have a LSTM module"):
        export(folder)
    assert export(folder, pooling="mean").path.is_dir()


def test_a_dense_layer_of_another_width_is_left_out(run_of: RunOf, caplog: pytest.LogCaptureFixture) -> None:
    layer = Dense(torch.ones(7, 48), None, "torch.nn.modules.linear.Identity")
    exported = export(run_of(SentenceHead(("mean",), (layer, Normalize())))).path
    assert "dense layer does not fit a model 24 wide" in caplog.text
    assert "The last part of this student was not trained, as it began with random weights" in caplog.text
    library = SentenceTransformer(str(exported), device="cpu")
    assert [type(module).__name__ for module in library] == ["Transformer", "Pooling", "Normalize"]


def test_pooling_that_is_chosen_leaves_out_a_dense_layer(run_of: RunOf, caplog: pytest.LogCaptureFixture) -> None:
    layer = Dense(torch.ones(7, 24), None, "torch.nn.modules.linear.Identity")
    exported = export(run_of(SentenceHead(("mean",), (layer,))), pooling="cls").path
    assert "--pooling leaves out the dense layer" in caplog.text
    assert not (exported / "2_Dense").exists()


def test_texts_are_made_lower_case_if_the_teacher_s_files_say_so(
    run_of: RunOf, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(SentenceHead(("mean",), (Normalize(),), max_length=77, lowercase=True))
    AutoTokenizer.from_pretrained(run / "tokenizer", do_lower_case=False).save_pretrained(run / "tokenizer")
    exported = export(run, formats=["sentence-transformers", "onnx"]).path
    library = SentenceTransformer(str(exported / "sentence-transformers"), device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(exported / "onnx")
    assert tokenizer("The People")["input_ids"] != tokenizer("the people")["input_ids"]
    first, second = library.encode(["The People", "the people"])
    np.testing.assert_allclose(first, second, rtol=1e-6)
    assert "The teacher reads texts in lower case." in caplog.text


def test_an_export_folder_of_transformers_does_not_depend_on_others(run_of: RunOf) -> None:
    run = run_of(SentenceHead(("mean",), (Normalize(),), max_length=20))
    both = export(run, formats=["hf", "sentence-transformers"]).path
    lengths = {
        form: json.loads((both / form / "tokenizer_config.json").read_text(encoding="utf-8"))["model_max_length"]
        for form in ("hf", "sentence-transformers")
    }
    assert lengths["sentence-transformers"] == 20 < lengths["hf"]


def test_a_model_folder_keeps_its_own_head(run_of: RunOf, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layer = Dense(torch.randn(7, 48, generator=torch.Generator().manual_seed(0)), torch.ones(7), "torch.nn.Tanh")
    run_of(SentenceHead(("mean",), (layer, Normalize()), max_length=77))
    exported = export(tmp_path / "teacher").path
    assert "was not trained" not in caplog.text
    first, second = (SentenceTransformer(str(folder), device="cpu") for folder in (tmp_path / "teacher", exported))
    embeddings = first.encode(TEXTS, convert_to_tensor=True)
    assert embeddings.shape == (len(TEXTS), 7)
    torch.testing.assert_close(second.encode(TEXTS, convert_to_tensor=True), embeddings, rtol=1e-4, atol=1e-5)


def test_other_pooling_than_was_said_fails(run_of: RunOf, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_of(SentenceHead(("cls",), (Normalize(),)))

    def write_mean(head: SentenceHead, folder: Path, *, hidden_size: int) -> None:
        write_head(SentenceHead(("mean",), head.layers, max_length=head.max_length), folder, hidden_size=hidden_size)

    monkeypatch.setattr(sentence_transformers, "write_head", write_mean)
    with pytest.raises(RunError, match="does not compute what the model computes"):
        export(folder, formats=["hf", "sentence-transformers"])
    assert not (folder / "export").exists()


def test_the_missing_package_is_named(run_of: RunOf, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_of(SentenceHead(("cls",)))
    monkeypatch.setattr("minilm_cli.base.packages.find_spec", lambda _: None)
    needed = {
        "sentence-transformers": "package sentence-transformers",
        "onnx": "packages onnx, onnxruntime, onnxscript",
    }
    for name, packages in needed.items():
        with pytest.raises(MinilmError, match=f"--format {name} needs the {packages}") as caught:
            export(folder, formats=[name])
        assert caught.value.hint == f"pip install {packages.partition(' ')[2].replace(',', '')}"
