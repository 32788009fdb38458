from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.layers import evenly_spaced, resolve_layer, resolve_layers, spaced_by_pairs


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


@pytest.mark.parametrize(
    ("wanted", "numbers"), [(12, (12,)), (-1, (12,)), ((6, 12), (6, 12)), ((-3, -1), (10, 12)), ([1, 2, 3], (1, 2, 3))]
)
def test_layers_are_numbered_from_1(wanted: int | tuple[int, ...], numbers: tuple[int, ...]) -> None:
    assert resolve_layers(wanted, 12, setting="teacher.layer") == numbers


@pytest.mark.parametrize("wanted", [(12, 6), (6, 6), (12, -1), (-1, 3), (1, 3, 2)])
def test_layers_that_do_not_rise_are_refused(wanted: tuple[int, ...]) -> None:
    given = ",".join(map(str, wanted))
    message = f"teacher.layer: {given} does not rise, in a model of 12 layers"
    with pytest.raises(MinilmError, match=message) as caught:
        resolve_layers(wanted, 12, setting="teacher.layer")
    assert caught.value.hint == "Give each layer once, the lowest first, such as 6,12."


def test_each_of_several_layers_must_exist() -> None:
    with pytest.raises(MinilmError, match=r"teacher\.layer: there is no layer 13 in a model of 12"):
        resolve_layers((6, 13), 12, setting="teacher.layer")


@pytest.mark.parametrize(
    ("layers", "of", "chosen"),
    [
        ([3, 6], [6, 12], [2, 4, 6, 8, 10, 12]),
        ([3, 6], [6, 18], [2, 4, 6, 10, 14, 18]),
        ([1, 3], [8, 12], [8, 10, 12]),
        ([2, 3], [3, 4], [2, 3, 4]),
    ],
)
def test_layers_between_pairs_are_evenly_spaced(layers: list[int], of: list[int], chosen: list[int]) -> None:
    assert spaced_by_pairs(layers, of) == chosen


@given(st.sets(st.integers(1, 24), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_each_layer_of_a_pair_falls_on_its_counterpart(layers: set[int], random: Random) -> None:
    ours, theirs = sorted(layers), sorted(random.sample(range(1, 25), len(layers)))
    chosen = spaced_by_pairs(ours, theirs)
    assert [chosen[number - 1] for number in ours] == theirs
    assert chosen == sorted(chosen)
    assert chosen[0] >= 1
    assert len(ours) > 1 or chosen == evenly_spaced(ours[0], theirs[0])
