from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.models.inputs import Inputs
from minilm_cli.models.student import build_student
from minilm_cli.models.student_config import student_config
from minilm_cli.models.tap import RegistryTap
from minilm_cli.models.teacher import load_teacher
from minilm_cli.settings.distill import DistillSettings, ScheduleSettings
from minilm_cli.settings.load import load_distill_settings
from minilm_cli.tokens.store import TokenStore
from minilm_cli.training.batches import BatchStream
from minilm_cli.training.devices import choose_device, has_bf16
from minilm_cli.training.distiller import Distiller, StepNotFinite, StepReport
from minilm_cli.training.distributed import World
from minilm_cli.training.memory import out_of_memory
from minilm_cli.training.nonfinite import Finding, NotFinite, examine, explain
from minilm_cli.training.objective import RelationObjective
from minilm_cli.training.optim import LearningRate

HEADS = 12
STEPS = 10
CPU = torch.device("cpu")


def settings_of(*assignments: str) -> DistillSettings:
    small = ["schedule.warmup_steps=2", "optimizer.lr=0.01", "training.batch_size=12"]
    given = {assignment.partition("=")[0] for assignment in assignments}
    kept = [assignment for assignment in small if assignment.partition("=")[0] not in given]
    return load_distill_settings(None, [*kept, *assignments], {"teacher.name": "t", "student.config": "s"})


class Setting:
    """Makes distillers and streams from the session's tiny teacher, student config and tokens."""

    def __init__(self, teacher: Path, config: Path, store: Path) -> None:
        self.teacher, self.config, self.store = teacher, config, TokenStore(store)

    def student(self, dropout: float = 0.0, seed: int = 42) -> PreTrainedModel:
        config = student_config(str(self.config), AutoConfig.from_pretrained(self.teacher))
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
        config.initializer_range = 0.2
        return build_student(config, seed=seed)

    def distiller(
        self,
        *assignments: str,
        dropout: float = 0.0,
        layer: int = 2,
        bf16: bool = False,
        steps: int = STEPS,
        world: World | None = None,
    ) -> Distiller:
        teacher, number = load_teacher(str(self.teacher), layer=3)
        settings = settings_of(*assignments)
        return Distiller(
            RegistryTap(teacher, number),
            RegistryTap(self.student(dropout), layer),
            RelationObjective(settings.relations.weights, HEADS),
            settings.optimizer,
            LearningRate(settings.schedule, settings.optimizer.lr, steps),
            seed=settings.training.seed,
            device=CPU,
            bf16=bf16,
            world=world,
        )

    def stream(self, **options: Any) -> BatchStream:
        defaults = {
            "seed": 42, "batch_size": 12, "micro_batch_tokens": 100, "max_length": 24, "pack": True,
            "held_out_fraction": 0.05,
        }  # fmt: skip
        return BatchStream(self.store, **defaults | options)


@pytest.fixture(scope="module")
def setting(tiny_teacher: Path, tiny_student_config: Path, tiny_store: Path) -> Setting:
    return Setting(tiny_teacher, tiny_student_config, tiny_store)


def weights(distiller: Distiller) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in distiller.student.model.state_dict().items()}


