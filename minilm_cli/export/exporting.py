"""A model becomes folders that others can load, each verified before it gets its name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minilm_cli import __version__
from minilm_cli.base.atomic import staged, sweep
from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.jsonio import write_json
from minilm_cli.base.overwrite import EXPORT_MARK, refuse_existing
from minilm_cli.base.progress import Progress
from minilm_cli.export.card import Facts, write_card
from minilm_cli.export.formats import Format, Verified
from minilm_cli.export.hf import HuggingFace
from minilm_cli.export.hub import check_access, upload
from minilm_cli.export.onnx import Onnx
from minilm_cli.export.sentence_transformers import SentenceTransformers
from minilm_cli.export.source import Source, choose_head, source_of_checkpoint, source_of_folder
from minilm_cli.export.speed import Speed, speeds_of_models, speeds_of_onnx
from minilm_cli.runs.folder import RunFolder
from minilm_cli.runs.lookup import find_model
from minilm_cli.settings.export import ExportSettings

logger = logging.getLogger(__name__)

FORMATS: Mapping[str, Callable[[ExportSettings], Format]] = {
    "hf": lambda _: HuggingFace(),
    "sentence-transformers": lambda _: SentenceTransformers(),
    "onnx": lambda settings: Onnx(settings.quantize, settings.accept_loss),
}


@dataclass(frozen=True)
class Export:
    """A folder that was written, and what was found by using it."""

    format: str
    path: Path
    verified: Verified


@dataclass(frozen=True)
class ExportReport:
    """The outcome of `export`."""

    path: Path
    """The export's folder; of several, the folder that holds them."""
    exports: tuple[Export, ...]
    step: int | None
    """Of the run's checkpoint."""
    url: str | None = None
    """Where it was uploaded."""
    speeds: tuple[Speed, ...] = ()
    """What was measured, if that was asked for."""


def export(settings: ExportSettings, progress: Progress) -> ExportReport:
    """Export a run's student, or the model of a folder, with its tokenizer and model card, verified.

    Raises `MinilmError` if the model, the checkpoint or the output is wrong, `RunError` if an export does not compute
    what the model computes; then nothing is left of any of them.
    """
    _check_options(settings)
    model = find_model(settings.model)
    path, outputs = _outputs(model, settings)
    if settings.push_to_hub is not None:
        check_access(settings.push_to_hub)
    progress.start("Exporting", len(outputs), unit="formats")
    try:
        source = _source(model, settings)
        forms = {name: FORMATS[name](settings) for name in outputs}
        for form in forms.values():
            form.check(source)
        if isinstance(model, RunFolder):
            sweep(model.path)
        measured: list[Speed] = []
        if settings.benchmark:
            progress.activity("Measuring")
            measured += speeds_of_models(source)
        exports: list[Export] = []
        with ExitStack() as stack:  # all of them get their names at the end, or none does
            for name, output in outputs.items():
                progress.update(len(exports))
                built = stack.enter_context(staged(output, force=settings.force, folder=True))
                with _naming(output, built):
                    verified = write_verified(name, forms[name], source, built, progress)
                if settings.benchmark and name == "onnx":
                    progress.activity(f"Measuring {name}")
                    measured += speeds_of_onnx(source, built)
                write_card(Facts(source, name, verified, built, measured))
                exports.append(Export(name, output, verified))
        progress.update(len(exports))
        url = None
        if settings.push_to_hub is not None:
            progress.activity("Uploading")
            url = upload(outputs, settings.push_to_hub, private=settings.private)
    finally:
        progress.stop()
    return ExportReport(path, tuple(exports), source.step, url, tuple(measured))


def write_verified(name: str, form: Format, source: Source, folder: Path, progress: Progress) -> Verified:
    """Write an export, without its model card, into a new folder, and verify it; raises `RunError` if it is wrong."""
    progress.activity(f"Writing {name}")
    form.write(source, folder)
    progress.activity(f"Verifying {name}")
    verified = form.verify(source, folder)
    write_json(folder / EXPORT_MARK, _record(name, source, verified))
    return verified


