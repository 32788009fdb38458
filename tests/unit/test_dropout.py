from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from minilm_cli.ops.dropout import Dropout, Masks, drawn_seed, replace_dropout

#: Probabilities are rounded to multiples of 1 / STEPS.
STEPS = 2**16
MANY = 2**18


def scale_of(probability: float) -> float:
    return STEPS / (STEPS - round(probability * STEPS))


def without_zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(3)) + 0.5
    return values.to(dtype)


def signs(masks: Masks) -> Tensor:
    """A mask of probability ½ as −1 and 1: the product of uncorrelated masks has a mean of 0."""
    return masks.fill(torch.empty(MANY)).mul_(2).sub_(1)


def assert_uncorrelated(one: Tensor, other: Tensor) -> None:
    assert abs((one * other).mean().item()) < 5 / len(one) ** 0.5


@pytest.mark.parametrize("probability", [0.001, 0.1, 0.3, 0.5, 0.9, 0.999, 1 / STEPS, 1 - 1 / STEPS, 1 - 1e-9, 1.0])
def test_exact_share_of_random_values_is_dropped(monkeypatch: pytest.MonkeyPatch, probability: float) -> None:
    every = np.arange(STEPS, dtype=np.uint16).view(np.uint64)
    monkeypatch.setattr(np.random, "SFC64", lambda _: SimpleNamespace(random_raw=lambda count: every[:count]))
    masks = Masks(1, probability)
    mask = masks.fill(torch.empty(STEPS, dtype=torch.float64))
    assert mask.sum().item() == max(1, STEPS - round(probability * STEPS))
    assert mask.mean().item() * masks.scale == pytest.approx(1, rel=1e-14)


def test_tiny_probability_drops_nothing() -> None:
    masks = Masks(1, 1e-9)
    assert masks.fill(torch.empty(1000)).all()
    assert masks.scale == 1


def test_masks_depend_on_the_seed() -> None:
    one, same, other = Masks(1, 0.5), Masks(1, 0.5), Masks(2, 0.5)
    for size in (100, 7, 100):
        mask = one.fill(torch.empty(size))
        assert torch.equal(mask, same.fill(torch.empty(size)))
        assert not torch.equal(mask, other.fill(torch.empty(size)))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2,), (3,), (4,), (5,), (2, 3, 5), (7, 9)])
def test_mask_may_have_any_shape(shape: tuple[int, ...]) -> None:
    out = torch.full(shape, 7.0)
    mask = Masks(1, 0.5).fill(out)
    assert mask is out
    assert mask.shape == shape
    assert ((mask == 0) | (mask == 1)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.bool])
def test_mask_is_the_same_in_any_dtype(dtype: torch.dtype) -> None:
    output = Masks(1, 0.3).fill(torch.empty(1001, dtype=dtype))
    assert output.dtype == dtype
    assert torch.equal(output.float(), Masks(1, 0.3).fill(torch.empty(1001)))


def test_all_places_of_a_small_mask_are_dropped_equally_often() -> None:
    masks, count = Masks(1, 0.25), 4000
    kept = torch.stack([masks.fill(torch.empty(5)) for _ in range(count)]).mean(0)
    torch.testing.assert_close(kept, torch.full((5,), 0.75), rtol=0, atol=5 * (0.25 * 0.75 / count) ** 0.5)


def test_neighbouring_places_are_uncorrelated() -> None:
    mask = signs(Masks(1, 0.5))
    for distance in (1, 2, 3, 4, 5, 7, 8, 64, 1000):
        assert_uncorrelated(mask[distance:], mask[:-distance])


def test_successive_masks_and_neighbouring_seeds_are_uncorrelated() -> None:
    masks = Masks(1, 0.5)
    samples = [*(signs(masks) for _ in range(4)), *(signs(Masks(seed, 0.5)) for seed in (0, 2, 2**62))]
    for one, other in itertools.combinations(samples, 2):
        assert_uncorrelated(one, other)


