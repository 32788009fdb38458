"""Messages of `minilm resume`, `export` and `demo` for mistakes in options, outputs and a run's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .conftest import Minilm
from .mistakes import (
    NOT_A_FILE,
    WRONG_CONTENT,
    Mistake,
    Preparation,
    all_of,
    check_mistake,
    file,
    folder,
    folder_with,
    halve,
    in_options,
    link,
    mode,
    pipe,
    remove,
    write,
)

STEP_4 = "run/checkpoints/step-00000004"
COMMANDS = {"resume": "resume run --steps 6", "export": "export run"}
RESUME, EXPORT = COMMANDS.values()
DIGITS = "9" * 5000


def setting(dotted: str, value: object) -> Preparation:
    """Change a setting of the run."""
    section, _, name = dotted.rpartition(".")

    def change() -> None:
        path = Path("run/settings.json")
        values = json.loads(path.read_text(encoding="utf-8"))
        values[section][name] = value
        path.write_text(json.dumps(values), encoding="utf-8")

    return change


def damage_weights(*steps: int) -> Preparation:
    """Cut the weights of checkpoints short."""
    return all_of(*(halve(f"run/checkpoints/step-{step:08}/student.safetensors") for step in steps))


def other_tokens() -> None:
    """Change the checksum of the tokens in the run's plan."""
    plan = json.loads(Path("run/plan.json").read_text(encoding="utf-8"))
    plan["data"]["manifest_sha256"] = "0"
    write("run/plan.json", json.dumps(plan))()


def without_lock(prepare: Preparation) -> Preparation:
    """Remove the run's lock file too: if the command makes it before it reports the mistake, the test fails."""
    return all_of(remove("run/lock"), prepare)


MISTAKES_IN_OPTIONS = [
    *in_options(
        "resume run",
        {
            "--steps 0": ("--steps: ", "greater than 0"),
            "--steps -5": ("--steps: ", "-5"),
            f"--steps {10**30}": ("--steps: ", "less than"),
            f"--steps {DIGITS}": ("--steps", "maximum size"),
            "--steps 3": ("run", "4 steps already", "shortened to 3"),
            "--steps 6 --set training.steps=8": ("training.steps", "once"),
            "--set training.steps=": ("training.steps", "number of steps"),
            "--set training.seed=7": (
                "training.seed: cannot change when a run is resumed",
                "These can",
                "checkpoint.keep",
            ),
            "--set checkpoint.kep=7": ("no setting checkpoint.kep", "Did you mean checkpoint.keep?"),
            "--set checkpoint.keep=0": ("checkpoint.keep", "greater than 0"),
            "--set reporting.sinks=[wandb]": ("wandb", "pip install"),
            "--set reporting.sinks=[x]": ("reporting.sinks", "wandb"),
            "--steps 5 --set training.device=meta": ("training.device", "meta"),
        },
    ),
    *in_options(
        "export run",
        {
            "--private": ("--private", "--push-to-hub"),
            "--public": ("--public", "--push-to-hub"),
            "--push-to-hub me/student": ("--push-to-hub me/student", "offline", "HF_HUB_OFFLINE"),
            "--push-to-hub 'a b/c'": ("a b/c", "--push-to-hub"),
            "--push-to-hub ../x": ("--push-to-hub ../x",),
            f"--push-to-hub {'x' * 500}": ("--push-to-hub",),
            "--dtype int4": ("dtype", "float32", "bfloat16", "int4"),
            "--format gguf": ("format", "'hf'", "gguf"),
            "--checkpoint 3": ("run", "no checkpoint of step 3", "steps 2, 4"),
            "--checkpoint 0": ("no checkpoint of step 0", "2, 4"),
            **{
                f"--checkpoint {value}": ("checkpoint", "last", "best")
                for value in ("-1", str(10**30), DIGITS, "''", "LAST", "nan", "true", "٤", "4.5", "../step-00000004")
            },
        },
    ),
]

