"""All that only a GPU can show, in one run of a few minutes: prints a table, and writes JSON for the page of figures.

python -m tests.gpu [--output docs/figures/gpu.json]

The kernels against float64, the loss against plain torch, whole training against the plain trainer, exact resumption
after a kill, and a profile. A part that fails says so in its place, and the others go on. Exits with 2 without a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minilm_cli.ops import relation_chunks
from minilm_cli.ops.relation_backend import VARIABLE
from minilm_cli.ops.relation_loss import relation_loss
from minilm_cli.ops.relations import Projections
from minilm_cli.tokens.store import TokenStore
from minilm_cli.training.batches import BatchStream
from minilm_cli.training.devices import repeat_exactly
from tests import tiny
from tests.benchmarks import plain
from tests.benchmarks.measure import (
    HEADS,
    STUDENT_WIDTH,
    TEACHER_WIDTH,
    distiller,
    models,
    seconds,
    step_flops,
    store,
)
from tests.runs import result_files

Report = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    losses: Sequence[tuple[int, int]] = ((32, 128), (256, 128), (256, 512))
    """Sequences and their length."""
    training: Sequence[tuple[str, int | None, int]] = (
        ("median 40", 40, 128),
        ("median 128", 128, 512),
        ("full", None, 512),
    )
    """Name, median length if not all are full, longest."""
    batch: int = 256
    micro_batch_tokens: int = 32_768
    steps: int = 5
    compiled: bool = True
    """Whether to try torch.compile."""
    product: int = 4096
    """Rows and columns of the matrices whose products give the rate of the device."""


# --- Measuring ---------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """The median time of `work`, after a run that is not counted."""

    def done() -> None:
        work()
        synchronize(device)

    return 1e3 * seconds(done, repeats)


@contextmanager
def kernels(wanted: str) -> Iterator[None]:
    """With the fused kernels `on` or `off`."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = wanted
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


# --- Parts -------------------------------------------------------------------------------------------------------


def parity(device: torch.device, _: Sizes) -> Report:
    """Errors of the kernels against float64, and whether they give the same bits twice."""
    from tests.fused_kernels import CASES

    errors = {name: case.errors(device) for name, case in CASES.items()}
    one, other = (CASES["ragged"].fused(device) for _ in range(2))
    same = torch.equal(one[0], other[0]) and all(torch.equal(one[1][letter], other[1][letter]) for letter in one[1])
    worst = [max(found) for found in zip(*errors.values(), strict=True)]
    return {"errors": errors, "worst_loss": worst[0], "worst_gradient": worst[1], "repeats": same}


def packing(device: torch.device, _: Sizes) -> Report:
    """How far packed rows are from their sequences alone."""
    return {
        precision: distiller(*models(), device, bf16=precision == "bf16").packing_error()
        for precision in ("bf16", "fp32")
    }


def losses(device: torch.device, sizes: Sizes) -> Report:
    """Milliseconds of loss and gradient in bf16, fused and in chunks."""
    found = {}
    for batch, length in sizes.losses:
        random = torch.Generator(device).manual_seed(0)
        teacher, student = (
            [torch.randn(batch * length, width, generator=random, device=device, dtype=torch.bfloat16) for _ in "qkv"]
            for width in (TEACHER_WIDTH, STUDENT_WIDTH)
        )
        sides = Projections(*teacher), Projections(*(tensor.requires_grad_() for tensor in student))
        spans = [(row * length, length) for row in range(batch)]
        weights = {"qq": 1.0, "kk": 1.0, "vv": 1.0}

        def run(backend: Any, sides: Any = sides, spans: Any = spans, weights: Any = weights) -> Tensor:
            for tensor in sides[1]:
                tensor.grad = None
            loss, _ = relation_loss(*sides, spans, heads=HEADS, weights=weights, backend=backend)
            loss.backward()
            return loss.detach()

        row = {"chunks_ms": milliseconds(lambda run=run: run(relation_chunks.losses_and_gradients), device)}
        expected = run(relation_chunks.losses_and_gradients)
        if device.type == "cuda":
            with kernels("on"):
                row["fused_ms"] = milliseconds(lambda run=run: run(None), device)
                row["difference"] = float((run(None) - expected).abs() / expected)
        found[f"{batch} × {length}"] = row
    return found


