"""Messages about folders without permission, and about outputs in the place of something else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .conftest import Minilm
from .mistakes import DISTILL, Mistake, all_of, folder, is_told, mode, write

MISTAKES_IN_OUTPUTS = [
    Mistake(
        f"{name} in place of a file",
        words + " --force -o notes.txt",
        ("notes.txt: this is a file, and the output is a folder", "--force does not replace it", "--output"),
        write("notes.txt", "mine"),
    )
    for name, words in (("run", DISTILL), ("dry run", DISTILL + "--dry-run"), ("export", "export run"))
]

MISTAKES_IN_RIGHTS = [
    *(
        Mistake(
            f"{what} without permission",
            words,
            ("denied", "Check the permissions", "ls -ld sub\n"),
            all_of(folder("sub"), mode("sub", 0)),
        )
        for what, words in (
            ("folder of tokens", DISTILL + "--data sub"),
            ("folder of an output", DISTILL + "-o sub/x"),
            ("folder of an export", "export run -o sub/x"),
            ("run to export", "export sub"),
            ("run to resume", "resume sub"),
        )
    ),
    *(
        Mistake(
            f"runs/ with the mode {bits:o}, and {command}",
            command,
            ("runs", "denied", "ls -ld runs\n"),
            all_of(folder("runs/run"), mode("runs", bits)),
        )
        for command in ("export", "resume")
        for bits in (0, 0o600)
    ),
    *(
        Mistake(
            f"export of a run whose {what} has the mode {bits:o}",
            "export run",
            (f"run/{where}: Permission denied", f"ls -ld run/{denies}\n"),
            mode(f"run/{denies}", bits),
        )
        for what, bits, where, denies in (
            ("tokenizer file", 0, "tokenizer/tokenizer.json", "tokenizer/tokenizer.json"),
            ("tokenizer", 0, "tokenizer", "tokenizer"),
            ("tokenizer folder, listed,", 0o600, "tokenizer/tokenizer.json", "tokenizer"),
        )
    ),
]


@pytest.fixture(autouse=True)
def run_here(workplace: Path, finished_run: Path) -> Path:
    """A copy of a run in the current folder."""
    return shutil.copytree(finished_run, workplace / "run")


@pytest.mark.parametrize("mistake", MISTAKES_IN_OUTPUTS, ids=str)
def test_a_mistake_is_reported_and_leaves_nothing_behind(mistake: Mistake, minilm: Minilm) -> None:
    is_told(mistake, minilm)


@pytest.mark.parametrize("mistake", MISTAKES_IN_RIGHTS, ids=str)
@pytest.mark.usefixtures("ordinary_user")
def test_a_missing_permission_is_reported(mistake: Mistake, minilm: Minilm) -> None:
    is_told(mistake, minilm)