@contextmanager
def _naming(output: Path, built: Path) -> Iterator[None]:
    """Within the block, an error about the folder that is built names the output: the other is gone with the error."""
    try:
        yield
    except RunError as error:
        if error.where == str(built):
            error.where = str(output)
        raise


def _check_options(settings: ExportSettings) -> None:
    """Raise `MinilmError` about options that do not go together."""
    if settings.push_to_hub is None and "private" in settings.model_fields_set:
        name = "--private" if settings.private else "--public"
        raise MinilmError(f"{name} applies to a new Hub repository", hint="Add --push-to-hub.")
    if settings.pooling is not None and settings.formats == ("hf",):
        hint = "Add --format sentence-transformers, or --format onnx."
        raise MinilmError("--pooling applies to exports that make sentence embeddings", hint=hint)
    if settings.quantize and "onnx" not in settings.formats:
        raise MinilmError("--quantize applies to ONNX", hint="Add --format onnx.")
    if settings.quantize and settings.dtype != "float32":
        raise MinilmError("--quantize starts from weights in float32", hint=f"Leave out --dtype {settings.dtype}.")
    if settings.accept_loss and not settings.quantize:
        raise MinilmError("--accept-loss applies to a quantised model", hint="Add --quantize.")


def _outputs(model: RunFolder | Path, settings: ExportSettings) -> tuple[Path, dict[str, Path]]:
    """What the command prints as its result, and the folder of each format; raises `MinilmError` if one is taken."""
    if isinstance(model, RunFolder):
        given, holder = model.path, model.path / "export"
    else:
        given = model if model.name not in ("", "..") else model.resolve()
        holder = given.with_name(f"{given.name}-export")
    only_one = len(settings.formats) == 1
    if settings.output and only_one:
        outputs: dict[str, Path] = {settings.formats[0]: settings.output}
    else:
        outputs = {name: (settings.output or holder) / name for name in settings.formats}
    for output in outputs.values():
        refuse_existing(output, given, force=settings.force)
        _refuse_parts(output, given, "run" if isinstance(model, RunFolder) else "model")
    return outputs[settings.formats[0]] if only_one else settings.output or holder, outputs


def _refuse_parts(output: Path, model: Path, kind: str) -> None:
    """Raise `MinilmError` if the output would replace a part of the run or model that is not an export."""
    place, inside, exports = (Path(os.path.realpath(path)) for path in (output, model, model / "export"))
    if output.exists() and place.is_relative_to(inside) and not place.is_relative_to(exports):
        raise MinilmError(f"this is a part of the {kind}", where=str(output), hint="Name another --output.")


def _source(model: RunFolder | Path, settings: ExportSettings) -> Source:
    if isinstance(model, RunFolder):
        source = source_of_checkpoint(model, settings.checkpoint)
    elif settings.checkpoint != "last":
        raise MinilmError("a model folder has no checkpoints", where=str(model), hint="Leave out --checkpoint.")
    else:
        source = source_of_folder(model)
    head = None if settings.formats == ("hf",) else choose_head(source, settings.pooling)
    if head is not None and source.has_untrained_tail:
        logger.warning(
            "The last part of this student was not trained, as it began with random weights: its sentence embeddings"
            " mean little until it is fine-tuned."
        )
    return replace(source, dtype=settings.dtype, head=head)


def figures(verified: Verified) -> dict[str, Any]:
    """What the verification found, for a program."""
    quantised = {"quantized": dict(verified.kept)} if verified.kept else {}
    return {"largest_difference": verified.largest_difference, **quantised}


def _record(name: str, source: Source, verified: Verified) -> dict[str, Any]:
    """What an export says of itself; its file also marks the folder as one that --force may replace."""
    return {
        "minilm": __version__,
        "format": name,
        "dtype": source.dtype,
        **({} if source.step is None else {"step": source.step}),
        **({"untrained_tail": True} if source.has_untrained_tail else {}),
        **figures(verified),
    }
