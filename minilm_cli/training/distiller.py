"""One optimiser step: both forward passes, the loss, the gradient, the update. No files, no printing, no clock.

`Distiller.steps` is a generator of `StepReport`s; its caller decides what to log, save and stop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minilm_cli.base.seeding import derive
from minilm_cli.models.state import refuse_mismatch, unshared_state
from minilm_cli.models.tap import Tap
from minilm_cli.models.trials import packing_error
from minilm_cli.ops.dropout import replace_dropout
from minilm_cli.ops.embeddings import SparseEmbeddings
from minilm_cli.ops.relations import Projections
from minilm_cli.settings.distill import OptimizerSettings
from minilm_cli.training.batches import Batch, BatchStream
from minilm_cli.training.devices import explaining_inexactness
from minilm_cli.training.distributed import World
from minilm_cli.training.exchange import Exchange, Shared
from minilm_cli.training.memory import Backoff
from minilm_cli.training.micro_batches import MicroBatch
from minilm_cli.training.objective import Objective
from minilm_cli.training.optim import LearningRate, Optimizer

logger = logging.getLogger(__name__)

#: The setting that lets kernels be used which do not repeat exactly.
_DETERMINISTIC = "training.deterministic"

#: Asked after each micro-batch: the number of a signal that ends the work, or 0.
Stop = Callable[[], int]


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did."""

    step: int
    loss: float
    parts: Sequence[float]
    """The terms of the loss."""
    grad_norm: float
    lr: float
    sequences: int
    tokens: int
    """Real tokens."""
    padded_tokens: int
    imbalance: float
    """How much more work the busiest process had than the average."""

    def metrics(self, names: Iterable[str]) -> dict[str, float]:
        """Losses, gradient norm and learning rate as numbers; `names` are those of the parts."""
        parts = zip((f"loss_{name}" for name in names), self.parts, strict=True)
        return {"loss": self.loss, **dict(parts), "lr": self.lr, "grad_norm": self.grad_norm}


class StepNotFinite(Exception):
    """A step's loss or gradient is not finite; the optimiser has not moved."""

    def __init__(self, step: int, batch: Batch, loss: float, grad_norm: float) -> None:
        super().__init__(f"step {step}: loss {loss:g}, gradient norm {grad_norm:g}")
        self.step, self.batch, self.loss, self.grad_norm = step, batch, loss, grad_norm


