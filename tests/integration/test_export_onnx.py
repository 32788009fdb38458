"""The format ONNX: the graph and its inputs, quantisation, and the programs that load the folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from transformers import AutoTokenizer

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.progress import NoProgress
from minilm_cli.evaluate.candidate import load_candidate
from minilm_cli.evaluate.evaluating import evaluate
from minilm_cli.evaluate.finetune import FineTuner
from minilm_cli.export import exporting, speed, verify
from minilm_cli.export import onnx as onnx_format
from minilm_cli.export.consumers import Outputs
from minilm_cli.export.exporting import ExportReport
from minilm_cli.export.source import Source, source_of_run
from minilm_cli.models.student import random_model
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.lookup import pick_checkpoint
from minilm_cli.settings.evaluate import EvaluateSettings
from minilm_cli.settings.export import ExportSettings
from tests import tiny
from tests.conversion import check_conversion
from tests.unit.model_configs import small

from .conftest import verify_here

pytestmark = [pytest.mark.usefixtures("same_process"), pytest.mark.slow]

TEXTS = ["the people of this world", "work", "", "their hand " * 60]


def export(model: Path, **settings: Any) -> ExportReport:
    values = {"model": model, "formats": ["onnx"], "pooling": "mean", **settings}
    return exporting.export(ExportSettings.model_validate(values), NoProgress())


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with 8-bit weights. Read-only."""
    output = tmp_path_factory.mktemp("onnx") / "student"
    settings = {"model": finished_run, "formats": ["onnx"], "pooling": "mean", "quantize": "int8", "output": output}
    with pytest.MonkeyPatch.context() as patch:
        verify_here(patch)
        return exporting.export(ExportSettings.model_validate(settings), NoProgress()).path


@pytest.fixture(scope="module")
def embeddings(finished_run: Path) -> np.ndarray:
    """Of the texts, by torch: the mean of the states of the real tokens, scaled to length 1."""
    run = RunFolder(finished_run)
    source = source_of_run(run, pick_checkpoint(run, "last"))
    states = [verify.encode(source, source.model, text).states.mean(0) for text in TEXTS]
    return np.stack([state / np.linalg.norm(state) for state in states])


def session_of(folder: Path, name: str = "model.onnx") -> InferenceSession:
    return InferenceSession(folder / "onnx" / name, providers=["CPUExecutionProvider"])


def test_what_the_tokenizer_gives_is_what_the_model_takes(exported: Path, embeddings: np.ndarray) -> None:
    session, tokenizer = session_of(exported), AutoTokenizer.from_pretrained(exported)
    takes = {node.name: (node.shape, node.type) for node in session.get_inputs()}
    outputs = {node.name: (node.shape, node.type) for node in session.get_outputs()}
    places = (["batch", "tokens"], "tensor(int64)")
    assert takes == dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), places)
    assert [*outputs] == ["last_hidden_state", "sentence_embedding"]
    assert outputs["sentence_embedding"] == (["batch", 24], "tensor(float)")
    for texts in (TEXTS, TEXTS[:1], TEXTS[2:3]):
        found = session.run(
            ["sentence_embedding"], dict(tokenizer(texts, padding=True, truncation=True, return_tensors="np"))
        )
        first = TEXTS.index(texts[0])
        np.testing.assert_allclose(found[0], embeddings[first : first + len(texts)], atol=1e-5)


