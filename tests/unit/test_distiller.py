from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from minilm_cli.base.errors import MinilmError
from minilm_cli.models.inputs import Layout
from minilm_cli.ops import attention
from minilm_cli.ops.attention import Packing
from minilm_cli.training.setup import _try_packing

from .distillers import CPU, HEADS, Factory, assert_close, assert_same, train, weights

#: Two pairs of layers, of teacher and student.
TWO = [(2, 1), (4, 2)]


def plain_loss(
    teacher: PreTrainedModel, student: PreTrainedModel, ids: Tensor, mask: Tensor, pair: tuple[int, int] = (3, 2)
) -> Tensor:
    """The mean loss of a padded batch as a plain trainer computes it: full forward passes, masks, kl_div, autograd."""
    projections = []
    for model, layer in zip((teacher, student), pair, strict=True):
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[layer - 1]
        attention = model.encoder.layer[layer - 1].attention.self
        projections.append([attention.query(states), attention.key(states), attention.value(states)])
    total = ids.new_zeros((), dtype=torch.float32)
    for of_teacher, of_student in zip(*projections, strict=True):
        scores = []
        for vectors in (of_teacher, of_student):
            split = vectors.view(*ids.shape, HEADS, -1).transpose(1, 2)
            product = split @ split.transpose(2, 3) / math.sqrt(split.shape[3])
            scores.append(product.masked_fill(mask[:, None, None, :] == 0, -1e9).log_softmax(dim=-1))
        divergence = torch.nn.functional.kl_div(scores[1], scores[0], log_target=True, reduction="none").sum(dim=-1)
        per_sequence = (divergence.mean(dim=1) * mask).sum(dim=1) / mask.sum(dim=1)
        total = total + per_sequence.mean()
    return total


@pytest.mark.parametrize(
    ("layout", "pairs"), [("packed", [(3, 2)]), ("padded", [(3, 2)]), ("packed", TWO), ("padded", TWO)]
)
def test_steps_match_a_plain_training_loop(factory: Factory, layout: Layout, pairs: Sequence[tuple[int, int]]) -> None:
    distiller, stream = factory.distiller(pairs=pairs), factory.stream(layout=layout)
    teacher = AutoModel.from_pretrained(factory.teacher, attn_implementation="eager").eval().requires_grad_(False)
    config = copy.deepcopy(distiller.student.model.config)
    student = AutoModel.from_config(config, attn_implementation="eager")
    student.load_state_dict(distiller.student.model.state_dict())
    decayed = [parameter for parameter in student.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in student.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-6)
    for report in distiller.steps(stream, first=1, last=4):
        [batch] = factory.stream(layout="padded", micro_batch_tokens=10**6).step(report.step).micro_batches
        assert batch.inputs.mask is not None
        losses = [plain_loss(teacher, student, batch.inputs.ids, batch.inputs.mask, pair) for pair in pairs]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = report.lr
        optimizer.step()
        assert math.isclose(report.loss, loss.item(), rel_tol=2e-5)
        assert math.isclose(report.grad_norm, norm.item(), rel_tol=1e-3)
        assert (report.padded_tokens > report.tokens) is (layout == "padded")
    # Adam divides by the root of the second moment, so a gradient that is only rounding error still makes a full step.
    # A key's bias is such a parameter: it shifts all scores of a query alike, so its exact gradient is 0.
    trained = {name: tensor for name, tensor in weights(distiller).items() if not name.endswith("key.bias")}
    assert_close(trained, student.state_dict(), atol=2e-4)


@pytest.mark.parametrize("pairs", [[(3, 2)], TWO])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_micro_batch_size_does_not_change_training(
    factory: Factory, layout: Layout, pairs: Sequence[tuple[int, int]]
) -> None:
    distillers = [factory.distiller(pairs=pairs), factory.distiller(pairs=pairs)]
    reports = [
        train(distiller, factory.stream(layout=layout, micro_batch_tokens=tokens), last=3)
        for distiller, tokens in zip(distillers, (10**6, 60), strict=True)
    ]
    for one, other in zip(*reports, strict=True):
        torch.testing.assert_close(one.loss, other.loss, rtol=1e-5, atol=0)
        assert one.parts == pytest.approx(other.parts, rel=1e-5)
        torch.testing.assert_close(one.grad_norm, other.grad_norm, rtol=1e-4, atol=0)
        assert (one.sequences, one.tokens) == (other.sequences, other.tokens)
    assert_close(weights(distillers[0]), weights(distillers[1]), atol=2e-4)


