"""Checks that teacher and student share."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.hub import quiet, reason

#: What libraries make one by one: of a billion they would, until memory is gone.
_AT_MOST = {"num_hidden_layers": 1000, "num_labels": 100_000}


def _refuse_decoder(config: PreTrainedConfig, side: str, where: str) -> None:
    if config.is_encoder_decoder:
        raise MinilmError(f"the {side} has a decoder, and only encoders can be distilled", where=where)
    if getattr(config, "is_decoder", False):
        raise MinilmError(
            f"is_decoder is true, so the {side} is a causal model and not an encoder",
            where=where,
            hint="Set is_decoder to false if it was trained as an encoder, or choose another model.",
        )


def _refuse_causal(model: PreTrainedModel, side: str, where: str) -> None:
    if any(getattr(module, "is_causal", False) for module in model.modules()):
        raise MinilmError(
            f"the {side} ({model.config.model_type}) is a causal model and not an encoder",
            where=where,
            hint="Choose an encoder, such as BERT or RoBERTa.",
        )


def _try_out(model: PreTrainedModel, side: str, where: str) -> None:
    """Have a model read one token: a config may describe what can be built and cannot be computed."""
    family = model.config.model_type
    training = model.training
    model.train(False)
    try:
        with quiet(), torch.no_grad():
            found: torch.Tensor = model(input_ids=torch.ones((1, 1), dtype=torch.long))[0]
    except Exception as error:  # whatever a family's own code raises at an odd entry
        raise MinilmError(f"the {side} ({family}) cannot compute: {reason(error)}", where=where) from error
    model.train(training)
    if not found.isfinite().all():
        raise MinilmError(
            f"the {side} ({family}) computes what is not a finite number",
            where=where,
            hint="Look for odd values among the numbers of its config.json.",
        )


def _of_teacher(teacher: PreTrainedConfig, name: str) -> int | None:
    """An entry of the teacher's; a family without token types may say that it has 0 of them."""
    value: int | None = getattr(teacher, name, None)
    return None if name == "type_vocab_size" and value == 0 else value


def _check_numbers(values: Mapping[str, Any], where: str) -> None:
    """Refuse what no config.json has for good, before its family makes something of it."""
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
            if isinstance(value, dict):  # a config within the config
                parts.append(value)
