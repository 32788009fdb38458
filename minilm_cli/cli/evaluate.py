"""`minilm evaluate`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from minilm_cli.base.errors import MinilmError
from minilm_cli.cli.options import Json, Typed, options_of
from minilm_cli.cli.result import open_console
from minilm_cli.settings.evaluate import EvaluateSettings

if TYPE_CHECKING:
    from minilm_cli.runs.evaluations import Result

_HEADER = ("task", "metric", "model", "score", "kept", "params", "MB", "texts/s")


@options_of(EvaluateSettings)
def evaluate(typed: Typed, as_json: Json = False) -> None:
    """Score models on labelled data, next to their teacher."""
    from minilm_cli.runs.lookup import find_run
    from minilm_cli.settings.load import merge
    from minilm_cli.settings.validation import validate

    if not {"tasks", "mteb"} & typed.keys():
        raise MinilmError("--task is missing", hint="Give a labelled file, or a known name, such as stsb or glue/mrpc.")
    values: dict[str, Any] = {} if "models" in typed else {"models": [str(find_run(None).path)]}
    for path, value in typed.items():
        merge(values, path, value)
    settings = validate(EvaluateSettings, values)
    from minilm_cli.evaluate import evaluating

    console = open_console()
    report = evaluating.evaluate(settings, console.progress)
    console.columns(_HEADER, _rows(report.results))
    if any(result.means_little for result in report.results):
        console.warn(
            "(*) The last part of this student was not trained, so its embeddings mean little before fine-tuning."
        )
    if as_json:
        print(json.dumps({"path": str(report.path), "results": [asdict(result) for result in report.results]}))
    else:
        print(report.path)


def _rows(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    names = {result.model: PurePath(result.model).name for result in results}
    shared = {short for short, count in Counter(names.values()).items() if count > 1}
    shown = ""
    for result in results:
        short = names[result.model]
        task = f"{result.task}, {result.protocol}"
        score = f"{100 * result.mean:.1f}"
        if len(result.scores) > 1:
            score += f" ± {100 * result.std:.1f}"
        yield (
            "" if task == shown else task,
            result.metric,
            (result.model if short in shared else short) + " (*)" * result.means_little,
            score,
            "teacher" if result.is_teacher else "" if result.retention is None else f"{result.retention:.1f}%",
            "" if result.parameters is None else f"{result.parameters / 1e6:.1f}M",
            f"{result.megabytes:.1f}",
            f"{result.sentences_per_second:,.0f}",
        )
        shown = task