def test_the_folder_has_what_its_readers_look_for(exported: Path) -> None:
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert {"onnx/model.onnx", "onnx/model_quantized.onnx", "config.json", "tokenizer.json"} <= files
    assert {"modules.json", "1_Pooling/config.json", "config_sentence_transformers.json", "README.md"} <= files
    assert not [name for name in files if name.endswith((".data", ".onnx_data", ".safetensors"))]
    (opset,) = onnx.load(exported / "onnx" / "model.onnx").opset_import
    assert (opset.domain, opset.version) == ("", onnx_format.OPSET)
    # text-embeddings-inference reads these three.
    pooling = json.loads((exported / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    assert (pooling["pooling_mode_mean_tokens"], pooling["pooling_mode_cls_token"]) == (True, False)
    assert json.loads((exported / "sentence_bert_config.json").read_text(encoding="utf-8"))["max_seq_length"] == 128
    assert json.loads((exported / "tokenizer_config.json").read_text(encoding="utf-8"))["model_max_length"] == 128
    record = json.loads((exported / "minilm-export.json").read_text(encoding="utf-8"))
    assert record["quantized"]["cosine"] > 0.98


def test_an_export_can_be_evaluated(
    exported: Path, embeddings: np.ndarray, tmp_path: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_candidate(str(exported), torch.device("cpu"))
    small = load_candidate(str(exported / "onnx" / "model_quantized.onnx"), torch.device("cpu"))
    np.testing.assert_allclose(whole.embed(TEXTS, whole.length(None)), embeddings, atol=1e-5)
    cosines = (small.embed(TEXTS, 8) * whole.embed(TEXTS, 8)).sum(1)
    assert 0.98 < cosines.min() < 1 - 1e-6
    assert whole.megabytes > small.megabytes
    (tmp_path / "model.onnx").touch()
    with pytest.raises(MinilmError, match="this is not the ONNX file of an export"):
        load_candidate(str(tmp_path / "model.onnx"), torch.device("cpu"))
    labels = tmp_path / "labels.tsv"
    labels.write_text("".join(f"{n % 2}\tthe {word}\n" for n, word in enumerate(tiny.WORDS)), encoding="utf-8")
    models = [str(tiny_teacher), str(exported)]
    settings = {"models": models, "tasks": [str(labels)], "output": tmp_path / "results.json"}
    monkeypatch.setattr(FineTuner, "train", lambda *_: pytest.fail("it was trained before the other was refused"))
    with pytest.raises(MinilmError, match="an ONNX model cannot be fine-tuned"):
        evaluate(EvaluateSettings.model_validate(settings), NoProgress())


def test_no_folder_of_this_machine_is_in_a_file(exported: Path) -> None:
    sources = str(Path(onnx_format.__file__).parent).encode()
    for file in (exported / "onnx").iterdir():
        assert sources not in file.read_bytes()


def test_quantised_weights_take_a_quarter(exported: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in (exported / "onnx").iterdir()}
    weights = onnx.load(exported / "onnx" / "model_quantized.onnx").graph.initializer
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in weights) >= 12  # six products of each layer
    assert sizes["model_quantized.onnx"] < sizes["model.onnx"]


def test_half_precision_is_inside_only(copied_run: Path, embeddings: np.ndarray) -> None:
    report = export(copied_run, dtype="float16")
    session, tokenizer = session_of(report.path), AutoTokenizer.from_pretrained(report.path)
    types = {tensor.data_type for tensor in onnx.load(report.path / "onnx" / "model.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    (found,) = session.run(
        ["sentence_embedding"], dict(tokenizer(TEXTS, padding=True, truncation=True, return_tensors="np"))
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, embeddings, atol=5e-3)


@pytest.fixture
def converted(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the model that was converted before, which saves converting it again."""
    monkeypatch.setattr(
        onnx_format, "_convert", lambda _, file: shutil.copyfile(exported / "onnx" / "model.onnx", file)
    )


@pytest.mark.usefixtures("converted")
def test_ranges_of_activations_can_be_measured_before(copied_run: Path) -> None:
    report = export(copied_run, quantize="int8-static")
    kept = report.exports[0].verified.kept
    assert kept["cosine"] > 0.98
    assert kept["recall"] == 1
    operators = [node.op_type for node in onnx.load(report.path / "onnx" / "model_quantized.onnx").graph.node]
    assert operators.count("QuantizeLinear") > 6
    assert operators.count("DynamicQuantizeLinear") == 2  # the second product of each feed-forward part


@pytest.mark.usefixtures("converted")
def test_a_quantised_model_that_lost_much_is_refused(copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minilm_cli.export import quantise

    def quantise_badly(model: Path, output: Path) -> None:
        graph = onnx.load(model)
        for tensor in graph.graph.initializer:
            if tensor.name.endswith("word_embeddings.weight"):
                values = onnx.numpy_helper.to_array(tensor)
                noise = np.random.default_rng(0).standard_normal(values.shape).astype(np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values + noise, tensor.name))
        onnx.save(graph, output)

    monkeypatch.setattr(quantise, "quantise_dynamic", quantise_badly)
    with pytest.raises(RunError, match=r"keeps too little of its embeddings: cosine 0\.\d+ on average") as caught:
        export(copied_run, quantize="int8")
    assert "--accept-loss" in str(caught.value)
    assert not (copied_run / "export").exists()
    kept = export(copied_run, quantize="int8", accept_loss=True).exports[0].verified.kept
    assert kept["cosine"] < 0.98
    assert kept["lowest_cosine"] < kept["cosine"]


def changing(monkeypatch: pytest.MonkeyPatch, file: str, change: Callable[[Any], None]) -> None:
    """Change an ONNX file after it is written and before it is verified."""
    write = onnx_format.Onnx.write

    def write_changed(form: onnx_format.Onnx, source: Source, folder: Path) -> None:
        write(form, source, folder)
        graph = onnx.load(folder / "onnx" / file)
        change(graph)
        onnx.save(graph, folder / "onnx" / file)

    monkeypatch.setattr(onnx_format.Onnx, "write", write_changed)


def scale_weights(graph: Any) -> None:
    for weight in graph.graph.initializer:
        if len(weight.dims) == 2 and weight.data_type == onnx.TensorProto.FLOAT:
            weight.CopyFrom(onnx.numpy_helper.from_array(1.5 * onnx.numpy_helper.to_array(weight), weight.name))


def leave_out_the_embedding(graph: Any) -> None:
    (output,) = (one for one in graph.graph.output if one.name == "sentence_embedding")
    graph.graph.output.remove(output)


@pytest.mark.usefixtures("converted")
@pytest.mark.parametrize(("change", "found"), [(scale_weights, r"0\.\d+"), (leave_out_the_embedding, "inf")])
def test_an_onnx_file_with_other_outputs_fails(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None], found: str
) -> None:
    changing(monkeypatch, "model.onnx", change)
    with pytest.raises(RunError, match=rf"its outputs differ by {found} of the largest.* The text"):
        export(copied_run)
    assert not (copied_run / "export").exists()


def with_embeddings(monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the embeddings of all texts that the model in 8 bits gives."""
    encode = verify.encode_elsewhere

    def changed(consumer: str, *arguments: Any) -> list[list[Outputs]]:
        batches = encode(consumer, *arguments)
        if consumer != "onnxruntime-int8":
            return batches
        embeddings = change(np.stack([each.embedding for batch in batches for each in batch]))
        rows = iter(embeddings)
        return [[replace(each, embedding=next(rows)) for each in batch] for batch in batches]

    monkeypatch.setattr(verify, "encode_elsewhere", changed)


@pytest.mark.usefixtures("converted")
def test_eight_bits_that_are_no_numbers_are_refused(copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damage(embeddings: np.ndarray) -> np.ndarray:
        embeddings[1] = np.nan
        return embeddings

    with_embeddings(monkeypatch, damage)
    with pytest.raises(RunError, match=r"quantised, the model does not compute finite numbers\. The text: 'a'"):
        export(copied_run, quantize="int8", accept_loss=True)
    assert not (copied_run / "export").exists()


@pytest.mark.usefixtures("converted")
def test_lost_neighbours_are_enough_to_refuse(copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Noise that is small beside what all embeddings have in common, and large beside what tells them apart.
    def blur(embeddings: np.ndarray) -> np.ndarray:
        common = 100 * embeddings.mean(0)
        return np.random.default_rng(0).standard_normal(embeddings.shape) + 1000 * common

    with_embeddings(monkeypatch, blur)
    monkeypatch.setattr(onnx_format, "LEAST_COSINE", 0.0)
    with pytest.raises(RunError, match=r"is among the ten nearest for [0-8]?\d\.\d% of \d+ texts") as caught:
        export(copied_run, quantize="int8")
    assert "of the ten nearest stay" in str(caught.value)


def test_ranges_are_measured_on_other_texts_than_are_judged(finished_run: Path) -> None:
    run = RunFolder(finished_run)
    source = source_of_run(run, pick_checkpoint(run, "last"))
    judged, measured = verify.judged_texts(source), verify.calibration_texts(source)
    assert 2 * len(measured) <= len(judged) + 1 <= 257
    assert len(judged) + len(measured) == len(source.texts(384))
    assert source.held_out_sequences > 0


@pytest.mark.usefixtures("converted")
def test_speeds_are_measured_and_stated(copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_TEXTS": 4, "_PASSES": 1, "_SECONDS": 0}.items():
        monkeypatch.setattr(speed, name, value)
    report = export(copied_run, quantize="int8", benchmark=True)
    plan = json.loads((copied_run / "plan.json").read_text(encoding="utf-8"))
    files = [(report.path / "onnx" / name).stat().st_size for name in ("model.onnx", "model_quantized.onnx")]
    bytes_of = {
        "teacher": 4 * plan["teacher"]["total_parameters"],
        "student": 4 * plan["student"]["parameters"],
        "ONNX float32": files[0],
        "ONNX int8": files[1],
    }
    assert {each.model: each.megabytes * 1e6 for each in report.speeds} == pytest.approx(bytes_of)
    assert all(each.single > 0 < each.batched for each in report.speeds)
    card = (report.path / "README.md").read_text(encoding="utf-8")
    for each in report.speeds:
        assert f"| {each.model} | {each.megabytes:,.1f} | {each.single:,.0f} | {each.batched:,.0f} |" in card


@pytest.mark.usefixtures("converted")
def test_a_teacher_that_is_gone_is_not_measured(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {"_TEXTS": 4, "_PASSES": 1, "_SECONDS": 0}.items():
        monkeypatch.setattr(speed, name, value)
    settings = json.loads((copied_run / "settings.json").read_text(encoding="utf-8"))
    settings["teacher"]["name"] = "gone"
    (copied_run / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    report = export(copied_run, benchmark=True)
    assert [each.model for each in report.speeds] == ["student", "ONNX float32"]
    assert "The teacher is not measured" in caplog.text


def test_without_pooling_there_are_token_states_only(copied_run: Path) -> None:
    report = export(copied_run, pooling=None)
    assert [node.name for node in session_of(report.path).get_outputs()] == ["last_hidden_state"]
    assert not (report.path / "modules.json").exists()


@pytest.mark.parametrize("family", ["roberta", "modernbert", "distilbert", "esm", "mpnet"])
def test_other_families_are_converted(tmp_path: Path, family: str) -> None:
    """Positions behind the padding id, rotary ones and local attention, no token types, rescaled embeddings, biases."""
    torch.manual_seed(0)
    check_conversion(random_model(small(family)).eval(), tmp_path)


def test_token_types_that_the_tokenizer_lacks_are_no_input(copied_run: Path) -> None:
    file = copied_run / "tokenizer" / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"model_input_names": ["input_ids", "attention_mask"]}
    file.write_text(json.dumps(config), encoding="utf-8")
    report = export(copied_run, quantize="int8-static")
    assert [node.name for node in session_of(report.path).get_inputs()] == ["input_ids", "attention_mask"]


def test_what_torch_cannot_convert_is_refused_with_its_reason(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_value(_: object, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> Any:
        assert attention_mask is not token_type_ids
        return input_ids.float() if input_ids.sum() > 0 else -input_ids.float()

    monkeypatch.setattr(onnx_format._Graph, "forward", by_value)
    with pytest.raises(MinilmError, match=r"torch cannot convert bert models to ONNX: .*data-dependent"):
        export(copied_run)
    assert not (copied_run / "export").exists()


def test_fastembed_gives_the_same_embeddings(exported: Path, embeddings: np.ndarray) -> None:
    fastembed = pytest.importorskip("fastembed")
    from fastembed.common.model_description import ModelSource, PoolingType

    fastembed.TextEmbedding.add_custom_model(
        model="minilm/student",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="minilm/student"),
        dim=24,
        model_file="onnx/model.onnx",
    )
    model = fastembed.TextEmbedding("minilm/student", specific_model_path=str(exported))
    np.testing.assert_allclose(np.stack(list(model.embed(TEXTS))), embeddings, atol=1e-5)


#: Prints the embeddings of the texts, by transformers.js: arguments are the folder with its package, that of the
#: model, the type of the weights, and the texts as JSON.
SCRIPT = """
import { createRequire } from 'node:module';
const [modules, place, name, dtype, texts] = process.argv.slice(1);
const { env, pipeline } = createRequire(modules + '/')('@huggingface/transformers');
env.allowRemoteModels = false;
env.localModelPath = place;
const extract = await pipeline('feature-extraction', name, { dtype });
const found = await extract(JSON.parse(texts), { pooling: 'mean', normalize: true });
console.log(JSON.stringify(found.tolist()));
"""


@pytest.mark.process
@pytest.mark.skipif("NODE_MODULES" not in os.environ, reason="NODE_MODULES names no folder with transformers.js")
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("q8", 0.1)])
def test_transformers_js_gives_the_same_embeddings(
    exported: Path, embeddings: np.ndarray, dtype: str, tolerance: float
) -> None:
    fitting = TEXTS[:3]  # it cuts longer texts without keeping the last special token
    words = [os.environ["NODE_MODULES"], exported.parent, exported.name, dtype, json.dumps(fitting)]
    node = ["node", "--input-type=module", "--eval", SCRIPT, "--", *words]
    done = subprocess.run(node, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.array(json.loads(done.stdout)), embeddings[: len(fitting)], atol=tolerance)
