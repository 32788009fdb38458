"""Fuzz everything for a while, with fresh seeds: `python -m tests.fuzz --minutes 60`.

Prints a table of what became of the examples. Exit status 1 if anything but `MinilmError` came out of one; the first
tracebacks are written out then, each with the seed that repeats it.
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

#: Examples in a row of one target.
ROUND = 100
TRACEBACKS = 5


class Tally:
    """What became of the examples."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = {}
        self.tracebacks: dict[tuple[str, ...], str] = {}
        """The first of each kind: target, error, and where it was raised."""

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
            except Exception as error:  # noqa: BLE001  # the very thing that is looked for
                counts["else"] += 1
                kind = (target.name, repr(type(error)), str(traceback.extract_tb(error.__traceback__)[-1]))
                self.tracebacks.setdefault(kind, f"{target.name}, --seed {seed}:\n{traceback.format_exc()}")

        with bounded_memory():
            examples()

    def show(self) -> None:
        """Print the table and the tracebacks."""
        table = Table("target", "examples", "opened", "refused", "anything else")
        for column in table.columns[1:]:
            column.justify = "right"
        for name, counts in self.outcomes.items():
            shown = (counts.total(), counts["opened"], counts["refused"], counts["else"])
            table.add_row(name, *(f"{count:,}" for count in shown))
        Console(width=100).print(table)
        print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")
        for told in list(self.tracebacks.values())[:TRACEBACKS]:
            print(f"\n{told}")


def main() -> int:
    """Take the options; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1, help="how long (default: 1)")
    parser.add_argument("--seed", type=int, help="of the first round; --minutes 0.01 repeats that one alone")
    options = parser.parse_args()
    logging.disable()
    warnings.simplefilter("error")
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    tally, known = Tally(), targets()
    print(f"seed {seed}", flush=True)
    end = time.monotonic() + 60 * options.minutes
    while time.monotonic() < end:
        for target in known:
            tally.round(target, seed)
        seed += 1
    tally.show()
    return 1 if tally.tracebacks else 0


if __name__ == "__main__":
    sys.exit(main())
