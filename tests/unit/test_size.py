from __future__ import annotations

import pytest
from transformers import BertConfig

from minilm_cli.models.size import count_parameters, size_of, weightless
from minilm_cli.models.student import build_student

from .model_configs import small


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert", "modernbert", "nomic_bert"])
def test_parameters_are_the_same_without_weights(family: str) -> None:
    model = weightless(small(family))
    assert model is not None
    assert all(parameter.is_meta for parameter in model.parameters())
    assert count_parameters(model) == size_of(build_student(small(family), seed=0)).parameters


def test_operations_are_those_of_the_matrix_products() -> None:
    width, feed_forward, layers = 24, 32, 2
    products = layers * (4 * width * width + 2 * width * feed_forward) + width * width  # the last is the pooler's
    assert size_of(build_student(small("bert"), seed=0)).operations == 2 * products


def test_shared_layers_count_once_as_parameters_and_each_time_as_operations() -> None:
    one, three = (size_of(build_student(small("albert", num_hidden_layers=layers), seed=0)) for layers in (1, 3))
    assert one.parameters == three.parameters
    assert three.operations > 2 * one.operations


def test_configuration_that_is_not_transformers_own_has_no_model() -> None:
    class OwnConfig(BertConfig):
        model_type = "own"

    assert weightless(OwnConfig()) is None
