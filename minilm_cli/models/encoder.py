"""The encoder in a model's files, whatever head they have besides it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.auto import auto_class
from minilm_cli.models.hub import loading
from minilm_cli.models.weight_files import refuse_damaged


def load_encoder(
    kind: str,
    name: str,
    *,
    config: PreTrainedConfig | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, list[str]]:
    """The encoder of a folder or Hub name in fp32, and the names of the tensors that are no part of it, as of a head.

    kind: what messages call the model. config: its configuration, if it was read before.
    Raises `MinilmError` if it cannot be loaded, or if weights are missing; a pooler's may be.
    """
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with loading(kind, name, revision):
        config = config or AutoConfig.from_pretrained(name, **options)
        options |= {"config": config, "dtype": torch.float32, "output_loading_info": True}
        try:
            model, report = auto_class(config).from_pretrained(name, **options)
        except Exception:
            refuse_damaged(name, kind)
            raise
        missing = {key for key in report["missing_keys"] if "pooler" not in key}
        if missing and type(config) in MODEL_FOR_MASKED_LM_MAPPING:
            missing -= _fill_tied_embeddings(model, missing, name, options)
    unexpected = sorted(report["unexpected_keys"])
    if missing:
        raise _missing(min(missing), unexpected, kind, name)
    return model, unexpected


def _fill_tied_embeddings(model: PreTrainedModel, missing: set[str], name: str, options: dict[str, Any]) -> set[str]:
    """Fill missing token embeddings from the masked-LM head that shares them; return the names that were filled.

    Some libraries save a shared tensor once, under the first of its names, which may be the head's.
    """
    table = model.get_input_embeddings()
    names = {key for key, parameter in model.named_parameters() if parameter is table.weight} & missing
    if not names:
        return set()
    whole, report = AutoModelForMaskedLM.from_pretrained(name, **options)
    names -= {key.removeprefix(f"{whole.base_model_prefix}.") for key in report["missing_keys"]}
    if names:
        table.load_state_dict(whole.get_input_embeddings().state_dict())
    return names


def _missing(first: str, unexpected: list[str], kind: str, where: str) -> MinilmError:
    """The error for weights that the files lack; says if they have them under a longer name."""
    other = next((key for key in unexpected if key.endswith(f".{first}")), None)
    hint = f"Download or copy the {kind} again."
    if other is not None:
        hint = f"The files call it {other}. Rename their tensors, or save the model with save_pretrained."
    return MinilmError(f"the {kind}'s weights do not fit its config.json: {first} is missing", where=where, hint=hint)
