"""What `minilm resume`, `minilm export` and `minilm demo` say to every mistake about a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .conftest import Minilm
from .mistakes import Mistake, Preparation, all_of, folder, halve, is_told, link, mode, pipe, remove, write

STEP_4 = "run/checkpoints/step-00000004"


def setting(dotted: str, value: object) -> Preparation:
    """Preparation: a run whose settings have another value."""

    def change() -> None:
        path = Path("run/settings.json")
        values = json.loads(path.read_text(encoding="utf-8"))
        section, _, name = dotted.rpartition(".")
        (values[section] if section else values)[name] = value
        path.write_text(json.dumps(values), encoding="utf-8")

    return change


def damage(*steps: int) -> Preparation:
    """Preparation: checkpoints whose weights are cut short."""
    return all_of(*(halve(f"run/checkpoints/step-{step:08}/student.safetensors") for step in steps))


def other_tokens() -> None:
    """Preparation: a run that began with another token store."""
    plan = json.loads(Path("run/plan.json").read_text(encoding="utf-8"))
    plan["data"]["manifest_sha256"] = "0"
    write("run/plan.json", json.dumps(plan))()


MISTAKES_IN_RESUME = [
    Mistake(
        "resume on other tokens",
        "resume run --steps 9",
        ("token store", "changed since the run began", "Restore it"),
        other_tokens,
    ),
    Mistake("resume of no steps", "resume run --set training.steps=", ("training.steps", "number of steps")),
    Mistake(
        "resume with a sink that is not there", "resume run --set reporting.sinks=[wandb]", ("wandb", "pip install")
    ),
    Mistake("resume without runs", "resume", ("no run in runs/", "minilm distill")),
    Mistake("resume of nothing", "resume nowhere", ("nowhere", "no such run")),
    Mistake("resume of another folder", "resume tokens", ("tokens", "not a run", "settings.json")),
    Mistake("resume of a file", "resume corpus.txt", ("corpus.txt", "not a run")),
    Mistake("resume with settings not JSON", "resume run", ("settings.json", "JSON"), write("run/settings.json", "{")),
    Mistake(
        "resume with an unknown setting",
        "resume run",
        ("settings.json", "no setting training.pace"),
        setting("training.pace", 3),
    ),
    Mistake(
        "resume with settings of a wrong type",
        "resume run",
        ("settings.json", "optimizer.lr", "fast"),
        setting("optimizer.lr", "fast"),
    ),
    Mistake(
        "set of what may not change",
        "resume run --set training.seed=7",
        ("training.seed: cannot change when a run is resumed", "These can", "checkpoint.keep"),
    ),
    Mistake(
        "set of what is learnt from",
        "resume run --set data.path=elsewhere",
        ("data.path: cannot change when a run is resumed", "These can"),
    ),
    Mistake(
        "resume with set of a misspelt name",
        "resume run --set checkpoint.kep=7",
        ("no setting checkpoint.kep", "Did you mean checkpoint.keep?"),
    ),
    Mistake("resume with set to nonsense", "resume run --set checkpoint.keep=0", ("checkpoint.keep", "greater than 0")),
    Mistake("resume with set without value", "resume run --set checkpoint.keep", ("--set", "KEY=VALUE")),
    Mistake(
        "resume with steps and set",
        "resume run --steps 6 --set training.steps=8",
        ("training.steps", "once"),
    ),
    Mistake("resume to fewer steps", "resume run --steps 3", ("run", "4 steps already", "shortened to 3")),
    Mistake("resume to no steps", "resume run --steps 0", ("--steps: ", "greater than 0")),
    Mistake(
        "resume with every checkpoint damaged",
        "resume run",
        ("none of the checkpoints is sound", "step-00000002", "step-00000004", "checksum"),
        damage(2, 4),
        status=1,
    ),
    Mistake(
        "resume without the teacher",
        "resume run --steps 6",
        ("nowhere/teacher", "no such teacher folder"),
        setting("teacher.name", "/nowhere/teacher"),
    ),
    Mistake(
        "resume without the tokens",
        "resume run --steps 6",
        ("/nowhere/tokens", "this token store, used when the run began, is missing", "Restore it"),
        setting("data.path", "/nowhere/tokens"),
    ),
    Mistake(
        "resume without the student's config",
        "resume run --steps 6",
        ("student-config.json",),
        remove("run/student-config.json"),
    ),
    Mistake("resume without the tokenizer", "resume run --steps 6", ("tokenizer",), remove("run/tokenizer")),
]

MISTAKES_IN_EXPORT = [
    Mistake("private and no repository", "export run --private", ("--private", "--push-to-hub")),
    Mistake("export without runs", "export", ("no run in runs/", "minilm distill")),
    Mistake("export of nothing", "export nowhere", ("nowhere", "no such run")),
    Mistake("export of another folder", "export tokens", ("tokens", "not a run", "settings.json")),
    Mistake(
        "export of an unknown checkpoint",
        "export run --checkpoint 3",
        ("run", "no checkpoint of step 3", "steps 2, 4"),
    ),
    Mistake("export of a checkpoint by a wrong word", "export run --checkpoint newest", ("checkpoint", "last", "best")),
    Mistake("export of an earlier checkpoint than the first", "export run --checkpoint -1", ("checkpoint", "-1")),
    Mistake(
        "export without checkpoints",
        "export run",
        ("run", "no checkpoint yet", "minilm resume"),
        remove("run/checkpoints"),
    ),
    Mistake(
        "export of a damaged checkpoint",
        "export run --checkpoint 4",
        ("step-00000004", "student.safetensors", "checksum"),
        damage(4),
        status=1,
    ),
    Mistake("export in an unknown type", "export run --dtype int4", ("dtype", "float32", "bfloat16", "int4")),
    Mistake("export in an unknown format", "export run --format gguf", ("format", "'hf'", "gguf")),
    Mistake("export over something", "export run -o tokens", ("tokens", "exists already", "--force", "--output")),
    Mistake("export with settings not JSON", "export run", ("settings.json", "JSON"), write("run/settings.json", "{")),
    Mistake("export without a plan", "export run", ("plan.json",), remove("run/plan.json")),
    Mistake(
        "export without the student's config",
        "export run",
        ("student-config.json",),
        remove("run/student-config.json"),
    ),
    Mistake("export without the tokenizer", "export run", ("tokenizer",), remove("run/tokenizer")),
    Mistake("export to a wrong repository name", "export run --push-to-hub 'a b/c'", ("a b/c", "--push-to-hub")),
]


MISTAKES_IN_NAMES = [
    *(
        Mistake(f"{command} of {what}", f"{command} {name}", (said,), prepare)
        for command in ("resume", "export")
        for what, name, said, prepare in (
            ("no name", "''", ".: this is not a run", remove()),
            ("this folder", ".", ".: this is not a run", remove()),
            ("the folder above", "..", "..: this is not a run", remove()),
            ("two lines", "'a\nb'", "a\nb: there is no such run", remove()),
            ("a Japanese name", "日本語", "日本語: there is no such run", remove()),
            ("a null", "'a\0b'", "null", remove()),
            ("a device", "/dev/null", "/dev/null: this is not a run", remove()),
            ("two runs", "run run", "run", remove()),
            ("its settings", "run/settings.json", "run/settings.json: this is not a run", remove()),
            ("its student", "run/student", "run/student: this is not a run", remove()),
            ("its checkpoint", "run/checkpoints/step-00000004", "step-00000004: this is not a run", remove()),
            ("a pipe", "odd", "odd: this is not a run", pipe("odd")),
            ("a link to nothing", "odd", "odd: there is no such run", link("odd", "nowhere")),
            ("a link to itself", "odd", "odd: there is no such run", link("odd", "odd")),
        )
    ),
    *(
        Mistake(f"{command} where runs {what}", command, ("no run in runs/", "minilm distill"), prepare)
        for command in ("resume", "export")
        for what, prepare in (
            ("is a file", write("runs", "")),
            ("is empty", folder("runs")),
            ("is a pipe", pipe("runs")),
            ("is a link to itself", link("runs", "runs")),
            ("has a file", all_of(folder("runs"), write("runs/a", ""))),
            ("has a link to nothing", all_of(folder("runs"), link("runs/a", "nowhere"))),
            ("has settings that are a folder", folder("runs/a/settings.json")),
        )
    ),
]

MISTAKES_IN_PIECES = [
    *(
        Mistake(f"{command} whose {file} is {what}", f"{command} run{option}", (f"run/{file}",), prepare(f"run/{file}"))
        for command, option in (("resume", " --steps 6"), ("export", ""))
        for file in ("settings.json", "plan.json", "environment.json", "student-config.json")
        for what, prepare in (
            ("empty", lambda name: write(name, "")),
            ("zero bytes", lambda name: write(name, bytes(100))),
            ("all bytes", lambda name: write(name, bytes(range(256)))),
            ("a list", lambda name: write(name, "[]")),
            ("null", lambda name: write(name, "null")),
            ("nested deeply", lambda name: write(name, "[" * 100_000)),
        )
    ),
    *(
        Mistake(f"{command} whose {file} is {what}", f"{command} run{option}", (f"run/{file}",), prepare(f"run/{file}"))
        for command, option in (("resume", " --steps 6"), ("export", ""))
        for file in ("plan.json", "student-config.json")
        for what, prepare in (
            ("an empty object", lambda name: write(name, "{}")),
            ("a folder", folder),
            ("a link to nothing", lambda name: link(name, "nowhere")),
            ("a link to itself", lambda name: link(name, Path(name).name)),
        )
    ),
    *(
        Mistake(f"{command} whose settings are {what}", f"{command} run", ("run: this is not a run",), prepare)
        for command in ("resume", "export")
        for what, prepare in (
            ("a folder", folder("run/settings.json")),
            ("a pipe", pipe("run/settings.json")),
            ("a link to nothing", link("run/settings.json", "nowhere")),
            ("a link to itself", link("run/settings.json", "settings.json")),
        )
    ),
    *(
        Mistake(f"{command} whose tokenizer is {what}", f"{command} run{option}", ("tokenizer",), prepare)
        for command, option in (("resume", " --steps 6"), ("export", ""))
        for what, prepare in (
            ("a file", all_of(remove("run/tokenizer"), write("run/tokenizer", ""))),
            ("a link to nothing", link("run/tokenizer", "nowhere")),
        )
    ),
    Mistake(
        "resume whose tokenizer is an empty folder",
        "resume run --steps 6",
        ("run/tokenizer: the tokenizer cannot be loaded",),
        folder("run/tokenizer"),
    ),
    *(
        Mistake(
            f"export of a checkpoint that is {what}",
            "export run --checkpoint 4",
            ("run/checkpoints/step-00000004",),
            prepare,
            status=1,
        )
        for what, prepare in (
            ("a file", all_of(remove(STEP_4), write(STEP_4, ""))),
            ("an empty folder", folder(STEP_4)),
            ("a link to itself", link(STEP_4, "step-00000004")),
            ("of an empty manifest", write(f"{STEP_4}/checkpoint.json", "")),
            ("of a list for a manifest", write(f"{STEP_4}/checkpoint.json", "[]")),
            ("of an empty object", write(f"{STEP_4}/checkpoint.json", "{}")),
            ("of null", write(f"{STEP_4}/checkpoint.json", "null")),
            ("of all bytes", write(f"{STEP_4}/checkpoint.json", bytes(range(256)))),
            ("of a folder for a manifest", folder(f"{STEP_4}/checkpoint.json")),
            ("of a link to nothing", link(f"{STEP_4}/checkpoint.json", "nowhere")),
            ("without weights", remove(f"{STEP_4}/student.safetensors")),
            ("of empty weights", write(f"{STEP_4}/student.safetensors", "")),
            ("of a folder for weights", folder(f"{STEP_4}/student.safetensors")),
            ("of a pipe for weights", pipe(f"{STEP_4}/student.safetensors")),
        )
    ),
    Mistake(
        "export where checkpoints is a file",
        "export run",
        ("run: there is no checkpoint yet",),
        all_of(remove("run/checkpoints"), write("run/checkpoints", "")),
    ),
]

MISTAKES_IN_VALUES = [
    *(
        Mistake(f"export of the checkpoint {what}", f"export run --checkpoint {value}", ("checkpoint", "last", "best"))
        for what, value in (
            ("beyond counting", str(10**30)),
            ("of 5000 digits", "9" * 5000),
            ("without a name", "''"),
            ("in capitals", "LAST"),
            ("that is no number", "nan"),
            ("that is true", "true"),
            ("in Arabic digits", "٤"),
            ("of a fraction", "4.5"),
            ("of a path", "../step-00000004"),
            ("of a folder's name", "step-00000004"),
        )
    ),
    Mistake("export of the checkpoint zero", "export run --checkpoint 0", ("no checkpoint of step 0", "2, 4")),
    Mistake("export in no type", "export run --dtype ''", ("dtype", "float32", "''")),
    Mistake("export in no format", "export run --format ''", ("format", "'hf'", "''")),
    Mistake("export to a repository above", "export run --push-to-hub ../x", ("--push-to-hub ../x",)),
    Mistake("export to a repository of a long name", f"export run --push-to-hub {'x' * 500}", ("--push-to-hub",)),
    Mistake("resume to steps beyond counting", f"resume run --steps {10**30}", ("--steps: ", "less than")),
    Mistake("resume to steps of 5000 digits", f"resume run --steps {'9' * 5000}", ("--steps", "maximum size")),
    Mistake("resume to steps below zero", "resume run --steps -5", ("--steps: ", "-5")),
    Mistake(
        "resume with epochs",
        "resume run --set training.epochs=3",
        ("training.epochs: cannot change when a run is resumed", "These can"),
    ),
    Mistake(
        "resume to another output",
        "resume run --set output=x",
        ("output: cannot change when a run is resumed", "These can"),
    ),
    Mistake("resume with an unknown sink", "resume run --set reporting.sinks=[x]", ("reporting.sinks", "wandb")),
]

MISTAKES_IN_OUTPUTS = [
    Mistake("export in the place of its run", "export run --force -o run", ("run: ", "would replace run")),
    Mistake("export in the place of the settings", "export run --force -o run/settings.json", ("a part of the run",)),
    Mistake("export in the place of checkpoints", "export run --force -o run/checkpoints", ("run/checkpoints",)),
    Mistake("export to a folder and back", "export run -o a/..", ("a/..", "a name of its own")),
    Mistake("export in the place of a pipe", "export run --force -o p", ("p: ", "a pipe"), pipe("p")),
    Mistake("export to a long name", f"export run -o {'x' * 300}", ("name too long",)),
    Mistake("resume of a long name", f"resume {'x' * 300}", ("name too long",)),
    Mistake(
        "resume on the meta device", "resume run --steps 5 --set training.device=meta", ("training.device", "meta")
    ),
    *(
        Mistake(f"{command} whose {file} is a pipe", f"{command} run{words}", (f"run/{file}",), pipe(f"run/{file}"))
        for command, words in (("resume", " --steps 6"), ("export", ""))
        for file in ("environment.json", "student-config.json")
    ),
    *(
        Mistake(f"export to {what}", f"export run -o {name}", (said,), prepare)
        for what, name, said, prepare in (
            ("no name", "''", "an output needs a name of its own", remove()),
            ("this folder", ".", "an output needs a name of its own", remove()),
            ("the run", "run", "run: this output exists already", remove()),
            ("a link to nothing", "l", "l: this output exists already", link("l", "nowhere")),
            ("a link to itself", "l", "l: this output exists already", link("l", "l")),
            ("a pipe", "p", "p: this output exists already", pipe("p")),
            ("below a file", "corpus.txt/a/b", "corpus.txt/a/b: an output cannot be put below a file", remove()),
            ("below a link to itself", "l/x", "l/x: an output cannot be put below a file", link("l", "l")),
            ("below the plan", "run/plan.json/x", "run/plan.json/x: an output cannot be put below a file", remove()),
            ("a null", "'a\0b'", "null", remove()),
        )
    ),
    *(
        Mistake(f"export in the place of {name}", f"export run --force -o {name}", (f"{name}: ", "not made by minilm"))
        for name in ("teacher", "run/checkpoints", "run/tokenizer")
    ),
    Mistake(
        "export into a run whose exports are a file",
        "export run",
        ("run/export/hf: an output cannot be put below a file",),
        write("run/export", ""),
    ),
]

MISTAKES_IN_RIGHTS = [
    *(
        Mistake(
            f"{command} whose {file} may be read by nobody",
            f"{command} run{option}",
            (f"run/{file}", "denied"),
            mode(f"run/{file}", 0),
        )
        for command, option in (("resume", " --steps 6"), ("export", ""))
        for file in ("settings.json", "plan.json", "environment.json", "student-config.json")
    ),
    *(
        Mistake(
            f"export of a checkpoint whose {file} may be read by nobody",
            "export run --checkpoint 4",
            (f"{STEP_4}/{file}", "denied"),
            mode(f"{STEP_4}/{file}", 0),
            status=1,
        )
        for file in ("checkpoint.json", "student.safetensors")
    ),
    Mistake(
        "resume whose tokenizer may be read by nobody",
        "resume run --steps 6",
        ("run/tokenizer: the tokenizer folder cannot be read", "denied"),
        mode("run/tokenizer", 0),
    ),
    Mistake(
        "export into a run not to be written",
        "export run",
        ("run: nothing can be written here", "denied"),
        mode("run", 0o500),
    ),
    Mistake(
        "export to a folder not to be written",
        "export run -o sub/x",
        ("sub: nothing can be written here", "denied"),
        all_of(folder("sub"), mode("sub", 0o500)),
    ),
]


@pytest.fixture
def run_here(workplace: Path, finished_run: Path) -> Path:
    """A run of its own, in the current folder."""
    return shutil.copytree(finished_run, workplace / "run")


@pytest.mark.parametrize(
    "mistake",
    [
        *MISTAKES_IN_RESUME,
        *MISTAKES_IN_EXPORT,
        *MISTAKES_IN_NAMES,
        *MISTAKES_IN_PIECES,
        *MISTAKES_IN_VALUES,
        *MISTAKES_IN_OUTPUTS,
    ],
    ids=str,
)
@pytest.mark.usefixtures("run_here")
def test_a_mistake_is_told_and_leaves_nothing_behind(mistake: Mistake, minilm: Minilm) -> None:
    is_told(mistake, minilm)


@pytest.mark.parametrize("mistake", MISTAKES_IN_RIGHTS, ids=str)
@pytest.mark.usefixtures("run_here", "ordinary_user")
def test_what_may_not_be_read_or_written_is_told(mistake: Mistake, minilm: Minilm) -> None:
    is_told(mistake, minilm)


@pytest.mark.usefixtures("workplace")
def test_the_demo_refuses_an_output_that_exists(minilm: Minilm) -> None:
    is_told(Mistake("demo", "demo -o tokens", ("tokens", "exists already", "--force")), minilm)


def test_a_damaged_newest_checkpoint_is_passed_over_by_an_export(
    minilm: Minilm, workplace: Path, finished_run: Path
) -> None:
    shutil.copytree(finished_run, workplace / "run")
    damage(4)()
    outcome = minilm("export", "run")
    assert outcome.status == 0
    assert "Warning: Skipping a damaged checkpoint" in outcome.err
    assert "step-00000004" in outcome.err
    assert "Exported step 2" in outcome.err
