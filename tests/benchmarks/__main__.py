"""All benchmarks, by one command: `python -m tests.benchmarks [--quick] [--output benchmarks.json]`.

Each figure is measured in a process of its own, ours and the plain one in turn, so that ratios are of one run. Prints a
table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]


def measure(*words: str) -> dict[str, float]:
    """One measurement in a fresh process."""
    print("measuring", *words, file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "tests.benchmarks.measure", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    report: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return report


def losses(*, quick: bool) -> list[dict[str, float]]:
    """(a) The relation loss over the length, 4,096 tokens in all."""
    rows = []
    for length in (32, 128) if quick else (32, 64, 128, 256, 512, 1024):
        batch = 4096 // length
        ours, theirs = (measure("loss", which, str(length), str(batch)) for which in ("ours", "plain"))
        rows.append(
            {
                "length": length,
                "batch": batch,
                "ms": 1e3 * ours["seconds"],
                "plain_ms": 1e3 * theirs["seconds"],
                "times_faster": theirs["seconds"] / ours["seconds"],
                "extra_mb": ours["extra_mb"],
                "plain_extra_mb": theirs["extra_mb"],
            }
        )
    return rows


def training(*, quick: bool) -> list[dict[str, float | str]]:
    """(b) and (c) Whole training, batch 32 of median 40 tokens, and the share of the matrix-multiply rate."""
    steps = "1" if quick else "6"
    base = measure("training", "plain", "fp32", "32", "128", steps)
    rows: list[dict[str, float | str]] = [{"trainer": "plain fp32", "times_faster": 1.0, **base}]
    for precision in ("fp32", "bf16"):
        ours = measure("training", "ours", precision, "32", "128", steps)
        faster = ours["sequences_per_second"] / base["sequences_per_second"]
        rows.append({"trainer": f"minilm {precision}", "times_faster": faster, **ours})
    if not quick:
        rows.append({"trainer": "minilm bf16, 256 × 512", **measure("training", "ours", "bf16", "256", "512", "1")})
    return rows


def show(title: str, rows: list[dict[str, float | str]]) -> None:
    """Print rows as a table."""
    table = Table(title=title, title_justify="left")
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        values = (row.get(name, "") for name in names)
        table.add_row(*(value if isinstance(value, str) else f"{value:,.4g}" for value in values))
    Console().print(table)


def main() -> None:
    """Run them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute's worth, to see that they run")
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    figures = {
        "machine": {
            "processor": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        },
        "relation_loss": losses(quick=options.quick),
        "training": training(quick=options.quick),
        "help": [measure("help")],
    }
    for title in ("relation_loss", "training", "help"):
        show(title.replace("_", " "), figures[title])
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
