"""How much a start from the teacher's layers gains over a random one, for students of several sizes.

python -m tests.benchmarks.starts TEACHER CORPUS TASK STUDENT... [--output FOLDER] [--steps N]

Runs the commands of minilm: tokenise, then for each student two runs with the same steps and seed, of 32 sequences
a step, and the score of each student on the task without fine-tuning, before and after. What is done is not done again.
Prints a table and writes `starts.svg`, the held-out losses over the steps, to the folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from minilm_cli.runs.folder import RunFolder
from tests.benchmarks.plots import loss_curves

STARTS = {"teacher": "from the teacher", "random": "random"}


def minilm(*words: str | Path) -> str:
    """Run a command; its standard output."""
    command = [sys.executable, "-m", "minilm_cli", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def trained(folder: Path, teacher: str, tokens: Path, student: str, start: str, steps: int) -> RunFolder:
    """The run of a student, finished."""
    run = RunFolder(folder / f"{student}-{start}")
    if not run.path.exists():
        words: tuple[str | Path, ...] = ("--teacher", teacher, "--data", tokens, "--student-config", student)
        words += ("--init", start, "--steps", str(steps), "--batch-size", "32", "--lr", "5e-4")
        minilm("distill", *words, "--eval-every", str(max(1, steps // 8)), "--output", run.path)
    elif not run.is_finished():
        minilm("resume", run.path)
    return run


def score(run: RunFolder, task: str) -> float:
    """Spearman's correlation in per cent, without fine-tuning."""
    found = json.loads(minilm("evaluate", run.path, "--task", task, "--zero-shot", "--no-teacher", "--json"))
    return 100 * next(float(row["mean"]) for row in found["results"] if row["metric"] == "spearman")


def row(student: str, start: str, run: RunFolder, task: str) -> tuple[str, ...]:
    """A row of the table."""
    losses = held_out(run)
    facts = run.plan().student
    kept = "" if facts.init_share_kept is None else f"{facts.init_share_kept:.0%}"
    first, last = (f"{losses[step]:.3f}" for step in (min(losses), max(losses)))
    return student, STARTS[start], kept, first, last, f"{score(run, task):.1f}"


def held_out(run: RunFolder) -> Mapping[int, float]:
    """The held-out loss by step."""
    return {int(record["step"]): record["eval_loss"] for record in run.metrics() if "eval_loss" in record}


def main(words: Sequence[str] | None = None) -> None:
    """Train, score and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("corpus")
    parser.add_argument("task")
    parser.add_argument("students", nargs="+")
    parser.add_argument("--output", type=Path, default=Path("starts"))
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(words)
    options.output.mkdir(exist_ok=True)
    tokens = options.output / "tokens"
    if not tokens.exists():
        minilm("tokenize", options.corpus, "--tokenizer", options.teacher, "--max-length", "128", "--output", tokens)
    header = ("student", "start", "kept", "loss at the start", f"after {options.steps} steps", "score")
    rows, curves = [header, ("---",) * len(header)], {}
    for student in options.students:
        for start, name in STARTS.items():
            run = trained(options.output, options.teacher, tokens, student, start, options.steps)
            rows.append(row(student, start, run, options.task))
            curves[f"{student}, {name}"] = held_out(run)
    print("\n".join(f"| {' | '.join(cells)} |" for cells in rows))
    picture = loss_curves(f"Held-out loss, students of {Path(options.teacher).name}", curves)
    (options.output / "starts.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