def test_step_report_has_losses_and_counts(factory: Factory) -> None:
    distiller = factory.distiller("relations.weights=qk=2,vv=0.5")
    stream = factory.stream()
    [report] = train(distiller, stream, last=1)
    metrics = report.metrics(["qk", "vv"])
    lengths = factory.store.lengths(stream.step_indices(1), 24)
    assert sorted(metrics) == ["grad_norm", "loss", "loss_qk", "loss_vv", "lr"]
    assert math.isclose(metrics["loss"], 2 * metrics["loss_qk"] + 0.5 * metrics["loss_vv"], rel_tol=1e-5)
    assert (report.step, report.sequences, report.tokens) == (1, 12, lengths.sum())
    assert metrics["lr"] == 0.01 / 2


def test_training_lowers_the_held_out_loss(factory: Factory) -> None:
    distiller = factory.distiller("schedule.kind=constant")
    stream = factory.stream(batch_size=24)
    before = distiller.evaluate(stream)["eval_loss"]
    train(distiller, stream, last=8)
    assert distiller.evaluate(stream)["eval_loss"] < 0.8 * before


def test_teacher_stays_unchanged(factory: Factory) -> None:
    distiller = factory.distiller(dropout=0.1)
    before = {name: tensor.clone() for name, tensor in distiller.teacher.state_dict().items()}
    train(distiller, factory.stream(), last=2)
    assert_same(before, dict(distiller.teacher.state_dict()))
    assert not any(module.training for module in distiller.teacher.modules())
    assert all(parameter.grad is None for parameter in distiller.teacher.parameters())


def test_dropout_is_used_in_training_but_not_in_evaluation(factory: Factory) -> None:
    distiller, stream = factory.distiller(dropout=0.5), factory.stream()
    without = factory.distiller(dropout=0.0)
    assert distiller.evaluate(stream) == distiller.evaluate(stream) == without.evaluate(stream)
    assert all(module.training for module in distiller.student.modules())
    [report], [expected] = train(distiller, stream, last=1), train(without, stream, last=1)
    assert report.loss != expected.loss


@pytest.mark.parametrize(
    ("layer", "relations"), [(1, "qq,kk,vv"), (2, "qq,kk,vv"), (2, "qq"), (2, "kk"), (2, "vv"), (2, "qk")]
)
def test_parameters_without_gradient_are_frozen_and_not_optimised(factory: Factory, layer: int, relations: str) -> None:
    distiller = factory.distiller(f"relations.weights={relations}", layer=layer, dropout=0.1)
    before = weights(distiller)
    train(distiller, factory.stream(), last=2)
    after = weights(distiller)
    optimised = {id(parameter) for group in distiller.optimizer._adamw.param_groups for parameter in group["params"]}
    assert f"encoder.layer.{layer - 1}.output.dense.weight" in distiller.untrained
    assert "pooler.dense.weight" in distiller.untrained
    assert layer == 2 or "encoder.layer.1.attention.self.query.weight" in distiller.untrained
    for name, parameter in distiller.student.model.named_parameters():
        frozen = name in distiller.untrained
        assert parameter.requires_grad is not frozen
        assert (id(parameter) in optimised) is not frozen
        assert torch.equal(before[name], after[name]) is frozen, name


def test_stop_within_a_step_leaves_the_student_unchanged(factory: Factory) -> None:
    stream = factory.stream(micro_batch_tokens=60)
    assert len(stream.step(2).micro_batches) > 2
    stop: Iterator[bool] = iter([False] * (len(stream.step(1).micro_batches) + 1) + [True] * 100)
    stopped, straight = factory.distiller(dropout=0.1), factory.distiller(dropout=0.1)
    reports = list(stopped.steps(stream, first=1, last=5, stop=lambda: next(stop)))
    train(straight, stream, last=1)
    assert [report.step for report in reports] == [1]
    assert_same(weights(stopped), weights(straight))
    train(stopped, stream, first=2, last=3)
    train(straight, stream, first=2, last=3)
    assert_same(weights(stopped), weights(straight))


def test_rehearsal_does_not_change_training(factory: Factory) -> None:
    rehearsed, other = factory.distiller(dropout=0.3), factory.distiller(dropout=0.3)
    for batch in factory.stream().step(7).micro_batches:
        rehearsed.rehearse(batch)
    for distiller in (rehearsed, other):
        train(distiller, factory.stream(), last=3)
    assert_same(weights(rehearsed), weights(other))


def test_resuming_from_a_saved_state_is_bit_identical(factory: Factory) -> None:
    stream = factory.stream()
    straight, resumed = factory.distiller(dropout=0.1), factory.distiller(dropout=0.1)
    train(straight, stream, last=3)
    torch.manual_seed(999)
    resumed.load_state(straight.state())
    assert_same(weights(straight), weights(resumed))
    # The loaded state is a copy: training one distiller does not change the other.
    one, other = train(straight, stream, first=4, last=6), train(resumed, stream, first=4, last=6)
    assert [report.loss for report in one] == [report.loss for report in other]
    assert_same(weights(straight), weights(resumed))
    assert_same(straight.state()["optimizer"], resumed.state()["optimizer"])


