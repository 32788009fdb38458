"""Teachers and exported models from every form of a model's files, and messages about files that cannot be read."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from minilm_cli.base.errors import MinilmError
from minilm_cli.evaluate.candidate import load_candidate
from minilm_cli.export.source import source_of_name
from minilm_cli.models.hub import quiet
from minilm_cli.models.teacher import load_teacher

from .model_configs import small

Tensors = dict[str, Tensor]
BIN, SAFETENSORS = "pytorch_model.bin", "model.safetensors"


def built(family: str, kind: type = AutoModel, **entries: object) -> PreTrainedModel:
    """A model of one small layer whose tensors are all random, also biases and norms."""
    torch.manual_seed(0)
    model: PreTrainedModel = kind.from_config(small(family, **{"num_hidden_layers": 1} | entries))  # type: ignore[attr-defined]
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.rand_like(parameter)
    return model


def tensors_of(model: PreTrainedModel) -> Tensors:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test saves a model."""
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def save(model: PreTrainedModel, folder: Path, **options: object) -> None:
    with quiet():
        model.save_pretrained(folder, **options)


def check_loaded(folder: Path, expected: Tensors) -> None:
    """The teacher and the model to export have these weights, in fp32, but for a pooler's, which may be new."""
    teacher, _ = load_teacher(str(folder), layer=2)
    source, _ = source_of_name(str(folder))
    wanted = {name for name in expected if "pooler" not in name}
    for model in (teacher, source.model):
        found = model.state_dict()
        assert {name for name in found if "pooler" not in name} == wanted
        for name, tensor in found.items():
            if name in expected:
                assert tensor.dtype == expected[name].to(torch.float32).dtype
                assert torch.equal(tensor, expected[name].to(tensor.dtype)), name


# --- Heads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "kind", "prefix"),
    [
        ("bert", AutoModelForMaskedLM, "bert."),
        ("bert", AutoModelForSequenceClassification, "bert."),
        ("roberta", AutoModelForTokenClassification, "roberta."),
        ("electra", AutoModelForPreTraining, "electra."),
        ("distilbert", AutoModelForQuestionAnswering, "distilbert."),
        ("mpnet", AutoModelForMaskedLM, "mpnet."),
        ("modernbert", AutoModelForSequenceClassification, "model."),
        ("eurobert", AutoModelForMaskedLM, "model."),
    ],
)
def test_model_with_a_head_is_loaded_without_it(folder: Path, family: str, kind: type, prefix: str) -> None:
    model = built(family, kind)
    save(model, folder)
    saved = load_file(folder / SAFETENSORS)
    assert any(name.startswith(prefix) for name in saved)
    assert any(not name.startswith(prefix) for name in saved), "no head"
    check_loaded(folder, tensors_of(model.base_model))


def test_encoder_of_a_model_with_a_decoder_is_loaded(folder: Path) -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=60, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4)
    model = T5ForConditionalGeneration(config)
    save(model, folder)
    source, _ = source_of_name(str(folder))
    saved = model.state_dict()
    teacher, _ = load_teacher(str(folder), layer=2)
    for found in (teacher.state_dict(), source.model.state_dict()):
        assert "shared.weight" in found
        assert all(torch.equal(tensor, saved[name]) for name, tensor in found.items())


@pytest.mark.parametrize(("family", "head"), [("roberta", "lm_head.decoder.weight"), ("modernbert", "decoder.weight")])
def test_embeddings_saved_only_as_part_of_the_head_are_loaded(folder: Path, family: str, head: str) -> None:
    model = built(family, AutoModelForMaskedLM)
    model.config.save_pretrained(folder)
    save_model(model, str(folder / SAFETENSORS))
    saved = load_file(folder / SAFETENSORS)
    assert head in saved
    assert not any("embeddings.word" in name or "embeddings.tok_" in name for name in saved)
    check_loaded(folder, tensors_of(model.base_model))


def test_embeddings_are_not_taken_from_a_head_that_does_not_share_them(folder: Path) -> None:
    model = built("roberta", AutoModelForMaskedLM, tie_word_embeddings=False)
    tensors = tensors_of(model)
    del tensors["roberta.embeddings.word_embeddings.weight"]
    model.config.save_pretrained(folder)
    save_file(tensors, folder / SAFETENSORS)
    for load in LOADERS:
        with pytest.raises(MinilmError, match=r"embeddings\.word_embeddings\.weight is missing"):
            load(str(folder))


# --- Files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A way to save tensors in a folder."""

    write: Callable[[Tensors, Path], object]
    change: Callable[[Tensors], Tensors] = lambda tensors: tensors
    files: tuple[str, ...] = (SAFETENSORS,)