def test_drawn_seeds_depend_on_the_seed_of_torch() -> None:
    torch.manual_seed(4)
    drawn = [drawn_seed() for _ in range(100)]
    torch.manual_seed(4)
    assert [drawn_seed() for _ in range(100)] == drawn
    assert len(set(drawn)) == 100
    assert all(0 <= seed < 2**63 for seed in drawn)
    assert max(drawn) > 2**62


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5])
def test_values_are_dropped_or_scaled(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = without_zeros(50, 301, dtype=dtype)
    before = values.clone()
    output = Dropout(probability)(values)
    assert output.dtype == dtype
    assert torch.equal(values, before)
    kept = output != 0
    assert 0 < (~kept).sum() < kept.numel()
    assert torch.equal(output, torch.where(kept, values * scale_of(probability), 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_dropped_and_scaled_like_the_values(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = without_zeros(13, 21, dtype=dtype).requires_grad_()
    gradient = without_zeros(13, 21, dtype=dtype)
    output = Dropout(0.4)(values)
    output.backward(gradient)
    assert values.grad is not None
    assert values.grad.dtype == dtype
    torch.testing.assert_close(values.grad, torch.where(output != 0, gradient * scale_of(0.4), 0))


def test_dropout_depends_on_the_seed_of_torch() -> None:
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
def test_output_has_the_shape_of_the_input(shape: tuple[int, ...]) -> None:
    assert Dropout(0.5)(torch.ones(shape)).shape == shape


def test_noncontiguous_tensor_gives_the_same() -> None:
    permuted = without_zeros(3, 7, 5).permute(2, 0, 1)
    assert not permuted.is_contiguous()
    torch.manual_seed(0)
    output = Dropout(0.5)(permuted)
    torch.manual_seed(0)
    assert torch.equal(output, Dropout(0.5)(permuted.contiguous()))


def test_expanded_rows_get_different_masks() -> None:
    torch.manual_seed(0)
    output = Dropout(0.5)(torch.ones(1, 40).expand(3, 40))
    assert not torch.equal(output[0], output[1])
    assert not torch.equal(output[1], output[2])


@pytest.mark.parametrize(("probability", "training"), [(0.5, False), (0.0, True), (1.0, True), (1.0, False)])
def test_deterministic_cases_match_torch(probability: float, training: bool) -> None:
    values = without_zeros(4, 5).requires_grad_()
    state = torch.get_rng_state()
    ours, theirs = (kind(probability).train(training)(values) for kind in (Dropout, nn.Dropout))
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad(output.sum(), values)[0] for output in (ours, theirs)]
    assert torch.equal(*gradients)
    if probability < 1:
        assert torch.equal(torch.get_rng_state(), state)


def test_other_devices_use_the_dropout_of_torch() -> None:
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


def test_only_dropout_modules_are_replaced() -> None:
    model = nested()
    before, keys = dict(model.named_modules()), list(model.state_dict())
    replace_dropout(model)
    after = dict(model.named_modules())
    replaced = {name: (m.p, m.inplace) for name, m in after.items() if type(m) is Dropout}
    assert replaced == {"1": (0.25, False), "2.inner.0": (0.5, True), "extra.0.0": (0.0, False)}
    assert list(after) == list(before)
    assert all(after[name] is module for name, module in before.items() if name not in replaced)
    assert {type(after[name]) for name in "345"} == {Own, nn.Dropout1d, nn.AlphaDropout}
    assert list(model.state_dict()) == keys
    replace_dropout(model)
    assert dict(model.named_modules()) == after


def test_replacement_keeps_the_mode() -> None:
    model = nested().eval()
    replace_dropout(model)
    assert not any(module.training for module in model.modules())


def test_shared_dropout_is_replaced_everywhere() -> None:
    shared = nn.Dropout(0.5)
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared))
    replace_dropout(model)
    assert [type(module) for parent in model for module in parent] == [Dropout, Dropout]