def test_state_has_each_tensor_of_student_and_optimiser(factory: Factory) -> None:
    distiller = factory.distiller()
    assert distiller.state()["optimizer"] == {}
    train(distiller, factory.stream(), last=1)
    state = distiller.state()
    assert state["student"].keys() == distiller.student.model.state_dict().keys()
    trained = {name for name, _ in distiller.student.model.named_parameters()} - set(distiller.untrained)
    assert state["optimizer"].keys() == {
        f"{name}.{key}" for name in trained for key in ("step", "exp_avg", "exp_avg_sq")
    }


@pytest.mark.parametrize("change", ["shape", "missing", "unknown"])
@pytest.mark.parametrize("group", ["student", "optimizer"])
def test_state_of_another_student_is_refused(factory: Factory, group: str, change: str) -> None:
    distiller, stream = factory.distiller(), factory.stream()
    train(distiller, stream, last=1)
    state = {name: dict(members) for name, members in distiller.state().items()}
    name = next(iter(state[group]))
    if change == "shape":
        state[group][name] = torch.zeros(1, 2, 3)
    elif change == "missing":
        del state[group][name]
    else:
        name = "colour"
        state[group][name] = torch.zeros(1)
    with pytest.raises(MinilmError, match=f"the checkpoint is of another student: {name} is "):
        factory.distiller().load_state(state)


def test_another_seed_gives_another_dropout(factory: Factory) -> None:
    losses = []
    for seed in (1, 2):
        distiller = factory.distiller(f"training.seed={seed}", dropout=0.5)
        [report] = train(distiller, factory.stream(), last=1)
        losses.append(report.loss)
    assert losses[0] != losses[1]


def test_held_out_loss_does_not_depend_on_micro_batches(factory: Factory) -> None:
    distiller = factory.distiller()
    one, other = (distiller.evaluate(factory.stream(micro_batch_tokens=tokens)) for tokens in (30, 10**6))
    assert list(one) == ["eval_loss", "eval_loss_qq", "eval_loss_kk", "eval_loss_vv"]
    assert one == pytest.approx(other, rel=1e-5)
    assert one["eval_loss"] == pytest.approx(sum(list(one.values())[1:]), rel=1e-5)


def test_empty_or_stopped_evaluation_gives_no_losses(factory: Factory) -> None:
    distiller = factory.distiller()
    assert distiller.evaluate(factory.stream(held_out_fraction=0.0)) == {}
    assert distiller.evaluate(factory.stream(), stop=lambda: True) == {}
    assert distiller.student.training


@pytest.mark.parametrize(
    ("bf16", "broken", "layout"), [(True, False, "packed"), (True, True, "padded"), (False, True, "packed")]
)
def test_packing_is_tried_again_where_it_was_not_tried_yet(
    factory: Factory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    bf16: bool,
    broken: bool,
    layout: str,
) -> None:
    distiller, stream = factory.distiller(bf16=bf16), factory.stream()
    runs = attention._attend_in_runs
    if broken:  # each token sees those of all sequences

        def in_one_run(packing: Packing, *arguments: Any, **options: Any) -> Tensor:
            return runs(Packing((sum(packing.lengths),), CPU), *arguments, **options)

        monkeypatch.setattr(attention, "_attend_in_runs", in_one_run)
    _try_packing(distiller, stream)
    assert stream.layout == layout
    assert ("They are padded instead" in caplog.text) is (layout == "padded")


def test_evaluation_does_not_change_training(factory: Factory) -> None:
    stream = factory.stream()
    evaluated, straight = factory.distiller(dropout=0.1), factory.distiller(dropout=0.1)
    for step in (1, 2):
        train(evaluated, stream, first=step, last=step)
        evaluated.evaluate(stream)
    train(straight, stream, last=2)
    assert_same(weights(evaluated), weights(straight))


def test_bf16_is_close_to_fp32_and_keeps_fp32_weights(factory: Factory) -> None:
    half, full = factory.distiller(bf16=True), factory.distiller()
    assert {parameter.dtype for parameter in half.teacher.parameters()} == {torch.bfloat16}
    for one, other in zip(train(half, factory.stream(), last=3), train(full, factory.stream(), last=3), strict=True):
        assert math.isclose(one.loss, other.loss, rel_tol=0.03)
        assert one.loss != other.loss
    assert {parameter.dtype for parameter in half.student.parameters()} == {torch.float32}
    assert {found.dtype for found in half.loss(factory.stream().step(1).micro_batches[0])} == {torch.float32}
