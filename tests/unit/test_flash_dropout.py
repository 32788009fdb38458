"""FlashAttention with dropout. Its operator needs a GPU, so here another stands for it."""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from minilm_cli.ops import attention, flash_dropout
from minilm_cli.ops.attention import Packing, attend_packed
from minilm_cli.ops.flash_dropout import works

LENGTHS = (3, 1, 7)
CPU = torch.device("cpu")

Operator = Callable[..., tuple[Tensor, ...]]


def operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[Tensor, ...]:
    """What the operator computes, sequence by sequence; tensors are (positions, heads, width)."""
    assert torch.equal(cum_seq_q, cum_seq_k)
    assert max_q == max_k == cum_seq_q.diff().max()
    assert not return_debug_mask
    assert is_causal == (window_size_right == 0)
    left, right = (torch.inf if size in (None, -1) else size for size in (window_size_left, window_size_right))
    outputs = []
    for begin, end in itertools.pairwise(cum_seq_q.tolist()):
        q, k, v = (tensor[begin:end].transpose(0, 1).float() for tensor in (query, key, value))
        places = torch.arange(end - begin)
        ahead = places[None, :] - places[:, None]
        scores = q @ k.transpose(1, 2) * (q.shape[2] ** -0.5 if scale is None else scale)
        p = scores.masked_fill((ahead < -left) | (ahead > right), -torch.inf).softmax(-1)
        outputs.append((torch.dropout(p, dropout_p, True) @ v).transpose(0, 1))
    return torch.cat(outputs).to(value.dtype), *[torch.empty(0)] * 4


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Operator], None]]:
    """Makes another function stand for the operator; torch's public function is computed without dropout."""

    def varlen(query: Tensor, key: Tensor, value: Tensor, cu: Tensor, _: Tensor, longest: int, __: int) -> Tensor:
        return operator(query, key, value, cu, cu, longest, longest, 0.0, False, False)[0]

    def stand_in(function: Operator) -> None:
        works.cache_clear()
        monkeypatch.setattr(flash_dropout, "_forward", function)
        monkeypatch.setattr(flash_dropout, "varlen_attn", varlen)

    yield stand_in
    works.cache_clear()


def broken(change: Callable[..., Any]) -> Operator:
    """The operator with something changed in its arguments."""

    def function(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        bound = inspect.signature(operator).bind(*arguments, **options)
        change(bound.arguments)
        return operator(*bound.args, **bound.kwargs)

    return function


def of_another_mask(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
    """The output of one mask with the gradient of another."""
    one = operator(*arguments, **options)[0]
    other = operator(*arguments, **options)[0]
    return (other + (one - other).detach(),)


def unseeded(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
    with torch.random.fork_rng():
        torch.manual_seed(next(numbers))
        return operator(*arguments, **options)


numbers = itertools.count()


def test_it_is_tried_before_it_is_used(plain: Callable[[Operator], None], caplog: pytest.LogCaptureFixture) -> None:
    plain(operator)
    before = torch.random.get_rng_state()
    assert works(CPU, torch.bfloat16)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not caplog.text


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (broken(lambda given: given.update(scale=1.0)), "differs from torch's public function"),
        (broken(lambda given: given.update(dropout_p=0.0)), "do not follow the seed"),
        (unseeded, "do not follow the seed"),
        (broken(lambda given: given.update(value=given["value"] * (1 + given["dropout_p"]))), "its mean with dropout"),
        (of_another_mask, "gradient is that of other masks"),
        (lambda *_, **__: 1 / 0, "division by zero"),
    ],
    ids=["scale", "no dropout", "unseeded", "mean", "gradient", "error"],
)
def test_an_operator_that_is_wrong_is_left_out_with_a_warning(
    function: Operator, said: str, plain: Callable[[Operator], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    plain(function)
    assert not works(CPU, torch.bfloat16)
    assert said in caplog.text
    assert "without FlashAttention, which is slower" in caplog.text


def test_arguments_fit_the_operator_of_torch() -> None:
    tensors = [torch.empty(11, 2, 16, dtype=torch.bfloat16, device="meta") for _ in range(3)]
    offsets = torch.tensor([0, 3, 4, 11], dtype=torch.int32, device="meta")
    found = flash_dropout.flash_with_dropout(*tensors, offsets, 7, 0.1, scale=0.3, window=(2, 0))
    assert found.shape == (11, 2, 16)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"sliding_window": 2}, {"scaling": 0.3}], ids=str)
def test_it_computes_what_other_paths_do(
    options: dict[str, Any], plain: Callable[[Operator], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain(operator)
    options = {"is_causal": False} | options
    tensors = [torch.randn(1, 2, sum(LENGTHS), 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    expected = attend_packed(Packing(LENGTHS, CPU), torch.nn.Module(), *tensors, **options)
    monkeypatch.setattr(flash_dropout, "works", lambda *_: True)
    dropped = attention._attend_by_flash(Packing(LENGTHS, CPU), *tensors, dropout=1e-9, **options)
    torch.testing.assert_close(dropped, expected)
    monkeypatch.setattr(attention, "_has_flash", lambda *_: True)
    assert attention._takes_flash(*tensors, dropout=0.1)
    assert not attention._takes_flash(tensors[0], tensors[1][:, :1], tensors[2][:, :1], dropout=0.1)
    assert attention._takes_flash(tensors[0], tensors[1][:, :1], tensors[2][:, :1])
