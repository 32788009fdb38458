"""Every option of the contract exists, shows its default, and sets its setting."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel

from minilm_cli.cli import app
from minilm_cli.corpus import tokenize as tokenizing
from minilm_cli.corpus.packing import Counts
from minilm_cli.corpus.tokenize import TokenizeReport
from minilm_cli.evaluate import during_training, evaluating
from minilm_cli.evaluate.evaluating import Report
from minilm_cli.export import exporting
from minilm_cli.export.exporting import Export, ExportReport
from minilm_cli.export.formats import Verified
from minilm_cli.runs.folder import RunFolder
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.settings.evaluate import EvaluateSettings, FineTuning, LabelledData
from minilm_cli.settings.export import ExportSettings
from minilm_cli.settings.flags import options
from minilm_cli.settings.load import flatten, load_distill_settings
from minilm_cli.settings.resume import ResumeSettings
from minilm_cli.settings.tokenize import TokenizeSettings
from minilm_cli.settings.validation import validate
from minilm_cli.training import run
from minilm_cli.training.distributed import World
from minilm_cli.training.run import RunReport

from .conftest import Minilm

#: The options of each command, by the contract.
OPTIONS = {
    "tokenize": (
        "--tokenizer --teacher --revision --trust-remote-code --output --max-length --overflow --pack --join-rows"
        " --split-sentences --language --text-field --workers --batch-size --errors --continue --force --json"
    ),
    "distill": (
        "--teacher --student-config --max-mb --max-params --keep-vocab --keep-count --data --config --set --output"
        " --revision --trust-remote-code --teacher-layer"
        " --student-layer --init --relation-heads --relations --steps --epochs --batch-size --micro-batch-tokens"
        " --max-length --lr --warmup-steps --schedule --weight-decay --clip-norm --precision --device --compile --seed"
        " --eval-fraction --eval-every --eval-task --save-every --keep --log-every --report-to --dry-run --verbose"
        " --force --json"
    ),
    "resume": "--steps --set --json",
    "export": (
        "--format --checkpoint --dtype --pooling --quantize --accept-loss --benchmark --output --push-to-hub --private"
        " --force --json"
    ),
    "evaluate": (
        "--task --mteb --kind --text --text-pair --label --dev --test --teacher --no-teacher --zero-shot --probe"
        " --pooling --lr --epochs --seeds --quick --batch-size --max-length --device --precision --output --force"
        " --json"
    ),
    "demo": "--output --force",
}

#: Flags of `minilm distill` as typed, their settings, and the values they set.
FLAGS: list[tuple[str, str, Any]] = [
    ("--teacher roberta-base", "teacher.name", "roberta-base"),
    ("--revision v2", "teacher.revision", "v2"),
    ("--trust-remote-code", "teacher.trust_remote_code", True),
    ("--teacher-layer 21", "teacher.layer", 21),
    ("--teacher-layer -1", "teacher.layer", -1),
    ("--teacher-layer auto", "teacher.layer", "auto"),
    ("--teacher-layer 6,12", "teacher.layer", (6, 12)),
    ("--student-config l4-h256", "student.config", "l4-h256"),
    ("--max-mb 50", "student.max_mb", 50.0),
    ("--max-params 20M", "student.max_params", 20_000_000),
    ("--keep-vocab 32k", "student.keep_vocab", 32_000),
    ("--keep-vocab tokens", "student.keep_vocab", "tokens"),
    ("--keep-vocab kept.txt", "student.keep_vocab", "kept.txt"),
    ("--keep-vocab tokens --keep-count 5", "student.keep_count", 5),
    ("--student-layer 3", "student.layer", 3),
    ("--init runs/first", "student.init", "runs/first"),
    ("--student-layer 3,6", "student.layer", (3, 6)),
    ("--init teacher", "student.init", "teacher"),
    ("--data ids.jsonl.gz", "data.path", Path("ids.jsonl.gz")),
    ("--data a --data b", "data.path", (Path("a"), Path("b"))),
    ("--data a:0.7 --data b:0.3", "data.path", {Path("a"): 0.7, Path("b"): 0.3}),
    ("--max-length 64", "data.max_length", 64),
    ("--relation-heads 12", "relations.heads", 12),
    ("--relation-heads auto", "relations.heads", "auto"),
    ("--relations qk=0.5,vv", "relations.weights", {"qk": 0.5, "vv": 1.0}),
    ("--steps 30", "training.steps", 30),
    ("--epochs 1.5", "training.epochs", 1.5),
    ("--batch-size 8", "training.batch_size", 8),
    ("--micro-batch-tokens 2048", "training.micro_batch_tokens", 2048),
    ("--micro-batch-tokens auto", "training.micro_batch_tokens", "auto"),
    ("--precision bf16", "training.precision", "bf16"),
    ("--device cuda:1", "training.device", "cuda:1"),
    ("--compile", "training.compile", True),
    ("--no-compile", "training.compile", False),
    ("--seed 7", "training.seed", 7),
    ("--lr 1e-4", "optimizer.lr", 1e-4),
    ("--weight-decay 0", "optimizer.weight_decay", 0.0),
    ("--clip-norm 5", "optimizer.clip_norm", 5.0),
    ("--schedule cosine", "schedule.kind", "cosine"),
    ("--warmup-steps 0", "schedule.warmup_steps", 0),
    ("--warmup-steps auto", "schedule.warmup_steps", "auto"),
    ("--eval-fraction 0", "evaluation.fraction", 0.0),
    ("--eval-every 50", "evaluation.every", 50),
    ("--eval-task stsb", "evaluation.task", "stsb"),
    ("--save-every 20", "checkpoint.every", 20),
    ("--keep 1", "checkpoint.keep", 1),
    ("--log-every 1", "reporting.log_every", 1),
    ("--report-to tensorboard", "reporting.sinks", ("tensorboard",)),
    ("--report-to tensorboard --report-to wandb", "reporting.sinks", ("tensorboard", "wandb")),
    ("--output runs/mine", "output", Path("runs/mine")),
    ("-o runs/mine", "output", Path("runs/mine")),
]

#: Options whose default is shown in words that cannot be typed.
IN_WORDS = {
    "RUN",
    "MODEL",
    "--pooling",
    "--workers",
    "--max-length",
    "--output",
    "--report-to",
    "--steps",
    "--text-field",
}

COMMANDS = typer.main.get_command(app.app).commands  # type: ignore[attr-defined]  # of a group, which it is


@pytest.fixture
def distilled(monkeypatch: pytest.MonkeyPatch, finished_run: Path) -> list[DistillSettings]:
    """Collects the settings of `minilm distill` instead of running it."""
    calls: list[DistillSettings] = []

    def distill(settings: DistillSettings, *_: object, **__: object) -> RunReport:
        calls.append(settings)
        return RunReport(Path("runs/new"), 1, RunFolder(finished_run).plan(), records=[{"step": 1, "loss": 1.0}])

    monkeypatch.setattr(run, "distill", distill)
    return calls


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_are_those_of_the_contract(command: str) -> None:
    names = {name for param in COMMANDS[command].params for name in param.opts if name.startswith("--")}
    assert names - {"--help"} == set(OPTIONS[command].split())


@pytest.mark.parametrize("command", OPTIONS)
@pytest.mark.parametrize("columns", [80, 250])
def test_help_shows_every_option(command: str, columns: int, minilm: Minilm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    outcome = minilm(command, "--help")
    assert (outcome.status, outcome.err) == (0, "")
    assert max(map(len, outcome.out.splitlines())) <= columns
    assert "…" not in outcome.out
    for option in OPTIONS[command].split():
        assert re.search(rf"(?<!\S){re.escape(option)}(?![\w-])", outcome.out), option
    assert minilm(command, "-h").out == outcome.out


@pytest.mark.parametrize(("typed", "dotted", "value"), FLAGS, ids=[flag for flag, _, _ in FLAGS])
def test_a_flag_sets_its_setting(
    typed: str, dotted: str, value: object, minilm: Minilm, distilled: list[DistillSettings]
) -> None:
    student = () if typed.startswith(("--max-mb", "--max-params")) else ("--student-config", "c")
    outcome = minilm("distill", "--teacher", "t", *student, *typed.split())
    assert outcome.status == 0, outcome.err
    assert flatten(distilled[0].model_dump())[dotted] == value


def test_every_option_with_a_setting_is_tested() -> None:
    without_setting = {"--config", "--set", "--dry-run", "--verbose", "--force", "--json"}
    tested = {word for flag, _, _ in FLAGS for word in flag.split() if word.startswith("--")} - {"--no-compile"}
    assert tested == set(OPTIONS["distill"].split()) - without_setting


def test_a_missing_flag_leaves_the_default(minilm: Minilm, distilled: list[DistillSettings]) -> None:
    minilm("distill", "--teacher", "t", "--student-config", "c")
    assert distilled == [DistillSettings.model_validate({"teacher": {"name": "t"}, "student": {"config": "c"}})]


def test_flags_and_set_override_the_file_and_the_file_the_defaults(
    minilm: Minilm, distilled: list[DistillSettings], tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "optimizer: {lr: 1, eps: 1, clip_norm: 2}\nrelations: {weights: {qq: 1, kk: 1}}\n", encoding="utf-8"
    )
    words = ("--lr", "2e-3", "--relations", "vv=1", "--set", "optimizer.eps=3")
    assert minilm("distill", "--teacher", "t", "--student-config", "c", "--config", file, *words).status == 0
    optimizer = distilled[0].optimizer
    assert (optimizer.lr, optimizer.eps, optimizer.clip_norm, optimizer.weight_decay) == (2e-3, 3.0, 2.0, 0.01)
    assert distilled[0].relations.weights == {"vv": 1.0}


def test_set_sets_settings_without_a_flag(minilm: Minilm, distilled: list[DistillSettings]) -> None:
    words = ("optimizer.betas=[0.8, 0.9]", "checkpoint.minutes=5", "evaluation.limit=100", "relations.weights={qk: 2}")
    sets = [part for word in words for part in ("--set", word)]
    assert minilm("distill", "--teacher", "t", "--student-config", "c", *sets).status == 0
    settings = distilled[0]
    assert settings.optimizer.betas == (0.8, 0.9)
    assert (settings.checkpoint.minutes, settings.evaluation.limit) == (5, 100)
    assert settings.relations.weights == {"qk": 2.0}


def test_the_settings_of_a_run_are_a_settings_file(
    minilm: Minilm, distilled: list[DistillSettings], finished_run: Path
) -> None:
    outcome = minilm("distill", "--config", finished_run / "settings.json", "--output", "elsewhere")
    assert outcome.status == 0, outcome.err
    assert distilled[0].training.steps == 4
    assert distilled[0].output == Path("elsewhere")


def typed_defaults() -> list[tuple[type[BaseModel], str, Any]]:
    """Model, dotted path and typed value of every default that the help shows, but for those in words."""
    return [
        (model, option.path, [option.default] if option.flag.repeatable else option.default)
        for model in (TokenizeSettings, DistillSettings, ExportSettings)
        for option in options(model)
        if option.default and (option.name not in IN_WORDS or not option.flag.default)
        if not option.is_switch
    ]


@pytest.mark.parametrize(("model", "path", "typed"), typed_defaults())
def test_typing_the_default_that_the_help_shows_changes_nothing(model: type[BaseModel], path: str, typed: Any) -> None:
    if model is DistillSettings:
        names = {"teacher.name": "t", "student.config": "c"}
        assert load_distill_settings(flags=names | {path: typed}) == load_distill_settings(flags=names)
    else:
        least = {"inputs": ["a"], "split_sentences": "true"} if model is TokenizeSettings else {"model": "a"}
        assert validate(model, least | {path: typed}) == validate(model, least)


def test_defaults_in_words_are_those_of_the_contract() -> None:
    shown = {
        (model.__name__, option.name): option.default
        for model in (TokenizeSettings, DistillSettings, ResumeSettings, ExportSettings)
        for option in options(model)
        if option.flag.default
    }
    assert shown == {
        ("TokenizeSettings", "--text-field"): "text",
        ("TokenizeSettings", "--workers"): "all cores",
        ("DistillSettings", "--max-length"): "the store's",
        ("DistillSettings", "--steps"): "400000",
        ("DistillSettings", "--report-to"): "none",
        ("DistillSettings", "--output"): "runs/STUDENT-from-TEACHER-DATE-TIME",
        ("ResumeSettings", "RUN"): "the newest in runs/",
        ("ResumeSettings", "--steps"): "the run's",
        ("ExportSettings", "MODEL"): "the newest run in runs/",
        ("ExportSettings", "--pooling"): "the teacher's",
        ("ExportSettings", "--output"): "RUN/export/FORMAT, or MODEL-export/FORMAT",
    }


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", ["tokenize", "distill", "export", "evaluate"])
def test_the_help_shows_every_default_in_single_brackets(
    command: str, columns: int, minilm: Minilm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = [re.sub("[│╭╮╰╯─]", "", line) for line in minilm(command, "--help").out.splitlines()]
    text = "".join("".join(lines).split())
    models = {"tokenize": TokenizeSettings, "distill": DistillSettings, "export": ExportSettings}
    model = {**models, "evaluate": EvaluateSettings}[command]
    for option in options(model):
        if option.default and len(option.default) < 30:
            assert f"[default:{option.default.replace(' ', '')}]" in text, option.name


def test_the_help_of_distill_is_grouped_and_marks_required_options(
    minilm: Minilm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    printed = minilm("distill", "--help").out
    titles = re.findall(r"^╭─ ([\w ]+) ─", printed, re.MULTILINE)
    assert titles == [
        *("Teacher and student", "Data", "Objective", "Training", "Optimiser", "Saving and reporting", "Options")
    ]
    required = re.findall(r"│ (--[\w-]+) (?:(?!│ --).)*?\[required\]", printed, re.DOTALL)
    assert required == ["--teacher"]  # and one of three for the student


def test_tokenize_options_set_their_settings(minilm: Minilm, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[TokenizeSettings] = []

    def tokenize(settings: TokenizeSettings, *_: object) -> TokenizeReport:
        import numpy as np

        calls.append(settings)
        return TokenizeReport(settings.output, 1, Counts(), 1, 1, np.array([0, 1]), 1.0)

    monkeypatch.setattr(tokenizing, "tokenize", tokenize)
    words = (
        "a.txt b.jsonl --tokenizer t --revision r --trust-remote-code --output o.jsonl.gz --max-length 9"
        " --overflow drop --text-field body --errors replace --workers 3 --batch-size 7 --force --pack --join-rows"
        " --split-sentences --language de --continue"
    )
    assert minilm("tokenize", *words.split()).out == "o.jsonl.gz\n"
    assert calls == [
        TokenizeSettings(
            inputs=("a.txt", "b.jsonl"),
            tokenizer="t",
            revision="r",
            trust_remote_code=True,
            output=Path("o.jsonl.gz"),
            max_length=9,
            overflow="drop",
            pack=True,
            join_rows=True,
            split_sentences=True,
            language="de",
            continued=True,
            text_field="body",
            errors="replace",
            workers=3,
            batch_size=7,
            force=True,
        )
    ]


def test_evaluate_options_set_their_settings(minilm: Minilm, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[EvaluateSettings] = []

    def evaluated(settings: EvaluateSettings, _: object) -> Report:
        calls.append(settings)
        return Report(Path("there"), [])

    monkeypatch.setattr(evaluating, "evaluate", evaluated)
    words = (
        "a b --task x.tsv --task stsb --mteb STS12 --kind regression --text t --text-pair u --label l --dev d.tsv"
        " --test e.tsv --teacher c --zero-shot --probe --pooling cls --lr 1e-4 --lr 2e-4 --epochs 2 --seeds 3 --quick"
        " --batch-size 8 --max-length 64 --device cpu --precision bf16 -o there --force"
    )
    assert minilm("evaluate", *words.split()).out == "there\n"
    assert calls == [
        EvaluateSettings(
            models=("a", "b"),
            tasks=("x.tsv", "stsb"),
            mteb=("STS12",),
            data=LabelledData(kind="regression", text="t", pair="u", label="l", dev=Path("d.tsv"), test=Path("e.tsv")),
            tuning=FineTuning(lr=(1e-4, 2e-4), epochs=(2,), seeds=3, quick=True, batch_size=8),
            teacher="c",
            zero_shot=True,
            probe=True,
            pooling="cls",
            max_length=64,
            device="cpu",
            precision="bf16",
            output=Path("there"),
            force=True,
        )
    ]


def test_export_options_set_their_settings(minilm: Minilm, monkeypatch: pytest.MonkeyPatch, finished_run: Path) -> None:
    calls: list[ExportSettings] = []

    def exported(settings: ExportSettings, _: object) -> ExportReport:
        calls.append(settings)
        return ExportReport(Path("there"), (Export("hf", Path("there/hf"), Verified(0.0)),), 2, "https://hub/me/it")

    monkeypatch.setattr(exporting, "export", exported)
    words = (
        "--format hf --format onnx --checkpoint 2 --dtype bfloat16 --pooling cls --quantize int8 --accept-loss"
        " --benchmark --output there --push-to-hub me/it --private --force"
    )
    outcome = minilm("export", finished_run, *words.split())
    assert outcome.out == "there\n"
    assert "https://hub/me/it" in outcome.err
    assert calls == [
        ExportSettings(
            model=finished_run,
            formats=("hf", "onnx"),
            checkpoint=2,
            dtype="bfloat16",
            pooling="cls",
            quantize="int8",
            accept_loss=True,
            benchmark=True,
            output=Path("there"),
            push_to_hub="me/it",
            private=True,
            force=True,
        )
    ]


def test_resume_options_are_passed_on(minilm: Minilm, monkeypatch: pytest.MonkeyPatch, finished_run: Path) -> None:
    calls: list[tuple[RunFolder, object]] = []

    def resume(
        folder: RunFolder, _: object, changes: dict[str, object], *, world: World, judge_for: object
    ) -> RunReport:
        assert world.size == 1
        assert judge_for is during_training.judge_for
        calls.append((folder, changes))
        return RunReport(folder.path, 8, folder.plan())

    monkeypatch.setattr(run, "resume", resume)
    words = "--steps 8 --set checkpoint.keep=5 --set reporting.log_every=2"
    assert minilm("resume", finished_run, *words.split()).status == 0
    changes = {"training.steps": 8, "checkpoint.keep": 5, "reporting.log_every": 2}
    assert [(folder.path, changed) for folder, changed in calls] == [(finished_run, changes)]
