"""One measurement of tokenisation in a process of its own; prints a line of JSON.

python -m tests.benchmarks.tokenise ours 9

Apart from `measure`, for the workers that `minilm tokenize` starts import this module: here too, they need no torch.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minilm_cli.corpus import tokenize
from minilm_cli.demo import SAMPLE, find_teacher
from minilm_cli.metrics import NoProgress
from minilm_cli.settings import TokenizeSettings

LONGEST = 128


def ours(text: Path, tokenizer: str, folder: Path) -> int:
    """Tokens that `minilm tokenize` writes, on all cores."""
    settings = TokenizeSettings(inputs=(text,), tokenizer=tokenizer, output=folder / "tokens", max_length=LONGEST)
    return tokenize(settings, NoProgress()).tokens


def plain(text: Path, tokenizer: str, folder: Path) -> int:
    """Tokens that a transformers tokenizer, called line by line, makes; written as gzipped JSON lines."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    tokens = 0
    with text.open(encoding="utf-8") as lines, gzip.open(folder / "tokens.jsonl.gz", "wt") as out:
        for line in filter(None, map(str.strip, lines)):
            ids = loaded(line, truncation=True, max_length=LONGEST)["input_ids"]
            tokens += len(ids)
            out.write(json.dumps(ids) + "\n")
    return tokens


def _held_mb() -> float:
    """Memory of this process and its children now, shared pages split among their users, in MB."""
    me = str(os.getpid())
    children = "".join(task.read_text() for task in Path(f"/proc/{me}/task").glob("*/children"))
    total = 0
    for process in (me, *children.split()):
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:  # it has just ended
            continue
        total += next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return total * 1024 / 1e6


@contextmanager
def peak() -> Iterator[Callable[[], float]]:
    """Looks at the memory 20 times a second; gives the most that was seen."""
    seen = [_held_mb()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            seen.append(_held_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: max(seen)
    finally:
        done.set()
        watcher.join()


def main(which: str, copies: int) -> None:
    """Tokenise the sample that many times over, and say how fast."""
    from transformers import AutoTokenizer  # noqa: F401  # neither way's time is that of imports

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_bytes(copies * SAMPLE.read_bytes())
        size, tokenizer = text.stat().st_size, find_teacher()
        with peak() as most:
            started = time.perf_counter()
            tokens = (ours if which == "ours" else plain)(text, tokenizer, Path(folder))
            took = time.perf_counter() - started
    report = {"tokens_per_second": tokens / took, "mb_per_second": size / 1e6 / took, "peak_mb": most()}
    print(json.dumps(report | {"tokens": tokens}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
