"""The commands. The only importer of typer, and the only place that turns an error into a message and exit status.

stdout carries the result alone, stderr everything said to a person. Whatever is heavy (torch, transformers, pydantic,
rich) is imported inside the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minilm_cli import __version__
from minilm_cli.base.errors import Dismissed, Interrupted, MinilmError, remedy
from minilm_cli.training.distributed import World
from minilm_cli.training.rendezvous import Lost

if TYPE_CHECKING:
    from minilm_cli.cli.console import Console
    from minilm_cli.corpus.tokenize import TokenizeReport
    from minilm_cli.training.run import RunReport

app = typer.Typer(
    name="minilm",
    help="Make a small, fast encoder from a big one: MiniLMv2 self-attention relation distillation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # whose tables cut names and defaults at 80 columns
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]


Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.", show_default="the default")]


TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"minilm {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make a small, fast encoder from a big one: MiniLMv2 self-attention relation distillation."""


@app.command()
def tokenize(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Text (a line a sample), .jsonl or .csv, each also as .gz, .bz2, .xz or .zst; .parquet; a quoted"
            " pattern of such files; - for standard input; hf://datasets/NAME[:SPLIT].",
        ),
    ],
    tokenizer: Annotated[
        str | None, typer.Option(help="Hub name or local folder.", show_default="bert-base-uncased")
    ] = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder of the token store; or a name ending in .jsonl.gz, for a list of token ids a line.",
            show_default="tokens",
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens in a sequence, special tokens counted.", show_default="512")
    ] = None,
    overflow: Annotated[
        str | None,
        typer.Option(metavar="split|truncate|drop", help="What becomes of a longer line.", show_default="split"),
    ] = None,
    pack: Annotated[
        bool, typer.Option("--pack", help="Join successive lines, up to --max-length; a blank line ends a document.")
    ] = False,
    split_sentences: Annotated[
        bool, typer.Option("--split-sentences", help="Each sentence is a sample, not each line.")
    ] = False,
    language: Annotated[
        str | None, typer.Option(help="The language whose rules sentences are split by.", show_default="en")
    ] = None,
    text_field: Annotated[
        str | None,
        typer.Option(
            help="The field or column that holds the text; with it, standard input is JSON lines.", show_default="text"
        ),
    ] = None,
    errors: Annotated[
        str | None,
        typer.Option(
            metavar="strict|replace",
            help="Bytes that are not UTF-8: refuse the file, or replace them.",
            show_default="strict",
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.", show_default="all cores")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Lines handed to a worker at once.", show_default="1000")
    ] = None,
    continued: Annotated[
        bool, typer.Option("--continue", help="Go on with a store that was interrupted, from its last whole shard.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Tokenise text into a token store."""
    from minilm_cli.settings.load import validate
    from minilm_cli.settings.tokenize import TokenizeSettings

    given = {
        "inputs": inputs,
        "tokenizer": tokenizer,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "output": output,
        "max_length": max_length,
        "overflow": overflow,
        "pack": pack,
        "split_sentences": split_sentences,
        "language": language,
        "text_field": text_field,
        "errors": errors,
        "workers": workers,
        "batch_size": batch_size,
        "continued": continued,
        "force": force,
    }
    settings = validate(TokenizeSettings, {name: value for name, value in given.items() if value is not None})
    from minilm_cli.corpus import tokenize

    console = _console()
    report = tokenize.tokenize(settings, console.progress)
    facts = _tokenize_facts(report, "sentences" if settings.split_sentences else "lines")
    console.table(f"Tokenised into {report.path}", [(name, f"{value:,}") for name, value in facts.items()])
    _result(report.path, facts, as_json)


def _tokenize_facts(report: TokenizeReport, samples: str) -> dict[str, int]:
    counts = report.counts
    return {
        "lines": report.lines,
        "blank lines skipped": counts.blank,
        **({"sentences": counts.units - counts.blank} if samples == "sentences" else {}),
        f"{samples} split": counts.split,
        f"{samples} truncated": counts.truncated,
        f"{samples} dropped": counts.dropped,
        **({"characters replaced": counts.replaced} if counts.replaced else {}),
        "sequences": report.sequences,
        "tokens": report.tokens,
        "median length": report.percentile(0.5),
        "90th percentile": report.percentile(0.9),
        "99th percentile": report.percentile(0.99),
        "longest": report.percentile(1.0),
        "tokens per second": round(report.tokens_per_second),
    }


@app.command()
def distill(
    context: typer.Context,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Hub name or local folder of the teacher. Required, here or in --config.", show_default=False
        ),
    ] = None,
    student_config: Annotated[
        str | None,
        typer.Option(
            help="A config.json, a folder that has one, or a preset such as l6-h384. Required, here or in --config.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH[:WEIGHT]",
            help="A token store, or a .jsonl.gz of token-id lists; may be repeated, with weights or without.",
            show_default="tokens",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings file (.yaml, .toml, .json); flags override it.", show_default=False)
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting by its dotted path, such as optimizer.weight_decay=0.1.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The run's folder.", show_default="runs/STUDENT-from-TEACHER-DATE-TIME"),
    ] = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    teacher_layer: Annotated[
        str | None,
        typer.Option(
            metavar="auto|INTEGER", help="Teacher layer to learn from, 1-based, −1 the last.", show_default="auto"
        ),
    ] = None,
    student_layer: Annotated[
        int | None, typer.Option(help="Student layer that learns, 1-based, −1 the last.", show_default="-1")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(metavar="random|teacher", help="Starting weights of the student.", show_default="random"),
    ] = None,
    relation_heads: Annotated[
        str | None,
        typer.Option(
            metavar="auto|INTEGER",
            help="Relation heads; auto is 48, or 64 for a 1024-wide teacher.",
            show_default="auto",
        ),
    ] = None,
    relations: Annotated[
        str | None, typer.Option(help="Weight of each relation, a pair of q, k, v.", show_default="qq=1,kk=1,vv=1")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.", show_default="400000")] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the data, instead of --steps.", show_default=False)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences in a step.", show_default="256")] = None,
    micro_batch_tokens: Annotated[
        str | None, typer.Option(metavar="auto|INTEGER", help="Padded tokens in one forward pass.", show_default="auto")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Cut longer sequences to this many tokens.", show_default="the store's")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", show_default="6e-4")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps of linear warm-up.", show_default="4000")] = None,
    schedule: Annotated[
        str | None,
        typer.Option(metavar="linear|cosine|constant", help="Learning rate after the warm-up.", show_default="linear"),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Weight decay, but on biases and norms.", show_default="0.01")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of the gradient.", show_default="1.0")] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="auto|bf16|fp32", help="auto: bf16 where the hardware has it.", show_default="auto"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto: cuda, else mps, else cpu.", show_default="auto")] = None,
    compile_models: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Compile teacher and student.", show_default="no-compile"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.", show_default="42")] = None,
    eval_fraction: Annotated[
        float | None, typer.Option(help="Share of the sequences held out.", show_default="0.01")
    ] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations.", show_default="1000")] = None,
    save_every: Annotated[
        int | None,
        typer.Option(help="Steps between checkpoints, or 15 minutes if that is sooner.", show_default="1000"),
    ] = None,
    keep: Annotated[int | None, typer.Option(help="Newest checkpoints kept, and the best.", show_default="3")] = None,
    log_every: Annotated[
        int | None, typer.Option(help="Steps between lines of metrics.jsonl.", show_default="10")
    ] = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(metavar="tensorboard|wandb", help="Send metrics there too; may be repeated.", show_default="none"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, measure a few steps, print the plan, write nothing.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Distil a teacher into a student, in a run folder."""
    from minilm_cli.settings.load import load_distill_settings

    flags = {
        "teacher.name": teacher,
        "teacher.revision": revision,
        "teacher.trust_remote_code": trust_remote_code or None,
        "teacher.layer": teacher_layer,
        "student.config": student_config,
        "student.layer": student_layer,
        "student.init": init,
        "data.path": data or None,
        "data.max_length": max_length,
        "relations.heads": relation_heads,
        "relations.weights": relations,
        "training.steps": steps,
        "training.epochs": epochs,
        "training.batch_size": batch_size,
        "training.micro_batch_tokens": micro_batch_tokens,
        "training.precision": precision,
        "training.device": device,
        "training.compile": compile_models,
        "training.seed": seed,
        "optimizer.lr": lr,
        "optimizer.weight_decay": weight_decay,
        "optimizer.clip_norm": clip_norm,
        "schedule.kind": schedule,
        "schedule.warmup_steps": warmup_steps,
        "evaluation.fraction": eval_fraction,
        "evaluation.every": eval_every,
        "checkpoint.every": save_every,
        "checkpoint.keep": keep,
        "reporting.log_every": log_every,
        "reporting.sinks": report_to or None,
        "output": output,
    }
    settings = load_distill_settings(config, assignments or (), flags)
    from minilm_cli.training import run

    console = _console()
    if dry_run:
        plan = run.dry_run(settings, force=force)
        for section, rows in plan.tables().items():
            console.table(section.capitalize(), rows)
        if as_json:
            print(plan.model_dump_json())
        return
    _tell(console, run.distill(settings, console.progress, force=force, world=context.obj), as_json)


@app.command()
def resume(
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="The run's folder.", show_default="the newest in runs/")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="A new total of steps.", show_default="the run's")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting that may change mid-run.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Go on with a run as if it had never stopped."""
    from minilm_cli.runs.lookup import find_run
    from minilm_cli.settings.load import combine

    changes = combine({"training.steps": steps}, assignments or ())
    found = find_run(folder)
    from minilm_cli.training import run

    console = _console()
    _tell(console, run.resume(found, console.progress, changes, world=context.obj), as_json)


@app.command()
def export(
    folder: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="The run's folder.", show_default="the newest in runs/")
    ] = None,
    format: Annotated[
        str | None, typer.Option(metavar="hf", help="hf: a folder for transformers.", show_default="hf")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="last|best|STEP", help="Which checkpoint.", show_default="last")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="float32|float16|bfloat16", help="Type of the weights.", show_default="float32"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where it goes.", show_default="RUN/export/FORMAT")
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="REPO", help="Upload it to this Hub repository too.", show_default=False)
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Export a run's student, verified by loading it back."""
    from minilm_cli.runs.lookup import find_run
    from minilm_cli.settings.export import ExportSettings
    from minilm_cli.settings.load import validate

    given = {
        "run": find_run(folder).path,
        "format": format,
        "checkpoint": checkpoint,
        "dtype": dtype,
        "output": output,
        "push_to_hub": push_to_hub,
        "private": private,
        "force": force,
    }
    settings = validate(ExportSettings, {name: value for name, value in given.items() if value is not None})
    from minilm_cli.export import exporting

    console = _console()
    report = exporting.export(settings)
    console.say(
        f"Exported step {report.step}; loaded back, it computes what the checkpoint computes"
        f" (largest difference {report.largest_difference:.1e})."
    )
    if report.url:
        console.say(f"Uploaded to {report.url}")
    facts = {"step": report.step, "largest_difference": report.largest_difference, "url": report.url}
    _result(report.path, facts, as_json)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder that holds all it makes.")] = Path(
        "minilm-demo"
    ),
    force: Force = False,
) -> None:
    """Run the whole path in two minutes, on a sample it brings."""
    from minilm_cli.cli import demo as demonstration

    console = _console()
    exported = demonstration.run(output, console, force=force)
    print(exported)