MISTAKES_IN_NAMES = [
    Mistake("resume of a model", "resume run/student", ("run/student: this is not a run",)),
    *(
        Mistake(f"{command} {name[:60]!r}", f"{command} {name}", (message,))
        for command in COMMANDS
        for name, message in (
            ("nowhere", "nowhere: there is no such run"),
            ("tokens", "tokens: this is not a run: it has no settings.json"),
            ("''", ".: this is not a run"),
            ("'a\nb'", "a\nb: there is no such run"),
            ("日本語", "日本語: there is no such run"),
            ("'a\0b'", "null"),
            ("x" * 300, "name too long"),
            ("/dev/null", "/dev/null: this is not a run"),
            ("run run", "run"),
            ("run/settings.json", "run/settings.json: this is not a run"),
        )
    ),
    *(
        Mistake(f"{command} {what}", f"{command} odd", (f"odd: {message}",), NOT_A_FILE[what]("odd"))
        for command in COMMANDS
        for what, message in (
            ("a pipe", "this is not a run"),
            ("a broken link", "there is no such run"),
            ("a link to itself", "there is no such run"),
        )
    ),
    *(
        Mistake(f"{command}, runs {what}", command, ("no run in runs/", "minilm distill"), prepare)
        for command in COMMANDS
        for what, prepare in (
            ("missing", remove("runs")),
            ("a file", write("runs", "")),
            ("empty", folder("runs")),
            ("a pipe", pipe("runs")),
            ("a link to itself", link("runs", "runs")),
            ("with a file", folder_with("runs", ("a",))),
            ("with a broken link", all_of(folder("runs"), link("runs/a", "nowhere"))),
            ("with a folder as settings", folder("runs/a/settings.json")),
        )
    ),
]

MISTAKES_IN_FILES = [
    *(
        Mistake(f"{command}, {name} {what}", words, (f"run/{name}: ", "cannot be read as JSON"), damage(f"run/{name}"))
        for command, words in COMMANDS.items()
        for name in ("settings.json", "plan.json", "environment.json", "student-config.json")
        for what, damage in (*WRONG_CONTENT.items(), ("that is a pipe", pipe))
        if what != "null" and (name, what) != ("settings.json", "that is a pipe")
    ),
    *(
        Mistake(f"{command}, {name} {what}", words, (f"run/{name}",), damage(f"run/{name}"))
        for command, words in COMMANDS.items()
        for name, damages in (
            *((name, ("a list", "null")) for name in ("settings.json", "environment.json")),
            *(
                (name, ("a list", "null", "an empty object", "a folder", "a broken link", "a link to itself"))
                for name in ("plan.json", "student-config.json")
            ),
        )
        for what, damage in {
            **NOT_A_FILE,
            "a list": lambda name: write(name, "[]"),
            "null": WRONG_CONTENT["null"],
            "an empty object": lambda name: write(name, "{}"),
        }.items()
        if what in damages
    ),
    *(
        Mistake(f"{command}, settings {what}", words, ("run: this is not a run",), damage("run/settings.json"))
        for command, words in COMMANDS.items()
        for what, damage in NOT_A_FILE.items()
    ),
    *(
        Mistake(f"{command}, tokenizer {what}", words, ("tokenizer",), prepare)
        for command, words in COMMANDS.items()
        for what, prepare in (
            ("missing", remove("run/tokenizer")),
            ("a file", file("run/tokenizer")),
            ("a broken link", link("run/tokenizer", "nowhere")),
        )
    ),
    *(
        Mistake(
            f"resume, {name} {what}",
            RESUME,
            (f"run/{name}: this is not a file", "Move it away"),
            without_lock(damage(f"run/{name}")),
        )
        for name in ("metrics.jsonl", "log.txt", "lock")
        for what, damage in NOT_A_FILE.items()
    ),
    *(
        Mistake(
            f"resume, checkpoints {what}",
            RESUME,
            ("run/checkpoints: this is not a folder", "Restore the folder"),
            without_lock(damage("run/checkpoints")),
        )
        for what, damage in (("a file", file), ("a pipe", pipe), ("a broken link", NOT_A_FILE["a broken link"]))
    ),
    *(
        Mistake(f"resume, {what}", RESUME, message, without_lock(prepare))
        for what, message, prepare in (
            ("no plan", ("run/plan.json: there is no such plan", "Restore the file"), remove("run/plan.json")),
            (
                "plan.json a device",
                ("run/plan.json: ", "cannot be read as JSON", "Restore the file"),
                NOT_A_FILE["a device"]("run/plan.json"),
            ),
            (
                "settings.json empty",
                ("run/settings.json: ", "cannot be read as JSON", "Restore the file"),
                write("run/settings.json", ""),
            ),
            ("unknown setting", ("settings.json", "no setting training.pace"), setting("training.pace", 3)),
            ("setting of a wrong type", ("settings.json", "optimizer.lr", "fast"), setting("optimizer.lr", "fast")),
        )
    ),
    *(
        Mistake(f"resume, {what}", RESUME, message, prepare)
        for what, message, prepare in (
            ("other tokens", ("token store", "changed since the run began", "Restore it"), other_tokens),
            (
                "no teacher",
                ("nowhere/teacher", "no such teacher folder"),
                setting("teacher.name", "/nowhere/teacher"),
            ),
            (
                "no tokens",
                ("/nowhere/tokens", "this token store, used when the run began, is missing", "Restore it"),
                setting("data.path", "/nowhere/tokens"),
            ),
            (
                "empty folder as tokenizer",
                ("run/tokenizer: the tokenizer cannot be loaded",),
                folder("run/tokenizer"),
            ),
        )
    ),
    Mistake(
        "resume, every checkpoint damaged",
        RESUME,
        ("none of the checkpoints is sound", "step-00000002", "step-00000004", "checksum"),
        damage_weights(2, 4),
        status=1,
    ),
    *(
        Mistake(f"{command}, no student config", words, ("student-config.json",), remove("run/student-config.json"))
        for command, words in COMMANDS.items()
    ),
    *(
        Mistake(f"export, {what}", EXPORT, message, prepare)
        for what, message, prepare in (
            ("no plan", ("plan.json",), remove("run/plan.json")),
            ("metrics.jsonl a pipe", ("metrics.jsonl: this is not a file", "Move it away"), pipe("run/metrics.jsonl")),
            ("no checkpoints", ("run", "no checkpoint yet", "minilm resume"), remove("run/checkpoints")),
            ("checkpoints a file", ("run: there is no checkpoint yet",), file("run/checkpoints")),
        )
    ),
    *(
        Mistake(f"export, checkpoint {what}", "export run --checkpoint 4", (STEP_4, *message), prepare, status=1)
        for what, message, prepare in (
            ("cut short", ("student.safetensors", "checksum"), damage_weights(4)),
            ("a file", (), file(STEP_4)),
            ("an empty folder", (), folder(STEP_4)),
            ("a link to itself", (), link(STEP_4, "step-00000004")),
            ("with a broken link as manifest", (), link(f"{STEP_4}/checkpoint.json", "nowhere")),
            ("with a pipe as manifest", (), pipe(f"{STEP_4}/checkpoint.json")),
            ("with a pipe as weights", (), pipe(f"{STEP_4}/student.safetensors")),
        )
    ),
]

