"""Fuzz all targets with new seeds: `python -m tests.fuzz --minutes 60`.

Prints a table of results. Exit status 1 if an example raised anything but `MinilmError`; then the first tracebacks are
printed, each with its seed.
"""

from __future__ import annotations

import argparse
import logging
import random
import resource
import sys
import time
import traceback
import warnings
from collections import Counter

import hypothesis
from rich.console import Console
from rich.table import Table

from tests.fuzz.targets import Files, Target, bounded_memory, targets

#: Examples of a target before the next target.
ROUND = 100
TRACEBACKS = 5


class Tally:
    """The results of the examples."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = {}
        self.tracebacks: dict[tuple[str, ...], str] = {}
        """The first traceback of each target, error type and source line."""

    def round(self, target: Target, seed: int) -> None:
        """Try some examples of a target."""
        counts = self.outcomes.setdefault(target.name, Counter())

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=ROUND,
            database=None,
            derandomize=False,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(files=target.files)
        def examples(files: Files) -> None:
            try:
                counts["opened" if target.opens(files) else "refused"] += 1
            except Exception as error:  # noqa: BLE001  # what fuzzing looks for
                counts["failed"] += 1
                kind = (target.name, repr(type(error)), str(traceback.extract_tb(error.__traceback__)[-1]))
                self.tracebacks.setdefault(kind, f"{target.name}, --seed {seed}:\n{traceback.format_exc()}")

        with bounded_memory():
            examples()

    def show(self) -> None:
        """Print the table and the tracebacks."""
        table = Table("target", "examples", "opened", "refused", "other errors")
        for column in table.columns[1:]:
            column.justify = "right"
        for name, counts in self.outcomes.items():
            shown = (counts.total(), counts["opened"], counts["refused"], counts["failed"])
            table.add_row(name, *(f"{count:,}" for count in shown))
        Console(width=100).print(table)
        print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")
        for traceback_text in list(self.tracebacks.values())[:TRACEBACKS]:
            print(f"\n{traceback_text}")


def main() -> int:
    """Parse the options and fuzz; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1, help="duration (default: 1)")
    parser.add_argument("--seed", type=int, help="seed of the first round; --minutes 0.01 runs only that round")
    options = parser.parse_args()
    logging.disable()
    warnings.simplefilter("error")
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    tally, all_targets = Tally(), targets()
    print(f"seed {seed}", flush=True)
    end = time.monotonic() + 60 * options.minutes
    while time.monotonic() < end:
        for target in all_targets:
            tally.round(target, seed)
        seed += 1
    tally.show()
    return 1 if tally.tracebacks else 0


if __name__ == "__main__":
    sys.exit(main())
