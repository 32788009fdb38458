from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from minilm_cli.ops.dropout import Dropout, Masks, drawn_seed, replace_dropout

#: Of the probability of a place to be dropped.
STEPS = 2**16
MANY = 2**18
PROBABILITIES = [0.001, 0.1, 0.3, 0.5, 0.9, 0.999]


def scale_of(probability: float) -> float:
    return STEPS / (STEPS - round(probability * STEPS))


def without_zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(3)) + 0.5
    return values.to(dtype)


def signs(masks: Masks) -> Tensor:
    """A mask of probability ½ as −1 and 1, whose products have a mean of 0 where masks have nothing in common."""
    return masks.fill(torch.empty(MANY)).mul_(2).sub_(1)


def assert_unrelated(one: Tensor, other: Tensor) -> None:
    assert abs((one * other).mean().item()) < 5 / len(one) ** 0.5


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_about_as_many_places_are_dropped_as_asked_for(probability: float) -> None:
    mask = Masks(1, probability).fill(torch.empty(MANY))
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    deviation = (probability * (1 - probability) / MANY) ** 0.5
    assert (mask == 0).double().mean().item() == pytest.approx(probability, abs=5 * deviation)


@pytest.mark.parametrize("probability", [*PROBABILITIES, 1 / STEPS, 1 - 1 / STEPS, 1 - 1e-9, 1.0])
def test_of_all_values_of_a_place_exactly_the_asked_for_are_dropped(
    monkeypatch: pytest.MonkeyPatch, probability: float
) -> None:
    every = np.arange(STEPS, dtype=np.uint16).view(np.uint64)
    monkeypatch.setattr(np.random, "SFC64", lambda _: SimpleNamespace(random_raw=lambda count: every[:count]))
    masks = Masks(1, probability)
    mask = masks.fill(torch.empty(STEPS, dtype=torch.float64))
    assert mask.sum().item() == max(1, STEPS - round(probability * STEPS))
    assert mask.mean().item() * masks.scale == pytest.approx(1, rel=1e-14)


def test_a_probability_of_all_but_zero_drops_nothing() -> None:
    masks = Masks(1, 1e-9)
    assert masks.fill(torch.empty(1000)).all()
    assert masks.scale == 1


def test_the_same_seed_gives_the_same_masks_and_another_one_others() -> None:
    one, same, other = Masks(1, 0.5), Masks(1, 0.5), Masks(2, 0.5)
    for size in (100, 7, 100):
        mask = one.fill(torch.empty(size))
        assert torch.equal(mask, same.fill(torch.empty(size)))
        assert not torch.equal(mask, other.fill(torch.empty(size)))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2,), (3,), (4,), (5,), (2, 3, 5), (7, 9)])
def test_a_mask_may_be_of_any_shape(shape: tuple[int, ...]) -> None:
    out = torch.full(shape, 7.0)
    mask = Masks(1, 0.5).fill(out)
    assert mask is out
    assert mask.shape == shape
    assert ((mask == 0) | (mask == 1)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.bool])
def test_a_mask_is_the_same_in_any_type(dtype: torch.dtype) -> None:
    found = Masks(1, 0.3).fill(torch.empty(1001, dtype=dtype))
    assert found.dtype == dtype
    assert torch.equal(found.float(), Masks(1, 0.3).fill(torch.empty(1001)))


def test_each_place_of_a_small_mask_is_dropped_as_often_as_the_others() -> None:
    masks, count = Masks(1, 0.25), 4000
    kept = torch.stack([masks.fill(torch.empty(5)) for _ in range(count)]).mean(0)
    torch.testing.assert_close(kept, torch.full((5,), 0.75), rtol=0, atol=5 * (0.25 * 0.75 / count) ** 0.5)


def test_neighbouring_places_have_nothing_in_common() -> None:
    mask = signs(Masks(1, 0.5))
    for distance in (1, 2, 3, 4, 5, 7, 8, 64, 1000):
        assert_unrelated(mask[distance:], mask[:-distance])


def test_successive_masks_have_nothing_in_common() -> None:
    masks = Masks(1, 0.5)
    for one, other in itertools.combinations([signs(masks) for _ in range(4)], 2):
        assert_unrelated(one, other)


def test_masks_of_neighbouring_seeds_have_nothing_in_common() -> None:
    for one, other in itertools.combinations([signs(Masks(seed, 0.5)) for seed in (0, 1, 2, 2**62)], 2):
        assert_unrelated(one, other)