def _console() -> Console:
    from minilm_cli.cli.console import Console

    console = Console()
    console.listen()
    return console


def _result(path: Path, facts: dict[str, Any], as_json: bool) -> None:
    print(
        json.dumps({"path": str(path), **{name.replace(" ", "_"): value for name, value in facts.items()}})
        if as_json
        else path
    )


def _tell(console: Console, report: RunReport, as_json: bool) -> None:
    if report.finished_before:
        console.say(f"{report.path} is finished: {report.step} steps. Extend it with --steps.")
    else:
        losses = {"loss": "loss {:.4f}", "eval_loss": "{:.4f} on held-out text"}
        known = [words.format(report.losses[name]) for name, words in losses.items() if name in report.losses]
        console.say(f"Trained {report.step} steps{': ' if known else ''}{', '.join(known)}.")
        console.say(f"The student is in {report.path / 'student'}. Export it with:\n    minilm export {report.path}")
    _result(report.path, {"step": report.step, **report.losses}, as_json)


class _Terminated(BaseException):
    """A signal came outside training, where nothing needs saving but temporary files need clearing."""


class _CtrlC(KeyboardInterrupt):
    """Ctrl-C outside training, under a type of its own.

    Once a plain `KeyboardInterrupt` has left an `exec` of a text, as there is one wherever a dataclass is imported,
    `python -m` ends by the signal and not with the status given to `sys.exit`.
    """


