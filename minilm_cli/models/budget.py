"""A student by its size: the number of layers and the width that fit."""

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


def student_within(parameters: int, setting: str, teacher: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """The preset of a student of the teacher's family with at most so many parameters.

    It has half of the teacher's layers and is as wide as fits. If it were narrower than a quarter of the teacher, it
    has a third of the layers, else a quarter, else two. The choice is logged. setting: that names the budget.
    Raises `MinilmError` if nothing fits.
    """
    name, count = "", 0
    for layers, width in itertools.product(_layers(teacher), _widths(teacher)):
        name = f"l{layers}-h{width}"
        count = _count(student_config(name, teacher, tokenizer))
        if count <= parameters:
            of_layers = f"{layers} of the teacher's {teacher.num_hidden_layers} layers"
            logger.info("The student is %s, %s: %s, as wide as fits.", name, _shown(count), of_layers)
            return name
    raise MinilmError(
        f"{setting}: even {name} is larger: {_shown(count)}",
        hint="Raise it, or choose a teacher with a smaller vocabulary.",
    )


def _count(config: PreTrainedConfig) -> int:
    model = weightless(config)
    assert model is not None, "a preset is of a family of transformers"
    return count_parameters(model)


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
