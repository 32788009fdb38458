"""One measurement of tokenisation, in a separate process; prints a line of JSON.

python -m tests.benchmarks.tokenise rate ours-2 9
python -m tests.benchmarks.tokenise rate raw 9
python -m tests.benchmarks.tokenise memory 50
python -m tests.benchmarks.tokenise memory 150 a-token-a-line
python -m tests.benchmarks.tokenise store 10000000

A separate module, because the workers of `minilm tokenize` import it and must not import torch.
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

#: Lines in a batch of a tokenizer or a worker.
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
    """Number of tokens from the tokenizers library alone, in threads on all cores; nothing is written."""
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


def _memory_mb() -> float:
    """Memory of this process and its children in MB, with shared pages divided among them."""
    me = str(os.getpid())
    children = "".join(task.read_text() for task in Path(f"/proc/{me}/task").glob("*/children"))
    total = 0
    for process in (me, *children.split()):
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:  # the process has ended
            continue
        total += next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return total * 1024 / 1e6


@contextmanager
def peak() -> Iterator[Callable[[], float]]:
    """Measure the memory 20 times a second; gives a function for the maximum."""
    samples = [_memory_mb()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            samples.append(_memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: max(samples)
    finally:
        done.set()
        watcher.join()


def _reset_peak() -> bool:
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
    from transformers import AutoTokenizer  # noqa: F401  # so that the import is not measured

    name, _, workers = way.partition("-")
    tokenizer = find_teacher()
    seconds, tokens, sizes = [], [], []
    with tempfile.TemporaryDirectory() as folder, peak() as maximum:
        for times in (1, 1 + copies):
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
    elapsed = seconds[1] - seconds[0]
    return {
        "tokens_per_second": (tokens[1] - tokens[0]) / elapsed,
        "mb_per_second": (sizes[1] - sizes[0]) / 1e6 / elapsed,
        "peak_mb": maximum(),
    }


def memory(megabytes: int, *, cheap: bool = False) -> dict[str, float]:
    """Memory of all processes while that much text is tokenised with two workers.

    cheap: use a tokenizer that makes one token of each line, with sixteen special tokens, and so takes little time.
    """
    sample = (b"the people " * 7 + b"\n") * 2**14 if cheap else SAMPLE.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        with text.open("wb") as file:
            for _ in range(round(megabytes * 1e6 / len(sample))):
                file.write(sample)
        tokenizer = _cheap_tokenizer(Path(folder) / "tokenizer") if cheap else find_teacher()
        with peak() as maximum:
            tokens = ours(text, tokenizer, Path(folder), 2)
        return {"megabytes": text.stat().st_size / 1e6, "tokens": tokens, "peak_mb": maximum()}


def _cheap_tokenizer(folder: Path) -> str:
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
        before = _memory_mb()
        was_reset = _reset_peak()
        started = time.perf_counter()
        opened = TokenStore(Path(folder))
        elapsed = time.perf_counter() - started
        memory_after = _memory_mb()
        maximum = _peak_mb() if was_reset else memory_after
        batches = []
        for _ in range(50):
            indices = draw.integers(0, sequences, 256)
            started = time.perf_counter()
            for index, _ in zip(indices.tolist(), opened.lengths(indices, LONGEST), strict=True):
                opened.sequence(index, LONGEST)
            batches.append(time.perf_counter() - started)
    return {
        "sequences": sequences,
        "open_seconds": elapsed,
        "peak_mb": maximum,
        "extra_mb": memory_after - before,
        "batch_ms": 1e3 * median(batches),
    }


def main(what: str, *words: str) -> None:
    """Measure and print."""
    match what:
        case "rate":
            figures = rate(words[0], int(words[1]))
        case "memory":
            figures = memory(int(words[0]), cheap=words[1:] == ("a-token-a-line",))
        case _:
            figures = store(int(words[0]))
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
