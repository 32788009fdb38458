"""The student: a model of its configuration with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.seeding import derive
from minilm_cli.models.auto import auto_class
from minilm_cli.models.checks import try_out
from minilm_cli.models.families import family_of
from minilm_cli.models.hub import quiet, reason


def build_student(config: PreTrainedConfig, *, seed: int) -> PreTrainedModel:
    """A student in fp32 with the random weights that its family starts from, the same for the same seed.

    Raises `MinilmError` if the family cannot build a model of this configuration, or such a model cannot compute.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "student"))
        with building(config, "student", "student.config"):
            model = random_model(config)
        try_out(model, "student", "student.config")
    return model


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model in fp32 with random weights, on torch's current device."""
    model: PreTrainedModel = auto_class(config).from_config(config, dtype=torch.float32)
    return model


@contextmanager
def building(config: PreTrainedConfig, side: str, where: str) -> Iterator[None]:
    """Turn anything that a family's own code raises into a `MinilmError`."""
    try:
        with quiet():
            yield
    except Exception as error:
        family = family_of(config).name
        raise MinilmError(f"the {side} ({family}) cannot be built: {reason(error)}", where=where) from error
