"""Writes the page 'At scale', `docs/scale.md`: what the paper's recipe should take on GPUs, from data sheets.

python docs/scale.py          write it
python docs/scale.py --check  fail if the page is not what is computed here

Nothing is measured. What is assumed is a constant below, and the page names it. Ignores everything that was measured
on CPUs, which stands on the page 'Figures'.
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minilm_cli.ops import relation_loss
from minilm_cli.training import batches

PAGE = Path(__file__).parent / "scale.md"

# --- The recipe, and what is assumed -----------------------------------------------------------------------------

#: The recipe of MiniLMv2: optimiser steps, sequences a step, tokens of a sequence, relations.
STEPS, SEQUENCES, LENGTH, RELATIONS = 400_000, 256, 512, 3

#: Tokens of a micro-batch on a GPU.
MICRO_BATCH_TOKENS = 32_768

#: Assumed: the share of a peak rate that matrix products reach; the good case and the bad one.
SHARES_OF_PEAK = (0.40, 0.20)

#: Assumed: the share of their data sheets' bandwidth that memory and links reach.
SHARE_OF_BANDWIDTH = 0.80

#: Assumed: seconds in which Python and torch get one operation to the GPU.
LAUNCH_SECONDS = 10e-6

#: Assumed: seconds of one read of the token store that is not in memory, by where it lies.
READ_SECONDS = {"an NVMe disk": 0.1e-3, "NFS": 1e-3}

#: Operations of a micro-batch, counted on a CPU: for each layer of the teacher and of the student (both ways), and for
#: the loss.
TEACHER_LAYER_LAUNCHES, STUDENT_LAYER_LAUNCHES, LOSS_LAUNCHES = 17, 130, 120

#: Bytes read and written for each trained parameter once a step: into the exchange's buffer 8, norm 4, clipping 8,
#: AdamW 28.
UPDATE_BYTES = 8 + 4 + 8 + 28

#: Bytes of activations for each token, layer and unit of width: 34 of Korthikanti et al. (2022), without their scores,
#: which fused attention does not keep; and 4 more, as autocast gives both norms fp32.
ACTIVATION_BYTES = 34 + 4

#: The operations of `relation_loss._relation`, and how many tensors of scores each reads and writes, the teacher's and
#: the student's counted apart.
PASSES = (
    ("products of queries, keys or values", 0, 2),
    ("softmax", 2, 2),
    ("greatest score and greatest probability of each row", 4, 0),
    ("difference of the scores, times the teacher's probability", 4, 2),
    ("its sum", 1, 0),
    ("difference of the probabilities", 2, 1),
    ("two products of it: the gradient", 2, 0),
)

#: Bytes of a page of memory, and what Linux reads around one that is missing, unless told otherwise.
PAGE_BYTES, READ_AROUND_BYTES = 4096, 128 * 1024


@dataclass(frozen=True)
class Encoder:
    """A BERT-shaped encoder whose queries, keys and values are taken from layer `tap`."""

    name: str
    layers: int
    width: int
    vocabulary: int
    tap: int
    positions: int = 512
    token_types: int = 2

    @property
    def embeddings(self) -> int:
        """Parameters below the first layer."""
        return (self.vocabulary + self.positions + self.token_types + 2) * self.width

    def layer_parameters(self, layers: int) -> int:
        """Parameters of whole layers: four projections of attention, two of the feed-forward part, two norms."""
        return layers * (12 * self.width**2 + 13 * self.width)

    @property
    def held(self) -> int:
        """Parameters that a teacher keeps in memory: the layers up to the tapped one."""
        return self.embeddings + self.layer_parameters(self.tap)

    @property
    def all(self) -> int:
        """All parameters, with the pooler."""
        return self.embeddings + self.layer_parameters(self.layers) + self.width**2 + self.width

    @property
    def trained(self) -> int:
        """Parameters that the loss reaches: of the tapped layer only the queries', keys' and values'."""
        return self.embeddings + self.layer_parameters(self.tap - 1) + 3 * (self.width**2 + self.width)

    @property
    def forward_flops(self) -> float:
        """FLOPs of the forward pass of one sequence."""
        layer = 24 * self.width**2 * LENGTH + 4 * self.width * LENGTH**2
        return (self.tap - 1) * layer + 6 * self.width**2 * LENGTH


