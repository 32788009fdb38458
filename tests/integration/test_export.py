"""Exports: their weights, their card, their verification, and the upload to the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.progress import NoProgress
from minilm_cli.export import exporting, hf
from minilm_cli.export.formats import Format, Source
from minilm_cli.runs import checkpoint
from minilm_cli.settings.export import ExportSettings
from minilm_cli.training import run

from .conftest import Settings, metrics


def test_the_last_checkpoint_is_exported_into_the_run_s_folder(copied_run: Path) -> None:
    report = exporting.export(ExportSettings(run=copied_run))
    assert (report.path, report.step, report.url) == (copied_run / "export" / "hf", 6, None)
    assert report.largest_difference < 1e-5
    names = {path.name for path in report.path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "loss.svg"} <= names
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (report.path, copied_run / "student"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("wanted", [3, 4, "best"])
def test_another_checkpoint_is_exported_with_its_weights(copied_run: Path, wanted: int | str) -> None:
    settings = ExportSettings.model_validate({"run": copied_run, "checkpoint": wanted})
    report = exporting.export(settings)
    evaluations = {record["step"]: record["eval_loss"] for record in metrics(copied_run) if "eval_loss" in record}
    del evaluations[0]
    assert report.step == (min(evaluations, key=evaluations.__getitem__) if wanted == "best" else wanted)
    exported = load_file(report.path / "model.safetensors")
    checkpoint = load_file(copied_run / "checkpoints" / f"step-{report.step:08}" / "student.safetensors")
    assert all(torch.equal(tensor, exported[name]) for name, tensor in checkpoint.items() if name in exported)


def test_another_checkpoint_is_picked_if_a_training_process_removes_the_first(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = exporting.write_verified
    picked: list[int] = []

    def remove_the_first(form: Format, source: Source, folder: Path) -> float:
        picked.append(source.checkpoint.step)
        if len(picked) == 1:
            shutil.rmtree(source.checkpoint.path)
        return write(form, source, folder)

    monkeypatch.setattr(exporting, "write_verified", remove_the_first)
    assert exporting.export(ExportSettings(run=copied_run)).step == 4
    assert picked == [6, 4]
    assert [path.name for path in (copied_run / "export").iterdir()] == ["hf"]
    picked.clear()
    with pytest.raises(MinilmError, match="there is no checkpoint of step 3"):
        exporting.export(ExportSettings(run=copied_run, checkpoint=3, force=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_exported_in_the_chosen_dtype(copied_run: Path, dtype: str) -> None:
    report = exporting.export(ExportSettings.model_validate({"run": copied_run, "dtype": dtype}))
    weights = load_file(report.path / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {getattr(torch, dtype)}
    assert AutoModel.from_pretrained(report.path).dtype == getattr(torch, dtype)
    assert dtype in (report.path / "README.md").read_text(encoding="utf-8")


def test_an_existing_export_is_replaced_only_with_force(copied_run: Path) -> None:
    first = exporting.export(ExportSettings(run=copied_run)).path
    (first / "mine.txt").write_text("kept", encoding="utf-8")
    with pytest.raises(MinilmError, match="exists already"):
        exporting.export(ExportSettings(run=copied_run))
    assert (first / "mine.txt").exists()
    assert exporting.export(ExportSettings(run=copied_run, checkpoint=4, force=True)).step == 4
    assert not (first / "mine.txt").exists()
    assert [path.name for path in first.parent.iterdir()] == ["hf"]


def test_the_tokenizer_is_the_teacher_s(copied_run: Path, tiny_teacher: Path) -> None:
    folder = exporting.export(ExportSettings(run=copied_run)).path
    text = "the people of this world, and their work"
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (folder, tiny_teacher))
    assert ours(text) == theirs(text)
    assert ours.get_vocab() == theirs.get_vocab()


@pytest.mark.parametrize("is_old", [False, True])
def test_nothing_of_our_loading_is_exported(copied_run: Path, tiny_teacher: Path, is_old: bool) -> None:
    file = copied_run / "tokenizer" / "tokenizer_config.json"
    saved = json.loads(file.read_text(encoding="utf-8"))
    teacher_s = json.loads((tiny_teacher / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert saved == teacher_s
    if is_old:
        file.write_text(json.dumps(saved | {"is_local": True, "local_files_only": False}), encoding="utf-8")
    folder = exporting.export(ExportSettings(run=copied_run)).path
    assert json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")) == teacher_s
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    teacher_config = json.loads((tiny_teacher / "config.json").read_text(encoding="utf-8"))
    assert config.keys() == teacher_config.keys()
    student_config = {path.name: path.read_bytes() for path in (copied_run / "student").glob("*.json")}
    assert "is_local" not in student_config["tokenizer_config.json"].decode()
    assert student_config["config.json"] == (folder / "config.json").read_bytes()
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"format": "pt"}


def test_the_card_describes_the_training(copied_run: Path, finished_run: Path) -> None:
    folder = exporting.export(ExportSettings(run=copied_run)).path
    card = (folder / "README.md").read_text(encoding="utf-8")
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "transformers"
    plan = json.loads((copied_run / "plan.json").read_text(encoding="utf-8"))
    assert plan["teacher"]["name"] in text
    assert "AutoModel.from_pretrained" in text
    assert "(loss.svg)" in text
    records = metrics(copied_run)
    for record in (records[0], records[-1]):
        assert f"| {record['eval_loss']:.4f} |" in text
    for name in plan["student"]["untrained"]:
        assert f"- `{name}`\n" in text
    assert "encoder.layer.1.attention.output.dense.weight" in plan["student"]["untrained"]
    assert f"{len(plan['student']['untrained'])} of {plan['student']['tensors']} tensors" in text
    # No local folder is published.
    assert str(finished_run.parent) not in card


def test_the_loss_curve_is_an_svg_picture(copied_run: Path) -> None:
    folder = exporting.export(ExportSettings(run=copied_run)).path
    picture = ET.fromstring((folder / "loss.svg").read_text(encoding="utf-8"))
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    lines = picture.findall("{http://www.w3.org/2000/svg}polyline")
    counts = [len(line.attrib["points"].split()) for line in lines]
    records = metrics(copied_run)
    assert counts == [sum("loss" in record for record in records), sum("eval_loss" in record for record in records)]


def test_a_run_without_held_out_sequences_is_exported(tmp_path: Path, small_settings: Settings) -> None:
    folder = run.distill(small_settings(tmp_path / "run", evaluation__fraction=0.0), NoProgress()).path
    assert not any("eval_loss" in record for record in metrics(folder))
    assert exporting.export(ExportSettings(run=folder)).step == 6
    with pytest.raises(MinilmError, match="no checkpoint was evaluated"):
        exporting.export(ExportSettings(run=folder, checkpoint="best", output=tmp_path / "best"))


@pytest.mark.parametrize("change", ["shape", "missing", "unknown"])
def test_a_checkpoint_of_another_student_is_refused(copied_run: Path, change: str) -> None:
    path = copied_run / "checkpoints" / "step-00000006"
    weights = load_file(path / "student.safetensors")
    name = min(weights)
    if change == "shape":
        weights[name] = torch.zeros(3, 2, 1)
    elif change == "missing":
        del weights[name]
    else:
        name = "a.colour"
        weights[name] = torch.zeros(1)
    checkpoint.save(copied_run / "checkpoints", 6, {"student": weights}, {})
    with pytest.raises(MinilmError, match=f"the checkpoint is of another student: {name} is "):
        exporting.export(ExportSettings(run=copied_run))
    assert not (copied_run / "export").exists()


def test_an_export_whose_outputs_are_not_finite_fails(copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path, **options: object) -> torch.nn.Module:
        model: torch.nn.Module = AutoModel.from_pretrained(folder, **options)
        model.get_parameter("embeddings.LayerNorm.bias").data.fill_(torch.nan)
        return model

    monkeypatch.setattr(hf, "AutoModel", SimpleNamespace(from_pretrained=broken))
    with pytest.raises(RunError, match="does not compute what the checkpoint computes"):
        exporting.export(ExportSettings(run=copied_run))
    assert not (copied_run / "export").exists()


def test_an_export_with_other_outputs_fails_and_leaves_no_files(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = AutoModel.from_pretrained

    def load_wrong(*words: object, **options: object) -> torch.nn.Module:
        model = load(*words, **options)
        with torch.no_grad():
            model.get_parameter("embeddings.LayerNorm.weight").mul_(1.1)
        return model

    monkeypatch.setattr(hf.AutoModel, "from_pretrained", load_wrong)
    with pytest.raises(RunError, match="does not compute what the checkpoint computes"):
        exporting.export(ExportSettings(run=copied_run))
    assert not (copied_run / "export").exists()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Mapping[str, object]]]:
    """The calls that would reach the Hub."""
    calls: list[tuple[str, Mapping[str, object]]] = []

    def create_repo(_: object, repo_id: str, **options: object) -> str:
        calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(_: object, **options: object) -> None:
        calls.append(("upload_folder", options))

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    return calls


@pytest.mark.parametrize("private", [False, True])
def test_an_export_is_uploaded(copied_run: Path, hub: list[tuple[str, Mapping[str, object]]], private: bool) -> None:
    report = exporting.export(ExportSettings(run=copied_run, push_to_hub="me/student", private=private))
    assert report.url == "https://huggingface.co/me/student"
    (created, creation), (uploaded, upload) = hub
    assert (created, uploaded) == ("create_repo", "upload_folder")
    assert (creation["repo_id"], creation["private"], creation["exist_ok"]) == ("me/student", private, True)
    assert upload["repo_id"] == "me/student"
    assert Path(str(upload["folder_path"])) == report.path


def test_a_failed_upload_is_reported_and_keeps_the_export(copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no way to the Hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(RunError, match="upload to me/student failed") as failed:
        exporting.export(ExportSettings(run=copied_run, push_to_hub="me/student"))
    assert "HF_TOKEN" in str(failed.value)
    assert issubclass(HfHubHTTPError, OSError)
    AutoModel.from_pretrained(copied_run / "export" / "hf")
