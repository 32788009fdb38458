"""What is wrong in a run's folder is told by `minilm resume` before anything in it is touched."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .conftest import Minilm
from .mistakes import Mistake, all_of, folder, is_told, link, mode, pipe, remove, write

_NEWEST = "run/checkpoints/step-00000004/checkpoint.json"
_FIRST = "run/checkpoints/step-00000002/checkpoint.json"
_RESUME = "resume run --steps 6"

MISTAKES_IN_KINDS = [
    *(
        Mistake(
            f"resume where {file} is {what}",
            _RESUME,
            (f"run/{file}: this is not a file", "Move it away"),
            prepare(f"run/{file}"),
        )
        for file in ("metrics.jsonl", "log.txt", "lock")
        for what, prepare in (
            ("a folder", folder),
            ("a pipe", pipe),
            ("a device", lambda name: link(name, "/dev/zero")),
            ("a link to nothing", lambda name: link(name, "nowhere/log")),
            ("a link to itself", lambda name: link(name, Path(name).name)),
        )
    ),
    *(
        Mistake(
            f"resume where checkpoints is {what}",
            _RESUME,
            ("run/checkpoints: this is not a folder", "Restore the folder"),
            prepare,
        )
        for what, prepare in (
            ("a file", all_of(remove("run/checkpoints"), write("run/checkpoints", ""))),
            ("a pipe", pipe("run/checkpoints")),
            ("a link to nothing", link("run/checkpoints", "nowhere")),
        )
    ),
    *(
        Mistake(
            f"resume where {file} is {what}",
            _RESUME,
            (f"run/{file}: ", "cannot be read as JSON", "Restore the file"),
            prepare(f"run/{file}"),
        )
        for file, what, prepare in (
            ("settings.json", "empty", lambda name: write(name, "")),
            ("plan.json", "empty", lambda name: write(name, "")),
            ("plan.json", "a pipe", pipe),
            ("plan.json", "a device", lambda name: link(name, "/dev/zero")),
        )
    ),
    Mistake(
        "resume without a plan",
        _RESUME,
        ("run/plan.json: there is no such plan", "Restore the file"),
        remove("run/plan.json"),
    ),
    *(
        Mistake(
            f"{command} where environment.json is a pipe",
            command,
            ("run/environment.json: ", "cannot be read as JSON", "Restore the file"),
            pipe("run/environment.json"),
        )
        for command in ("resume run", "export run")
    ),
    Mistake(
        "export where metrics.jsonl is a pipe",
        "export run",
        ("run/metrics.jsonl: this is not a file", "Move it away"),
        pipe("run/metrics.jsonl"),
    ),
]

MISTAKES_IN_RIGHTS = [
    *(
        Mistake(
            f"resume where {file} may not be {what}",
            _RESUME,
            (f"run/{file}: ", "denied", "ls -ld"),
            all_of(write("run/lock", ""), mode(f"run/{file}", bits)) if file == "lock" else mode(f"run/{file}", bits),
        )
        for file, what, bits in (
            ("metrics.jsonl", "read", 0o200),
            ("metrics.jsonl", "written", 0o400),
            ("log.txt", "written", 0o400),
            ("lock", "written", 0o400),
            ("checkpoints", "listed", 0o300),
            ("checkpoints", "searched", 0o600),
        )
    ),
    Mistake(
        "export where checkpoints may not be listed",
        "export run",
        ("run/checkpoints: this folder cannot be read", "denied", "ls -ld"),
        mode("run/checkpoints", 0o300),
    ),
    Mistake(
        "export where metrics.jsonl may not be read",
        "export run",
        ("run/metrics.jsonl: this file cannot be opened", "denied", "ls -ld"),
        mode("run/metrics.jsonl", 0o200),
    ),
]


@pytest.fixture(autouse=True)
def run_here(workplace: Path, finished_run: Path) -> Path:
    """A run in the current folder, which nobody has locked since it was put there."""
    run = shutil.copytree(finished_run, workplace / "run")
    (run / "lock").unlink()
    return run


@pytest.mark.parametrize("mistake", MISTAKES_IN_KINDS, ids=str)
def test_a_mistake_is_told_and_leaves_the_run_as_it_was(mistake: Mistake, minilm: Minilm) -> None:
    is_told(mistake, minilm)


@pytest.mark.parametrize("mistake", MISTAKES_IN_RIGHTS, ids=str)
@pytest.mark.usefixtures("ordinary_user")
def test_what_may_not_be_read_or_written_is_told(mistake: Mistake, minilm: Minilm) -> None:
    is_told(mistake, minilm)


def test_a_checkpoint_whose_manifest_is_a_pipe_is_passed_over(minilm: Minilm) -> None:
    pipe(_NEWEST)()
    outcome = minilm("resume", "run", "--steps", "5")
    assert outcome.status == 0, outcome.err
    assert "Skipping a damaged checkpoint" in outcome.err
    assert "step-00000004/checkpoint.json: this checkpoint manifest cannot be read as JSON: it is not a file" in (
        outcome.err
    )
    assert "Resuming from step 2." in outcome.err


def test_a_run_whose_checkpoints_all_have_pipes_for_manifests_is_told(minilm: Minilm) -> None:
    is_told(
        Mistake(
            "pipes",
            _RESUME,
            ("none of the checkpoints is sound", _FIRST, _NEWEST, "not a file"),
            all_of(write("run/lock", ""), pipe(_FIRST), pipe(_NEWEST)),
            status=1,
        ),
        minilm,
    )


def test_lines_of_metrics_that_are_nested_too_deeply_do_not_stop_a_run(minilm: Minilm) -> None:
    metrics = Path("run/metrics.jsonl")
    with metrics.open("a", encoding="utf-8") as file:
        file.write("[" * 100_000 + "\n")
    outcome = minilm("resume", "run", "--steps", "5")
    assert outcome.status == 0, outcome.err
    assert "[[" not in metrics.read_text(encoding="utf-8")