def train(distiller: Distiller, stream: BatchStream, last: int, first: int = 1) -> list[StepReport]:
    return list(distiller.steps(stream, first=first, last=last))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], atol: float) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(
            tensor, other[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


# --- A step ------------------------------------------------------------------------------------------------------


def plain_loss(teacher: PreTrainedModel, student: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """The mean loss of a padded batch as a plain trainer computes it: whole forward passes, masks, kl_div, autograd."""
    projections = []
    for model, layer in ((teacher, 3), (student, 2)):
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


@pytest.mark.parametrize("pack", [True, False])
def test_steps_are_those_of_a_plain_loop(setting: Setting, pack: bool) -> None:
    distiller, stream = setting.distiller(), setting.stream(pack=pack)
    teacher = AutoModel.from_pretrained(setting.teacher, attn_implementation="eager").eval().requires_grad_(False)
    config = copy.deepcopy(distiller.student.model.config)
    student = AutoModel.from_config(config, attn_implementation="eager")
    student.load_state_dict(distiller.student.model.state_dict())
    decayed = [parameter for parameter in student.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in student.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-6)
    for report in distiller.steps(stream, first=1, last=4):
        whole = setting.stream(pack=False, micro_batch_tokens=10**6).step(report.step).micro_batches
        [batch] = whole
        assert batch.inputs.mask is not None
        loss = plain_loss(teacher, student, batch.inputs.ids, batch.inputs.mask)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = report.lr
        optimizer.step()
        assert math.isclose(report.loss, loss.item(), rel_tol=2e-5)
        assert math.isclose(report.grad_norm, norm.item(), rel_tol=1e-3)
    ours, theirs = weights(distiller), student.state_dict()
    # Adam divides by the root of the second moment, so where a gradient is rounding, a step of it is not: a key's bias
    # shifts all scores of a query alike, and has none.
    certain = {name for name in ours if not name.endswith("key.bias")}
    assert_close({name: ours[name] for name in certain}, theirs, atol=2e-4)


@pytest.mark.parametrize("pack", [True, False])
def test_the_cut_into_micro_batches_changes_nothing(setting: Setting, pack: bool) -> None:
    results = []
    for tokens in (10**6, 60):
        distiller = setting.distiller()
        reports = train(distiller, setting.stream(pack=pack, micro_batch_tokens=tokens), last=3)
        results.append((reports, weights(distiller)))
    for reports, after in results[1:]:
        for one, other in zip(results[0][0], reports, strict=True):
            torch.testing.assert_close(one.loss, other.loss, rtol=1e-5, atol=0)
            torch.testing.assert_close(one.parts, other.parts, rtol=1e-5, atol=0)
            torch.testing.assert_close(one.grad_norm, other.grad_norm, rtol=1e-4, atol=0)
            assert (one.sequences, one.tokens) == (other.sequences, other.tokens)
        assert_close(results[0][1], after, atol=2e-4)


def test_packed_and_padded_are_the_same_training(setting: Setting) -> None:
    packed, padded = setting.distiller(), setting.distiller()
    for one, other in zip(
        train(packed, setting.stream(pack=True), last=3), train(padded, setting.stream(pack=False), last=3), strict=True
    ):
        torch.testing.assert_close(one.loss, other.loss, rtol=1e-5, atol=0)
        assert one.padded_tokens == one.tokens == other.tokens < other.padded_tokens
    assert_close(weights(packed), weights(padded), atol=2e-4)


def test_a_step_reports_what_it_did(setting: Setting) -> None:
    distiller = setting.distiller("relations.weights=qk=2,vv=0.5")
    stream = setting.stream()
    [report] = train(distiller, stream, last=1)
    metrics = report.metrics(["qk", "vv"])
    lengths = setting.store.lengths(stream.step_indices(1), 24)
    assert sorted(metrics) == ["grad_norm", "loss", "loss_qk", "loss_vv", "lr"]
    assert math.isclose(metrics["loss"], 2 * metrics["loss_qk"] + 0.5 * metrics["loss_vv"], rel_tol=1e-5)
    assert (report.step, report.sequences, report.tokens) == (1, 12, lengths.sum())
    assert metrics["lr"] == 0.01 / 2


def test_training_lowers_the_loss(setting: Setting) -> None:
    distiller = setting.distiller("schedule.kind=constant")
    stream = setting.stream(batch_size=24)
    before = distiller.evaluate(stream)["eval_loss"]
    train(distiller, stream, last=8)
    assert distiller.evaluate(stream)["eval_loss"] < 0.8 * before


# --- What is trained and what is not -----------------------------------------------------------------------------


def test_the_teacher_is_left_as_it_was(setting: Setting) -> None:
    distiller = setting.distiller(dropout=0.1)
    before = {name: tensor.clone() for name, tensor in distiller.teacher.state_dict().items()}
    assert not any(module.training for module in distiller.teacher.modules())
    train(distiller, setting.stream(), last=2)
    assert_same(before, dict(distiller.teacher.state_dict()))
    assert not any(module.training for module in distiller.teacher.modules())
    assert all(parameter.grad is None for parameter in distiller.teacher.parameters())


def test_the_student_trains_with_dropout_and_is_evaluated_without(setting: Setting) -> None:
    distiller, stream = setting.distiller(dropout=0.5), setting.stream()
    assert all(module.training for module in distiller.student.modules())
    first, second = (distiller.evaluate(stream) for _ in range(2))
    assert first == second
    assert all(module.training for module in distiller.student.modules())
    dry = setting.distiller(dropout=0.0)
    assert dry.evaluate(stream) == first
    [wet], [dropless] = train(distiller, stream, last=1), train(dry, stream, last=1)
    assert wet.loss != dropless.loss


@pytest.mark.parametrize("layer", [1, 2])
def test_what_the_loss_does_not_reach_is_frozen_and_kept_out_of_the_optimiser(setting: Setting, layer: int) -> None:
    distiller = setting.distiller(layer=layer, dropout=0.1)
    before = weights(distiller)
    train(distiller, setting.stream(), last=2)
    after = weights(distiller)
    named = dict(distiller.student.model.named_parameters())
    optimised = {id(parameter) for group in distiller.optimizer._adamw.param_groups for parameter in group["params"]}
    assert f"encoder.layer.{layer - 1}.output.dense.weight" in distiller.untrained
    assert "pooler.dense.weight" in distiller.untrained
    assert layer == 2 or "encoder.layer.1.attention.self.query.weight" in distiller.untrained
    for name, parameter in named.items():
        frozen = name in distiller.untrained
        assert parameter.requires_grad is not frozen
        assert (id(parameter) in optimised) is not frozen
        assert torch.equal(before[name], after[name]) is frozen, name


@pytest.mark.parametrize("relation", ["qq", "kk", "vv", "qk"])
def test_projections_that_no_relation_uses_are_not_trained_and_are_named(setting: Setting, relation: str) -> None:
    distiller = setting.distiller(f"relations.weights={relation}=1")
    before = weights(distiller)
    train(distiller, setting.stream(), last=2)
    after = weights(distiller)
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    # Position 24 and later of the table are not seen, but the tensor changes as a whole.
    assert unchanged == set(distiller.untrained)


def test_no_weight_decay_on_biases_and_norms(setting: Setting) -> None:
    distiller = setting.distiller("optimizer.weight_decay=0.3")
    decayed, others = distiller.optimizer._adamw.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in distiller.student.model.named_parameters()}
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(names[id(p)].endswith("bias") or "LayerNorm" in names[id(p)] for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(names) - len(distiller.untrained)
    assert (decayed["betas"], decayed["eps"]) == ((0.9, 0.999), 1e-6)


def test_the_gradient_is_scaled_down_to_the_clip_norm_and_never_up(setting: Setting) -> None:
    def moments(clip_norm: float) -> tuple[float, float]:
        # After one step Adam's first moment is (1 - beta) times the gradient it was given.
        distiller = setting.distiller(f"optimizer.clip_norm={clip_norm}")
        [report] = train(distiller, setting.stream(), last=1)
        given = [state["exp_avg"] / (1 - 0.9) for state in distiller.optimizer._adamw.state.values()]
        return report.grad_norm, torch.cat([tensor.flatten() for tensor in given]).norm().item()

    norm, given = moments(1e6)
    assert math.isclose(given, norm, rel_tol=1e-4)
    reported, given = moments(norm / 10)
    assert math.isclose(reported, norm, rel_tol=1e-5)
    assert math.isclose(given, norm / 10, rel_tol=1e-3)


# --- The schedule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "warmup", "step", "total", "factor"),
    [
        ("linear", 4, 1, 10, 0.25),
        ("linear", 4, 4, 10, 1.0),
        ("linear", 4, 5, 10, 5 / 6),
        ("linear", 4, 10, 10, 0.0),
        ("linear", 4, 12, 10, 0.0),
        ("linear", 0, 1, 4, 0.75),
        ("linear", 0, 4, 4, 0.0),
        ("linear", 10, 4, 4, 0.4),
        ("linear", 4, 4, 4, 1.0),
        ("cosine", 4, 2, 10, 0.5),
        ("cosine", 4, 4, 10, 1.0),
        ("cosine", 4, 7, 10, 0.5),
        ("cosine", 4, 10, 10, 0.0),
        ("cosine", 4, 12, 10, 0.0),
        ("cosine", 0, 1, 2, 0.5),
        ("constant", 4, 3, 10, 0.75),
        ("constant", 4, 5, 10, 1.0),
        ("constant", 0, 1, 10, 1.0),
        ("constant", 4, 10, 10, 1.0),
    ],
)
def test_the_schedule_at_its_corners(kind: Any, warmup: int, step: int, total: int, factor: float) -> None:
    schedule = ScheduleSettings(kind=kind, warmup_steps=warmup)
    assert math.isclose(LearningRate(schedule, 1.0, total)(step), factor, abs_tol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_the_rate_rises_in_the_warm_up_and_never_after_it(kind: Any) -> None:
    schedule = ScheduleSettings(kind=kind, warmup_steps=20)
    factors = [LearningRate(schedule, 1.0, 100)(step) for step in range(1, 101)]
    assert factors[:20] == sorted(factors[:20])
    assert factors[19:] == sorted(factors[19:], reverse=True)
    assert all(0 <= factor <= 1 for factor in factors)


def test_each_step_is_taken_at_its_rate(setting: Setting) -> None:
    distiller = setting.distiller("optimizer.lr=0.004", "schedule.warmup_steps=2", steps=4)
    rates = [report.lr for report in train(distiller, setting.stream(), last=4)]
    assert rates == [0.002, 0.004, 0.002, 0.0]
    assert {group["lr"] for group in distiller.optimizer._adamw.param_groups} == {0.0}


# --- What is not finite ------------------------------------------------------------------------------------------


def not_finite(distiller: Distiller, stream: BatchStream, step: int = 1) -> NotFinite:
    """The error that training `step` ends with."""
    with pytest.raises(StepNotFinite) as caught:
        train(distiller, stream, first=step, last=step)
    return explain(distiller, caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_optimiser_moves(setting: Setting, value: float) -> None:
    distiller, stream = setting.distiller(), setting.stream()
    train(distiller, stream, last=1)
    before = weights(distiller)
    moments = {name: tensor.clone() for name, tensor in distiller.state()["optimizer"].items()}
    culprit = int(stream.step_indices(2)[3])
    word = int(setting.store.sequence(culprit, 24)[1])
    with torch.no_grad():
        distiller.student.model.embeddings.word_embeddings.weight[word] = value
    poisoned = weights(distiller)
    error = not_finite(distiller, stream, step=2)
    assert re.match(r"step 2: the loss is .*; the step was not taken", error.message)
    with_it = [index for index in stream.step_indices(2).tolist() if word in setting.store.sequence(index, 24)]
    finding = error.finding
    assert culprit in with_it
    assert sorted(finding.sequences) == sorted(with_it)
    assert list(finding.relations) == ["qq", "kk", "vv"]
    assert list(finding.weights) == ["embeddings.word_embeddings.weight"]
    assert not finding.teacher
    assert not finding.gradients
    assert before.keys() == poisoned.keys()
    after = weights(distiller)
    for name, tensor in poisoned.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert_same(moments, distiller.state()["optimizer"])


def test_a_gradient_that_is_not_finite_stops_too(setting: Setting) -> None:
    distiller, stream = setting.distiller(), setting.stream()
    before = weights(distiller)
    name = "encoder.layer.0.attention.self.query.weight"
    distiller.student.model.get_parameter(name).register_hook(lambda gradient: gradient * math.inf)
    error = not_finite(distiller, stream)
    assert re.match(r"step 1: the loss is .* and the gradient norm (nan|inf)", error.message)
    assert_same(before, weights(distiller))
    finding = error.finding
    assert list(finding.gradients) == [name]
    assert sorted(finding.sequences) == sorted(stream.step_indices(1).tolist())
    assert not finding.relations
    assert not finding.weights


def test_only_the_relations_that_are_not_finite_are_named(setting: Setting) -> None:
    distiller, stream = setting.distiller(), setting.stream()
    with torch.no_grad():
        distiller.student.model.get_parameter("encoder.layer.1.attention.self.value.bias")[0] = math.nan
    assert list(not_finite(distiller, stream).finding.relations) == ["vv"]


def test_a_teacher_that_is_not_finite_is_named_as_the_cause(setting: Setting) -> None:
    distiller, stream = setting.distiller(), setting.stream()
    word = int(setting.store.sequence(int(stream.step_indices(1)[0]), 24)[1])
    distiller.teacher.model.embeddings.word_embeddings.weight[word] = math.inf
    error = not_finite(distiller, stream)
    assert "The teacher's own relations are not finite" in error.message
    assert error.finding.teacher
    assert all(word in setting.store.sequence(index, 24) for index in error.finding.sequences)


def test_a_step_that_is_sound_is_found_so_and_leaves_no_trace(setting: Setting) -> None:
    distiller, stream = setting.distiller(), setting.stream()
    assert examine(distiller, 1, stream.step(1)) == Finding(1, sequences=[], relations=[], weights=[], gradients=[])
    assert all(parameter.grad is None for parameter in distiller.student.parameters())


@pytest.mark.parametrize("change", ["shape", "missing", "unknown"])
@pytest.mark.parametrize("group", ["student", "optimizer"])
def test_the_state_of_another_student_is_refused_by_the_name_of_a_weight(
    setting: Setting, group: str, change: str
) -> None:
    distiller, stream = setting.distiller(), setting.stream()
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
        setting.distiller().load_state(state)


# --- Stopping, state, repeating ----------------------------------------------------------------------------------


def test_a_stop_within_a_step_leaves_no_trace_of_it(setting: Setting) -> None:
    stream = setting.stream(micro_batch_tokens=60)
    assert len(stream.step(2).micro_batches) > 2
    asked: Iterator[bool] = iter([False] * (len(stream.step(1).micro_batches) + 1) + [True] * 100)
    stopped, straight = setting.distiller(dropout=0.1), setting.distiller(dropout=0.1)
    reports = list(stopped.steps(stream, first=1, last=5, stop=lambda: next(asked)))
    train(straight, stream, last=1)
    assert [report.step for report in reports] == [1]
    assert_same(weights(stopped), weights(straight))
    train(stopped, stream, first=2, last=3)
    train(straight, stream, first=2, last=3)
    assert_same(weights(stopped), weights(straight))


def give_room(distiller: Distiller, tokens: int) -> None:
    """Let the student run out of memory where a micro-batch has more tokens."""

    def check(_: Any, inputs: tuple[Inputs]) -> None:
        if inputs[0].ids.numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    distiller.student.register_forward_pre_hook(check)


def test_out_of_memory_halves_the_budget_once_and_says_so(setting: Setting, caplog: pytest.LogCaptureFixture) -> None:
    distiller, stream = setting.distiller(), setting.stream(micro_batch_tokens=160)
    give_room(distiller, 100)
    reports = train(distiller, stream, last=4)
    assert [report.step for report in reports] == [1, 2, 3, 4]
    assert stream.micro_batch_tokens == 80
    assert caplog.messages == ["Step 1: out of memory; continuing with micro-batches of 80 tokens."]
    undisturbed = setting.distiller()
    train(undisturbed, setting.stream(micro_batch_tokens=80), last=4)
    assert_same(weights(distiller), weights(undisturbed))


def test_out_of_memory_in_an_evaluation_is_met_by_half_the_budget_too(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    distiller, stream = setting.distiller(), setting.stream(micro_batch_tokens=160, held_out_fraction=0.2)
    steps = distiller.steps(stream, first=1, last=2)
    next(steps)  # and the batch of the second is cut already
    expected = distiller.evaluate(stream)
    give_room(distiller, 100)
    assert distiller.evaluate(stream)["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    assert caplog.messages == ["The evaluation: out of memory; continuing with micro-batches of 80 tokens."]
    assert [report.step for report in steps] == [2]


def test_out_of_memory_once_more_ends_the_run_with_what_to_do(setting: Setting) -> None:
    distiller, stream = setting.distiller(), setting.stream(micro_batch_tokens=160)
    give_room(distiller, 50)
    before = weights(distiller)
    with pytest.raises(RunError, match="step 1: out of memory, with micro-batches of 80 tokens") as caught:
        train(distiller, stream, last=4)
    assert "micro_batch_tokens" in str(caught.value.hint)
    assert_same(weights(distiller), before)


def test_the_machines_want_of_memory_is_one_too_and_another_error_is_not() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_rehearsal_leaves_no_trace(setting: Setting) -> None:
    rehearsed, other = setting.distiller(dropout=0.3), setting.distiller(dropout=0.3)
    for batch in setting.stream().step(7).micro_batches:
        rehearsed.rehearse(batch)
    for distiller in (rehearsed, other):
        train(distiller, setting.stream(), last=3)
    assert_same(weights(rehearsed), weights(other))


def test_going_on_from_a_state_is_bit_for_bit_what_going_on_would_have_been(setting: Setting) -> None:
    stream = setting.stream()
    straight = setting.distiller(dropout=0.1)
    train(straight, stream, last=3)
    state = {group: {name: t.clone() for name, t in members.items()} for group, members in straight.state().items()}
    resumed = setting.distiller(dropout=0.1)
    torch.manual_seed(999)
    resumed.load_state(state)
    assert_same(weights(straight), weights(resumed))
    one, other = train(straight, stream, first=4, last=6), train(resumed, stream, first=4, last=6)
    assert [report.loss for report in one] == [report.loss for report in other]
    assert_same(weights(straight), weights(resumed))
    assert_same(straight.state()["optimizer"], resumed.state()["optimizer"])


def test_a_state_taken_over_is_a_copy(setting: Setting) -> None:
    straight, resumed = setting.distiller(), setting.distiller()
    train(straight, setting.stream(), last=1)
    state = straight.state()
    resumed.load_state(state)
    before = {name: tensor.clone() for name, tensor in state["optimizer"].items()}
    train(resumed, setting.stream(), first=2, last=2)
    assert_same(before, straight.state()["optimizer"])


def test_a_state_names_each_tensor_once_and_all_of_the_students(setting: Setting) -> None:
    distiller = setting.distiller()
    assert distiller.state()["optimizer"] == {}
    train(distiller, setting.stream(), last=1)
    state = distiller.state()
    assert state["student"].keys() == distiller.student.model.state_dict().keys()
    trained = {name for name, _ in distiller.student.model.named_parameters()} - set(distiller.untrained)
    assert state["optimizer"].keys() == {
        f"{name}.{key}" for name in trained for key in ("step", "exp_avg", "exp_avg_sq")
    }


def test_the_same_seed_gives_the_same_training_whatever_was_drawn_before(setting: Setting) -> None:
    results = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        distiller = setting.distiller(dropout=0.1)
        reports = train(distiller, setting.stream(), last=3)
        results.append(([report.loss for report in reports], weights(distiller)))
    assert results[0][0] == results[1][0]
    assert_same(results[0][1], results[1][1])


def test_another_seed_drops_out_other_units(setting: Setting) -> None:
    losses = []
    for seed in (1, 2):
        distiller = setting.distiller(f"training.seed={seed}", dropout=0.5)
        [report] = train(distiller, setting.stream(), last=1)
        losses.append(report.loss)
    assert losses[0] != losses[1]


# --- Evaluation --------------------------------------------------------------------------------------------------


def test_the_held_out_loss_is_the_mean_over_sequences_whatever_the_micro_batches(setting: Setting) -> None:
    distiller = setting.distiller()
    one, other = (distiller.evaluate(setting.stream(micro_batch_tokens=tokens)) for tokens in (30, 10**6))
    assert list(one) == ["eval_loss", "eval_loss_qq", "eval_loss_kk", "eval_loss_vv"]
    for name, value in one.items():
        assert math.isclose(value, other[name], rel_tol=1e-5)
    assert math.isclose(
        one["eval_loss"], sum(value for name, value in one.items() if name != "eval_loss"), rel_tol=1e-5
    )


def test_an_evaluation_of_nothing_or_one_that_is_stopped_gives_nothing(setting: Setting) -> None:
    distiller = setting.distiller()
    assert distiller.evaluate(setting.stream(held_out_fraction=0.0)) == {}
    assert distiller.evaluate(setting.stream(), stop=lambda: True) == {}
    assert distiller.student.training


def test_an_evaluation_changes_nothing_of_the_training(setting: Setting) -> None:
    stream = setting.stream()
    evaluated, straight = setting.distiller(dropout=0.1), setting.distiller(dropout=0.1)
    for step in (1, 2):
        train(evaluated, stream, first=step, last=step)
        evaluated.evaluate(stream)
    train(straight, stream, last=2)
    assert_same(weights(evaluated), weights(straight))


# --- Precision and devices ---------------------------------------------------------------------------------------


def test_bf16_is_close_to_fp32_and_keeps_the_weights_in_fp32(setting: Setting) -> None:
    half, full = setting.distiller(bf16=True), setting.distiller()
    assert {parameter.dtype for parameter in half.student.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in half.teacher.parameters()} == {torch.bfloat16}
    for one, other in zip(train(half, setting.stream(), last=3), train(full, setting.stream(), last=3), strict=True):
        assert one.parts.dtype == torch.float32
        assert math.isclose(one.loss, other.loss, rel_tol=0.03)
        assert one.loss != other.loss
    assert {parameter.dtype for parameter in half.student.parameters()} == {torch.float32}


def test_auto_picks_a_device_that_is_there() -> None:
    assert torch.empty(1, device=choose_device("auto", World())).numel() == 1
    assert choose_device("cpu", World()) == CPU


@pytest.mark.parametrize("device", ["cuda:99", "toaster", "meta:nonsense"])
def test_a_device_that_is_not_there_is_refused_in_a_line(device: str) -> None:
    with pytest.raises(MinilmError, match=f"training.device: device '{device}' is not available: .") as caught:
        choose_device(device, World())
    assert "\n" not in str(caught.value)


def test_hardware_is_asked_without_failing() -> None:
    assert has_bf16(CPU) in {True, False}
    assert not has_bf16(torch.device("mps"))


# --- Several processes -------------------------------------------------------------------------------------------


class InTurn(World):
    """A process of two, of which the other has been through the same before: what it added is added now."""

    def __init__(self, rank: int, before: InTurn | None = None) -> None:
        super().__init__(rank, 2)
        self.added: list[Tensor] = []
        self._before = before

    def add_up(self, tensor: Tensor) -> None:
        self.added.append(tensor.clone())
        if self._before is not None:
            tensor += self._before.added[len(self.added) - 1]

    def gather(self, values: list[int]) -> list[int]:
        return values


def test_two_halves_of_a_step_are_the_step(setting: Setting) -> None:
    ours = train(alone := setting.distiller(), setting.stream(), last=1)
    first = InTurn(1)
    train(setting.distiller(world=first), setting.stream(rank=1, ranks=2), last=1)
    both = setting.distiller(world=InTurn(0, first))
    theirs = train(both, setting.stream(rank=0, ranks=2), last=1)
    assert theirs[0].loss == pytest.approx(ours[0].loss, rel=1e-6)
    assert theirs[0].grad_norm == pytest.approx(ours[0].grad_norm, rel=1e-5)
    assert (theirs[0].sequences, theirs[0].tokens) == (ours[0].sequences, ours[0].tokens)
    assert theirs[0].padded_tokens == ours[0].padded_tokens
    assert_close(weights(alone), weights(both), atol=2e-4)  # AdamW's first step is as long as the learning rate


def test_a_step_is_added_up_at_once_whatever_the_number_of_micro_batches(setting: Setting) -> None:
    world = InTurn(0)
    stream = setting.stream(micro_batch_tokens=30, ranks=2)
    assert len(stream.step(1).micro_batches) > 2
    distiller = setting.distiller(world=world)
    train(distiller, stream, last=2)
    assert len(world.added) == 2
    trained = sum(p.numel() for p in distiller.student.model.parameters() if p.requires_grad)
    assert len(world.added[0]) == trained + 1 + 3 + 2 * 3  # loss, three relations, three numbers of both


def test_one_that_is_told_to_stop_stops_the_other_before_the_step(setting: Setting) -> None:
    stopped = InTurn(1)
    distiller = setting.distiller(world=stopped)
    assert list(distiller.steps(setting.stream(rank=1, ranks=2), first=1, last=3, stop=lambda: 15)) == []
    assert distiller.stopped_by == 15
    other = setting.distiller(world=InTurn(0, stopped))
    before = weights(other)
    assert list(other.steps(setting.stream(ranks=2), first=1, last=3)) == []
    assert other.stopped_by == 15
    assert_same(before, weights(other))


def test_one_that_is_told_to_stop_ends_the_evaluation_of_the_other(setting: Setting) -> None:
    stopped = InTurn(1)
    assert setting.distiller(world=stopped).evaluate(setting.stream(rank=1, ranks=2), stop=lambda: 2) == {}
    other = setting.distiller(world=InTurn(0, stopped))
    assert other.evaluate(setting.stream(ranks=2)) == {}
    assert other.stopped_by == 2


def test_the_smallest_budget_that_one_came_down_to_is_that_of_all(setting: Setting) -> None:
    poor = InTurn(1)
    train(setting.distiller(world=poor), setting.stream(rank=1, ranks=2, micro_batch_tokens=40), last=1)
    stream = setting.stream(ranks=2, micro_batch_tokens=100)
    train(setting.distiller(world=InTurn(0, poor)), stream, last=1)
    assert stream.micro_batch_tokens == 40


def test_all_processes_find_that_a_loss_is_not_finite(setting: Setting) -> None:
    for rank in (0, 1):
        distiller = setting.distiller(world=InTurn(rank))
        with torch.no_grad():
            next(iter(distiller.student.parameters())).fill_(math.nan)
        assert not_finite(distiller, setting.stream(rank=rank, ranks=2)).exit_status == 1


def test_one_that_has_nothing_to_do_can_be_told_to_stop(setting: Setting) -> None:
    stream = setting.stream(batch_size=1, rank=1, ranks=2, held_out_fraction=0)
    assert not stream.step(1).micro_batches
    distiller = setting.distiller(world=InTurn(1))
    assert list(distiller.steps(stream, first=1, last=3, stop=lambda: 15)) == []
    assert distiller.stopped_by == 15
    assert setting.distiller(world=InTurn(1)).evaluate(stream, stop=lambda: 15) == {}
