from __future__ import annotations

import pytest

from .distillers import Factory, FakeWorld, assert_close, assert_same, train, weights


def test_two_ranks_take_the_step_of_one_process(factory: Factory) -> None:
    alone, first = factory.distiller(), FakeWorld(1)
    [expected] = train(alone, factory.stream(), last=1)
    train(factory.distiller(world=first), factory.stream(rank=1, ranks=2), last=1)
    both = factory.distiller(world=FakeWorld(0, first))
    [report] = train(both, factory.stream(rank=0, ranks=2), last=1)
    assert report.loss == pytest.approx(expected.loss, rel=1e-6)
    assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    assert (report.sequences, report.tokens) == (expected.sequences, expected.tokens)
    assert report.padded_tokens == expected.padded_tokens
    assert_close(weights(alone), weights(both), atol=2e-4)  # AdamW's first step is as long as the learning rate


def test_each_step_has_one_all_reduce(factory: Factory) -> None:
    world = FakeWorld(0)
    stream = factory.stream(micro_batch_tokens=30, ranks=2)
    assert len(stream.step(1).micro_batches) > 2
    distiller = factory.distiller(world=world)
    train(distiller, stream, last=2)
    assert len(world.added) == 2
    trained = sum(p.numel() for p in distiller.student.model.parameters() if p.requires_grad)
    assert len(world.added[0]) == trained + 1 + 3 + 2 * 3  # loss, three relations, three numbers of each rank


def test_stop_on_one_rank_stops_the_other_before_the_step(factory: Factory) -> None:
    stopped = FakeWorld(1)
    distiller = factory.distiller(world=stopped)
    assert list(distiller.steps(factory.stream(rank=1, ranks=2), first=1, last=3, stop=lambda: 15)) == []
    assert distiller.stopped_by == 15
    other = factory.distiller(world=FakeWorld(0, stopped))
    before = weights(other)
    assert list(other.steps(factory.stream(ranks=2), first=1, last=3)) == []
    assert other.stopped_by == 15
    assert_same(before, weights(other))


def test_stop_on_one_rank_ends_the_evaluation_of_the_other(factory: Factory) -> None:
    stopped = FakeWorld(1)
    assert factory.distiller(world=stopped).evaluate(factory.stream(rank=1, ranks=2), stop=lambda: 2) == {}
    other = factory.distiller(world=FakeWorld(0, stopped))
    assert other.evaluate(factory.stream(ranks=2)) == {}
    assert other.stopped_by == 2


def test_rank_without_micro_batches_can_be_stopped(factory: Factory) -> None:
    stream = factory.stream(batch_size=1, rank=1, ranks=2, held_out_fraction=0)
    assert not stream.step(1).micro_batches
    distiller = factory.distiller(world=FakeWorld(1))
    assert list(distiller.steps(stream, first=1, last=3, stop=lambda: 15)) == []
    assert distiller.stopped_by == 15
    assert factory.distiller(world=FakeWorld(1)).evaluate(stream, stop=lambda: 15) == {}


def test_all_ranks_take_the_smallest_budget(factory: Factory) -> None:
    smaller = FakeWorld(1)
    train(factory.distiller(world=smaller), factory.stream(rank=1, ranks=2, micro_batch_tokens=40), last=1)
    stream = factory.stream(ranks=2, micro_batch_tokens=100)
    train(factory.distiller(world=FakeWorld(0, smaller)), stream, last=1)
    assert stream.micro_batch_tokens == 40