def write_safetensors(tensors: Tensors, folder: Path) -> None:
    save_file(tensors, folder / SAFETENSORS)


def write_bin(tensors: Tensors, folder: Path) -> None:
    torch.save(tensors, folder / BIN)


def write_old_bin(tensors: Tensors, folder: Path) -> None:
    """As torch did before version 1.6."""
    torch.save(tensors, folder / BIN, _use_new_zipfile_serialization=False)


def write_parameters(tensors: Tensors, folder: Path) -> None:
    torch.save({name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}, folder / BIN)


def write_shards(name: str) -> Callable[[Tensors, Path], None]:
    """Two files and an index, as `save_pretrained` names them."""
    stem, end = name.split(".")

    def write(tensors: Tensors, folder: Path) -> None:
        names = sorted(tensors)
        half = len(names) // 2
        parts = {f"{stem}-00001-of-00002.{end}": names[:half], f"{stem}-00002-of-00002.{end}": names[half:]}
        for file, part in parts.items():
            chosen = {name: tensors[name] for name in part}
            save_file(chosen, folder / file) if end == "safetensors" else torch.save(chosen, folder / file)
        places = {name: file for file, part in parts.items() for name in part}
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        (folder / f"{name}.index.json").write_text(json.dumps(index), encoding="utf-8")

    return write


def in_type(dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}


def old_names(tensors: Tensors) -> Tensors:
    """As the first conversions of TensorFlow's BERT named them, with the positions that later ones saved."""
    words = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in words:
            name = name.replace(new, old)  # noqa: PLW2901
        renamed[name] = tensor
    assert any(name.endswith("gamma") for name in renamed)
    return renamed | {"bert.embeddings.position_ids": torch.arange(40)[None]}


def more(tensors: Tensors) -> Tensors:
    return tensors | {"ema.decay": torch.ones(1), "encoder_of_images.weight": torch.ones(3, 4)}


