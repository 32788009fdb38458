"""One measurement of tokenisation in a process of its own; prints a line of JSON.

python -m tests.benchmarks.tokenise rate ours-2 9
python -m tests.benchmarks.tokenise rate raw 9
python -m tests.benchmarks.tokenise memory 50
python -m tests.benchmarks.tokenise memory 150 a-token-a-line
python -m tests.benchmarks.tokenise store 10000000

A module of its own, because the workers that `minilm tokenize` starts import it: here too, they need no torch.
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
from statistics import median

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

from minilm_cli.base.progress import NoProgress
from minilm_cli.cli.demo import SAMPLE, find_teacher
from minilm_cli.corpus.tokenize import tokenize
from minilm_cli.settings.tokenize import TokenizeSettings
from minilm_cli.tokens.store import TokenizerInfo, TokenStore, TokenStoreWriter

LONGEST = 128

#: Lines that a tokenizer or a worker gets at once.
BATCH = 1000


def ours(text: Path, tokenizer: str, folder: Path, workers: int) -> int:
    """Number of tokens that `minilm tokenize` writes, in `workers` processes."""
    settings = TokenizeSettings(
        inputs=(str(text),),
        tokenizer=tokenizer,
        output=folder / "tokens",
        max_length=LONGEST,
        workers=workers,
        batch_size=BATCH,
        force=True,
    )
    return tokenize(settings, NoProgress()).tokens


def raw(text: Path, tokenizer: str) -> int:
    """Number of tokens that the tokenizers library alone makes, in threads on all cores; nothing is written."""
    loaded = Tokenizer.from_file(str(Path(tokenizer, "tokenizer.json")))
    loaded.no_padding()
    loaded.enable_truncation(LONGEST)
    lines = text.read_text(encoding="utf-8").splitlines()
    return sum(
        sum(map(len, loaded.encode_batch_fast(lines[begin : begin + BATCH]))) for begin in range(0, len(lines), BATCH)
    )


def plain(text: Path, tokenizer: str, folder: Path) -> int:
    """Number of tokens of a transformers tokenizer, called line by line; they are written as gzipped JSON lines."""
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
    """Present memory of this process and its children in MB, shared pages split among their users."""
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
    """Measure the memory 20 times a second; gives a function for the maximum."""
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


def _forget_peak() -> bool:
    """Reset the system's maximum of this process's memory; returns whether that is possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_mb() -> float:
    """Maximum memory of this process since then, in MB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024 / 1e6


def rate(way: str, copies: int) -> dict[str, float]:
    """Tokens a second without the time for starting: from the difference between two texts, one `copies` longer."""
    from transformers import AutoTokenizer  # noqa: F401  # so that importing is not timed

    name, _, workers = way.partition("-")
    tokenizer = find_teacher()
    seconds, tokens, sizes = [], [], []
    with tempfile.TemporaryDirectory() as folder, peak() as most:
        for times in (2, 2 + copies):
            text = Path(folder) / "text.txt"
            text.write_bytes(times * SAMPLE.read_bytes())
            started = time.perf_counter()
            match name:
                case "ours":
                    tokens.append(ours(text, tokenizer, Path(folder), int(workers)))
                case "raw":
                    tokens.append(raw(text, tokenizer))
                case _:
                    tokens.append(plain(text, tokenizer, Path(folder)))
            seconds.append(time.perf_counter() - started)
            sizes.append(text.stat().st_size)
    took = seconds[1] - seconds[0]
    return {
        "tokens_per_second": (tokens[1] - tokens[0]) / took,
        "mb_per_second": (sizes[1] - sizes[0]) / 1e6 / took,
        "peak_mb": most(),
    }


def memory(megabytes: int, *, easily: bool = False) -> dict[str, float]:
    """Memory of all processes while that much text is tokenised with two workers.

    easily: the tokenizer makes one token of each line, with sixteen special ones, and so takes little time itself.
    """
    sample = (b"the people " * 7 + b"\n") * 2**14 if easily else SAMPLE.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        with text.open("wb") as file:
            for _ in range(round(megabytes * 1e6 / len(sample))):
                file.write(sample)
        tokenizer = _of_lines(Path(folder) / "tokenizer") if easily else find_teacher()
        with peak() as most:
            tokens = ours(text, tokenizer, Path(folder), 2)
        return {"megabytes": text.stat().st_size / 1e6, "tokens": tokens, "peak_mb": most()}


def _of_lines(folder: Path) -> str:
    """A tokenizer that makes one token of any line, with sixteen special ones before it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "[CLS]": 1}, unk_token="[UNK]"))
    tokenizer.post_processor = TemplateProcessing(single="[CLS] " * 16 + "$A", special_tokens=[("[CLS]", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    return str(folder)


def store(sequences: int) -> dict[str, float]:
    """Time and memory for opening a store of that many short sequences, and for reading batches of 256."""
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        with TokenStoreWriter(Path(folder), TokenizerInfo(vocabulary_size=30_000), LONGEST) as writer:
            for _ in range(0, sequences, 10_000):
                lengths = draw.integers(5, 60, 10_000)
                writer.add(draw.integers(0, 30_000, lengths.sum(), dtype=np.uint16), lengths)
            writer.close()
        before = _held_mb()
        forgotten = _forget_peak()
        started = time.perf_counter()
        opened = TokenStore(Path(folder))
        took = time.perf_counter() - started
        held = _held_mb()
        most = _peak_mb() if forgotten else held
        batches = []
        for _ in range(50):
            indices = draw.integers(0, sequences, 256)
            started = time.perf_counter()
            for index, _ in zip(indices.tolist(), opened.lengths(indices, LONGEST), strict=True):
                opened.sequence(index, LONGEST)
            batches.append(time.perf_counter() - started)
    return {
        "sequences": sequences,
        "open_seconds": took,
        "peak_mb": most,
        "extra_mb": held - before,
        "batch_ms": 1e3 * median(batches),
    }


def main(what: str, *words: str) -> None:
    """Measure and print."""
    match what:
        case "rate":
            found = rate(words[0], int(words[1]))
        case "memory":
            found = memory(int(words[0]), easily=words[1:] == ("a-token-a-line",))
        case _:
            found = store(int(words[0]))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