def product_rate(device: torch.device, sizes: Sizes) -> float:
    """FLOP/s of large matrix products in bf16."""
    one, other = (torch.randn(sizes.product, sizes.product, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * sizes.product**3 / (1e-3 * milliseconds(lambda: one @ other, device))


def stream(tokens: TokenStore, sizes: Sizes) -> BatchStream:
    return BatchStream(
        tokens,
        seed=0,
        batch_size=sizes.batch,
        max_length=tokens.manifest.longest,
        micro_batch_tokens=sizes.micro_batch_tokens,
        layout="packed",
    )


def our_steps(device: torch.device, tokens: TokenStore, sizes: Sizes, **options: bool) -> Iterator[int]:
    """Sequences of each step."""
    for report in distiller(*models(), device, **options).steps(stream(tokens, sizes), first=1, last=1000):
        yield report.sequences


def plain_steps(device: torch.device, tokens: TokenStore, sizes: Sizes, *, bf16: bool) -> Iterator[int]:
    """The same with the plain trainer, a batch at a time as large as its scores allow."""
    trainer = plain.PlainTrainer(*(model.to(device) for model in models()))
    together, batches = max(1, sizes.batch // 8), stream(tokens, sizes)
    for step in range(1, 1000):
        indices = batches.step_indices(step).tolist()
        for begin in range(0, len(indices), together):
            some = indices[begin : begin + together]
            ids = [torch.from_numpy(tokens[index].astype(np.int64)).to(device) for index in some]
            lengths = torch.tensor([len(sequence) for sequence in ids], device=device)
            padded = pad_sequence(ids, batch_first=True)
            mask = (torch.arange(padded.shape[1], device=device) < lengths[:, None]).long()
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                trainer.step(padded, mask)
        yield len(indices)


def measured(steps: Iterator[int], device: torch.device, count: int) -> Report:
    """Sequences a second, milliseconds a step and peak memory, after two steps that are not counted."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    sequences = [next(steps) for _ in range(2)]
    synchronize(device)
    started = time.perf_counter()
    sequences = [next(steps) for _ in range(count)]
    synchronize(device)
    took = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    return {"sequences_per_second": sum(sequences) / took, "step_ms": 1e3 * took / count, "peak_gb": peak}


def training(device: torch.device, sizes: Sizes) -> Report:
    """Whole training of BERT-base → 6 × 384 by length, beside the plain trainer."""
    rate, found = product_rate(device, sizes), {}
    for name, median, longest in sizes.training:
        with tempfile.TemporaryDirectory() as folder:
            tokens = store(Path(folder), 4 * sizes.batch, longest, median)
            row = {"bf16": measured(our_steps(device, tokens, sizes, bf16=True), device, sizes.steps)}
            with kernels("off"):
                row["bf16, without kernels"] = measured(
                    our_steps(device, tokens, sizes, bf16=True), device, sizes.steps
                )
            if sizes.compiled:
                compiled = our_steps(device, tokens, sizes, bf16=True, compiled=True)
                row["bf16, compiled"] = tried(lambda steps=compiled: measured(steps, device, sizes.steps))
            row["fp32"] = measured(our_steps(device, tokens, sizes, bf16=False), device, sizes.steps)
            for precision in ("bf16", "fp32"):
                steps = plain_steps(device, tokens, sizes, bf16=precision == "bf16")
                row[f"plain, {precision}"] = tried(lambda steps=steps: measured(steps, device, 1))
            lengths = tokens.lengths(stream(tokens, sizes).step_indices(3), longest).tolist()
            flops = step_flops(lengths) / (1e-3 * row["bf16"]["step_ms"])
            found[name] = row | {"share_of_product_rate": flops / rate}
    return found | {"product_tflops": rate / 1e12}


def resumption(device: torch.device, _: Sizes) -> Report:
    """Whether a run that is killed and resumed ends as one that was not, to the last bit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.save_teacher(folder / "teacher")
        tiny.write_corpus(folder / "corpus.txt")
        tiny.write_store(folder / "tokens", corpus=folder / "corpus.txt", tokenizer=str(folder / "teacher"))
        tiny.write_student_config(folder / "config.json")
        words = "distill --teacher teacher --student-config config.json --steps 60 --batch-size 8 --save-every 20"
        command = [sys.executable, "-m", "minilm_cli"]
        begin = [*command, *words.split(), "--device", str(device), "--output"]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH"))))
        }
        options: Report = {
            "cwd": folder,
            "env": environment,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }
        subprocess.run([*begin, "whole"], check=True, **options)
        process = subprocess.Popen([*begin, "killed"], **options)
        while process.poll() is None and not (folder / "killed" / "checkpoints" / "step-00000020").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        subprocess.run([*command, "resume", "killed"], check=True, **options)
        whole, killed = (result_files(folder / run, 60) for run in ("whole", "killed"))
        return {"equal": {file: whole[file] == killed[file] for file in whole}}


def profile(device: torch.device, sizes: Sizes) -> Report:
    """Kernels that take most, how many are started in a step, how often the host waits for the device, and for how much
    of the step the device has nothing to do.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with tempfile.TemporaryDirectory() as folder:
        steps = our_steps(device, store(Path(folder), 4 * sizes.batch, 512, 128), sizes, bf16=True)
        for _ in range(2):
            next(steps)
        synchronize(device)
        started = time.perf_counter()
        with torch.profiler.profile(activities=activities) as found:
            for _ in range(3):
                next(steps)
            synchronize(device)
        took = time.perf_counter() - started
    averages = found.key_averages()
    waits = sum(event.count for event in averages if event.key.endswith("Synchronize")) - 1  # that at the end
    events = [event for event in averages if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    busy = sum(event.self_device_time_total for event in events) * 1e-6
    return {
        "top": {event.key[:80]: event.self_device_time_total / 3e3 for event in events[:10]},
        "launches_per_step": sum(event.count for event in events) / 3,
        "waits_per_step": waits / 3,
        "idle_share": max(0.0, 1 - busy / took),
    }


# --- All ---------------------------------------------------------------------------------------------------------

PARTS = {
    "parity": parity,
    "packing": packing,
    "losses": losses,
    "resumption": resumption,
    "training": training,
    "profile": profile,
}


def tried(work: Callable[[], Report]) -> Report:
    """What it returns, or the error."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001  # the other parts shall run
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def rows(report: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The numbers of a report, by the names that lead to them."""
    if isinstance(report, dict):
        for key, value in report.items():
            yield from rows(value, f"{name} / {key}" if name else key)
    elif isinstance(report, list | tuple):
        yield name, ", ".join(f"{value:.2g}" for value in report)
    else:
        yield name, f"{report:.4g}" if isinstance(report, float) else str(report)


def main(words: Sequence[str] | None = None, sizes: Sizes = Sizes()) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", default="cuda", help="another than cuda tries the script, and measures nothing")
    options = parser.parse_args(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here: nothing was measured.", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    repeat_exactly(device, strictly=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    found: Report = {"device": name, "torch": torch.__version__, "seconds": {}}
    for part, work in PARTS.items():
        started = time.perf_counter()
        found[part] = tried(lambda work=work: work(device, sizes))
        found["seconds"][part] = time.perf_counter() - started
        options.output.write_text(json.dumps(found, indent=1), encoding="utf-8")  # what there is, if it is stopped
    table = list(rows(found))
    width = max(len(name) for name, _ in table)
    print("\n".join(f"{name:{width}}  {value}" for name, value in table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