@dataclass(frozen=True)
class Run:
    """A teacher and a student; all quantities are of one sequence, unless they say otherwise."""

    teacher: Encoder
    student: Encoder
    heads: int

    @property
    def name(self) -> str:
        """As the tables call it."""
        return f"{self.teacher.name} → {self.student.name}"

    @property
    def model_flops(self) -> float:
        """FLOPs of both models: forward for the teacher, forward and backward for the student."""
        return self.teacher.forward_flops + 3 * self.student.forward_flops

    @property
    def relation_flops(self) -> float:
        """FLOPs of the scores of both, and of the gradient."""
        return RELATIONS * LENGTH**2 * (2 * self.teacher.width + 6 * self.student.width)

    @property
    def total_flops(self) -> float:
        """FLOPs of the whole run."""
        return STEPS * SEQUENCES * (self.model_flops + self.relation_flops)

    @property
    def relation_bytes(self) -> float:
        """Bytes of scores that the loss reads and writes, in fp32."""
        return self.heads * LENGTH**2 * RELATIONS * sum(read + written for _, read, written in PASSES) * 4

    def launches(self, micro_batches: int) -> int:
        """Operations of a step of so many micro-batches."""
        layers = TEACHER_LAYER_LAUNCHES * self.teacher.tap + STUDENT_LAYER_LAUNCHES * self.student.tap
        return micro_batches * (layers + LOSS_LAUNCHES)

    def exchange_bytes(self, processes: int) -> int:
        """Bytes of the one all-reduce of a step: gradients, the losses, and three numbers of each process."""
        return 4 * (self.student.trained + 1 + RELATIONS + 3 * processes)


@dataclass(frozen=True)
class Link:
    """What gradients go through; gigabytes a second in one direction."""

    name: str
    gigabytes: float

    def seconds(self, run: Run, processes: int) -> float:
        """How long a ring all-reduce takes: each process sends 2 (N − 1) / N of the bytes, and receives as many."""
        sent = 2 * (processes - 1) / processes * run.exchange_bytes(processes)
        return sent / (self.gigabytes * 1e9 * SHARE_OF_BANDWIDTH)


@dataclass(frozen=True)
class Device:
    """A GPU as its data sheet has it: dense TFLOP/s, gigabytes, and TB/s of its memory."""

    name: str
    sheet: str
    bf16: float | None
    """`None` if it has none: minilm then computes in fp32."""
    fp32: float
    memory: int
    bandwidth: float
    link: Link
    """Between the GPUs of one machine."""


@dataclass(frozen=True)
class Step:
    """Seconds of the parts of an optimiser step on each of some GPUs that share it evenly."""

    models: float
    products: float
    """The matrix products of the relations, which are fp32."""
    passes: float
    """What the relations read and write."""
    update: float
    launches: float
    """How long it takes to launch all that: a step takes no less."""
    exchange: float

    @property
    def computing(self) -> float:
        """What the GPU has to do, without the exchange."""
        return self.models + self.products + self.passes + self.update

    @property
    def seconds(self) -> float:
        """The whole step: what the GPU does is launched meanwhile, and the exchange comes after it."""
        return max(self.computing, self.launches) + self.exchange


def step(run: Run, device: Device, gpus: int, share: float, link: Link | None = None) -> Step:
    """A step of `run`, where matrix products reach `share` of the peak.

    link: between the machines, or between the GPUs of one; the default is what the table of hours assumes.
    """
    sequences = SEQUENCES / gpus
    bandwidth = device.bandwidth * 1e12 * SHARE_OF_BANDWIDTH
    link = link or (device.link if gpus <= MACHINE else NETWORK)
    return Step(
        models=sequences * run.model_flops / ((device.bf16 or device.fp32) * 1e12 * share),
        products=sequences * run.relation_flops / (device.fp32 * 1e12 * share),
        passes=sequences * run.relation_bytes / bandwidth,
        update=run.student.trained * UPDATE_BYTES / bandwidth,
        launches=run.launches(math.ceil(sequences * LENGTH / MICRO_BATCH_TOKENS)) * LAUNCH_SECONDS,
        exchange=link.seconds(run, gpus),
    )


