"""The facts of a plan, taken from models, token stores and settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from minilm_cli.base.checksums import sha256, sha256_of_text
from minilm_cli.models.families import family_of
from minilm_cli.models.hub import Card
from minilm_cli.models.size import Size, count_parameters
from minilm_cli.models.tap import Tap
from minilm_cli.runs.plan import DataFacts, StartFacts, StoreFacts, StudentFacts, TeacherFacts
from minilm_cli.tokens.mixture import Mixture
from minilm_cli.tokens.store import TokenStore


def short_name(config: PreTrainedConfig) -> str:
    """A model's layers and width, as in `l6-h384`."""
    return f"l{config.num_hidden_layers}-h{config.hidden_size}"


def teacher_facts(
    model: PreTrainedModel,
    layers: Sequence[int],
    name: str,
    size: Size,
    card: Card,
    *,
    layer_reason: str | None,
    config_sha256: str,
) -> TeacherFacts:
    """The facts of a teacher without the layers after the tapped `layers`.

    name: as the settings give it. size: with all layers. config_sha256: of its config.json, as it was read.
    """
    config = model.config
    return TeacherFacts(
        name=public_name(name) or name,
        on_hub=not Path(name).is_dir(),
        family=family_of(config).name,
        layers=config.num_hidden_layers,
        layer=layers[-1],
        tapped_layers=_if_several(layers),
        layer_reason=layer_reason,
        width=config.hidden_size,
        parameters=count_parameters(model),
        total_parameters=size.parameters,
        operations_per_token=size.operations,
        config_sha256=config_sha256,
        weights_sha256=_weights_sha256(model),
        license=card.word("license"),
        license_name=card.word("license_name"),
        license_link=card.word("license_link"),
        language=card.words("language"),
    )


def student_facts(
    tap: Tap, size: Size, start: StartFacts, *, untrained: Sequence[str], config_sha256: str
) -> StudentFacts:
    """The facts of the student, whose initial weights `start` describes."""
    config, named = tap.model.config, dict(tap.model.named_parameters())
    return StudentFacts(
        name=short_name(config),
        family=tap.family.name,
        layers=config.num_hidden_layers,
        layer=tap.layers[-1],
        tapped_layers=_if_several(tap.layers),
        width=config.hidden_size,
        attention_heads=config.num_attention_heads,
        feed_forward_width=getattr(config, tap.family.feed_forward, None),
        parameters=size.parameters,
        embedding_parameters=size.embeddings,
        operations_per_token=size.operations,
        **start.model_dump(),
        tensors=len(named),
        untrained=list(untrained),
        untrained_parameters=sum(named[name].numel() for name in untrained),
        config_sha256=config_sha256,
    )


def data_facts(
    stores: Mapping[Path, TokenStore],
    mixture: Mixture,
    weights: Sequence[float] | None,
    *,
    held_out: int,
    max_length: int,
) -> DataFacts:
    """held_out: sequences. max_length: tokens that longer sequences are cut to."""
    weight_of_each: Sequence[float | None] = weights or [None] * len(stores)
    each = [
        StoreFacts(
            name=path.name,
            sequences=len(store),
            tokens=store.manifest.tokens,
            share=share,
            weight=weight,
            manifest_sha256=sha256(store.path / "manifest.json"),
        )
        for (path, store), share, weight in zip(stores.items(), mixture.shares, weight_of_each, strict=True)
    ]
    tokenizers = dict.fromkeys(public_name(store.manifest.tokenizer.name) for store in stores.values())
    sums = [store.manifest_sha256 for store in each]
    return DataFacts(
        name=", ".join(store.name for store in each),
        tokenizer=", ".join(filter(None, tokenizers)) or None,
        sequences=len(mixture),
        tokens=sum(store.tokens for store in each),
        manifest_sha256=sums[0] if len(each) == 1 else sha256_of_text("".join(sums)),
        held_out=held_out,
        max_length=max_length,
        stores=each if len(each) > 1 else [],
    )


def public_name(name: str | None) -> str | None:
    """A Hub name as it is, and only the last part of a local path: the rest is private."""
    return name if name is None or (name.count("/") == 1 and not Path(name).is_dir()) else Path(name).name


def _if_several(layers: Sequence[int]) -> list[int]:
    return list(layers) if len(layers) > 1 else []


def _weights_sha256(model: PreTrainedModel) -> str:
    """Of a model's weights, without the pooler's, which a teacher may lack and which are random then."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if "pooler" not in name:
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
