"""What should never be found in the folder of a run, whenever its processes were killed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from minilm_cli.base.errors import MinilmError
from minilm_cli.runs import checkpoint
from minilm_cli.runs.folder import RunFolder
from tests.runs import lasting_files, lasting_metrics


def half_there(run: RunFolder, undisturbed: RunFolder) -> Iterator[str]:
    """What has its final name in a run that may just have been killed, and is not whole."""
    for step in checkpoint.steps(run.checkpoints):
        try:
            checkpoint.load(checkpoint.path_of(run.checkpoints, step))
        except MinilmError as error:
            yield f"a checkpoint is not sound: {error}"
    for name in ("tokenizer", "student", "export/hf"):
        if (run.path / name).exists():
            ours, theirs = _files(run.path / name), _files(undisturbed.path / name)
            for file in sorted({*ours, *theirs}):
                if ours.get(file) != theirs.get(file):
                    yield f"{name}/{file} is not that of the undisturbed run"
    if run.path.exists():
        try:
            run.settings()
            run.plan()
        except MinilmError as error:
            yield f"the run's folder is not whole: {error}"


def differences(run: RunFolder, undisturbed: RunFolder) -> Iterator[str]:
    """In what a run that has ended differs from the undisturbed one."""
    total = undisturbed.settings().training.steps
    assert total is not None
    try:
        lines = (lasting_metrics(folder.path).splitlines() for folder in (run, undisturbed))
        for number, (ours, theirs) in enumerate(zip_longest(*lines), 1):
            if ours != theirs:
                yield f"line {number} of metrics.jsonl is {ours}, undisturbed {theirs}"
                break
        ended, should = (lasting_files(folder.path, total) for folder in (run, undisturbed))
        for name in should:
            if ended[name] != should[name]:
                yield f"{name} has other bytes"
    except (OSError, ValueError) as error:  # what is missing, or no JSON
        yield str(error)


def left_behind(run: RunFolder) -> Iterator[str]:
    """Temporary files and folders in the folder of a run and beside it."""
    beside = run.path.parent
    for path in sorted([*beside.glob(".tmp-*"), *run.path.rglob(".tmp-*")]):
        yield f"{path.relative_to(beside)} is left"


def _files(folder: Path) -> dict[str, bytes]:
    """The bytes of all files in a folder, by path below it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
