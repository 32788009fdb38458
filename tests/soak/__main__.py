"""Kill runs again and again, and see that they end as one that nothing disturbed: `python -m tests.soak --kills 50`.

Prints a line a process and a tally at the end. Exit status 1 if anything differed; what did is kept then.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests import tiny
from tests.soak.lives import Soak, training


def material(folder: Path, teacher: str | None, student: str | None, data: str | None) -> list[str]:
    """Teacher, student's config and tokens; what is not given is made in `folder`, tiny."""
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
    # The processes work in another folder; a name that is no path is one that minilm knows.
    return [str(Path(name).resolve()) if Path(name).exists() else name for name in (teacher, student, data)]


def say(line: str) -> None:
    """Print, at once."""
    print(line, flush=True)


def main() -> None:
    """Take the options, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills that must land (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (default: 0)")
    parser.add_argument("--steps", type=int, default=60, help="steps of a run (default: 60)")
    parser.add_argument("--teacher", help="name or folder (default: a tiny one)")
    parser.add_argument("--student-config", help="as minilm takes it (default: a tiny one)")
    parser.add_argument("--data", help="token store (default: a tiny one)")
    parser.add_argument("--folder", type=Path, help="where to work: a new folder (default: a temporary one)")
    options = parser.parse_args()
    if options.folder is not None:
        if options.folder.exists():
            parser.error(f"{options.folder} exists already")
        options.folder.mkdir(parents=True)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="minilm-soak-"))).resolve()
    words = training(*material(folder, options.teacher, options.student_config, options.data), steps=options.steps)
    tally = Soak(folder, words, kills=options.kills, seed=options.seed, say=say)()
    print(tally)
    if tally.wrong:
        print(f"What was found wrong is in {folder}.")
    elif options.folder is None:
        shutil.rmtree(folder)
    sys.exit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
