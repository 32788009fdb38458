"""All benchmarks, by one command: `python -m tests.benchmarks [--quick] [--output docs/figures/figures.json]`.

Each figure is measured in a separate process, minilm and the plain code in turn, so that ratios are of one run. Prints
tables and writes JSON, from which `python -m tests.benchmarks.page` makes a page of the documentation.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.tables import cells, titles

ROOT = Path(__file__).parents[2]

Row = dict[str, Any]


def measure(module: str, *words: str) -> dict[str, float]:
    """One measurement in a fresh process."""
    print(module, *words, file=sys.stderr, flush=True)
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    report: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return report


def in_turn(ways: dict[str, tuple[str, ...]], rate: str, *, rounds: int) -> list[Row]:
    """A row for each way: medians over the rounds of its figures and of its speed relative to the first way."""
    turns = [{name: measure(*words) for name, words in ways.items()} for _ in range(rounds)]
    base = next(iter(ways))
    return [
        {"name": name}
        | {key: median(turn[name][key] for turn in turns) for key in turns[0][name]}
        | {"times_faster": median(turn[name][rate] / turn[base][rate] for turn in turns)}
        for name in ways
    ]


def losses(*, quick: bool) -> list[Row]:
    """(a) The relation loss over the length, 4,096 tokens in all.

    The plain code comes last: a virtual machine takes time to free its gigabytes after it has ended, and measurements
    at that time take up to twice as long.
    """
    lengths = (32,) if quick else (32, 64, 128, 256, 512, 1024)
    tokens = 512 if quick else 4096
    ours, theirs = (
        [measure("measure", "loss", which, str(n), str(tokens // n), "0" if quick else "2") for n in lengths]
        for which in ("ours", "plain")
    )
    return [
        {
            "length": length,
            "batch": tokens // length,
            "ms": 1e3 * our["seconds"],
            "plain_ms": 1e3 * their["seconds"],
            "times_faster": their["seconds"] / our["seconds"],
            "extra_mb": our["extra_mb"],
            "plain_extra_mb": their["extra_mb"],
        }
        for length, our, their in zip(lengths, ours, theirs, strict=True)
    ]


def training(*, quick: bool) -> list[Row]:
    """(b) and (c) Whole training, batch 32 of median 40 tokens, and the share of the matrix-multiply rate."""
    shape = ("4", "32", "1") if quick else ("32", "128", "6")
    ways = {
        "plain fp32": ("measure", "training", "plain", "fp32", *shape),
        "minilm fp32": ("measure", "training", "ours", "fp32", *shape),
        "minilm bf16": ("measure", "training", "ours", "bf16", *shape),
    }
    rows = in_turn(ways, "sequences_per_second", rounds=1 if quick else 3)
    if not quick:
        rows.append(
            {"name": "minilm bf16, 256 × 512", **measure("measure", "training", "ours", "bf16", "256", "512", "1")}
        )
    return rows


#: Families by how their batches are laid out; BERT's padded batches show what padding alone costs.
_FAMILIES = {
    "BERT, packed": ("bert", "packed"),
    "BERT, padded": ("bert", "padded"),
    "ModernBERT": ("modernbert", "auto"),
    "MPNet": ("mpnet", "auto"),
    "DeBERTa": ("deberta", "auto"),
    "DeBERTa-v2": ("deberta-v2", "auto"),
    "RoFormer": ("roformer", "auto"),
    "MegatronBERT": ("megatron-bert", "auto"),
    "T5 (encoder)": ("t5", "auto"),
    "ConvBERT": ("convbert", "auto"),
}


def families(*, quick: bool) -> list[Row]:
    """A training step by family, batch 256 of median 40 tokens, fp32."""
    shape = ("4", "1") if quick else ("256", "3")
    names = list(_FAMILIES)[: 2 if quick else None]
    ways = {name: ("families", *_FAMILIES[name], *shape) for name in names}
    return in_turn(ways, "tokens_per_second", rounds=1 if quick else 2)


def tokenisation(*, quick: bool) -> list[Row]:
    """(d) Text to token ids: the sample, repeated to about 10 MB, by the number of workers."""
    copies = "1" if quick else "18"
    cores = len(os.sched_getaffinity(0))
    workers = {
        f"minilm, {count} {'worker' if count == 1 else 'workers'}": ("tokenise", "rate", f"ours-{count}", copies)
        for count in sorted({1} if quick else {1, 2, cores // 2, cores} - {0})
    }
    ways = {
        "transformers, line by line": ("tokenise", "rate", "plain", copies),
        "tokenizers alone, a thread a core": ("tokenise", "rate", "raw", copies),
        **workers,
    }
    return in_turn(ways, "tokens_per_second", rounds=1 if quick else 3)


def tokenisation_memory(*, quick: bool) -> list[Row]:
    """(f) The memory of tokenising over the size of the text, two workers."""
    return [measure("tokenise", "memory", str(size)) for size in ((2,) if quick else (10, 50, 250))]


def token_store(*, quick: bool) -> list[Row]:
    """(g) Opening a token store, and reading from it, over its size."""
    return [measure("tokenise", "store", str(size)) for size in ((10_000,) if quick else (10_000, 10_000_000))]


def help_time(*, quick: bool) -> list[Row]:  # noqa: ARG001  # it is quick
    """(e) What starting costs."""
    return [measure("measure", "help")]


SECTIONS = {
    "relation_loss": losses,
    "training": training,
    "families": families,
    "tokenisation": tokenisation,
    "tokenisation_memory": tokenisation_memory,
    "token_store": token_store,
    "help": help_time,
}


def machine() -> Row:
    """The machine and the date."""
    return {
        "processor": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "torch": torch.__version__,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def show(section: str, rows: list[Row]) -> None:
    """Print rows as a table."""
    table = Table(*titles(section), title=section.replace("_", " "), title_justify="left")
    for column in table.columns:
        column.justify = "right"
    for row in cells(section, rows):
        table.add_row(*row)
    Console().print(table)


def main(words: Sequence[str] | None = None) -> None:
    """Run all benchmarks; `words` are those of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that they run")
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    parser.add_argument("--only", choices=SECTIONS, help="measure this section, and keep the others of the file")
    options = parser.parse_args(words)
    figures = {"machine": machine(), "quick": options.quick}
    if options.only:
        figures |= json.loads(options.output.read_text(encoding="utf-8")) if options.output else {}
        figures["measured_alone"] = figures.get("measured_alone", {}) | {options.only: machine()}
    for section in [options.only] if options.only else SECTIONS:
        figures[section] = SECTIONS[section](quick=options.quick)
        show(section, figures[section])
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