def _student(layers: int, vocabulary: int) -> Encoder:
    return Encoder(f"{layers} × 384", layers, 384, vocabulary, layers)


BERT = Encoder("BERT-base", 12, 768, 30_522, 12)
ROBERTA = Encoder("RoBERTa-large", 24, 1024, 50_265, 19, positions=514, token_types=1)
RUNS = tuple(
    Run(teacher, _student(layers, teacher.vocabulary), heads)
    for teacher, heads in ((BERT, 48), (ROBERTA, 64))
    for layers in (6, 12)
)

V100 = Device("V100 32 GB", "V100 SXM2", None, 15.7, 32, 0.9, Link("NVLink of the V100", 150))
L4 = Device("L4", "L4", 121, 30.3, 24, 0.3, Link("PCIe 4.0 × 16", 32))
A100 = Device("A100 80 GB", "A100 80GB SXM", 312, 19.5, 80, 2.039, Link("NVLink of the A100", 300))
H100 = Device("H100", "H100 SXM", 989, 67, 80, 3.35, Link("NVLink of the H100", 450))
DEVICES = (V100, L4, A100, H100)

#: GPUs of a machine, how many GPUs the tables are for, and the link between machines in the table of hours.
MACHINE, GPUS = 8, (1, 8, 64)
NETWORK = Link("InfiniBand, 200 Gb/s", 25)
NETWORKS = (
    Link("InfiniBand, 400 Gb/s", 50),
    NETWORK,
    Link("InfiniBand, 100 Gb/s", 12.5),
    Link("Ethernet, 25 Gb/s", 3.125),
)

#: Where a token store may lie, and the most that its link carries, megabytes a second.
STORAGE = (
    ("NVMe disk, PCIe 4.0 × 4", 7900),
    ("NFS over 10 Gb/s", 1250),
    ("SATA disk, 6 Gb/s", 600),
    ("NFS over 1 Gb/s", 125),
)


# --- Balance -----------------------------------------------------------------------------------------------------

#: What the simulation deals out: so many steps of each size to so many processes.
BALANCE_STEPS, BALANCE_SIZES, BALANCE_RANKS = 200, (32, 256, 2048), (2, 4, 8, 64)