SHARDS, BIN_SHARDS = (f"{SAFETENSORS}.index.json",), (f"{BIN}.index.json",)
FORMS = {
    "safetensors": Form(write_safetensors),
    "bin": Form(write_bin, files=(BIN,)),
    "bin of an old torch": Form(write_old_bin, files=(BIN,)),
    "bin of parameters": Form(write_parameters, files=(BIN,)),
    "shards": Form(write_shards(SAFETENSORS), files=SHARDS),
    "bin in shards": Form(write_shards(BIN), files=BIN_SHARDS),
    "fp16": Form(write_safetensors, in_type(torch.float16)),
    "bf16": Form(write_safetensors, in_type(torch.bfloat16)),
    "bin in fp16": Form(write_bin, in_type(torch.float16), files=(BIN,)),
    "bf16 in shards": Form(write_shards(SAFETENSORS), in_type(torch.bfloat16), files=SHARDS),
    "old names": Form(write_safetensors, old_names),
    "bin with old names": Form(write_bin, old_names, files=(BIN,)),
    "unexpected tensors": Form(write_safetensors, more),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_loaded(folder: Path, name: str) -> None:
    form, model = FORMS[name], built("bert", AutoModelForMaskedLM)
    model.config.save_pretrained(folder)
    form.write(form.change(tensors_of(model)), folder)
    assert all((folder / file).is_file() for file in form.files)
    assert (folder / SAFETENSORS).exists() == (SAFETENSORS in form.files)
    expected = tensors_of(model.base_model)
    if "16" in name:
        dtype = torch.float16 if "fp16" in name else torch.bfloat16
        expected = {key: tensor.to(dtype) for key, tensor in expected.items()}
    check_loaded(folder, expected)


def test_shards_written_by_save_pretrained_are_loaded(folder: Path) -> None:
    model = built("modernbert", AutoModelForMaskedLM).to(torch.bfloat16)
    save(model, folder, max_shard_size="4KB")
    assert len([*folder.glob("model-*.safetensors")]) > 2
    assert not (folder / SAFETENSORS).exists()
    check_loaded(folder, tensors_of(model.base_model))


@pytest.mark.parametrize("form", ["bin in fp16", "bf16 in shards"])
def test_size_of_the_files_is_that_of_the_evaluated_model(tiny_teacher: Path, tmp_path: Path, form: str) -> None:
    folder = Path(shutil.copytree(tiny_teacher, tmp_path / "model"))
    tensors = load_file(folder / SAFETENSORS)
    (folder / SAFETENSORS).unlink()
    # A repository may have an ONNX file besides the weights.
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").touch()
    FORMS[form].write(FORMS[form].change(tensors), folder)
    candidate = load_candidate(str(folder), torch.device("cpu"))
    assert candidate.source is not None
    bytes_in_fp16 = 2 * sum(tensor.numel() for tensor in tensors.values())
    assert bytes_in_fp16 <= candidate.megabytes * 1e6 < 1.3 * bytes_in_fp16
    assert candidate.embed(["the house"], None).shape == (1, 48)


# --- Files that cannot be read -----------------------------------------------------------------------------------

LOADERS: tuple[Callable[[str], object], ...] = (lambda name: load_teacher(name, layer=2), source_of_name)

Damage = Callable[[Tensors, Path], object]


def text(name: str, content: str) -> Damage:
    return lambda _, folder: (folder / name).write_text(content, encoding="utf-8")


def pickled(content: Callable[[Tensors], object]) -> Damage:
    return lambda tensors, folder: torch.save(content(tensors), folder / BIN)


def sharded(name: str, damage: Callable[[Path], object]) -> Damage:
    """Shards of which the second is damaged."""

    def write(tensors: Tensors, folder: Path) -> None:
        write_shards(name)(tensors, folder)
        [second] = folder.glob("*-00002-of-00002.*")
        damage(second)

    return write


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123\n"
COPY = "Download or copy it again"


@pytest.mark.parametrize(
    ("damage", "message", "hint"),
    [
        (
            sharded(SAFETENSORS, Path.unlink),
            "model-00002-of-00002.safetensors is missing, and the index of the weights names it",
            "Download or copy this file too.",
        ),
        (sharded(BIN, Path.unlink), "pytorch_model-00002-of-00002.bin is missing", "Download or copy this file too."),
        (sharded(SAFETENSORS, cut), "model-00002-of-00002.safetensors is damaged: ", COPY),
        (sharded(BIN, cut), "pytorch_model-00002-of-00002.bin is damaged, or holds more than tensors", COPY),
        (text(SAFETENSORS, ""), "model.safetensors is damaged: ", COPY),
        (text(SAFETENSORS, POINTER), "model.safetensors is a Git LFS pointer, not the weights", "git lfs pull"),
        (text(BIN, POINTER), "pytorch_model.bin is a Git LFS pointer, not the weights", "git lfs pull"),
        (text(BIN, "hello"), "pytorch_model.bin is damaged, or holds more than tensors", "save_pretrained"),
        (text(BIN, ""), "pytorch_model.bin is damaged, or holds more than tensors", COPY),
        (pickled(lambda tensors: [*tensors.values()]), "pytorch_model.bin is damaged, or holds more", COPY),
        (pickled(lambda tensors: tensors | {"path": Path("x")}), "pytorch_model.bin is damaged, or holds more", COPY),
        (text(f"{SAFETENSORS}.index.json", "[]"), "this index of weights has no weight_map with names of files", ""),
        (text(f"{BIN}.index.json", "{"), "this index of weights cannot be read as JSON", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_damaged_file_is_named(folder: Path, damage: Damage, message: str, hint: str) -> None:
    model = built("bert")
    model.config.save_pretrained(folder)
    damage(tensors_of(model), folder)
    for load in LOADERS:
        with pytest.raises(MinilmError) as caught:
            load(str(folder))
        assert message in caught.value.message
        assert "weights_only" not in str(caught.value)
        assert hint in (caught.value.hint or "")


class Harmful:
    """Unpickling it fails the test."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("it was unpickled",)


def test_code_in_a_shard_is_not_run(folder: Path) -> None:
    model = built("bert")
    model.config.save_pretrained(folder)
    write_shards(BIN)(tensors_of(model), folder)
    [second] = folder.glob("*-00002-of-00002.bin")
    second.write_bytes(pickle.dumps({"x": Harmful()}, protocol=2))
    for load in LOADERS:
        with pytest.raises(MinilmError, match=r"pytorch_model-00002-of-00002\.bin is damaged, or holds more"):
            load(str(folder))


def test_weights_that_are_not_damaged_are_not_blamed(folder: Path) -> None:
    model = built("bert")
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"hidden_size": 12}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_bin(tensors_of(model), folder)
    for load in LOADERS:
        with pytest.raises(MinilmError, match="the shapes of its weights differ from"):
            load(str(folder))


def test_tensors_with_another_prefix_are_named(folder: Path) -> None:
    model = built("bert")
    model.config.save_pretrained(folder)
    write_safetensors({f"module.{name}": tensor for name, tensor in tensors_of(model).items()}, folder)
    for load in LOADERS:
        with pytest.raises(MinilmError, match=r"embeddings\.LayerNorm\.bias is missing") as caught:
            load(str(folder))
        assert "The files call it module.embeddings.LayerNorm.bias." in (caught.value.hint or "")