MISTAKES_IN_OUTPUTS = [
    *in_options(
        "export run",
        {
            "-o tokens": ("tokens", "exists already", "--force", "--output"),
            "-o ''": ("an output needs a name of its own",),
            "-o 'a\0b'": ("null",),
            f"-o {'x' * 300}": ("name too long",),
            "-o corpus.txt/a/b": ("corpus.txt/a/b: an output cannot be put below a file",),
            "--force -o run": ("run: ", "would replace run"),
            "--force -o run/settings.json": ("a part of the run",),
            **{
                f"--force -o {name}": (f"{name}: ", "not made by minilm")
                for name in ("teacher", "run/checkpoints", "run/tokenizer")
            },
        },
    ),
    Mistake(
        "export below a link to itself", "export run -o l/x", ("l/x", "cannot be put below a file"), link("l", "l")
    ),
    Mistake(
        "export in place of a file",
        "export run --force -o notes.txt",
        ("notes.txt: this is a file, and the output is a folder", "--force does not replace it", "--output"),
        write("notes.txt", "mine"),
    ),
    Mistake(
        "export below a file in the run",
        EXPORT,
        ("run/export/hf: an output cannot be put below a file",),
        write("run/export", ""),
    ),
    Mistake("demo with an existing output", "demo -o tokens", ("tokens", "exists already", "--force")),
]

