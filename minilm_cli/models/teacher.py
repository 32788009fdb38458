"""The teacher: its configuration and weights, loaded and checked."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.checks import check_numbers, refuse_decoder, refuse_unsuitable, try_out
from minilm_cli.models.encoder import load_encoder
from minilm_cli.models.families import family_of
from minilm_cli.models.hub import loading
from minilm_cli.models.size import Size, size_of, weightless
from minilm_cli.models.student import building


def read_teacher_config(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The teacher's configuration, and the entries of its config.json as written there.

    name: Hub name or local folder. Raises `MinilmError` if it cannot be loaded, or is not that of an encoder that
    can be distilled. No weights are read.
    """
    with loading("teacher", name, revision):
        values, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    check_numbers(values, name)
    with loading("teacher", name, revision):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    _check_config(config, name)
    with building(config, "teacher", name):
        model = weightless(config)
    if model is not None:
        refuse_unsuitable(model, "teacher", name)
    return config, values


def check_teacher(name: str, *, max_length: int, revision: str | None = None, trust_remote_code: bool = False) -> None:
    """Raise `MinilmError` if this is no teacher, or reads no sequences of `max_length` tokens. No weights are read."""
    config, _ = read_teacher_config(name, revision=revision, trust_remote_code=trust_remote_code)
    model = weightless(config)
    limit = None if model is None else family_of(config).longest_input(model)
    if limit is not None and max_length > limit:
        raise MinilmError(
            f"the teacher reads at most {limit} tokens, and sequences may have {max_length}",
            where=name,
            hint=f"Set --max-length to {limit}.",
        )


def load_teacher(
    name: str,
    *,
    layer: int,
    revision: str | None = None,
    trust_remote_code: bool = False,
    config: PreTrainedConfig | None = None,
) -> tuple[PreTrainedModel, Size]:
    """The teacher in fp32 and evaluation mode, without the layers above `layer`, 1-based; and the whole's size.

    name: Hub name or local folder. config: the result of `read_teacher_config`, if it was read before.
    Raises `MinilmError` if it cannot be loaded, lacks weights, or does not compute finite numbers.
    """
    if config is None:
        config, _ = read_teacher_config(name, revision=revision, trust_remote_code=trust_remote_code)
    model, _ = load_encoder("teacher", name, config=config, revision=revision, trust_remote_code=trust_remote_code)
    refuse_unsuitable(model, "teacher", name)
    _check_weights(model, name)
    try_out(model, "teacher", name)
    size = size_of(model)
    _drop_layers_above(model, layer)
    return model.eval().requires_grad_(False), size


def _drop_layers_above(model: PreTrainedModel, layer: int) -> None:
    """Free the layers that a tap on `layer` never runs, and the pooler."""
    stack = family_of(model.config).layer_stack(model, model.config.num_hidden_layers)
    if stack is not None:
        del stack[1][layer:]
    if getattr(model, "pooler", None) is not None:
        model.pooler = None


def _check_config(config: PreTrainedConfig, where: str) -> None:
    refuse_decoder(config, "teacher", where)
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value < 1:
            raise MinilmError(f"{name} is {value} in the teacher's config.json", where=where)
    padding, vocabulary = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if padding is not None and vocabulary is not None and not 0 <= padding < vocabulary:
        raise MinilmError(
            f"pad_token_id is {padding} in the teacher's config.json, but its vocab_size is {vocabulary}",
            where=where,
            hint="Set it to the id of the tokenizer's padding token.",
        )
    if not all(hasattr(config, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")):
        raise MinilmError(f"this is not a text encoder, but a {family_of(config).name} model", where=where)


def _check_weights(model: PreTrainedModel, where: str) -> None:
    for name, tensor in model.state_dict().items():
        # The sum is finite if they all are, and takes no memory.
        if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise MinilmError(
                f"the teacher's weights are damaged: {name} has values that are not finite numbers",
                where=where,
                hint="Download or copy the teacher again.",
            )