def test_torchs_seed_decides_the_drawn_ones() -> None:
    torch.manual_seed(4)
    drawn = [drawn_seed() for _ in range(100)]
    torch.manual_seed(4)
    assert [drawn_seed() for _ in range(100)] == drawn
    assert len(set(drawn)) == 100
    assert all(0 <= seed < 2**63 for seed in drawn)
    assert max(drawn) > 2**62


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5])
def test_a_value_is_dropped_or_scaled(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = without_zeros(50, 301, dtype=dtype)
    before = values.clone()
    found = Dropout(probability)(values)
    assert found.dtype == dtype
    assert torch.equal(values, before)
    kept = found != 0
    assert 0 < (~kept).sum() < kept.numel()
    assert torch.equal(found, torch.where(kept, values * scale_of(probability), 0))


@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5])
def test_the_expectation_stays(probability: float) -> None:
    torch.manual_seed(0)
    found = Dropout(probability)(torch.ones(MANY, dtype=torch.float64))
    assert found.mean().item() == pytest.approx(1, abs=5 * (probability / (1 - probability) / MANY) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_dropped_and_scaled_at_the_same_places(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = without_zeros(13, 21, dtype=dtype).requires_grad_()
    outer = without_zeros(13, 21, dtype=dtype)
    found = Dropout(0.4)(values)
    found.backward(outer)
    assert values.grad is not None
    assert values.grad.dtype == dtype
    torch.testing.assert_close(values.grad, torch.where(found != 0, outer * scale_of(0.4), 0))


def test_the_same_seed_of_torch_drops_the_same_and_each_call_something_else() -> None:
    module, values = Dropout(0.5), torch.ones(200)
    torch.manual_seed(1)
    first, second = module(values), module(values)
    torch.manual_seed(1)
    assert torch.equal(module(values), first)
    assert torch.equal(module(values), second)
    torch.manual_seed(2)
    assert not torch.equal(module(values), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 3, 5)])
def test_any_shape_is_kept(shape: tuple[int, ...]) -> None:
    assert Dropout(0.5)(torch.ones(shape)).shape == shape


def test_a_tensor_that_is_not_contiguous_gives_what_its_copy_gives() -> None:
    turned = without_zeros(3, 7, 5).permute(2, 0, 1)
    assert not turned.is_contiguous()
    torch.manual_seed(0)
    found = Dropout(0.5)(turned)
    torch.manual_seed(0)
    assert torch.equal(found, Dropout(0.5)(turned.contiguous()))


def test_a_row_that_is_seen_many_times_is_dropped_each_time_anew() -> None:
    torch.manual_seed(0)
    found = Dropout(0.5)(torch.ones(1, 40).expand(3, 40))
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize(("probability", "training"), [(0.5, False), (0.0, True), (1.0, True), (1.0, False)])
def test_where_nothing_is_left_to_chance_it_is_torchs(probability: float, training: bool) -> None:
    values = without_zeros(4, 5).requires_grad_()
    state = torch.get_rng_state()
    ours, theirs = (kind(probability).train(training)(values) for kind in (Dropout, nn.Dropout))
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad(found.sum(), values)[0] for found in (ours, theirs)]
    assert torch.equal(*gradients)
    if probability < 1:
        assert torch.equal(torch.get_rng_state(), state)


def test_other_devices_keep_torchs_dropout() -> None:
    state = torch.get_rng_state()
    assert Dropout(0.5)(torch.empty(3, 4, device="meta")).shape == (3, 4)
    assert torch.equal(torch.get_rng_state(), state)


class Own(nn.Dropout):
    pass


def nested() -> nn.Module:
    model = nn.Sequential(
        nn.Linear(3, 3),
        nn.Dropout(0.25),
        nn.ModuleDict({"inner": nn.ModuleList([nn.Dropout(0.5, inplace=True), nn.LayerNorm(3)])}),
        Own(0.1),
        nn.Dropout1d(0.1),
        nn.AlphaDropout(0.1),
    )
    model.extra = nn.Sequential(nn.Sequential(nn.Dropout(0.0)))
    return model


def test_every_dropout_of_a_model_is_replaced_and_keeps_its_probability() -> None:
    model = nested()
    replace_dropout(model)
    found = {name: (m.p, m.inplace) for name, m in model.named_modules() if type(m) is Dropout}
    assert found == {"1": (0.25, False), "2.inner.0": (0.5, True), "extra.0.0": (0.0, False)}
    assert not any(type(module) is nn.Dropout for module in model.modules())


def test_everything_but_the_dropout_stays() -> None:
    model = nested()
    before, keys = dict(model.named_modules()), list(model.state_dict())
    replace_dropout(model)
    after = dict(model.named_modules())
    assert list(after) == list(before)
    assert all(after[name] is module for name, module in before.items() if type(module) is not nn.Dropout)
    assert {type(after[name]) for name in "345"} == {Own, nn.Dropout1d, nn.AlphaDropout}
    assert list(model.state_dict()) == keys


def test_replacing_twice_is_replacing_once() -> None:
    model = nested()
    replace_dropout(model)
    once = dict(model.named_modules())
    replace_dropout(model)
    assert dict(model.named_modules()) == once


def test_a_replaced_dropout_is_in_the_mode_of_the_old_one() -> None:
    model = nested().eval()
    replace_dropout(model)
    assert not any(module.training for module in model.modules())


def test_a_dropout_with_two_parents_is_replaced_in_both() -> None:
    shared = nn.Dropout(0.5)
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared))
    replace_dropout(model)
    assert [type(module) for parent in model for module in parent] == [Dropout, Dropout]
