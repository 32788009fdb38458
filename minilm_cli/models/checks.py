"""Checks of a model's configuration and of the built model, for teacher and student."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.auto import has_separate_encoder
from minilm_cli.models.families import family_of, global_layers, window
from minilm_cli.models.hub import quiet, reason
from minilm_cli.models.projections import find_projections, uses_registry

#: Libraries create these one by one: of a billion they would, until memory is exhausted.
_AT_MOST = {"num_hidden_layers": 1000, "num_labels": 100_000}

_READABLE = "Choose an encoder such as BERT, RoBERTa, XLM-R, MPNet, DeBERTa, ELECTRA, DistilBERT, ALBERT or ModernBERT."


def check_numbers(values: Mapping[str, Any], where: str) -> None:
    """Raise `MinilmError` for numbers in a config.json that no model can have, before its family computes with them."""
    family = values.get("model_type")
    names = CONFIG_MAPPING[family].attribute_map if isinstance(family, str) and family in CONFIG_MAPPING else {}
    most = _AT_MOST | {names[name]: number for name, number in _AT_MOST.items() if name in names}
    parts = [values]
    for part in parts:
        for name, value in part.items():
            if isinstance(value, float) and not isfinite(value):
                raise MinilmError(f"{name} must be a finite number, not {value}", where=where)
            if isinstance(value, int) and value > most.get(name, value):
                raise MinilmError(f"{name} is {value}, and must be at most {most[name]}", where=where)
            if isinstance(value, dict):  # a configuration within the configuration
                parts.append(value)


def refuse_decoder(config: PreTrainedConfig, side: str, where: str) -> None:
    """Raise `MinilmError` if a configuration says that the model generates text."""
    if has_separate_encoder(config):
        return
    if config.is_encoder_decoder:
        raise MinilmError(f"the {side} has a decoder, and only encoders can be distilled", where=where)
    if getattr(config, "is_decoder", False):
        raise MinilmError(
            f"is_decoder is true, so the {side} is a causal model and not an encoder",
            where=where,
            hint="Set is_decoder to false if it was trained as an encoder, or choose another model.",
        )


def refuse_unsuitable(model: PreTrainedModel, side: str, where: str) -> None:
    """Raise `MinilmError` if a built model is no encoder, or its queries, keys and values cannot be read.

    The model needs no weights: what decides is how transformers builds the family.
    """
    family = family_of(model.config).name
    if getattr(model, "encoder", None) is not None and getattr(model, "decoder", None) is not None:
        raise MinilmError(
            f"the {side} is of the encoder-decoder family {family}, and transformers has no model of its encoder alone",
            where=where,
            hint=_READABLE,
        )
    if any(getattr(module, "is_causal", False) for module in model.modules()):
        raise _causal(family, side, where)
    if not (uses_registry(model) or find_projections(model, [1])):
        raise unreadable_attention(family, side, where)


def refuse_local_layer(config: PreTrainedConfig, layer: int, max_length: int, side: str) -> None:
    """Raise `MinilmError` if attention in this layer does not reach across sequences of `max_length` tokens.

    What its queries and keys say of tokens far apart was never used, so there is nothing to learn from it.
    """
    reach = window(config, layer)
    if reach is None or reach >= max_length:
        return
    remedies = [f"Set --max-length to {reach} or less."]
    if others := ", ".join(map(str, global_layers(config))):
        remedies.insert(0, f"Choose a layer whose attention sees all tokens: {others}.")
    if side == "student":
        remedies.append(f"Or write layer_types with full_attention for layer {layer} into its config.json.")
    raise MinilmError(
        f"{side}.layer: attention in layer {layer} of the {side} is local, up to {reach} tokens away, and sequences"
        f" may have {max_length} tokens",
        hint=" ".join(remedies),
    )


def _causal(family: str, side: str, where: str) -> MinilmError:
    return MinilmError(
        f"the {side} ({family}) is a causal language model: each token attends only to earlier ones, and the"
        " relations to be learnt are between all tokens",
        where=where,
        hint=_READABLE,
    )


def unreadable_attention(family: str, side: str | None = None, where: str | None = None) -> MinilmError:
    """The error for a family with attention outside transformers' registry, and projections with unusual names."""
    of_side = f" of the {side}" if side else ""
    return MinilmError(
        f"minilm cannot find the queries, keys and values{of_side}: it is a {family} model",
        where=where,
        hint=_READABLE,
    )


def try_out(model: PreTrainedModel, side: str, where: str) -> None:
    """Run a model on a few tokens: a configuration may describe a model that can be built but not computed.

    Raises `MinilmError` if that fails, gives numbers that are not finite, or shows that tokens see only earlier ones.
    """
    family, remedy, training = family_of(model.config).name, family_of(model.config).remedy, model.training
    model.train(False)
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]]) % model.config.vocab_size
    try:
        with quiet(), torch.no_grad():
            found: torch.Tensor = model(input_ids=ids)[0]
    except Exception as error:  # anything that a family's own code raises at an odd entry
        raise MinilmError(f"the {side} ({family}) cannot compute: {reason(error)}", where=where, hint=remedy) from error
    model.train(training)
    if not found.isfinite().all():
        raise MinilmError(
            f"the {side} ({family}) computes numbers that are not finite",
            where=where,
            hint="Check the numbers in its config.json.",
        )
    # In the registry, attention says itself whether it is causal.
    if not uses_registry(model) and torch.equal(found[0, 0], found[1, 0]) and not torch.equal(ids[0], ids[1]):
        raise _causal(family, side, where)
