"""A student by its size: the number of layers, the width and the tokens that fit."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.size import count_parameters, weightless
from minilm_cli.models.student_config import student_config

logger = logging.getLogger(__name__)

#: Widths are multiples of the first of these of which the teacher's is one, so that relation heads divide both.
_STEPS = (48, 64, 12)

#: A student narrower than this share of its teacher has fewer layers instead.
_NARROWEST = 0.25


def student_within(
    parameters: int,
    setting: str,
    teacher: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    fewest_tokens: int,
    most_tokens: int,
) -> tuple[str, int]:
    """The preset of a student of the teacher's family with at most so many parameters, and the tokens that it keeps.

    It has half of the teacher's layers and is as wide as fits with `fewest_tokens`; what is left is for more tokens. If
    it were narrower than a quarter of the teacher, it has a third of the layers, else a quarter, else two. The choice
    is logged. setting: that names the budget.
    Raises `MinilmError` if nothing fits.
    """
    name, smallest = "", 0
    for layers, width in itertools.product(_layers(teacher), _widths(teacher)):
        name = f"l{layers}-h{width}"
        count, row = _count(student_config(name, teacher, tokenizer))
        without_tokens = count - row * teacher.vocab_size
        tokens = min(most_tokens, (parameters - without_tokens) // row)
        if tokens >= fewest_tokens:
            size = _shown(without_tokens + row * tokens)
            of_layers = f"{layers} of the teacher's {teacher.num_hidden_layers} layers"
            of_tokens = f"{tokens:,} of its {teacher.vocab_size:,} tokens"
            logger.info("The student is %s, %s: %s and %s, as wide as fits.", name, size, of_layers, of_tokens)
            return name, tokens
        smallest = without_tokens + row * fewest_tokens
    raise MinilmError(
        f"{setting}: even {name} is larger: {_shown(smallest)} with {fewest_tokens:,} tokens",
        hint="Raise it, or keep fewer tokens (--keep-vocab).",
    )


def _count(config: PreTrainedConfig) -> tuple[int, int]:
    """The parameters of a model, and those of a token's row in its table."""
    model = weightless(config)
    assert model is not None, "a preset is of a family of transformers"
    return count_parameters(model), model.get_input_embeddings().weight.shape[1]


def _shown(count: int) -> str:
    return f"{count:,} parameters, {count * 4 / 1e6:,.1f} MB"


def _layers(teacher: PreTrainedConfig) -> Iterator[int]:
    """Numbers of layers, the first that fits is taken."""
    layers = teacher.num_hidden_layers
    yield from dict.fromkeys(max(min(2, layers), round(layers / part)) for part in (2, 3, 4, layers))


def _widths(teacher: PreTrainedConfig) -> Iterator[int]:
    """Widths up to the teacher's, the widest first."""
    hidden = teacher.hidden_size
    step = next((step for step in _STEPS if hidden % step == 0), hidden)
    narrowest = max(step, int(hidden * _NARROWEST))
    yield from (width for width in range(hidden, 0, -step) if width >= narrowest)