class Distiller:
    """Trains a student's relations to be those of a teacher."""

    def __init__(
        self,
        teacher: Tap,
        student: Tap,
        objective: Objective,
        optimizer: OptimizerSettings,
        learning_rate: LearningRate,
        *,
        seed: int,
        device: torch.device,
        bf16: bool,
        compile_models: bool = False,
        world: World | None = None,
    ) -> None:
        """Move both models to `device` and set up the optimiser.

        seed: of dropout. bf16: compute in bf16 (the loss stays fp32). world: the processes that share each step.
        """
        self.device, self.bf16, self._seed = device, bf16, seed
        self.world = world or World()
        self.stopped_by = 0
        """The number of the signal that ended `steps` or `evaluate` early, in one of the processes."""
        self.teacher = teacher.to(device, torch.bfloat16 if bf16 else torch.float32).eval().requires_grad_(False)
        self.student = student.to(device).train()
        self.objective = objective
        self.untrained = objective.untrained(student)
        for name in self.untrained:
            student.model.get_parameter(name).requires_grad_(False)
        trained = {name: parameter for name, parameter in student.model.named_parameters() if parameter.requires_grad}
        self.optimizer = Optimizer(trained, optimizer, learning_rate)
        self._exchange = Exchange(self.world, trained.values())
        self._backoff = Backoff(release=self.optimizer.zero_grad)
        self._embeddings: SparseEmbeddings | None = None
        if compile_models:
            for tap in (self.teacher, self.student):
                tap.compile_pass()
        elif device.type == "cpu":
            replace_dropout(student)
            self._embeddings = SparseEmbeddings(student)

    # --- Training ------------------------------------------------------------------------------------------------

    def steps(self, stream: BatchStream, *, first: int, last: int, stop: Stop = lambda: 0) -> Iterator[StepReport]:
        """Train steps `first` to `last` (1-based), reporting each.

        When `stop` returns a number other than 0, it is kept in `stopped_by` and the generator ends, in all processes;
        the interrupted step leaves no trace. If memory runs out, `stream`'s budget is halved, once, and the step
        repeated. Raises `RunError` if memory runs out again, and `StepNotFinite` before the optimiser moves.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
            following = thread.submit(stream.step, first)
            for step in range(first, last + 1):
                accumulate = partial(self._accumulate, step, following.result(), stream, stop)
                following = thread.submit(stream.step, step + 1)  # while this step computes
                with explaining_inexactness(_DETERMINISTIC):
                    batch, sums, stopped_by = self._backoff.retry(accumulate, f"step {step}", stream)
                added = self._exchange.add(
                    sums,
                    padded_tokens=batch.padded_tokens,
                    stopped_by=stopped_by,
                    budget=stream.micro_batch_tokens,
                )
                shared = self._exchange.read(added, self.optimizer.clip())
                _follow_budget(step, stream, shared.budget)
                self.stopped_by = shared.stopped_by
                if self.stopped_by:
                    self.optimizer.zero_grad()
                    return
                yield self._update(step, batch, shared)

    def _accumulate(self, step: int, batch: Batch, stream: BatchStream, stop: Stop) -> tuple[Batch, Tensor, int]:
        """Put the gradient of this process's share of a step into the parameters.

        Returns the batch (cut again if the budget of tokens has changed), its loss and parts, summed over sequences,
        and the number that `stop` returned.
        """
        if batch.budget != stream.micro_batch_tokens:
            batch = stream.step(step)
        sums = torch.zeros(1 + len(self.objective.parts), device=self.device)
        self.optimizer.zero_grad()
        self.seed_dropout(step)
        for micro_batch in batch.micro_batches:
            loss, parts = self.loss(micro_batch)
            torch.autograd.backward(loss / batch.sequences)
            sums += torch.cat([loss.detach()[None], parts])
            if number := stop():
                self.optimizer.zero_grad()
                return batch, sums, number
        if self._embeddings is not None:
            self._embeddings.densify()
        # A process without work in this step has not asked yet.
        return batch, sums, 0 if batch.micro_batches else stop()

    def _update(self, step: int, batch: Batch, shared: Shared) -> StepReport:
        """Move the optimiser along the gradient, unless it is not finite."""
        loss, *parts = (total / batch.sequences for total in shared.sums)
        if not (math.isfinite(loss) and math.isfinite(shared.grad_norm)):
            raise StepNotFinite(step, batch, loss, shared.grad_norm)
        return StepReport(
            step=step,
            loss=loss,
            parts=parts,
            grad_norm=shared.grad_norm,
            lr=self.optimizer.step(step),
            sequences=batch.sequences,
            tokens=batch.tokens,
            padded_tokens=shared.padded_tokens,
            imbalance=batch.imbalance,
        )

    # --- The passes of a micro-batch -----------------------------------------------------------------------------

    def seed_dropout(self, step: int) -> None:
        """Set the seed that decides this process's dropout masks in `step`."""
        torch.manual_seed(derive(self._seed, "dropout", step, self.world.rank))

    def loss(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """The loss, summed over the sequences, and its parts."""
        return self.objective(*self.outputs(batch), batch.inputs.spans)

    def outputs(self, batch: MicroBatch) -> tuple[tuple[Projections, ...], tuple[Projections, ...]]:
        """Queries, keys and values of each tapped layer of teacher and student."""
        inputs = batch.inputs.to(self.device)
        with torch.inference_mode():
            teacher = self.teacher(inputs)
        with self._autocast():
            return teacher, self.student(inputs)

    def packing_error(self) -> float:
        """How far packed rows are from their sequences alone, as the models compute now (`trials.packing_error`)."""
        of_teacher = packing_error(self.teacher)
        with self._autocast():
            return max(of_teacher, packing_error(self.student))

    def rehearse(self, batch: MicroBatch) -> None:
        """Compute a micro-batch, wait for it and drop its gradient: to measure time and memory."""
        try:
            with explaining_inexactness(_DETERMINISTIC):
                torch.autograd.backward(self.loss(batch)[0])
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        finally:
            self.optimizer.zero_grad()

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    # --- Evaluation ----------------------------------------------------------------------------------------------

    def evaluate(
        self, stream: BatchStream, *, stop: Stop = lambda: 0, done: Callable[[int], None] = lambda _: None
    ) -> dict[str, float]:
        """The mean loss per sequence over the held-out ones, without dropout; each process does its share.

        done: called after each micro-batch with the number of sequences of its share that this process has done.
        Empty if there are none, or if `stop` returns a number in one of the processes, which is kept in `stopped_by`.
        Memory that runs out is treated as in `steps`.
        """
        self.student.eval()
        try:
            held_out = partial(self._held_out_losses, stream, stop, done)
            with explaining_inexactness(_DETERMINISTIC):
                losses, sequences, number = self._backoff.retry(held_out, "the evaluation", stream)
        finally:
            self.student.train()
        numbers = torch.zeros(self.world.size, dtype=torch.double)
        numbers[self.world.rank] = number
        total = torch.cat([losses, torch.tensor([float(sequences)]), numbers])
        self.world.all_reduce(total)
        *sums, seen = total[: -self.world.size].tolist()
        self.stopped_by = int(total[-self.world.size :].max())
        if self.stopped_by or not seen:
            return {}
        names = ["eval_loss", *(f"eval_loss_{part}" for part in self.objective.parts)]
        return {name: value / seen for name, value in zip(names, sums, strict=True)}

    @torch.no_grad()
    def _held_out_losses(self, stream: BatchStream, stop: Stop, done: Callable[[int], None]) -> tuple[Tensor, int, int]:
        """Losses summed over this process's share, its number of sequences, and the number that `stop` returned."""
        losses = [torch.zeros(1 + len(self.objective.parts), device=self.device)]
        sequences = number = 0
        for batch in stream.held_out():
            loss, parts = self.loss(batch)
            losses.append(torch.cat([loss[None], parts]))
            sequences += len(batch.inputs.lengths)
            done(sequences)
            if number := stop():
                break
        return torch.stack(losses).cpu().double().sum(0), sequences, number if sequences else stop()

    # --- State ---------------------------------------------------------------------------------------------------

    def broadcast_student(self) -> None:
        """Give all processes rank 0's weights of the student."""
        self.world.broadcast(tensor for tensor in unshared_state(self.student.model).values())

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The student's weights and the optimiser's moments, by name."""
        return {"student": unshared_state(self.student.model), "optimizer": self.optimizer.state()}

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over what `state` returned; raises `MinilmError` if it is that of another student."""
        refuse_mismatch(state["student"], unshared_state(self.student.model))
        self.optimizer.load_state(state["optimizer"])
        self.student.model.load_state_dict(dict(state["student"]), strict=False)


def _follow_budget(step: int, stream: BatchStream, budget: int) -> None:
    """Take the smallest budget that a process has come down to, so that a checkpoint has one number to keep."""
    if budget < stream.micro_batch_tokens:
        stream.micro_batch_tokens = budget
        logger.warning(
            "Step %d: a process is out of memory; continuing with micro-batches of %s tokens.", step, f"{budget:,}"
        )
