"""Exports: their weights, their card, their verification, and the upload to the Hub."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
)

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.progress import NoProgress
from minilm_cli.cli.demo import SAMPLE
from minilm_cli.export import consumers, exporting, verify
from minilm_cli.export import source as source_module
from minilm_cli.export.exporting import ExportReport
from minilm_cli.export.hf import HuggingFace
from minilm_cli.export.source import Source, source_of_checkpoint, source_of_run
from minilm_cli.runs import checkpoint
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.lookup import pick_checkpoint
from minilm_cli.settings.export import ExportSettings
from minilm_cli.tokens.store import TokenStore
from minilm_cli.training import run
from minilm_cli.training.batches import BatchStream
from tests import tiny

from .conftest import Settings, metrics

pytestmark = pytest.mark.usefixtures("same_process")


def export(**settings: Any) -> ExportReport:
    return exporting.export(ExportSettings.model_validate(settings), NoProgress())


def difference(report: ExportReport) -> float:
    return report.exports[0].verified.largest_difference


def test_the_last_checkpoint_is_exported_into_the_run_s_folder(copied_run: Path) -> None:
    report = export(model=copied_run)
    assert (report.path, report.step, report.url) == (copied_run / "export" / "hf", 6, None)
    assert difference(report) < 1e-5
    names = {path.name for path in report.path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "loss.svg"} <= names
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (report.path, copied_run / "student"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("wanted", [3, 4, "best"])
def test_another_checkpoint_is_exported_with_its_weights(copied_run: Path, wanted: int | str) -> None:
    report = export(model=copied_run, checkpoint=wanted)
    evaluations = {record["step"]: record["eval_loss"] for record in metrics(copied_run) if "eval_loss" in record}
    del evaluations[0]
    assert report.step == (min(evaluations, key=evaluations.__getitem__) if wanted == "best" else wanted)
    exported = load_file(report.path / "model.safetensors")
    checkpoint = load_file(copied_run / "checkpoints" / f"step-{report.step:08}" / "student.safetensors")
    assert all(torch.equal(tensor, exported[name]) for name, tensor in checkpoint.items() if name in exported)


def test_another_checkpoint_is_picked_if_a_training_process_removes_the_first(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = checkpoint.Checkpoint.tensors
    picked: list[int] = []

    def remove_the_first(chosen: checkpoint.Checkpoint, name: str) -> Mapping[str, torch.Tensor]:
        picked.append(chosen.step)
        if len(picked) == 1:
            shutil.rmtree(chosen.path)
        return read(chosen, name)

    monkeypatch.setattr(checkpoint.Checkpoint, "tensors", remove_the_first)
    assert export(model=copied_run).step == 4
    assert picked == [6, 4]
    assert [path.name for path in (copied_run / "export").iterdir()] == ["hf"]
    picked.clear()
    with pytest.raises(MinilmError, match="there is no checkpoint of step 3"):
        export(model=copied_run, checkpoint=3, force=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_exported_in_the_chosen_dtype(copied_run: Path, dtype: str) -> None:
    report = export(model=copied_run, dtype=dtype)
    weights = load_file(report.path / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {getattr(torch, dtype)}
    assert AutoModel.from_pretrained(report.path).dtype == getattr(torch, dtype)
    assert dtype in (report.path / "README.md").read_text(encoding="utf-8")


def test_an_existing_export_is_replaced_only_with_force(copied_run: Path) -> None:
    first = export(model=copied_run).path
    (first / "mine.txt").write_text("kept", encoding="utf-8")
    with pytest.raises(MinilmError, match="exists already"):
        export(model=copied_run)
    assert (first / "mine.txt").exists()
    assert export(model=copied_run, checkpoint=4, force=True).step == 4
    assert not (first / "mine.txt").exists()
    assert [path.name for path in first.parent.iterdir()] == ["hf"]


def test_the_tokenizer_is_the_teacher_s(copied_run: Path, tiny_teacher: Path) -> None:
    folder = export(model=copied_run).path
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
    folder = export(model=copied_run).path
    exported = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert exported == teacher_s | {"model_max_length": 128}  # what the student reads
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    teacher_config = json.loads((tiny_teacher / "config.json").read_text(encoding="utf-8"))
    assert config.keys() == teacher_config.keys()
    student_config = {path.name: path.read_bytes() for path in (copied_run / "student").glob("*.json")}
    assert "is_local" not in student_config["tokenizer_config.json"].decode()
    assert student_config["config.json"] == (folder / "config.json").read_bytes()
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"format": "pt"}


def test_the_card_describes_the_training(copied_run: Path, finished_run: Path) -> None:
    folder = export(model=copied_run).path
    card = (folder / "README.md").read_text(encoding="utf-8")
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "transformers"
    plan = json.loads((copied_run / "plan.json").read_text(encoding="utf-8"))
    assert plan["teacher"]["name"] in text
    assert "AutoModel.from_pretrained" in text
    assert "(loss.png)" in text
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
    folder = export(model=copied_run).path
    picture = ET.fromstring((folder / "loss.svg").read_text(encoding="utf-8"))
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    lines = picture.findall("{http://www.w3.org/2000/svg}polyline")
    counts = [len(line.attrib["points"].split()) for line in lines]
    records = metrics(copied_run)
    assert counts == [sum("loss" in record for record in records), sum("eval_loss" in record for record in records)]


def test_a_run_without_held_out_sequences_is_exported(tmp_path: Path, small_settings: Settings) -> None:
    folder = run.distill(small_settings(tmp_path / "run", evaluation__fraction=0.0), NoProgress()).path
    assert not any("eval_loss" in record for record in metrics(folder))
    assert export(model=folder).step == 6
    with pytest.raises(MinilmError, match="no checkpoint was evaluated"):
        export(model=folder, checkpoint="best", output=tmp_path / "best")


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
        export(model=copied_run)
    assert not (copied_run / "export").exists()


def breaks(monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object]) -> None:
    """Change every export after it is written and before it is verified."""
    write = HuggingFace.write

    def write_damaged(form: HuggingFace, source: Source, folder: Path) -> None:
        write(form, source, folder)
        damage(folder)

    monkeypatch.setattr(HuggingFace, "write", write_damaged)


def fill(value: float) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights["embeddings.LayerNorm.bias"].fill_(value)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return damage


@pytest.mark.parametrize(("value", "found"), [(0.5, r"[0-9.]+"), (float("nan"), "inf")])
def test_an_export_with_other_outputs_fails_and_leaves_no_files(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch, value: float, found: str
) -> None:
    breaks(monkeypatch, fill(value))
    with pytest.raises(
        RunError, match=rf"differ by {found} of the largest.* The text, (alone|in a padded batch): "
    ) as caught:
        export(model=copied_run)
    assert caught.value.where == str(copied_run / "export" / "hf")
    assert not (copied_run / "export").exists()


def test_a_difference_only_in_a_padded_batch_is_found(copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = consumers.transformers

    def load_without_mask(folder: Path, longest: int | None) -> consumers.Encode:
        encode = load(folder, longest)

        def encode_padding_too(texts: list[str]) -> list[consumers.Outputs]:
            with torch.no_grad():  # the mask is ignored in a batch
                found = encode(texts)
            return [consumers.Outputs(each.ids, each.states * (len(texts) == 1), None) for each in found]

        return encode_padding_too

    monkeypatch.setitem(consumers.CONSUMERS, "transformers", load_without_mask)
    with pytest.raises(RunError, match="The text, in a padded batch: ''"):
        export(model=copied_run)


def test_a_difference_only_in_pairs_of_texts_is_found(copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights["embeddings.token_type_embeddings.weight"][1, 0] += 1
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    breaks(monkeypatch, damage)
    with pytest.raises(RunError, match=r"The text, .*: .* and '"):  # of both pairs, that with the larger difference
        export(model=copied_run)


def test_the_largest_difference_is_reported(copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = consumers.transformers

    def load_wrong(folder: Path, longest: int | None) -> consumers.Encode:
        encode = load(folder, longest)

        def encode_wrongly(texts: list[str]) -> list[consumers.Outputs]:
            factor = {"": 1.1, "a": 1.5}.get(str(texts[0]), 1.0) if len(texts) == 1 else 1.0
            return [consumers.Outputs(each.ids, each.states * factor, None) for each in encode(texts)]

        return encode_wrongly

    monkeypatch.setitem(consumers.CONSUMERS, "transformers", load_wrong)
    with pytest.raises(RunError, match=r"differ by 0\.5 of the largest.* The text, alone: 'a'"):
        export(model=copied_run)


def test_a_model_that_reads_much_is_compared_on_shorter_texts(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(copied_run)
    source = source_of_run(run, pick_checkpoint(run, "last"))

    def longest() -> int:
        return max(
            len(source.tokenizer(text)["input_ids"]) for text in [*verify.awkward_texts(source), *source.texts(8)]
        )

    assert source.longest is not None
    assert longest() > source.longest
    for module in (verify, source_module):
        monkeypatch.setattr(module, "LONGEST_TEXT", 20)
    assert 20 <= longest() <= 20 + 2  # special tokens


def test_an_export_with_another_tokenizer_fails(copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swap(folder: Path) -> None:
        tokens = [*tiny.SPECIAL_TOKENS, *reversed(tiny.VOCABULARY[len(tiny.SPECIAL_TOKENS) :])]
        BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}).save_pretrained(folder)

    breaks(monkeypatch, swap)
    with pytest.raises(RunError, match=r"the exported tokenizer gives other tokens\. The text, alone: 'a'"):
        export(model=copied_run)


def test_a_consumer_in_a_new_process_fails_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # in another process after all
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizers.py").write_text("raise SystemExit('a file of the current folder')")
    (tmp_path / "task.json").write_text("{}")
    assert consumers.run_task_elsewhere(tmp_path / "task.json", tmp_path / "result") == "KeyError: 'consumer'"
    killed = tmp_path / "killed"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    failure = consumers.run_task_elsewhere(tmp_path / "task.json", tmp_path / "result")
    assert failure == "its process was ended by SIGKILL; there may be too little memory"


def test_an_export_that_cannot_be_loaded_fails(copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # in a new process, as users do
    breaks(monkeypatch, lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"))
    with pytest.raises(RunError, match=r"the export cannot be used with transformers: .*Error"):
        export(model=copied_run)
    assert not (copied_run / "export").exists()


def test_it_opens_with_a_head_for_a_task_which_is_new(copied_run: Path) -> None:
    folder = export(model=copied_run).path
    for family, new in ((AutoModelForMaskedLM, "cls.predictions"), (AutoModelForSequenceClassification, "classifier")):
        _, report = family.from_pretrained(folder, output_loading_info=True)
        assert report["missing_keys"]
        assert all(name.startswith(new) for name in report["missing_keys"])


def test_weights_take_as_many_bytes_as_the_parameters_say(copied_run: Path) -> None:
    parameters = json.loads((copied_run / "plan.json").read_text(encoding="utf-8"))["student"]["parameters"]
    for dtype, size in (("float32", 4), ("float16", 2)):
        folder = export(model=copied_run, dtype=dtype, force=True).path
        names = 10_000  # of the tensors, and their places
        assert parameters * size <= (folder / "model.safetensors").stat().st_size <= parameters * size + names


def test_several_formats_are_exported_at_once(copied_run: Path, tmp_path: Path) -> None:
    formats = ["hf", "sentence-transformers"]
    report = export(model=copied_run, formats=formats, pooling="mean")
    assert report.path == copied_run / "export"
    assert [(each.format, each.path) for each in report.exports] == [(name, report.path / name) for name in formats]
    with pytest.raises(MinilmError, match="exists already"):
        export(model=copied_run, formats=["onnx", "hf"], pooling="mean")
    assert sorted(path.name for path in report.path.iterdir()) == sorted(formats)
    elsewhere = export(model=copied_run, formats=formats, pooling="cls", output=tmp_path / "both")
    assert [each.path for each in elsewhere.exports] == [tmp_path / "both" / name for name in formats]


def test_a_model_folder_is_exported(copied_run: Path) -> None:
    report = export(model=copied_run / "student")
    assert report.path == copied_run / "student-export" / "hf"
    assert report.step is None
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (report.path, copied_run / "student"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert export(model=copied_run / "student", force=True).path == report.path


@pytest.mark.parametrize(
    ("family", "head"), [(AutoModelForMaskedLM, "cls"), (AutoModelForSequenceClassification, "classifier")]
)
def test_a_model_folder_with_a_head_is_exported_without_it(
    tmp_path: Path, tiny_teacher: Path, caplog: pytest.LogCaptureFixture, family: Any, head: str
) -> None:
    folder = Path(shutil.copytree(tiny_teacher, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    family.from_pretrained(tiny_teacher).save_pretrained(folder, max_shard_size="50KB")
    assert len([*folder.glob("model-*.safetensors")]) > 1
    report = export(model=folder)
    assert f"only the encoder is exported, without its head: {head}" in caplog.text
    assert json.loads((report.path / "config.json").read_text(encoding="utf-8"))["architectures"] == ["BertModel"]
    ours, theirs = (load_file(place / "model.safetensors") for place in (report.path, tiny_teacher))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items() if "pooler" not in name)


def test_a_model_folder_is_checked(copied_run: Path) -> None:
    with pytest.raises(MinilmError, match="a model folder has no checkpoints"):
        export(model=copied_run / "student", checkpoint="best")
    with pytest.raises(MinilmError, match="nothing says how the model makes sentence embeddings"):
        export(model=copied_run / "student", formats=["sentence-transformers"])
    weights = load_file(copied_run / "student" / "model.safetensors")
    del weights["encoder.layer.0.attention.self.query.weight"]
    save_file(weights, copied_run / "student" / "model.safetensors", {"format": "pt"})
    with pytest.raises(MinilmError, match=r"encoder\.layer\.0\.attention\.self\.query\.weight is missing"):
        export(model=copied_run / "student")
    assert not (copied_run / "student-export").exists()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"quantize": "int8"}, "--quantize applies to ONNX"),
        ({"pooling": "mean"}, "--pooling applies to exports that make sentence embeddings"),
        ({"quantize": "int8", "formats": ["onnx"], "dtype": "float16"}, "--quantize starts from weights in float32"),
        ({"accept_loss": True, "formats": ["onnx"]}, "--accept-loss applies to a quantised model"),
        ({"formats": ["onnx"], "dtype": "bfloat16"}, "ONNX Runtime does not compute in bfloat16"),
        ({"formats": ["sentence-transformers"]}, "nothing says how the teacher makes sentence embeddings"),
    ],
)
def test_options_that_do_not_go_together_are_refused(copied_run: Path, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(MinilmError, match=reason):
        export(model=copied_run, **settings)
    assert not (copied_run / "export").exists()


def test_the_texts_of_the_verification_are_held_out_ones_first(copied_run: Path) -> None:
    found = RunFolder(copied_run)
    settings = found.settings()
    store = TokenStore(settings.data.paths[0])
    stream = BatchStream(
        store, seed=settings.training.seed, batch_size=6, micro_batch_tokens=64, max_length=32, held_out_fraction=0.05
    )
    held_out = [int(index) for batch in stream.held_out() for index in batch.indices]
    source = source_of_checkpoint(found, "last")
    texts = [source.tokenizer.decode(store.sequence(index, 32), skip_special_tokens=True) for index in held_out]
    assert len(texts) > 5
    assert sorted(source.texts(len(texts))) == sorted(texts)
    more = source.texts(len(texts) + 20)
    assert sorted(more[: len(texts)]) == sorted(texts)
    assert len(more) == len(texts) + 20


def test_texts_of_the_sample_are_taken_if_the_tokens_are_gone(copied_run: Path) -> None:
    settings = json.loads((copied_run / "settings.json").read_text(encoding="utf-8"))
    settings["data"]["path"] = "gone"
    (copied_run / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    texts = source_of_checkpoint(RunFolder(copied_run), "last").texts(20)
    assert len(texts) == 20
    assert set(texts) <= set(SAMPLE.read_text(encoding="utf-8").splitlines())
    assert export(model=copied_run).step == 6
