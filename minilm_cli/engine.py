"""One optimiser step: both forward passes, the loss, the gradient, the update. No files, no printing, no clock.

`Distiller.steps` is a generator of `StepReport`s; whoever drives it decides what to log, save and stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minilm_cli.batches import BatchStream, MicroBatch
from minilm_cli.errors import RunError
from minilm_cli.relations import Projections, relation_loss
from minilm_cli.seeding import derive
from minilm_cli.settings import DistillSettings, OptimizerSettings, ScheduleSettings
from minilm_cli.taps import RelationTap, untrained_parameters


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did. Losses and norm stay on the device until `metrics` is asked for."""

    step: int
    loss: Tensor
    relation_losses: Tensor
    grad_norm: Tensor
    lr: float
    sequences: int
    tokens: int
    """Real tokens."""
    padded_tokens: int

    def metrics(self, relations: Iterable[str]) -> dict[str, float]:
        """Losses, gradient norm and learning rate as numbers; `relations` names the relation losses."""
        named = zip((f"loss_{pair}" for pair in relations), self.relation_losses.tolist(), strict=True)
        return {"loss": self.loss.item(), **dict(named), "lr": self.lr, "grad_norm": self.grad_norm.item()}


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
    ) -> None:
        """Move both models to `device` and set up the optimiser.

        heads: relation heads. total_steps: where the schedule ends. bf16: compute in bf16 (the loss stays fp32).
        """
        self.device, self._bf16, self._heads = device, bf16, heads
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
        self._run_teacher: Callable[..., Projections] = self.teacher
        self._run_student: Callable[..., Projections] = self.student
        if settings.training.compile:
            self._run_teacher = torch.compile(self.teacher, dynamic=True)
            self._run_student = torch.compile(self.student, dynamic=True)

    def steps(
        self, stream: BatchStream, *, first: int, last: int, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[StepReport]:
        """Train steps `first` to `last` (1-based), reporting each.

        `stop` is asked after each micro-batch; when it says so the generator ends, and the step under way has left
        no trace. Raises `RunError` before the optimiser moves if loss or gradient is not finite.
        """
        for step in range(first, last + 1):
            report = self._step(step, stream.step(step), stop)
            if report is None:
                return
            yield report

    def _step(self, step: int, micro_batches: list[MicroBatch], stop: Callable[[], bool]) -> StepReport | None:
        sequences = sum(len(batch.lengths) for batch in micro_batches)
        loss = torch.zeros((), device=self.device)
        parts = torch.zeros(len(self._weights), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(derive(self._seed, "dropout", step))
        for batch in micro_batches:
            batch_loss, batch_parts = self._loss(batch)
            torch.autograd.backward(batch_loss / sequences)
            loss += batch_loss.detach()
            parts += batch_parts
            if stop():
                return None
        loss, parts = loss / sequences, parts / sequences
        norm = torch.nn.utils.clip_grad_norm_(self._trained.values(), self._clip_norm)
        if not torch.isfinite(loss + norm).item():
            raise self._not_finite(step, loss, norm, micro_batches)
        lr = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return StepReport(
            step=step,
            loss=loss,
            relation_losses=parts,
            grad_norm=norm,
            lr=lr,
            sequences=sequences,
            tokens=sum(batch.tokens for batch in micro_batches),
            padded_tokens=sum(batch.input_ids.numel() for batch in micro_batches),
        )

    def evaluate(self, batches: Iterable[MicroBatch], *, stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """The mean loss per sequence over `batches`, without dropout; empty if there are none, or `stop` says so."""
        total = torch.zeros(1 + len(self._weights), dtype=torch.float64)
        sequences = 0
        self.student.eval()
        try:
            with torch.no_grad():
                for batch in batches:
                    loss, parts = self._loss(batch)
                    total += torch.cat([loss[None], parts]).cpu()
                    sequences += len(batch.lengths)
                    if stop():
                        return {}
        finally:
            self.student.train()
        if not sequences:
            return {}
        names = ["eval_loss", *(f"eval_loss_{pair}" for pair in self._weights)]
        return dict(zip(names, (total / sequences).tolist(), strict=True))

    def learning_rate(self, step: int) -> float:
        """The learning rate of `step` (1-based)."""
        return self.peak_lr * schedule_factor(self._schedule, step, self._total_steps)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The student's weights and the optimiser's moments, by name."""
        moments = {
            f"{name}.{key}": value
            for name, parameter in self._trained.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        return {"student": _unshared(self.student.model), "optimizer": moments}

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over what `state` gave."""
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
        inputs = batch.inputs(self.device)
        with torch.inference_mode():
            teacher = self._run_teacher(**inputs)
        with self._autocast():
            student = self._run_student(**inputs)
        return relation_loss(teacher, student, batch.spans, heads=self._heads, weights=self._weights)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()

    def _not_finite(self, step: int, loss: Tensor, norm: Tensor, batches: list[MicroBatch]) -> RunError:
        culprits: list[int] = []
        torch.manual_seed(derive(self._seed, "dropout", step))  # the very pass that failed
        with torch.no_grad():
            for batch in batches:
                if not torch.isfinite(self._loss(batch)[0]).item():
                    culprits.extend(batch.indices.tolist())
        named = f" The loss is not finite for some of the sequences {culprits[:20]}." if culprits else ""
        return RunError(
            f"step {step}: the loss is {loss.item():g} and its gradient's norm {norm.item():g}; the step was not taken."
            + named,
            hint="Resuming would meet it again. Start a new run with a lower --lr, a longer --warmup-steps, or"
            " --precision fp32.",
        )


def schedule_factor(schedule: ScheduleSettings, step: int, total: int) -> float:
    """The share of the peak learning rate at `step` (1-based) of `total`."""
    if step <= schedule.warmup_steps:
        return step / schedule.warmup_steps
    left = (total - step) / max(1, total - schedule.warmup_steps)
    match schedule.kind:
        case "linear":
            return max(0.0, left)
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * (1 - max(0.0, left))))
        case "constant":
            return 1.0


def _adamw(trained: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW without weight decay on biases and norms, which are the parameters of one dimension."""
    groups = [
        {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in {"cpu", "cuda"} for parameter in trained.values())
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def _unshared(model: nn.Module) -> dict[str, Tensor]:
    """A model's state without a second name for a tensor it shares."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen.add(tensor.data_ptr())
            state[name] = tensor
    return state


def pick_device(wanted: str) -> torch.device:
    """The device to compute on: `auto` is cuda, else mps, else cpu. Raises `ValueError` for one that is not there."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(str(error).splitlines()[0]) from None
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("amx_bf16") or features.get("avx512_bf16"))
    return False


def default_micro_batch_tokens(device: torch.device) -> int:
    """The padded tokens of a forward pass where the user leaves it to us."""
    return 32_768 if device.type == "cuda" else 2048
