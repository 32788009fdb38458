"""Tasks of the library `mteb`, which fetches their data from the Hub and computes their scores itself."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.packages import require
from minilm_cli.models.hub import loading, quiet, reason


def find_tasks(names: Sequence[str]) -> list[Any]:
    """The tasks of these names; raises `MinilmError` if there is no such task, or the package is not installed."""
    if not names:
        return []
    require("mteb", "--mteb")
    import mteb

    def find(name: str) -> Any:
        try:
            return mteb.get_task(name)
        except KeyError as error:
            said = str(error.args[0]).removeprefix("KeyError: ")  # names the closest task
            raise MinilmError(said, where=f"--mteb {name}", hint="List the tasks: mteb available-tasks") from None

    return [find(name) for name in names]


def mteb_score(model_name: str, task_name: str, *, device: str | None = None) -> float:
    """The main score of a task, a mean over its languages and splits, of a model that `SentenceTransformer` loads.

    device: as torch names it; `None`: chosen by sentence-transformers.

    mteb's cache of results is not used: it knows models by name, and would take a new model for the one that was in
    the folder before.

    Raises `MinilmError` if the package is not installed, a task is unknown, or the model or the data cannot be loaded,
    and `RunError` if a task fails.
    """
    [task] = find_tasks([task_name])
    import datasets
    import mteb
    from sentence_transformers import SentenceTransformer

    datasets.disable_progress_bars()
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about deprecated functions that mteb and sentence-transformers call
        with loading("model", model_name):
            model = SentenceTransformer(model_name, device=device)
        return _score(mteb.evaluate, model, task)


def _score(evaluate: Any, model: Any, task: Any) -> float:
    try:
        result = evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False)
        return float(result.task_results[0].main_score)
    except OSError as error:
        hint = "The data comes from the Hub: check the connection (HF_HUB_OFFLINE, HF_TOKEN, HF_HOME)."
        where = f"--mteb {task.metadata.name}"
        raise MinilmError(f"the data cannot be loaded: {reason(error)}", where=where, hint=hint) from error
    except Exception as error:  # the library may raise anything, such as for a task on images
        raise RunError(f"mteb failed: {reason(error)}", where=f"--mteb {task.metadata.name}") from error