MISSING_PERMISSIONS = [
    *(
        Mistake(f"{command}, {name} unreadable", words, (f"run/{name}", "denied"), mode(f"run/{name}", 0))
        for command, words in COMMANDS.items()
        for name in ("settings.json", "plan.json", "environment.json", "student-config.json")
    ),
    *(
        Mistake(
            f"resume, {name} with the mode {bits:o}",
            RESUME,
            (f"run/{name}: ", "denied", "ls -ld"),
            without_lock(all_of(*([file("run/lock")] if name == "lock" else []), mode(f"run/{name}", bits))),
        )
        for name, bits in (
            ("metrics.jsonl", 0o200),
            ("metrics.jsonl", 0o400),
            ("log.txt", 0o400),
            ("lock", 0o400),
            ("checkpoints", 0o300),
            ("checkpoints", 0o600),
        )
    ),
    Mistake(
        "resume, tokenizer unreadable",
        RESUME,
        ("run/tokenizer: the tokenizer folder cannot be read", "denied"),
        mode("run/tokenizer", 0),
    ),
    *(
        Mistake(f"export, {name} with the mode {bits:o}", EXPORT, message, mode(f"run/{name}", bits))
        for name, bits, message in (
            ("", 0o500, ("run: nothing can be written here", "denied")),
            ("checkpoints", 0o300, ("run/checkpoints: this folder cannot be read", "denied", "ls -ld")),
            ("metrics.jsonl", 0o200, ("run/metrics.jsonl: this file cannot be opened", "denied", "ls -ld")),
            (
                "tokenizer",
                0,
                ("run/tokenizer: the tokenizer folder cannot be read", "denied", "ls -ld run/tokenizer\n"),
            ),
            (
                "tokenizer",
                0o600,
                ("run/tokenizer: the tokenizer folder cannot be read", "denied", "ls -ld run/tokenizer\n"),
            ),
            (
                "tokenizer/tokenizer.json",
                0,
                ("run/tokenizer: the tokenizer cannot be loaded: tokenizer.json cannot be read", "permissions"),
            ),
        )
    ),
    *(
        Mistake(
            f"export, {name} of a checkpoint unreadable",
            "export run --checkpoint 4",
            (f"{STEP_4}/{name}", "denied"),
            mode(f"{STEP_4}/{name}", 0),
            status=1,
        )
        for name in ("checkpoint.json", "student.safetensors")
    ),
    *(
        Mistake(f"{words}, folder with the mode {bits:o}", words, message, folder_with("sub", bits=bits))
        for words, bits, message in (
            ("export run -o sub/x", 0o500, ("sub: nothing can be written here", "denied")),
            ("export run -o sub/x", 0, ("denied", "Check the permissions", "ls -ld sub\n")),
            ("export sub", 0, ("denied", "Check the permissions", "ls -ld sub\n")),
            ("resume sub", 0, ("denied", "Check the permissions", "ls -ld sub\n")),
        )
    ),
    *(
        Mistake(
            f"{command}, runs with the mode {bits:o}",
            command,
            ("runs", "denied", "ls -ld runs\n"),
            all_of(folder("runs/run"), mode("runs", bits)),
        )
        for command in COMMANDS
        for bits in (0, 0o600)
    ),
]


@pytest.fixture(autouse=True)
def run_here(workplace: Path, finished_run: Path) -> None:
    """A copy of a finished run in the current folder."""
    shutil.copytree(finished_run, workplace / "run")


@pytest.mark.parametrize(
    "mistake", [*MISTAKES_IN_OPTIONS, *MISTAKES_IN_NAMES, *MISTAKES_IN_FILES, *MISTAKES_IN_OUTPUTS], ids=str
)
def test_a_mistake_is_reported_and_changes_no_file(mistake: Mistake, minilm: Minilm) -> None:
    check_mistake(mistake, minilm)


@pytest.mark.parametrize("mistake", MISSING_PERMISSIONS, ids=str)
@pytest.mark.usefixtures("ordinary_user")
def test_a_missing_permission_is_reported(mistake: Mistake, minilm: Minilm) -> None:
    check_mistake(mistake, minilm)


def test_export_skips_a_damaged_newest_checkpoint(minilm: Minilm) -> None:
    damage_weights(4)()
    outcome = minilm("export", "run")
    assert outcome.status == 0
    assert "Warning: Skipping a damaged checkpoint" in outcome.err
    assert "step-00000004" in outcome.err
    assert "Exported step 2" in outcome.err


def test_resume_drops_lines_of_metrics_that_are_nested_too_deeply(minilm: Minilm) -> None:
    metrics = Path("run/metrics.jsonl")
    with metrics.open("a", encoding="utf-8") as lines:
        lines.write("[" * 100_000 + "\n")
    outcome = minilm("resume", "run", "--steps", "5")
    assert outcome.status == 0, outcome.err
    assert "[[" not in metrics.read_text(encoding="utf-8")
