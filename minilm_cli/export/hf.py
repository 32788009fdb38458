"""A checkpoint becomes a folder that others can use, verified by loading it back as they would."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from minilm_cli.base.atomic import staged, sweep
from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.overwrite import refuse_existing
from minilm_cli.export.card import CURVE_FILE, loss_curve, model_card
from minilm_cli.models.families import longest_input
from minilm_cli.models.hub import loading, quiet, tokenizer_info
from minilm_cli.models.state import refuse_others, unshared_state
from minilm_cli.models.student import build_student, saved_config
from minilm_cli.runs.checkpoint import Checkpoint
from minilm_cli.runs.folder import RunFolder
from minilm_cli.settings.export import ExportSettings

#: How far a loaded copy's hidden states may be from the checkpoint's, in shares of the largest: rounding.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}


@dataclass(frozen=True)
class ExportReport:
    """The outcome of `export`."""

    path: Path
    step: int
    largest_difference: float
    """Between the hidden states of the checkpoint and of the copy that was loaded back, as a share of the largest."""
    url: str | None = None
    """Where it was uploaded."""


def export(settings: ExportSettings) -> ExportReport:
    """Export a run's student, verified, with its tokenizer and model card.

    Raises `MinilmError` if the run, the checkpoint or the output is wrong, `RunError` if the copy does not compute
    what the checkpoint computes; nothing is left behind then.
    """
    run = RunFolder(settings.run)
    output = settings.output or run.path / "export" / settings.format
    refuse_existing(output, run.path, force=settings.force)
    _refuse_parts(output, run)
    if settings.push_to_hub:
        _check_repository(settings.push_to_hub)
    elif settings.private:
        raise MinilmError("--private says how a repository is made, and none is named", hint="Add --push-to-hub.")
    if not run.tokenizer.is_dir():
        raise MinilmError("the run's tokenizer is missing", where=str(run.tokenizer))
    sweep(run.path)
    chosen, difference = _export(run, output, settings)
    url = _upload(output, settings.push_to_hub, private=settings.private) if settings.push_to_hub else None
    return ExportReport(output, chosen.step, difference, url)


def _export(run: RunFolder, output: Path, settings: ExportSettings) -> tuple[Checkpoint, float]:
    """Write the checkpoint that is wanted; picked anew if a run that is at work removes it meanwhile."""
    chosen = run.pick_checkpoint(settings.checkpoint)
    try:
        with staged(output, force=settings.force, folder=True) as built:
            return chosen, write_hf(run, chosen, built, dtype=settings.dtype)
    except RunError:
        if chosen.path.exists():
            raise
    return _export(run, output, settings)


def _refuse_parts(output: Path, run: RunFolder) -> None:
    """Raise `MinilmError` if the output would replace a part of the run that is no export."""
    place, inside, exports = (Path(os.path.realpath(path)) for path in (output, run.path, run.path / "export"))
    if output.exists() and place.is_relative_to(inside) and not place.is_relative_to(exports):
        raise MinilmError("this is a part of the run", where=str(output), hint="Name another --output.")


def write_hf(run: RunFolder, chosen: Checkpoint, folder: Path, *, dtype: str = "float32") -> float:
    """Write the student of a checkpoint as a Hugging Face folder, and verify it.

    Returns the largest difference found; raises `RunError` if it is more than rounding.
    """
    model = load_student(run, chosen)
    with quiet():
        load_student(run, chosen).to(getattr(torch, dtype)).save_pretrained(folder)
    copy_files(run.tokenizer, folder)
    records = [record for record in run.metrics() if record["step"] <= chosen.step]
    plan = run.plan()
    changes = [
        (change.step, f"{change.setting} from {change.was} to {change.became}")
        for change in run.changes()
        if change.step < chosen.step
    ]
    card = model_card(run.settings(), plan, records, step=chosen.step, dtype=dtype, changes=changes)
    (folder / "README.md").write_text(card, encoding="utf-8")
    title = f"{plan.student.name} from {plan.teacher.name}"
    (folder / CURVE_FILE).write_text(loss_curve(records, title), encoding="utf-8")
    return verify_hf(folder, model, run.tokenizer, dtype=dtype)


def load_student(run: RunFolder, chosen: Checkpoint) -> PreTrainedModel:
    """The student with a checkpoint's weights, in evaluation mode."""
    model = build_student(saved_config(run.student_config_file), seed=0)
    weights = chosen.tensors("student")
    refuse_others(weights, unshared_state(model))
    model.load_state_dict(weights, strict=False)
    model.train(False)
    return model


def verify_hf(folder: Path, model: PreTrainedModel, tokenizer: Path, *, dtype: str) -> float:
    """Load `folder` as users will and compare it with `model`, on single sequences and on a padded batch.

    Returns the largest difference of the hidden states, as a share of the largest of them; raises `RunError` if that
    is more than the rounding of `dtype`, or the tokenizer is not the run's.
    """
    tolerance = TOLERANCE[dtype]
    with loading("export", str(folder)):
        copy = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        ours, theirs = (tokenizer_info(AutoTokenizer.from_pretrained(path)) for path in (tokenizer, folder))
    if ours != theirs:
        raise RunError("the exported tokenizer is not the one of the run", where=str(folder))
    sequences = _probe(model)
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=_pad_id(model))
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in sequences], batch_first=True)
    with torch.no_grad():
        together = copy(input_ids=padded, attention_mask=mask).last_hidden_state
        difference = 0.0
        for row, ids in enumerate(sequences):
            expected = model(input_ids=ids[None]).last_hidden_state[0]
            alone = copy(input_ids=ids[None]).last_hidden_state[0]
            for found in (alone, together[row, : len(ids)]):
                share = (found.float() - expected).abs().max() / expected.abs().max()
                # What is not a number is no rounding either, and `max` would lose it.
                difference = max(difference, share.nan_to_num(torch.inf).item())
    if difference > tolerance:
        raise RunError(
            f"the exported model does not compute what the checkpoint computes: its hidden states differ by"
            f" {difference:.2g}, and {tolerance:g} would be rounding",
            where=str(folder),
        )
    return difference


def _probe(model: PreTrainedModel) -> list[Tensor]:
    """Sequences of token ids of several lengths, the longest as long as the model takes (at most 128)."""
    generator = torch.Generator().manual_seed(0)
    longest = min(128, longest_input(model) or 128)
    ids = [torch.randint(model.config.vocab_size, (length,), generator=generator) for length in (longest, 17, 3, 1)]
    # Some families find their positions by the padding id: it does not occur among real tokens.
    return [sequence.masked_fill(sequence == _pad_id(model), (_pad_id(model) + 1) % 2) for sequence in ids]


def _pad_id(model: PreTrainedModel) -> int:
    return model.config.pad_token_id or 0


def _check_repository(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is not among its exports

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise MinilmError(str(error), where=f"--push-to-hub {name}") from None


def _upload(folder: Path, repository: str, *, private: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload the distilled student")
    except (HfHubHTTPError, OSError) as error:
        raise RunError(
            f"the upload to {repository} failed: {str(error).splitlines()[0]}",
            hint=f"The export itself is whole, in {folder}. Are you logged in (hf auth login, or HF_TOKEN)?",
        ) from error
    return str(url)


def copy_files(source: Path, target: Path) -> None:
    """Copy a folder's files into another; `OSError` names the first that cannot be, where `shutil` lists them all."""
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_dir():
            copy_files(path, target / path.name)
        elif path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
