"""The program: its commands, and how it turns an error into a message and an exit status.

stdout carries the result alone, stderr everything said to a person. Whatever is heavy (torch, transformers, numpy,
yaml) is imported inside the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Annotated

import typer

from minilm_cli import __version__
from minilm_cli.base.errors import Dismissed, Interrupted, MinilmError, RunError, remedy
from minilm_cli.cli import demo, distill, evaluate, export, resume, signals, tokenize, usage
from minilm_cli.cli.result import open_console
from minilm_cli.cli.torchrun import repeat_after_torchrun
from minilm_cli.training.distributed import World
from minilm_cli.training.rendezvous import Lost

#: A command line of each command, for its help.
_EXAMPLES = {
    tokenize.tokenize: "minilm tokenize corpus.txt --tokenizer bert-base-uncased --max-length 128",
    distill.distill: "minilm distill --teacher bert-base-uncased --student-config l6-h384 --epochs 3",
    resume.resume: "minilm resume --steps 500000",
    export.export: "minilm export --checkpoint best",
    evaluate.evaluate: "minilm evaluate --task reviews.tsv",
    demo.demo: "minilm demo --output first-student",
}

app = typer.Typer(
    name="minilm",
    cls=usage.Group,
    epilog="minilm tokenize corpus.txt\n"
    "minilm distill --teacher bert-base-uncased --student-config l6-h384\n"
    "minilm export",
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "color": False if os.environ.get("NO_COLOR") else None,
    },
)

for command, example in _EXAMPLES.items():
    app.command(cls=usage.Command, epilog=example)(command)


@app.callback(invoke_without_command=True)
def minilm(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Make a small, fast encoder from a big one: MiniLMv2 self-attention relation distillation."""
    if version:
        print(f"minilm {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def main() -> None:
    """Run a command and exit with its status."""
    _set_up_torch()
    world, status, reported = World(), 1, True
    try:
        with signals.raised():
            world = World.from_environment()
            status = _run(world)
    except BaseException as error:  # noqa: BLE001  # what is not an expected ending is raised again
        reported = not isinstance(error, (Dismissed, Lost))
        status = _explain(error, world)
    finally:
        world.leave(status, reported=reported)
    sys.exit(status)


def _set_up_torch() -> None:
    """Set what torch and its OpenMP library read once, unless the user has set it."""
    # Large tensors in huge pages: a fifth of the page faults, and 4% of a step's time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Threads that wait for each other sleep soon. By default they spin for milliseconds, and next to another program
    # the thread that has work cannot run meanwhile: steps take many times as long.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Micro-batches have many shapes; in segments of fixed sizes a GPU's memory would be left in pieces.
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its older name
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def _run(world: World) -> int:
    if world.size > 1:  # torch's rendezvous logs failures as stack traces
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    if world.leads:
        return app(standalone_mode=False, prog_name="minilm", obj=world) or 0
    from minilm_cli.training import run

    run.follow(world)
    return 0


def _explain(error: BaseException, world: World) -> int:
    """Say what ended the program, and return its exit status; a bug is raised again."""
    debug = os.environ.get("MINILM_DEBUG") == "1"
    match error:
        case SystemExit():
            return error.code if isinstance(error.code, int) else 0
        case KeyboardInterrupt():
            return 128 + signal.SIGINT
        case signals.Terminated():
            return 128 + error.number
        case Dismissed():
            return error.exit_status
        case Interrupted() if not world.leads:
            return error.exit_status
        case typer.TyperException():
            message = _usage_error(error)
        case MinilmError() if isinstance(error, Interrupted) or not debug:
            message = error
        case OSError() if not debug:
            message = _system_error(error)
        case _:
            raise error
    if not world.leads:
        message.message = f"rank {world.rank}: {message.message}"
    open_console().error(message)
    repeat_after_torchrun(f"{'Stopped' if isinstance(message, Interrupted) else 'Error'}: {message}")
    return message.exit_status


def _system_error(error: OSError) -> MinilmError:
    """What the system refused, in the form of our messages."""
    where = None if error.filename is None else str(error.filename)
    kind = MinilmError if error.errno in (errno.EACCES, errno.ENAMETOOLONG) else RunError
    return kind(error.strerror or str(error), where=where, hint=remedy(error))


def _usage_error(error: typer.TyperException) -> MinilmError:
    """What typer found wrong with the command line, in the form of our messages."""
    context = getattr(error, "ctx", None)
    message, hint = error.format_message(), f"See: {context.command_path if context else 'minilm'} --help"
    if context is not None and hasattr(error, "possibilities"):  # an option that does not exist
        message = error.message
        hint = usage.option_hint(getattr(error, "option_name", ""), context) or hint
    return MinilmError(f"{message[:1].lower()}{message[1:]}".rstrip("."), hint=hint)
