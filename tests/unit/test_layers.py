from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.layers import evenly_spaced, resolve_layer


@pytest.mark.parametrize(
    ("layer", "layers", "number"), [(1, 12, 1), (12, 12, 12), (-1, 12, 12), (-12, 12, 1), (-3, 24, 22), (1, 1, 1)]
)
def test_layers_count_from_1_or_from_the_last(layer: int, layers: int, number: int) -> None:
    assert resolve_layer(layer, layers, setting="teacher.layer") == number


@pytest.mark.parametrize(("layer", "layers"), [(13, 12), (-13, 12), (0, 12), (2, 1)])
def test_missing_layer_is_refused(layer: int, layers: int) -> None:
    with pytest.raises(MinilmError, match=f"student.layer: there is no layer {layer} in a model of {layers}"):
        resolve_layer(layer, layers, setting="student.layer")


@pytest.mark.parametrize(("layers", "of", "chosen"), [(3, 6, [2, 4, 6]), (6, 6, [1, 2, 3, 4, 5, 6]), (1, 12, [12])])
def test_layers_are_evenly_spaced(layers: int, of: int, chosen: list[int]) -> None:
    assert evenly_spaced(layers, of) == chosen


@given(st.integers(1, 48), st.integers(1, 48))
def test_evenly_spaced_layers_rise_to_the_last(layers: int, of: int) -> None:
    chosen = evenly_spaced(layers, of)
    assert len(chosen) == layers
    assert chosen == sorted(chosen)
    assert chosen[0] >= 1
    assert chosen[-1] == of
    assert layers > of or len(set(chosen)) == layers