def imbalances(sequences: int, ranks: int) -> list[float]:
    """How much more than the mean the busiest of `ranks` has to do, in each of some steps.

    Lengths are log-normal with median 40, from 4 to 128 tokens, as in the benchmarks.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(BALANCE_STEPS):
        lengths = np.clip(np.round(np.exp(rng.normal(np.log(40), 0.6, sequences))), 4, 128).astype(np.int64)
        work = batches._work(lengths)
        loads = np.bincount(batches.share(work, ranks), weights=work, minlength=ranks)
        found.append(float(loads.max() / loads.mean() - 1))
    return found


# --- Tables ------------------------------------------------------------------------------------------------------

#: Shares below this are given with decimals.
SMALL = 0.1


def _two_digits(value: float) -> str:
    """A number to two digits, which is more than an estimate deserves."""
    rounded = float(f"{value:.2g}")
    decimals = max(0, 1 - math.floor(math.log10(rounded))) if rounded else 0
    return f"{rounded:,.{decimals}f}"


def _milliseconds(seconds: float) -> str:
    return _two_digits(seconds * 1e3)


def _percent(share: float, decimals: int = 1) -> str:
    return f"{share:.0%}" if share >= SMALL else f"{share:.{decimals}%}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], words: int = 1) -> str:
    """A Markdown table whose first `words` columns are text and the others numbers."""
    head = list(head)
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _devices() -> str:
    return _table(
        ("GPU", "data sheet", "bf16, TFLOP/s", "fp32, TFLOP/s", "memory, GB", "memory, TB/s", "to others, GB/s"),
        (
            (
                device.name,
                f"NVIDIA {device.sheet}",
                "–" if device.bf16 is None else f"{device.bf16}",
                f"{device.fp32}",
                f"{device.memory}",
                f"{device.bandwidth:.3g}",
                f"{device.link.gigabytes:.0f}",
            )
            for device in DEVICES
        ),
        words=2,
    )


def _flops() -> str:
    return _table(
        ("run", "teacher, GFLOP", "student, GFLOP", "relations, GFLOP", "run, EFLOP"),
        (
            (
                run.name,
                _two_digits(run.teacher.forward_flops / 1e9),
                _two_digits(3 * run.student.forward_flops / 1e9),
                _two_digits(run.relation_flops / 1e9),
                _two_digits(run.total_flops / 1e18),
            )
            for run in RUNS
        ),
    )


def _passes() -> str:
    total = ("together", sum(read for _, read, _ in PASSES), sum(written for _, _, written in PASSES))
    return _table(
        ("operation", "read", "written"), ((what, f"{read}", f"{written}") for what, read, written in (*PASSES, total))
    )


def _one_gpu() -> str:
    rows = []
    for run in RUNS:
        for device in DEVICES:
            found = step(run, device, 1, SHARES_OF_PEAK[0])
            parts = (found.models, found.products, found.passes, found.update, found.seconds)
            share = (found.products + found.passes) / found.seconds
            rows.append((run.name, device.name, *map(_milliseconds, parts), f"{share:.0%}"))
    head = ("models", "relations: products", "relations: memory", "update", "step", "relations' share")
    return _table(("run", "GPU", *head), rows, words=2)


def _hours() -> str:
    head = [f"{gpus} GPU{'s' * (gpus > 1)}, {share:.0%}" for share in SHARES_OF_PEAK for gpus in GPUS]
    rows = (
        (
            run.name,
            device.name,
            *(
                _two_digits(STEPS * step(run, device, gpus, share).seconds / 3600)
                for share in SHARES_OF_PEAK
                for gpus in GPUS
            ),
        )
        for run in RUNS
        for device in DEVICES
    )
    return _table(("run", "GPU", *head), rows, words=2)


def _many_gpus() -> str:
    rows = []
    for run in RUNS:
        for device in DEVICES:
            found = step(run, device, GPUS[-1], SHARES_OF_PEAK[0])
            faster = step(run, device, 1, SHARES_OF_PEAK[0]).seconds / found.seconds
            parts = (found.computing, found.launches, found.exchange, found.seconds)
            rows.append((run.name, device.name, *map(_milliseconds, parts), f"{faster:.0f}"))
    head = ("GPU's work", "launching it", "exchange", "step", "times faster")
    return _table(("run", "GPU", *head), rows, words=2)


def _memory() -> str:
    def gigabytes(run: Run, device: Device) -> list[float]:
        teacher, student = run.teacher.width, run.student.width
        chunk = device.memory * 1e9 * relation_loss.GPU_CHUNK_SHARE
        heads = min(MICRO_BATCH_TOKENS * 3 * 4 * (teacher + 2 * student), chunk / 2)
        parts = [
            2 * run.teacher.held,
            4 * run.student.all,
            4 * run.student.trained,
            4 * run.student.trained,
            8 * run.student.trained,
            MICRO_BATCH_TOKENS * student * run.student.layers * ACTIVATION_BYTES,
            MICRO_BATCH_TOKENS * 3 * 2 * (teacher + student) + heads,
            chunk,
        ]
        return [part / 1e9 for part in (*parts, sum(parts))]

    head = (
        "teacher",
        "student",
        "gradient",
        "exchange buffer",
        "AdamW",
        "activations",
        "tapped tensors",
        "loss's chunk",
        "together",
    )
    rows = ((run.name, device.name, *map(_two_digits, gigabytes(run, device))) for run in RUNS for device in (L4, A100))
    return _table(("run", "GPU", *head), rows, words=2)


def _exchange_sizes() -> str:
    return _table(
        ("run", "trained parameters, millions", "all-reduce, MB", "sent by each of 8, MB", "sent by each of 64, MB"),
        (
            (
                run.name,
                f"{run.student.trained / 1e6:.1f}",
                *(
                    f"{run.exchange_bytes(size) * factor / 1e6:.0f}"
                    for size, factor in ((1, 1), (8, 2 * 7 / 8), (64, 2 * 63 / 64))
                ),
            )
            for run in RUNS
        ),
    )


def _exchange_times() -> str:
    runs = (RUNS[0], RUNS[-1])
    pairs: list[tuple[Link, int, tuple[Device, ...]]] = [(device.link, MACHINE, (device,)) for device in (H100, A100)]
    pairs += [(link, GPUS[-1], (A100, H100)) for link in NETWORKS]
    rows = []
    for link, gpus, devices in pairs:
        cells = [link.name, f"{gpus}", f"{link.gigabytes:,.1f}"]
        for run in runs:
            cells.append(_milliseconds(link.seconds(run, gpus)))
            for device in (A100, H100):
                found = step(run, device, gpus, SHARES_OF_PEAK[0], link)
                cells.append(_percent(found.exchange / found.seconds) if device in devices else "–")
        rows.append(cells)
    head = [title for run in runs for title in (f"{run.name}, ms", f"share, {A100.name}", f"share, {H100.name}")]
    return _table(("link", "GPUs", "GB/s", *head), rows)


def _reading() -> str:
    rows = []
    for device in (A100, H100):
        for gpus in GPUS:
            seconds = step(RUNS[0], device, gpus, SHARES_OF_PEAK[0]).seconds
            own = SEQUENCES / gpus
            rows.append(
                (
                    f"{gpus} × {device.name}",
                    _milliseconds(seconds),
                    _two_digits(SEQUENCES / seconds),
                    _two_digits(SEQUENCES * LENGTH * 2 / seconds / 1e6),
                    _two_digits(SEQUENCES * READ_AROUND_BYTES / seconds / 1e6),
                    *(_milliseconds(own * _pages() * latency) for latency in READ_SECONDS.values()),
                )
            )
    head = ("step, ms", "sequences/s", "tokens, MB/s", "unread store, at most MB/s")
    return _table(("GPUs", *head, *(f"cold reads from {where}, ms" for where in READ_SECONDS)), rows)


def _pages() -> float:
    """How many pages of memory a sequence touches, on average."""
    return 1 + (2 * LENGTH - 2) / PAGE_BYTES


def _storage() -> str:
    most = SEQUENCES * LENGTH * 2 / step(RUNS[0], H100, GPUS[-1], SHARES_OF_PEAK[0]).seconds / 1e6
    return _table(
        ("store on", "link, MB/s", f"share that {GPUS[-1]} {H100.name}s take"),
        ((name, f"{rate:,}", _percent(most / rate)) for name, rate in STORAGE),
    )


def _balance() -> str:
    rows = []
    for sequences in BALANCE_SIZES:
        cells = [f"{sequences:,}"]
        for ranks in BALANCE_RANKS:
            found = imbalances(sequences, ranks)
            cells.append(f"{_percent(sum(found) / len(found), 2)} / {_percent(max(found), 2)}")
        rows.append(cells)
    return _table(("sequences a step", *(f"{ranks} processes" for ranks in BALANCE_RANKS)), rows)


# --- The page ----------------------------------------------------------------------------------------------------


def page() -> str:
    """The page's text."""
    blocks = (block if block.startswith(("|", "#", "-", "<")) else _filled(block) for block in _text().split("\n\n"))
    return "\n\n".join(blocks)


