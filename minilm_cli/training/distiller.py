"""One optimiser step: both forward passes, the loss, the gradient, the update. No files, no printing, no clock.

`Distiller.steps` is a generator of `StepReport`s; whoever drives it decides what to log, save and stop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minilm_cli.base.errors import Dismissed, RunError
from minilm_cli.base.seeding import derive
from minilm_cli.models.state import refuse_others, unshared_state
from minilm_cli.models.tap import RelationTap, untrained_parameters
from minilm_cli.ops.dropout import replace_dropout
from minilm_cli.ops.embeddings import _SparseEmbeddings
from minilm_cli.ops.relation_loss import Projections, relation_loss
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.training.batches import Batch, BatchStream
from minilm_cli.training.devices import out_of_memory
from minilm_cli.training.distributed import World
from minilm_cli.training.exchange import _Exchange
from minilm_cli.training.micro_batches import MicroBatch
from minilm_cli.training.nonfinite import Finding, NotFinite
from minilm_cli.training.optim import _adamw, schedule_factor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did."""

    step: int
    loss: float
    relation_losses: Tensor
    """Stay on the device until `metrics` is asked for."""
    grad_norm: float
    lr: float
    sequences: int
    tokens: int
    """Real tokens."""
    padded_tokens: int
    imbalance: float
    """How much more the busiest process had to do than they had on average."""

    def metrics(self, relations: Iterable[str]) -> dict[str, float]:
        """Losses, gradient norm and learning rate as numbers; `relations` names the relation losses."""
        named = zip((f"loss_{pair}" for pair in relations), self.relation_losses.tolist(), strict=True)
        return {"loss": self.loss, **dict(named), "lr": self.lr, "grad_norm": self.grad_norm}


