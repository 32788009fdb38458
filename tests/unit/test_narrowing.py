from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minilm_cli.models import narrowing


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    """Random rows whose components differ in size and are not centred."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * torch.arange(1, width + 1) + 0.5


def moments(states: Tensor) -> Tensor:
    return states.T @ states / len(states)


@pytest.mark.parametrize("width", [3, 6, 9])
def test_the_map_of_the_residual_stream_keeps_the_principal_directions(width: int) -> None:
    states = rows(100, 6)
    found, share = narrowing.residual_map(moments(states), width, seed=0)
    assert found.shape == (width, 6)
    back = states @ found.T @ found
    torch.testing.assert_close(share, float(back.square().sum() / states.square().sum()), rtol=0, atol=1e-5)
    if width < 6:
        torch.testing.assert_close(found @ found.T, torch.eye(width), rtol=0, atol=1e-5)
        directions = torch.linalg.svd(states)[2][:width]
        torch.testing.assert_close(back, states @ directions.T @ directions, rtol=1e-3, atol=1e-3)
    else:
        torch.testing.assert_close(back, states, rtol=1e-4, atol=1e-4)


def test_no_component_of_the_residual_stream_dominates() -> None:
    found, _ = narrowing.residual_map(moments(rows(1000, 64) * torch.linspace(0.1, 3, 64)), 32, seed=0)
    sizes = (rows(1000, 64) @ found.T).square().mean(0)
    assert sizes.max() / sizes.min() < 20


def scores(query: Tensor, key: Tensor) -> Tensor:
    """Of all pairs, without what is the same for all keys."""
    found = query @ key.T
    return found - found.mean(1, keepdim=True)


@pytest.mark.parametrize("width", [2, 4, 6])
def test_products_of_queries_and_keys_are_kept(width: int) -> None:
    query, key, factor = rows(80, 4), rows(80, 4, 1), 0.5
    of_query, of_key = narrowing.attention_maps(query, key, width, factor=factor)
    assert of_query.shape == of_key.shape == (width, 4)
    wanted, found = factor * scores(query, key), scores(query @ of_query.T, key @ of_key.T)
    if width < 4:  # the nearest of this rank: Eckart and Young
        left, sizes, right = torch.linalg.svd(wanted, full_matrices=False)
        wanted = (left[:, :width] * sizes[:width]) @ right[:width]
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=0.05)


def test_what_a_head_writes_is_kept() -> None:
    value, output = rows(80, 4), rows(7, 4, 1)
    found = narrowing.value_map(value, output, 2)
    centred = value - value.mean(0)
    wanted = centred @ output.T
    left, sizes, right = torch.linalg.svd(wanted, full_matrices=False)
    narrow = centred @ found.T
    best = narrow @ torch.linalg.lstsq(narrow, wanted).solution
    torch.testing.assert_close(best, (left[:, :2] * sizes[:2]) @ right[:2], rtol=1e-2, atol=0.05)


def test_the_map_of_a_relation_head_keeps_its_products() -> None:
    query = rows(80, 4)
    same = query @ narrowing.relation_map(query, 4, factor=0.5).T
    torch.testing.assert_close(same @ same.T, 0.5 * query @ query.T, rtol=1e-3, atol=1e-3)
    narrow = narrowing.relation_map(query, 2, factor=1.0)
    left, sizes, right = torch.linalg.svd(query @ query.T)
    wanted = (left[:, :2] * sizes[:2]) @ right[:2]
    torch.testing.assert_close((query @ narrow.T) @ (query @ narrow.T).T, wanted, rtol=1e-3, atol=1e-2)


def test_keys_are_turned_to_fit_the_queries() -> None:
    query, key = rows(80, 4), rows(80, 4, 1)
    for width in (4, 3):
        of_query, of_key = (narrowing.relation_map(part, width, factor=1.0) for part in (query, key))
        found = narrowing.aligned(of_key, of_query)
        torch.testing.assert_close(found.T @ found, of_key.T @ of_key)  # products of keys stay

        def error(of_key: Tensor, of_query: Tensor = of_query) -> float:
            return float((scores(query @ of_query.T, key @ of_key.T) - scores(query, key)).square().sum())

        assert error(found) < 0.5 * error(of_key)
        if width == 4:
            torch.testing.assert_close(
                scores(query @ of_query.T, key @ found.T), scores(query, key), rtol=1e-3, atol=1e-2
            )


def turned(head: Tensor, angles: Tensor, *, neighbours: bool) -> Tensor:
    """Rotated by an angle for each pair of components."""
    first, second = (head[:, 0::2], head[:, 1::2]) if neighbours else head.chunk(2, dim=1)
    found = torch.view_as_real(torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles))
    return found.flatten(1) if neighbours else torch.cat([found[..., 0], found[..., 1]], 1)


@pytest.mark.parametrize("neighbours", [True, False])
def test_a_rotated_head_keeps_its_pairs_of_components(neighbours: bool) -> None:
    head = rows(10, 8)
    theirs = 10_000 ** (-torch.arange(0, 8, 2) / 8)
    ours = 10_000 ** (-torch.arange(0, 4, 2) / 4)
    found = narrowing.rotary_map(8, 4, neighbours=neighbours, factor=1.0)
    torch.testing.assert_close(
        turned(head @ found.T, ours, neighbours=neighbours), turned(head, theirs, neighbours=neighbours) @ found.T
    )
    torch.testing.assert_close(narrowing.rotary_map(6, 6, neighbours=neighbours, factor=1.0), torch.eye(6))


def test_the_units_that_write_most_are_kept() -> None:
    activations, output = torch.ones(5, 4), torch.tensor([[1.0, 0.1, 3.0, 0.0]])
    assert narrowing.unit_map(activations, output, 2).tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    more = narrowing.unit_map(activations, output, 6)
    assert more[:4].tolist() == torch.eye(4).tolist()
    assert not more[4:].any()
