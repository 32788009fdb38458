from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, BertModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.teacher import check_teacher, load_teacher, read_teacher_config

from .model_configs import small


@pytest.fixture
def teacher_copy(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A copy of the tiny teacher that a test may change."""
    return Path(shutil.copytree(tiny_teacher, tmp_path / "teacher"))


def change_config(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_teacher_is_loaded_in_fp32_and_eval_mode_without_gradients(make_teacher: Callable[..., Path]) -> None:
    folder = make_teacher(num_hidden_layers=1)
    BertModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    teacher, _ = load_teacher(str(folder), layer=1)
    assert not teacher.training
    for parameter in teacher.parameters():
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad


def test_layers_above_the_tap_and_the_pooler_are_dropped(tiny_teacher: Path) -> None:
    teacher, size = load_teacher(str(tiny_teacher), layer=3)
    saved = load_file(tiny_teacher / "model.safetensors")
    kept = teacher.state_dict()
    assert size.parameters == sum(tensor.numel() for tensor in saved.values())  # of all layers
    assert {name for name in saved if not name.startswith(("encoder.layer.3.", "pooler."))} == set(kept)
    for name, tensor in kept.items():
        assert torch.equal(tensor, saved[name])


def test_missing_weights_are_named(teacher_copy: Path) -> None:
    change_weights(teacher_copy, lambda weights: weights.pop("encoder.layer.1.attention.self.key.weight"))
    with pytest.raises(MinilmError, match=r"encoder\.layer\.1\.attention\.self\.key\.weight is missing"):
        load_teacher(str(teacher_copy), layer=4)


def test_pooler_weights_may_be_missing(teacher_copy: Path) -> None:
    change_weights(teacher_copy, lambda weights: [weights.pop(f"pooler.dense.{name}") for name in ("weight", "bias")])
    load_teacher(str(teacher_copy), layer=4)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"])
def test_missing_folder_is_refused(name: str) -> None:
    with pytest.raises(MinilmError, match="there is no such teacher folder"):
        load_teacher(name, layer=4)


def test_unknown_name_on_the_hub_is_refused_with_a_hint() -> None:
    with pytest.raises(MinilmError, match="Check the name and the connection to the Hub") as caught:
        load_teacher("no-such-organisation/no-such-model", layer=4)
    assert caught.value.where == "no-such-organisation/no-such-model"


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MinilmError, match="the teacher cannot be loaded"):
        load_teacher(str(tmp_path), layer=4)


def test_truncated_weights_are_refused(teacher_copy: Path) -> None:
    weights = teacher_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(MinilmError, match="the teacher cannot be loaded"):
        load_teacher(str(teacher_copy), layer=4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["encoder.layer.3.attention.self.key.weight", "embeddings.LayerNorm.bias"])
def test_nonfinite_weights_are_refused(teacher_copy: Path, name: str, value: float) -> None:
    change_weights(teacher_copy, lambda weights: weights[name].view(-1)[-1:].fill_(value))
    with pytest.raises(MinilmError, match=f"weights are damaged: {name} has values that are not finite"):
        load_teacher(str(teacher_copy), layer=4)


def test_large_finite_weights_are_accepted(teacher_copy: Path) -> None:
    # The sum of these weights overflows.
    change_weights(teacher_copy, lambda weights: weights["embeddings.word_embeddings.weight"][5:7].fill_(3e38))
    load_teacher(str(teacher_copy), layer=4)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and must be at most 1000"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0 in the teacher's config.json"),
        ({"num_attention_heads": -1}, "num_attention_heads is -1 in the teacher's config.json"),
        ({"hidden_size": 0}, "hidden_size is 0 in the teacher's config.json"),
        ({"intermediate_size": 0}, "intermediate_size is 0 in the teacher's config.json"),
        ({"pad_token_id": -1}, "pad_token_id is -1 in the teacher's config.json"),
        ({"pad_token_id": 10**6}, "pad_token_id is 1000000 in the teacher's config.json"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be a finite number, not nan"),
        ({"layer_norm_eps": -1.0}, r"the teacher \(bert\) computes numbers that are not finite"),
        ({"layer_norm_eps": "small"}, "the teacher cannot be loaded: .*layer_norm_eps"),
        ({"chunk_size_feed_forward": 7}, r"the teacher \(bert\) cannot compute: .*chunk size 7"),
        ({"hidden_size": 24}, "the shapes of its weights differ from its config.json"),
    ],
)
def test_wrong_config_is_refused(teacher_copy: Path, entries: dict[str, Any], message: str) -> None:
    change_config(teacher_copy, **entries)
    with pytest.raises(MinilmError, match=message) as caught:
        load_teacher(str(teacher_copy), layer=4)
    assert caught.value.where == str(teacher_copy)


def pickle_weights(folder: Path, content: object) -> None:
    """Replace the weights of a teacher by a pickle of `content`."""
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")


def test_pickle_of_tensors_is_loaded(tiny_teacher: Path, teacher_copy: Path) -> None:
    weights = load_file(tiny_teacher / "model.safetensors")
    pickle_weights(teacher_copy, weights)
    teacher, _ = load_teacher(str(teacher_copy), layer=4)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, weights[name])


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.trace, "w")


def test_code_in_a_pickle_is_not_run(tiny_teacher: Path, teacher_copy: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Malice(trace))).close()
    assert trace.exists()
    trace.unlink()
    pickle_weights(teacher_copy, dict(load_file(tiny_teacher / "model.safetensors"), malice=Malice(trace)))
    with pytest.raises(MinilmError) as caught:
        load_teacher(str(teacher_copy), layer=4)
    assert caught.value.where == str(teacher_copy)
    assert not trace.exists()


def test_code_of_a_teacher_is_not_run(teacher_copy: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    classes = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    change_config(teacher_copy, model_type="unheard-of", auto_map=classes)
    (teacher_copy / "code.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    with pytest.raises(MinilmError, match="--trust-remote-code"):
        load_teacher(str(teacher_copy), layer=4)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("qwen3", r"the teacher \(qwen3\) is a causal language model: each token attends only to earlier ones"),
        ("gemma3_text", r"the teacher \(gemma3_text\) is a causal language model"),
        ("llama", r"the teacher \(llama\) is a causal language model"),
        ("gpt2", r"the teacher \(gpt2\) is a causal language model"),
        ("bart", "the teacher is of the encoder-decoder family bart, and transformers has no model of its encoder"),
    ],
)
def test_unsuitable_teacher_is_refused_with_the_reason_before_its_weights_are_read(
    tmp_path: Path, family: str, message: str
) -> None:
    config = small(family)
    config.is_encoder_decoder = False
    config.save_pretrained(tmp_path)
    with pytest.raises(MinilmError, match=message) as caught:
        read_teacher_config(str(tmp_path))
    assert caught.value.where == str(tmp_path)
    assert "encoder such as BERT" in (caught.value.hint or "")


def test_teacher_is_checked_for_the_length_of_sequences(tiny_teacher: Path) -> None:
    longest = json.loads((tiny_teacher / "config.json").read_text())["max_position_embeddings"]
    check_teacher(str(tiny_teacher), max_length=longest)
    with pytest.raises(MinilmError, match=f"reads at most {longest} tokens, and sequences may have {longest + 1}"):
        check_teacher(str(tiny_teacher), max_length=longest + 1)


def test_teacher_with_a_decoder_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "bart", vocab_size=20, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8,
        encoder_attention_heads=1, decoder_attention_heads=1, max_position_embeddings=16, pad_token_id=1,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(MinilmError, match="the teacher has a decoder"):
        load_teacher(str(tmp_path), layer=4)