def _on_ctrl_c(_number: int, _frame: FrameType | None) -> None:
    raise _CtrlC


def _on_terminate(number: int, _frame: FrameType | None) -> None:
    raise _Terminated(number)


def _on_ask_to_save(_number: int, _frame: FrameType | None) -> None:
    """Outside training there is nothing to save, and no reason to end."""


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Signals that end the program raise inside the block, so that temporary files are cleared.

    Behind it nothing is left to clear, and nobody to catch what is raised while Python ends: there they just end it.
    """
    handlers = {signal.SIGTERM: _on_terminate, signal.SIGINT: _on_ctrl_c, signal.SIGHUP: _on_terminate}
    # Ignored are SIGHUP under nohup, and SIGINT in what a shell runs in the background.
    heard = [number for number in handlers if signal.getsignal(number) is not signal.SIG_IGN]
    signal.signal(signal.SIGUSR1, _on_ask_to_save)
    for number in heard:
        signal.signal(number, handlers[number])
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)


def main() -> None:
    """The console script: run the command and exit with its status."""
    # Large tensors in huge pages: a fifth of the page faults, and 4% of a step's time, on CPUs. torch reads it once.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    world = World()
    status, told_why = 1, True
    try:
        with _signals_raise():
            world = World.from_environment()
            if world.size > 1:  # what torch's own meeting point logs of a failure are stack traces
                os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
            if world.leads:
                app(standalone_mode=True, prog_name="minilm", obj=world)
            else:
                from minilm_cli.training import run

                run.follow(world)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0
    except MinilmError as error:
        if os.environ.get("MINILM_DEBUG") == "1" and not isinstance(error, (Interrupted, Dismissed)):
            raise
        status, told_why = error.exit_status, not isinstance(error, (Dismissed, Lost))
        if not isinstance(error, Dismissed) and (world.leads or not isinstance(error, Interrupted)):
            _say(error, world)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except _Terminated as terminated:
        status = 128 + int(terminated.args[0])
    except OSError as error:
        if os.environ.get("MINILM_DEBUG") == "1":
            raise
        where = None if error.filename is None else str(error.filename)
        status = 2 if error.errno in (errno.EACCES, errno.ENAMETOOLONG) else 1
        _say(MinilmError(error.strerror or str(error), where=where, hint=remedy(error)), world)
    finally:
        world.part(status, told_why=told_why)
    sys.exit(status)


def _say(error: MinilmError, world: World) -> None:
    if not world.leads:
        error.message = f"rank {world.rank}: {error.message}"
    _console().error(error)
    logging.shutdown()
