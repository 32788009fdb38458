"""From what the user calls a task to its data: a folder, a labelled file, or a known name."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from minilm_cli.base.errors import MinilmError
from minilm_cli.evaluate.labelled import read_labelled
from minilm_cli.evaluate.named import NAMES, read_named
from minilm_cli.evaluate.retrieval_data import is_retrieval_folder, read_retrieval
from minilm_cli.evaluate.tables import FORMS, find_table
from minilm_cli.evaluate.task import Task
from minilm_cli.settings.evaluate import LabelledData
from minilm_cli.settings.flags import options

#: Names of the files of a labelled folder, by split.
_STEMS = {"train": ("train",), "dev": ("dev", "valid", "validation"), "test": ("test",)}

_SPECS = (
    f"A task is a labelled file, a folder with train.tsv, a folder with corpus.jsonl, queries.jsonl and qrels.tsv, or"
    f" one of {', '.join(NAMES)}."
)


def read_tasks(specs: Sequence[str], data: LabelledData, *, training: bool) -> list[Task]:
    """The tasks in order, each with a name of its own; raises `MinilmError` as `read_task` does."""
    if len(specs) > 1 and (data.dev or data.test):
        option = "--test" if data.test else "--dev"
        raise MinilmError(f"{option} belongs to one task, and there are {len(specs)}", hint="Evaluate them one by one.")
    if repeated := [spec for spec, count in Counter(specs).items() if count > 1]:
        raise MinilmError("this task is given twice", where=repeated[0])
    tasks = [read_task(spec, data, training=training) for spec in specs]
    counts = Counter(task.name for task in tasks)
    return [
        replace(task, name=spec) if counts[task.name] > 1 else task for spec, task in zip(specs, tasks, strict=True)
    ]


def read_task(spec: str, data: LabelledData, *, training: bool) -> Task:
    """The data of a task.

    training: whether a model or a probe is trained on it; else only what is scored is read, and a single file is scored
    as a whole. Raises `MinilmError` if there is no such task, and for whatever is wrong with its data.
    """
    path = Path(spec).expanduser()
    if not path.exists():
        if spec not in NAMES:
            raise _unknown(spec)
        _refuse_options(spec, data, "a known task has its own columns and splits")
        return read_named(spec, training=training)
    if data.dev and not training:
        raise MinilmError("--dev is not used without training", hint="Name the file to score with --test.")
    if path.is_dir() and is_retrieval_folder(path):
        _refuse_options(spec, data, "a folder for retrieval has its own layout")
        return read_retrieval(path)
    return _labelled(spec, path, data, training=training)


def _labelled(spec: str, path: Path, data: LabelledData, *, training: bool) -> Task:
    files = {"train": path}
    if path.is_dir():
        files = {split: file for split, stems in _STEMS.items() if (file := find_table(path, stems))}
        if "train" not in files and (training or not files):
            raise MinilmError("this folder has no train.tsv, train.csv or train.jsonl", where=spec, hint=_SPECS)
    files |= {split: file.expanduser() for split, file in (("dev", data.dev), ("test", data.test)) if file}
    for split in ("dev", "test"):
        if training and split in files and files[split].resolve() == files["train"].resolve():
            raise MinilmError(
                f"--{split} names the file that is trained on",
                where=str(files[split]),
                hint="Leave it out, and some of its rows are kept apart.",
            )
    name = path.resolve().name if path.is_dir() else path.name.split(".")[0]
    if name in _STEMS:  # the folder says more
        name = path.resolve().parent.name
    return read_labelled(name, {split: str(file) for split, file in files.items()}, data, training=training)


def _refuse_options(spec: str, data: LabelledData, because: str) -> None:
    """Raise `MinilmError` if an option for labelled files is given."""
    given = [option.name for option in options(LabelledData) if getattr(data, option.path) is not None]
    if given:
        raise MinilmError(f"{given[0]} does not apply: {because}", where=spec, hint="Leave it out.")


def _unknown(spec: str) -> MinilmError:
    typed = spec.lower()
    near = [name for name in NAMES if name.endswith(f"/{typed}")] or difflib.get_close_matches(typed, NAMES, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"{_SPECS} {FORMS}"
    return MinilmError("there is no such file or folder, and no task of this name", where=spec, hint=hint)
