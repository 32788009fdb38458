"""One measurement, in a separate process because of its peak memory; prints a line of JSON.

python -m tests.benchmarks.measure loss ours 128 32 2
python -m tests.benchmarks.measure training plain fp32 32 128 6
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertModel

from minilm_cli.models.tap import Tap
from minilm_cli.ops.relation_loss import relation_loss
from minilm_cli.ops.relations import Projections
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.tokens.store import TokenizerInfo, TokenStore, TokenStoreWriter
from minilm_cli.training.batches import BatchStream
from minilm_cli.training.distiller import Distiller
from minilm_cli.training.micro_batch_budget import untried
from minilm_cli.training.micro_batches import MicroBatch
from minilm_cli.training.objective import RelationObjective
from minilm_cli.training.optim import LearningRate
from tests.benchmarks import plain

HEADS, TEACHER_WIDTH, STUDENT_WIDTH = 48, 768, 384
VOCABULARY = 30_522


def peak_mb() -> float:
    """The peak memory of this process in MB; Linux only.

    `getrusage` would include the memory of the parent process.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak) * 1024 / 1e6


def seconds(work: Callable[[], object], repeats: int, at_least: float = 0) -> float:
    """The median time of `work`, run `repeats` times or for `at_least` seconds, after one run that is not counted."""
    work()
    times: list[float] = []
    while len(times) < repeats or sum(times) < at_least:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def measure_loss(which: str, length: int, batch: int, at_least: float) -> dict[str, float]:
    """Time of loss and gradient, and peak memory beyond the inputs and their gradients, in MB."""
    torch.manual_seed(0)
    teacher = [torch.randn(batch, length, TEACHER_WIDTH) for _ in range(3)]
    student = [torch.randn(batch, length, STUDENT_WIDTH, requires_grad=True) for _ in range(3)]
    # Allocate the libraries' buffers before the measurement.
    torch.bmm(torch.randn(2, 8, 64), torch.randn(2, 64, 8)).softmax(-1)
    before = peak_mb()

    def forget() -> None:
        for tensor in student:
            tensor.grad = None

    def ours() -> None:
        forget()
        flat = [Projections(*(tensor.flatten(0, 1) for tensor in side)) for side in (teacher, student)]
        spans = [(row * length, length) for row in range(batch)]
        relation_loss(*flat, spans, heads=HEADS, weights={"qq": 1.0, "kk": 1.0, "vv": 1.0})[0].backward()

    def theirs() -> None:
        forget()
        plain.relation_loss(teacher, student, torch.ones(batch, length)).backward()

    took = seconds(ours if which == "ours" else theirs, repeats=3 if at_least else 1, at_least=at_least)
    gradients = sum(tensor.nbytes for tensor in student) / 1e6
    return {"seconds": took, "extra_mb": peak_mb() - before - gradients}


def models() -> tuple[BertModel, BertModel]:
    """A teacher of BERT-base's shape and a student of 6 × 384, random."""
    torch.manual_seed(0)
    student = {"hidden_size": STUDENT_WIDTH, "num_hidden_layers": 6, "intermediate_size": 4 * STUDENT_WIDTH}
    return BertModel(BertConfig()), BertModel(BertConfig(**student))


def lengths(count: int, longest: int, median: int | None, rng: np.random.Generator) -> np.ndarray:
    """Log-normal lengths with about this median; all are the longest without one."""
    if median is None:
        return np.full(count, longest)
    return np.clip(np.round(np.exp(rng.normal(np.log(median), 0.6, count))), 4, longest).astype(np.int64)


def store(folder: Path, sequences: int, longest: int, median: int | None = 40) -> TokenStore:
    """A token store of random tokens with those lengths."""
    rng = np.random.default_rng(0)
    sizes = lengths(sequences, longest, median, rng)
    writer = TokenStoreWriter(folder, TokenizerInfo(vocabulary_size=VOCABULARY), longest)
    writer.add(rng.integers(1000, VOCABULARY, int(sizes.sum())).astype(np.uint16), sizes)
    writer.close()
    return TokenStore(folder)


def gemm_flops(dtype: torch.dtype) -> float:
    """The machine's best rate at a layer's matrix products, FLOP/s."""
    best = 0.0
    for rows in (512, 1024, 2048):
        layer = torch.nn.Linear(TEACHER_WIDTH, 4 * TEACHER_WIDTH, dtype=dtype)
        states = torch.randn(rows, TEACHER_WIDTH, dtype=dtype)
        with torch.inference_mode():
            took = seconds(lambda states=states, layer=layer: layer(states), repeats=9)
        best = max(best, 2 * rows * layer.in_features * layer.out_features / took)
    return best


