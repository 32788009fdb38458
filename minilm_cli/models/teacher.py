"""The teacher: its configuration and weights, loaded and checked."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.checks import _check_numbers, _refuse_causal, _refuse_decoder, _try_out
from minilm_cli.models.families import _BEST_LAYER, layer_stack
from minilm_cli.models.heads import resolve_layer
from minilm_cli.models.hub import loading
from minilm_cli.models.tap import ATTENTION


def read_teacher_config(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The teacher's configuration, and the entries of its config.json as they stand there.

    name: Hub name or local folder. Raises `MinilmError` if it cannot be loaded, or is not that of an encoder.
    """
    with loading("teacher", name, revision):
        values, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    _check_numbers(values, name)
    with loading("teacher", name, revision):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    _check_teacher(config, name)
    return config, values


def load_teacher(
    name: str,
    *,
    layer: int | str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    config: PreTrainedConfig | None = None,
) -> tuple[PreTrainedModel, int]:
    """The teacher in fp32 and evaluation mode, without the layers above the tapped one; and that layer, 1-based.

    name: Hub name or local folder. layer: 1-based, negative from the last, or `auto`. config: what
    `read_teacher_config` gave, if it was read before.
    Raises `MinilmError` if it cannot be loaded, lacks weights, computes no numbers, or has no such layer.
    """
    if config is None:
        config, _ = read_teacher_config(name, revision=revision, trust_remote_code=trust_remote_code)
    with loading("teacher", name, revision):
        model, report = AutoModel.from_pretrained(
            name,
            config=config,
            revision=revision,
            trust_remote_code=trust_remote_code,
            attn_implementation=ATTENTION,
            dtype=torch.float32,
            output_loading_info=True,
        )
    _refuse_causal(model, "teacher", name)
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing or report["mismatched_keys"]:
        first = missing[0] if missing else min(report["mismatched_keys"])[0]
        raise MinilmError(
            f"the teacher's weights do not fill the model its config describes: {first} is missing", where=name
        )
    layers = model.config.num_hidden_layers
    if layer == "auto":
        layer = _BEST_LAYER.get((model.config.model_type, layers), layers)
    number = resolve_layer(int(layer), layers, setting="teacher.layer")
    _check_weights(model, name)
    _try_out(model, "teacher", name)
    drop_layers_above(model, number)
    return cast(PreTrainedModel, model.eval().requires_grad_(False)), number


def _check_teacher(config: PreTrainedConfig, where: str) -> None:
    _refuse_decoder(config, "teacher", where)
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value < 1:
            raise MinilmError(f"{name} is {value} in the teacher's config.json", where=where)
    padding, vocabulary = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if padding is not None and vocabulary is not None and not 0 <= padding < vocabulary:
        raise MinilmError(
            f"pad_token_id is {padding} in the teacher's config.json, and its vocab_size {vocabulary}",
            where=where,
            hint="Write the id of its tokenizer's padding token there.",
        )


def _check_weights(model: PreTrainedModel, where: str) -> None:
    for name, tensor in model.state_dict().items():
        # The sum is finite if they all are, and takes no memory.
        if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise MinilmError(
                f"the teacher's weights are damaged: {name} has values that are not finite numbers",
                where=where,
                hint="Is it whole? Take another copy of it.",
            )


def drop_layers_above(model: PreTrainedModel, layer: int) -> None:
    """Free the layers that a tap on `layer` never runs, and the pooler."""
    stack = layer_stack(model, model.config.num_hidden_layers)
    if stack is not None:
        del stack[1][layer:]
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]  # as transformers itself does without one