class Distiller:
    """Trains a student's relations to be those of a teacher."""

    def __init__(
        self,
        teacher: RelationTap,
        student: RelationTap,
        settings: DistillSettings,
        *,
        heads: int,
        total_steps: int,
        device: torch.device,
        bf16: bool,
        world: World | None = None,
    ) -> None:
        """Move both models to `device` and set up the optimiser.

        heads: relation heads. total_steps: where the schedule ends. bf16: compute in bf16 (the loss stays fp32).
        world: the processes that share each step.
        """
        self.device, self._bf16, self._heads = device, bf16, heads
        self._world = world or World()
        self.stopped_by = 0
        """What ended `steps` or `evaluate` before their end, in one of the processes."""
        self._seed = settings.training.seed
        self._weights = settings.relations.weights
        self._clip_norm = settings.optimizer.clip_norm
        self._schedule, self._total_steps = settings.schedule, total_steps
        self.peak_lr = settings.optimizer.lr
        self.teacher = teacher.to(device, torch.bfloat16 if bf16 else torch.float32).eval().requires_grad_(False)
        self.student = student.to(device).train()
        self.untrained = untrained_parameters(student, sorted({letter for pair in self._weights for letter in pair}))
        frozen = frozenset(self.untrained)
        self._trained = {name: parameter for name, parameter in student.model.named_parameters() if name not in frozen}
        for name in frozen:
            student.model.get_parameter(name).requires_grad_(False)
        self.optimizer = _adamw(self._trained, settings.optimizer)
        self._embeddings: _SparseEmbeddings | None = None
        self._backed_off = False
        if settings.training.compile:
            for tap in (self.teacher, self.student):
                tap.model.compile(dynamic=True)
        elif device.type == "cpu":
            replace_dropout(student)
            self._embeddings = _SparseEmbeddings(student)

    def steps(
        self, stream: BatchStream, *, first: int, last: int, stop: Callable[[], int] = lambda: 0
    ) -> Iterator[StepReport]:
        """Train steps `first` to `last` (1-based), reporting each.

        `stop` is asked after each micro-batch; when it gives a number, other than 0, that is kept in `stopped_by` and
        the generator ends, in all processes, and the step under way has left no trace. If memory runs out, `stream`'s
        budget is halved, once, and the step taken again.
        Raises `RunError` before the optimiser moves if loss or gradient is not finite, or memory runs out once more.
        """
        exchange = _Exchange(self._world, self._trained.values()) if self._world.size > 1 else None
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
            following = thread.submit(stream.step, first)
            for step in range(first, last + 1):
                batch = following.result()
                following = thread.submit(stream.step, step + 1)  # while this step computes
                while True:
                    if batch.budget != stream.micro_batch_tokens:  # memory ran out since it was cut
                        batch = stream.step(step)
                    try:
                        sums, self.stopped_by = self._accumulate(step, batch, stop)
                        break
                    except RuntimeError as error:
                        self._back_off(error, f"step {step}", stream)
                padded_tokens = batch.padded_tokens
                if exchange is not None:
                    sums, of_ranks = exchange(sums, (padded_tokens, self.stopped_by, stream.micro_batch_tokens))
                    padded_tokens = sum(padded for padded, _, _ in of_ranks)
                    self.stopped_by = max(number for _, number, _ in of_ranks)
                    _follow_budget(step, stream, min(budget for _, _, budget in of_ranks))
                if self.stopped_by:
                    return
                yield self._update(step, batch, sums / batch.sequences, padded_tokens)

    def _accumulate(self, step: int, batch: Batch, stop: Callable[[], int]) -> tuple[Tensor, int]:
        """Put the gradient of this process's share of a step into the parameters.

        Returns its loss and relation losses, summed over sequences, and what `stop` said.
        """
        sums = torch.zeros(1 + len(self._weights), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(derive(self._seed, "dropout", step, self._world.rank))
        for micro_batch in batch.micro_batches:
            loss, parts = self._loss(micro_batch)
            torch.autograd.backward(loss / batch.sequences)
            sums += torch.cat([loss.detach()[None], parts])
            if number := stop():
                self.optimizer.zero_grad(set_to_none=True)
                return sums, number
        if self._embeddings is not None:
            self._embeddings.densify()
        # One that has nothing to do in this step has not been asked yet.
        return sums, 0 if batch.micro_batches else stop()

    def _update(self, step: int, batch: Batch, losses: Tensor, padded_tokens: int) -> StepReport:
        """Move the optimiser along the gradient, unless it is not finite."""
        found = torch.nn.utils.clip_grad_norm_(self._trained.values(), self._clip_norm)
        loss, norm = torch.stack([losses[0], found]).tolist()  # the one wait for the device in a step
        if not (math.isfinite(loss) and math.isfinite(norm)):
            finding = self.examine(step, batch)
            raise NotFinite(finding, loss, norm) if self._world.leads else Dismissed(RunError.exit_status)
        lr = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return StepReport(
            step=step,
            loss=loss,
            relation_losses=losses[1:],
            grad_norm=norm,
            lr=lr,
            sequences=batch.sequences,
            tokens=batch.tokens,
            padded_tokens=padded_tokens,
            imbalance=batch.imbalance,
        )

    def examine(self, step: int, batch: Batch) -> Finding:
        """Where a loss or gradient of `step` that is not finite comes from, found by going through it once more.

        All processes look at their share and tell each other. Leaves no gradient behind.
        """
        relations, names = list(self._weights), list(self._trained)
        sequences: list[int] = []
        culprits: set[int] = set()
        gradients: set[int] = set()
        teacher_fails = False
        torch.manual_seed(derive(self._seed, "dropout", step, self._world.rank))  # the very passes that failed
        for micro_batch in batch.micro_batches:
            teacher, student = self._outputs(micro_batch)
            bad = []
            for index, span in zip(micro_batch.indices.tolist(), micro_batch.spans, strict=True):
                with torch.no_grad():
                    loss, parts = relation_loss(teacher, student, [span], heads=self._heads, weights=self._weights)
                    if not torch.isfinite(loss).item():
                        bad.append(index)
                        culprits.update((~torch.isfinite(parts)).nonzero().flatten().tolist())
                        alone, _ = relation_loss(teacher, teacher, [span], heads=self._heads, weights=self._weights)
                        teacher_fails |= not torch.isfinite(alone).item()
            if not bad:
                self.optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(self._compare(teacher, student, micro_batch)[0])
                wrong = {n for n, name in enumerate(names) if not _is_finite(self._trained[name].grad)}
                gradients |= wrong
                bad = micro_batch.indices.tolist() if wrong else []
            sequences += bad
        self.optimizer.zero_grad(set_to_none=True)
        gather = self._world.gather
        return Finding(
            step=step,
            sequences=gather(sequences),
            relations=[relations[number] for number in sorted(set(gather(sorted(culprits))))],
            teacher=any(gather([int(teacher_fails)])),
            weights=[name for name in names if not _is_finite(self._trained[name])],
            gradients=[names[number] for number in sorted(set(gather(sorted(gradients))))],
        )

    def rehearse(self, batch: MicroBatch) -> None:
        """The work of a micro-batch, waited for and without a trace: to see what it takes."""
        try:
            torch.autograd.backward(self._loss(batch)[0])
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def evaluate(self, stream: BatchStream, *, stop: Callable[[], int] = lambda: 0) -> dict[str, float]:
        """The mean loss per sequence over the held-out ones, without dropout; each process does its share.

        Empty if there are none, or if `stop` gives a number in one of the processes, which is kept in `stopped_by`. If
        memory runs out it is as in `steps`.
        """
        self.student.eval()
        try:
            while True:
                try:
                    losses, sequences, number = self._held_out_losses(stream, stop)
                    break
                except RuntimeError as error:
                    self._back_off(error, "the evaluation", stream)
        finally:
            self.student.train()
        numbers = torch.zeros(self._world.size, dtype=torch.double)
        numbers[self._world.rank] = number
        total = torch.cat([losses, torch.tensor([float(sequences)]), numbers])
        self._world.add_up(total)
        *sums, seen = total[: -self._world.size].tolist()
        self.stopped_by = int(total[-self._world.size :].max())
        if self.stopped_by or not seen:
            return {}
        names = ["eval_loss", *(f"eval_loss_{pair}" for pair in self._weights)]
        return {name: value / seen for name, value in zip(names, sums, strict=True)}

    @torch.no_grad()
    def _held_out_losses(self, stream: BatchStream, stop: Callable[[], int]) -> tuple[Tensor, int, int]:
        """Losses summed over this process's share, how many sequences these are, and what `stop` said."""
        losses = [torch.zeros(1 + len(self._weights), device=self.device)]
        sequences = number = 0
        for batch in stream.held_out():
            loss, parts = self._loss(batch)
            losses.append(torch.cat([loss[None], parts]))
            sequences += len(batch.lengths)
            if number := stop():
                break
        return torch.stack(losses).cpu().double().sum(0), sequences, number if sequences else stop()

    def copy_from_first(self) -> None:
        """Begin with the student's weights of rank 0, in all processes."""
        self._world.copy_from_first(tensor for tensor in unshared_state(self.student.model).values())

    def learning_rate(self, step: int) -> float:
        """The learning rate of `step` (1-based)."""
        return self.peak_lr * schedule_factor(self._schedule, step, self._total_steps)

    def _moments(self) -> dict[str, Tensor]:
        """Tensors of the shapes of the optimiser's moments, by name."""
        found: dict[str, Tensor] = {}
        for name, parameter in self._trained.items():
            found |= {f"{name}.step": torch.empty(()), f"{name}.exp_avg": parameter, f"{name}.exp_avg_sq": parameter}
        return found

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The student's weights and the optimiser's moments, by name."""
        moments = {
            f"{name}.{key}": value
            for name, parameter in self._trained.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        return {"student": unshared_state(self.student.model), "optimizer": moments}

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over what `state` gave; raises `MinilmError` if it is that of another student."""
        refuse_others(state["student"], unshared_state(self.student.model))
        if state["optimizer"]:  # there is none before the first step
            refuse_others(state["optimizer"], self._moments())
        self.student.model.load_state_dict(dict(state["student"]), strict=False)
        for name, parameter in self._trained.items():
            moments: dict[str, Any] = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (value := state["optimizer"].get(f"{name}.{key}")) is not None:
                    # The step counter stays where the optimiser made it: on the device if that is a GPU (fused).
                    moments[key] = value.to(self.device).clone()
            if moments:
                self.optimizer.state[parameter] = moments

    def _loss(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        return self._compare(*self._outputs(batch), batch)

    def _outputs(self, batch: MicroBatch) -> tuple[Projections, Projections]:
        """Queries, keys and values of teacher and student."""
        inputs = batch.inputs(self.device)
        with torch.inference_mode():
            teacher = self.teacher(**inputs)
        with self._autocast():
            return teacher, self.student(**inputs)

    def _compare(self, teacher: Projections, student: Projections, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        return relation_loss(teacher, student, batch.spans, heads=self._heads, weights=self._weights)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()

    def _back_off(self, error: RuntimeError, what: str, stream: BatchStream) -> None:
        """Halve the budget if memory ran out in `what`; raises `RunError` if it did before, and any other error."""
        if not out_of_memory(error):
            raise error
        if self._backed_off:
            raise RunError(
                f"{what}: out of memory, with micro-batches of {stream.micro_batch_tokens:,} tokens.",
                hint="Resume with a lower --set training.micro_batch_tokens=N, or start a run with a lower"
                " --max-length.",
            ) from None
        self._backed_off = True
        self.optimizer.zero_grad(set_to_none=True)
        stream.micro_batch_tokens //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        budget = f"{stream.micro_batch_tokens:,}"
        logger.warning("%s: out of memory; going on with micro-batches of %s tokens.", what.capitalize(), budget)


def _is_finite(tensor: Tensor | None) -> bool:
    if tensor is None:
        return True
    return bool(torch.isfinite(tensor._values() if tensor.is_sparse else tensor).all())


def _follow_budget(step: int, stream: BatchStream, budget: int) -> None:
    """Take the smallest budget that a process has come down to, so that a checkpoint has one number to keep."""
    if budget < stream.micro_batch_tokens:
        stream.micro_batch_tokens = budget
        logger.warning(
            "Step %d: a process is out of memory; going on with micro-batches of %s tokens.", step, f"{budget:,}"
        )
