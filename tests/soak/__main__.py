"""Kill and resume runs, and compare them with an uninterrupted run: `python -m tests.soak --kills 50`.

Prints a line for each process, and a summary. Exit status 1 if a run differs; then its files are kept.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests import tiny
from tests.soak.kill_and_resume import Soak, training


def inputs(folder: Path, teacher: str | None, student: str | None, data: str | None) -> list[str]:
    """Teacher, student's config and tokens; makes tiny ones in `folder` for those that are None."""
    if teacher is None:
        teacher = str(folder / "teacher")
        tiny.save_teacher(Path(teacher))
    if student is None:
        student = str(folder / "config.json")
        tiny.write_student_config(Path(student))
    if data is None:
        data = str(folder / "tokens")
        tiny.write_corpus(folder / "corpus.txt")
        tiny.write_store(Path(data), corpus=folder / "corpus.txt", tokenizer=teacher)
    # The processes run in another folder. A name that is not a path is left to minilm.
    return [str(Path(name).resolve()) if Path(name).exists() else name for name in (teacher, student, data)]


def say(line: str) -> None:
    """Print and flush."""
    print(line, flush=True)


def main() -> None:
    """Parse the options, run the test and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills that must land (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kills (default: 0)")
    parser.add_argument("--steps", type=int, default=60, help="steps of a run (default: 60)")
    parser.add_argument("--teacher", help="name or folder (default: a tiny one)")
    parser.add_argument("--student-config", help="as minilm takes it (default: a tiny one)")
    parser.add_argument("--data", help="token store (default: a tiny one)")
    parser.add_argument("--folder", type=Path, help="a new folder for all files (default: a temporary one)")
    options = parser.parse_args()
    if options.folder is not None:
        if options.folder.exists():
            parser.error(f"{options.folder} exists already")
        options.folder.mkdir(parents=True)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="minilm-soak-"))).resolve()
    files = inputs(folder, options.teacher, options.student_config, options.data)
    tally = Soak(folder, training(*files, steps=options.steps), kills=options.kills, seed=options.seed, say=say)()
    print(tally)
    if tally.problems:
        print(f"The files are in {folder}.")
    elif options.folder is None:
        shutil.rmtree(folder)
    sys.exit(1 if tally.problems else 0)


if __name__ == "__main__":
    main()
