from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.sentence_head import Dense, Normalize, SentenceHead, read_head, write_head

HEAD = SentenceHead(
    ("mean",), (Normalize(),), prompts={"query": "find: "}, default_prompt="query", similarity="dot", max_length=77
)


def dense(before: int, after: int, *, bias: bool = True) -> Dense:
    generator = torch.Generator().manual_seed(after)
    weight = torch.randn(after, before, generator=generator)
    return Dense(weight, torch.randn(after, generator=generator) if bias else None, "torch.nn.modules.activation.Tanh")


def folder_of(tmp_path: Path, modules: list[str], **configs: Any) -> Path:
    """Files of sentence-transformers: modules by class, and the configuration of each as `_1={...}`."""
    entries = [
        {"idx": n, "name": str(n), "path": f"{n}" if n else "", "type": f"x.y.{kind}"} for n, kind in enumerate(modules)
    ]
    (tmp_path / "modules.json").write_text(json.dumps(entries), encoding="utf-8")
    for name, config in configs.items():
        (tmp_path / name.removeprefix("_")).mkdir()
        (tmp_path / name.removeprefix("_") / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    head = replace(HEAD, pooling=("cls", "mean"), include_prompt=False)
    write_head(head, tmp_path / "head", hidden_size=8)
    assert read_head(str(tmp_path / "head")) == head


def test_no_length_is_written_as_no_file(tmp_path: Path) -> None:
    head = replace(HEAD, max_length=None)
    write_head(head, tmp_path / "head", hidden_size=8)
    assert not (tmp_path / "head" / "sentence_bert_config.json").exists()
    assert read_head(str(tmp_path / "head")) == head


@pytest.mark.parametrize("longest", [77, None])
def test_texts_can_be_made_lower_case(tmp_path: Path, longest: int | None) -> None:
    head = replace(HEAD, max_length=longest, lowercase=True)
    write_head(head, tmp_path / "head", hidden_size=8)
    assert read_head(str(tmp_path / "head")) == head
    assert (head.prepare("A Text"), HEAD.prepare("A Text")) == ("a text", "A Text")
    assert head.checksum != replace(head, lowercase=False).checksum


def test_dense_layers_are_written_with_their_weights(tmp_path: Path) -> None:
    head = replace(HEAD, layers=(dense(8, 5), dense(5, 3, bias=False), Normalize()))
    write_head(head, tmp_path / "head", hidden_size=8)
    found = read_head(str(tmp_path / "head"))
    assert found is not None
    states, mask = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1)), torch.ones(2, 4)
    assert torch.equal(found(states, mask), head(states, mask))
    assert found(states, mask).shape == (2, 3) == (2, head.width(8))


def test_dense_layers_are_read_from_safetensors_only(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ["Transformer", "Pooling", "Dense"], _1={"pooling_mode": "mean"}, _2={"bias": True})
    (folder / "2" / "pytorch_model.bin").touch()
    with pytest.raises(MinilmError, match=r"lack 2/model\.safetensors"):
        read_head(str(folder))
    (folder / "2" / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(MinilmError, match="cannot be read"):
        read_head(str(folder))


def test_a_model_of_another_library_has_no_head(tmp_path: Path) -> None:
    assert read_head(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ("max", "mean")),
        ({"pooling_mode": "lasttoken", "pooling_mode_mean_tokens": True}, ("lasttoken",)),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
    ],
)
def test_pooling_is_read_from_settings_of_all_versions(tmp_path: Path, config: Any, modes: tuple[str, ...]) -> None:
    head = read_head(str(folder_of(tmp_path, ["Transformer", "Pooling", "Dropout", "Normalize"], _1=config)))
    assert head is not None
    assert (head.pooling, head.layers, head.max_length, head.prompts) == (modes, (Normalize(),), None, {})


def test_the_longest_text_is_read_from_the_file_of_a_family(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ["Transformer", "Pooling"], _1={"pooling_mode": "mean"})
    (folder / "sentence_roberta_config.json").write_text('{"max_seq_length": 99}')
    head = read_head(str(folder))
    assert head is not None
    assert head.max_length == 99


MEAN = {"pooling_mode": "mean"}


@pytest.mark.parametrize(
    ("modules", "configs", "reason"),
    [
        (["Transformer", "Pooling", "LSTM"], {"_1": MEAN}, "have a LSTM module, which is not supported"),
        (["Transformer", "Pooling"], {"_1": {"pooling_mode": "best"}}, "have the pooling mode best"),
        (["Transformer", "Pooling"], {}, "name no pooling"),
        (["Transformer", "Pooling", "Dense"], {"_1": MEAN, "_2": {"activation_function": "os.system"}}, "os.system"),
        (
            ["Transformer", "Pooling", "Dense"],
            {"_1": MEAN, "_2": {"use_residual": True}},
            "a kind that is not supported",
        ),
        (["Transformer", "Pooling"], {"_1": [1]}, "cannot be read"),
    ],
)
def test_parts_that_are_not_supported_are_refused(tmp_path: Path, modules: Any, configs: Any, reason: str) -> None:
    with pytest.raises(MinilmError, match=reason) as caught:
        read_head(str(folder_of(tmp_path, modules, **configs)))
    assert "--pooling" in str(caught.value)


def test_a_dense_layer_fits_one_width_only() -> None:
    head = replace(HEAD, layers=(dense(8, 5), dense(5, 3)))
    assert head.fitted(8) is head
    assert head.fitted(4) == replace(head, layers=())
    assert replace(head, layers=(*head.layers, Normalize())).fitted(4).layers == (Normalize(),)
    assert (two := replace(head, pooling=("mean", "cls"))).fitted(4) is two
    assert HEAD.fitted(4) is HEAD


def test_heads_that_make_other_embeddings_have_other_checksums() -> None:
    others = [
        replace(HEAD, pooling=("cls",)),
        replace(HEAD, layers=(dense(8, 8),)),
        replace(HEAD, layers=()),
        replace(HEAD, prompts={"query": "search: "}),
        replace(HEAD, include_prompt=not HEAD.include_prompt),
        replace(HEAD, default_prompt=None),
    ]
    assert len({head.checksum for head in (HEAD, *others)}) == len(others) + 1
    assert replace(HEAD).checksum == HEAD.checksum


@pytest.mark.slow
@pytest.mark.parametrize(
    "head",
    [
        HEAD,
        replace(HEAD, pooling=("cls",), layers=()),
        replace(HEAD, pooling=("lasttoken",), layers=(dense(48, 7), Normalize())),
        replace(HEAD, pooling=("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"), layers=()),
    ],
    ids=["mean", "cls", "dense", "all"],
)
def test_sentence_transformers_computes_the_same(tmp_path: Path, tiny_teacher: Path, head: SentenceHead) -> None:
    import shutil

    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    folder = Path(shutil.copytree(tiny_teacher, tmp_path / "model"))
    write_head(head, folder, hidden_size=48)
    library = SentenceTransformer(str(folder), device="cpu")
    assert (library.max_seq_length, library.similarity_fn_name) == (77, "dot")
    assert (library.prompts["query"], library.default_prompt_name) == ("find: ", "query")
    texts = ["the people of this world", "work", "", "their hand " * 60]
    found = library.encode(texts, prompt="", convert_to_tensor=True)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    for text, embedding in zip(texts, found, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            expected = head(model(**inputs).last_hidden_state, inputs["attention_mask"])[0]
        torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-5)