def _filled(paragraph: str) -> str:
    end = "\n" if paragraph.endswith("\n") else ""
    return textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False) + end


def _text() -> str:
    first, second, *_, last = RUNS
    good, bad = (f"{share:.0%}" for share in SHARES_OF_PEAK)
    a100, h100 = (
        f"{(found.products + found.passes) / found.seconds:.0%}"
        for found in (step(first, device, 1, SHARES_OF_PEAK[0]) for device in (A100, H100))
    )
    of_operations = sum(read + written for _, read, written in PASSES)
    nvme, nfs = (f"{seconds * 1e3:.2g} ms" for seconds in READ_SECONDS.values())
    many = GPUS[-1]
    return f"""<!-- Written by docs/scale.py, which computes it. Edit that, not this. -->

# At scale

What the paper's recipe should take on GPUs, computed from data sheets and from what the code does. **Nothing on this
page was measured on a GPU**, and minilm had not been run on one when it was written. It is there to hold a first run
against.

The recipe of MiniLMv2 is {STEPS:,} steps of {SEQUENCES} sequences of {LENGTH} tokens. The teachers are BERT-base (12
layers, 768 wide, tapped at layer 12, {first.heads} relation heads) and RoBERTa-large (24 layers, 1024 wide, tapped at
layer 19, {last.heads} relation heads; the layers above are not run). The students are BERTs of 6 and 12 layers, 384
wide, with the teacher's vocabulary. All sequences are full, so there is no padding.

## What is assumed

{_devices()}

Rates are peaks without sparsity: for bf16 the sheets of H100 and L4 print twice as much, with it. The last column is
the link to the other GPUs of a machine, NVLink or, for the L4, PCIe 4.0, in one direction; the sheets add up both.
The V100 has no bf16, and minilm computes in fp32 there: its tensor cores (125 TFLOP/s) know fp16 alone.

| assumption | value |
|---|---|
| matrix products reach of the peak | {good}, and {bad} for the bad case |
| memory and links reach of their bandwidth | {SHARE_OF_BANDWIDTH:.0%} |
| Python and torch launch an operation in | {LAUNCH_SECONDS * 1e6:.0f} µs |
| a read of the token store that is not in memory takes | {nvme} from an NVMe disk, {nfs} over NFS |

These are guesses. Narrow layers as a student's may well stay below {good}. On CPUs minilm reaches two thirds to four
fifths of the rate that is measured beside it, and less with long sequences ([figures](figures.md#training)), which
says little about GPUs.

## Arithmetic

A layer of width h takes 24 h² FLOPs a token and 4 h n² a sequence of n; of the tapped layer only the projections are
computed, 6 h² a token. The student counts three times, for its backward pass. Each of the three relations takes 2 h
n² for the teacher, and 6 h n² for the student with its gradient.

For one sequence, and for the whole run (an EFLOP is 10¹⁸):

{_flops()}

## The relations are bound by memory

Relations are a small share of the arithmetic, but there is little of it for each byte. A relation head is 6 to 16
wide, and teacher and student have {first.heads} or {last.heads} times {LENGTH}² scores in each of three relations, in
fp32. A chunk of them, a thirty-second of the GPU's memory, is far larger than its cache, so each operation of
`relation_loss._relation` reads and writes memory. In tensors of scores, the teacher's and the student's counted apart:

{_passes()}

That is {of_operations} × 4 bytes for each pair of scores: {first.relation_bytes / 1e9:.1f} GB a sequence with
{first.heads} heads, {last.relation_bytes / 1e9:.1f} GB with {last.heads}. The products are counted besides, at the
peak of fp32: torch does not use TF32 unless it is told to, and minilm does not tell it.

A step on one GPU where products reach {good} of the peak, in ms:

{_one_gpu()}

So relations would take {a100} of a step on an A100 and {h100} on an H100 in the first run, more than both models. A
kernel that keeps rows of scores on the chip would save most of that; minilm has none. On a CPU chunks stay in the
cache, and relations take [less](performance.md#where-the-time-goes).

## Hours

Relations and exchange are included. Eight GPUs are one machine, linked as in the first table; {many} are eight
machines, each with one link of 200 Gb/s. {good} and {bad} are the shares of the peak that products reach.

{_hours()}

Evaluations and checkpoints are not included; they are as frequent as one asks for. Reading goes on while a step
computes.

With {SEQUENCES // many} sequences on each of {many} GPUs, a step is so short that other things count. It launches
about {_two_digits(first.launches(1))} operations with a student of 6 layers and {_two_digits(second.launches(1))}
with one of 12, counted on a CPU, and takes no less time than that. A step on {many} GPUs, {good}, in ms:

{_many_gpus()}

The last column compares with one GPU. Where launching takes longer than the work, more GPUs bring nothing. There
`--compile` may, as it joins operations.

## Memory

In GB on each GPU, with micro-batches of {MICRO_BATCH_TOKENS:,} tokens, in bf16:

{_memory()}

- teacher: weights in bf16, up to the tapped layer. It keeps no activations.
- student: weights in fp32. Gradient, exchange buffer (which a single GPU does not have) and the two moments of AdamW
  are fp32 too, and of the trained parameters alone.
- activations: {ACTIVATION_BYTES} bytes for each token, layer and unit of width. That is the 34 of Korthikanti et al.
  ([arXiv 2205.05198](https://arxiv.org/abs/2205.05198)) without their term for attention scores, which fused attention
  does not keep, and 4 more because autocast gives both norms fp32.
- tapped tensors: queries, keys and values in bf16, the student's gradient, and relation heads in fp32, which take at
  most half as much as the chunk.
- loss's chunk: a thirty-second of the GPU's memory, whatever the batch.

CUDA itself takes some hundreds of MB, and torch's allocator keeps more than is in use. In fp32 teacher and
activations take twice as much. From 8 GPUs on a share of a step is less than a micro-batch, and needs less. If memory
runs out, the micro-batch is [halved](performance.md#micro-batches).

## The exchange

After its last micro-batch each process adds its gradient to those of the others: one all-reduce a step, in fp32, of
what is trained (without the [untrained tail](method.md#the-untrained-tail)), the losses, and three numbers of each
process. In a ring of N each process sends 2 (N − 1) / N of the bytes. Nothing is computed meanwhile.

{_exchange_sizes()}

Times, and their share of a step at {good}. Between machines, one link serves all eight GPUs of each; where every GPU
has a link of its own, it takes an eighth.

{_exchange_times()}

Latency is left out: a ring of {many} has {2 * (many - 1)} hops, each of some microseconds. Within a machine the
exchange takes next to no time. Between many machines it takes a good part of a step, and over 25 Gb/s most of it:
fewer machines, or a larger batch, waste less.

## Reading tokens

A token takes 2 bytes in the [store](reference/token-store.md), as both vocabularies are below 65,536. A sequence is
{2 * LENGTH:,} bytes of it, in random order. With {first.name} at {good}, all processes together, but for cold reads:

{_reading()}

What a link carries at most, and how much of it the tokens take:

{_storage()}

Disks and servers give less than the link, and for random reads less again. But a store that fits into memory is read
only once: on rank 0's machine when its checksums are compared, on others during the first epoch. A billion tokens are
2 GB; a run sees {STEPS * SEQUENCES * LENGTH / 1e9:.0f} billion, most of them more than once.

Until then a sequence is a read of its own, of {_pages():.2f} pages of 4 KiB on average, one after the other in the
thread that prepares the next step. Cold reads are what that takes for a process's share, if nothing is in memory;
they cost nothing while they are shorter than a step. Linux reads up to 128 KiB around what is missing: more is
transferred at first (unread store), and less is missing later. A hard disk makes about a hundred reads a second, so
it is too slow for a store that does not fit into memory. Where NFS is slow, copy the store to each machine.

## Balance

The sequences of a step are dealt to the processes by cost, the largest first, each to whoever has least so far
(`batches.share`). A test, `tests/unit/test_batches.py`, simulates 64 ranks and shows that shares are disjoint,
complete and balanced.

How much more the busiest process has to do than they have on average, mean / largest of {BALANCE_STEPS} steps, with
lengths that are log-normal with median 40, from 4 to 128 tokens:

{_balance()}

With fewer sequences than processes some have nothing to do, and no dealing balances that. Full sequences, as in the
recipe, balance exactly where the processes divide their number.
"""


def main(arguments: list[str]) -> int:
    """Write the page, or compare it; returns the exit status."""
    if arguments == ["--check"]:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
            return 0
        print("docs/scale.md is not what is computed: run python docs/scale.py", file=sys.stderr)
        return 1
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