def step_flops(sizes: list[int]) -> float:
    """FLOPs that a step on sequences of these lengths needs: forward for the teacher, three times that for the student.

    A layer of width h and feed-forward 4 h takes 24 h² a token and 4 h n² a sequence of n; of the tapped layer only
    the projections (6 h² a token) are needed. A relation takes 2 w n² a side, and twice the student's for its gradient.
    """
    tokens, squares = sum(sizes), sum(size**2 for size in sizes)

    def forward(width: int, layers: int) -> float:
        return (layers - 1) * (24 * width**2 * tokens + 4 * width * squares) + 6 * width**2 * tokens

    relations = 3 * squares * (2 * TEACHER_WIDTH + 6 * STUDENT_WIDTH)
    return forward(TEACHER_WIDTH, 12) + 3 * forward(STUDENT_WIDTH, 6) + relations


def measure_training(which: str, precision: str, batch: int, longest: int, steps: int) -> dict[str, float]:
    """Rates and peak memory of `steps` training steps after one that is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        median = 40 if longest <= 128 else None  # for the measurement of memory
        tokens = store(Path(folder), max(4 * batch, 64), longest, median)
        teacher, student = models()
        run = _plain_steps if which == "plain" else _our_steps
        sizes: list[int] = []
        iterator = run(teacher, student, tokens, precision, batch, longest)
        next(iterator)
        started = time.perf_counter()
        for _ in range(steps):
            sizes += next(iterator)
        took = time.perf_counter() - started
    report = {
        "sequences_per_second": len(sizes) / took,
        "tokens_per_second": sum(sizes) / took,
        "peak_mb": peak_mb(),
    }
    if which == "ours":
        rate = gemm_flops(torch.bfloat16 if precision == "bf16" else torch.float32)
        report |= {"gemm_gflops": rate / 1e9, "share_of_gemm": step_flops(sizes) / took / rate}
    return report


def distiller(
    teacher: BertModel, student: BertModel, device: torch.device, *, bf16: bool, compiled: bool = False
) -> Distiller:
    """One with the default settings."""
    settings = DistillSettings.model_validate({"teacher": {"name": "-"}, "student": {"config": "-"}})
    return Distiller(
        Tap(teacher, [12]),
        Tap(student, [6]),
        RelationObjective(settings.relations.weights, HEADS),
        settings.optimizer,
        LearningRate(settings.schedule, settings.optimizer.lr, 1000),
        seed=settings.training.seed,
        device=device,
        bf16=bf16,
        compile_models=compiled,
    )


def _stream(tokens: TokenStore, batch: int, longest: int, **options: object) -> BatchStream:
    return BatchStream(tokens, seed=0, batch_size=batch, max_length=longest, **options)


def _plain_steps(
    teacher: BertModel, student: BertModel, tokens: TokenStore, _precision: str, batch: int, longest: int
) -> Iterator[list[int]]:
    trainer = plain.PlainTrainer(teacher, student)
    stream = _stream(tokens, batch, longest, micro_batch_tokens=batch * longest)
    for step in range(1, 1000):
        ids = [torch.from_numpy(tokens.sequence(int(i), longest).astype(np.int64)) for i in stream.step_indices(step)]
        sizes = [len(sequence) for sequence in ids]
        padded = pad_sequence(ids, batch_first=True)
        trainer.step(padded, (torch.arange(padded.shape[1]) < torch.tensor(sizes)[:, None]).long())
        yield sizes


def _our_steps(
    teacher: BertModel, student: BertModel, tokens: TokenStore, precision: str, batch: int, longest: int
) -> Iterator[list[int]]:
    device = torch.device("cpu")
    stream = _stream(tokens, batch, longest, micro_batch_tokens=untried(device), layout="packed")
    ours = distiller(teacher, student, device, bf16=precision == "bf16")
    for report in ours.steps(stream, first=1, last=1000):
        micro_batches: list[MicroBatch] = stream.step(report.step).micro_batches
        yield [length for micro_batch in micro_batches for length in micro_batch.inputs.lengths]


def measure_help() -> dict[str, float]:
    """CPU seconds of `minilm --help`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(5):
        subprocess.run([sys.executable, "-m", "minilm_cli", "--help"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"cpu_seconds": (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 5}


def main(words: list[str]) -> None:
    """Run the measurement that `words` name."""
    if "plain" not in words:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # like `minilm`, unlike a plain trainer
    match words:
        case ["loss", which, length, batch, at_least]:
            report = measure_loss(which, int(length), int(batch), float(at_least))
        case ["training", which, precision, batch, longest, steps]:
            report = measure_training(which, precision, int(batch), int(longest), int(steps))
        case ["help"]:
            report = measure_help()
        case _:
            raise SystemExit(__doc__)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
