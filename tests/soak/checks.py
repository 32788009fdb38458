"""Checks of a run's folder after its processes were killed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from minilm_cli.base.errors import MinilmError
from minilm_cli.runs import checkpoint
from minilm_cli.runs.folder import RunFolder
from tests.runs import metrics_without_times, result_files


def incomplete_outputs(run: RunFolder, uninterrupted: RunFolder) -> Iterator[str]:
    """Incomplete outputs with their final names, in a run that may just have been killed."""
    for step in checkpoint.steps(run.checkpoints):
        try:
            checkpoint.load(checkpoint.path_of(run.checkpoints, step))
        except MinilmError as error:
            yield f"a checkpoint is damaged: {error}"
    for name in ("tokenizer", "student", "export/hf"):
        if (run.path / name).exists():
            ours, theirs = _files(run.path / name), _files(uninterrupted.path / name)
            for file in sorted({*ours, *theirs}):
                if ours.get(file) != theirs.get(file):
                    yield f"{name}/{file} differs from the uninterrupted run"
    if run.path.exists():
        try:
            run.settings()
            run.plan()
        except MinilmError as error:
            yield f"the run's folder is incomplete: {error}"


def differences(run: RunFolder, uninterrupted: RunFolder) -> Iterator[str]:
    """Differences between a run that has ended and the uninterrupted one."""
    total = uninterrupted.settings().training.steps
    assert total is not None
    try:
        lines = (metrics_without_times(folder.path).splitlines() for folder in (run, uninterrupted))
        for number, (ours, theirs) in enumerate(zip_longest(*lines), 1):
            if ours != theirs:
                yield f"line {number} of metrics.jsonl is {ours}, uninterrupted {theirs}"
                break
        actual, expected = (result_files(folder.path, total) for folder in (run, uninterrupted))
        for name in expected:
            if actual[name] != expected[name]:
                yield f"{name} differs"
    except (OSError, ValueError) as error:  # a file is missing or not JSON
        yield str(error)


def temporary_files(run: RunFolder) -> Iterator[str]:
    """Temporary files and folders in the folder of a run and next to it."""
    parent = run.path.parent
    for path in sorted([*parent.glob(".tmp-*"), *run.path.rglob(".tmp-*")]):
        yield f"{path.relative_to(parent)} is left"


def _files(folder: Path) -> dict[str, bytes]:
    """The bytes of all files in a folder, by path below it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
