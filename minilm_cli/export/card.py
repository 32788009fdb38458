"""The model card of an export: `README.md`, and the loss curve of a run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from minilm_cli import __version__
from minilm_cli.base.overwrite import EXPORT_MARK
from minilm_cli.export.card_loading import loading
from minilm_cli.export.card_scores import scores_section
from minilm_cli.export.card_training import Training, training_sections
from minilm_cli.export.formats import Verified
from minilm_cli.export.loss_curve import loss_curve
from minilm_cli.export.loss_picture import write_picture
from minilm_cli.export.markdown import code, plain, table
from minilm_cli.export.source import Source
from minilm_cli.export.speed import Speed
from minilm_cli.models.auto import auto_class
from minilm_cli.models.families import family_of
from minilm_cli.models.hub import Card, read_card
from minilm_cli.models.sentence_head import Dense, SentenceHead
from minilm_cli.models.size import count_parameters
from minilm_cli.runs.plan import TeacherFacts

#: The loss curve, for any use and for pages that show no SVG.
CURVE_FILE, PICTURE_FILE = "loss.svg", "loss.png"

#: Sections of the card of an export that are about its format.
_OF_FORMAT = ("How to load it", "Sentence embeddings", "Verification", "Speed")

#: What loads each format for its verification.
_LOADERS = {"hf": "`AutoModel`", "sentence-transformers": "`SentenceTransformer`", "onnx": "ONNX Runtime"}


@dataclass(frozen=True)
class Facts:
    """What the card of an export is written from."""

    source: Source
    form: str
    """Name of the format."""
    verified: Verified
    folder: Path
    """Of the export."""
    speeds: Sequence[Speed] = ()
    """If they were measured."""

    @property
    def head(self) -> SentenceHead | None:
        """How the export makes sentence embeddings, if it does."""
        return None if self.form == "hf" else self.source.head


def write_card(facts: Facts, *, picture: bool = True) -> None:
    """Write the card of an export into its folder. picture: whether to draw the loss curve as PNG too."""
    source = facts.source
    if source.run is None or source.step is None:
        text = folder_card(facts)
    else:
        text = run_card(facts, Training.of(source.run, source.step), picture=picture)
    (facts.folder / "README.md").write_text(text, encoding="utf-8")


def run_card(facts: Facts, training: Training, *, picture: bool = True) -> str:
    """The card of a run's student, after its loss curve was written into the folder."""
    folder = facts.folder
    (folder / CURVE_FILE).write_text(loss_curve(training.records, training.title), encoding="utf-8")
    has_picture = picture and write_picture(training.records, training.title, folder / PICTURE_FILE)
    teacher, student = training.plan.teacher, training.plan.student
    sections = [
        _front_matter(facts, _inherited(teacher), ["minilm", "distillation", student.family]),
        f"# {plain(training.title)}",
        f"{_described(facts.source)}, made by minilm {__version__} with MiniLMv2: multi-head self-attention relation"
        " distillation ([arXiv 2012.15828](https://arxiv.org/abs/2012.15828)).",
        _purpose(facts.head, is_random=student.has_random_tail),
        *_use(facts),
        *training_sections(training, PICTURE_FILE if has_picture else CURVE_FILE),
        scores_section(facts.source),
        *_checks(facts),
        _speed(facts.speeds),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def folder_card(facts: Facts) -> str:
    """The card of a model that is no run's: what its own card says is kept, with the pictures of an export's card."""
    source = facts.source
    own = read_card(str(source.folder.absolute()))
    text = own.text.strip()
    if (source.folder / EXPORT_MARK).is_file():
        text = _without_format(text)
    for name in (CURVE_FILE, PICTURE_FILE):
        if (picture := source.folder / name).is_file():
            shutil.copy(picture, facts.folder / name)
    sections = [
        _front_matter(facts, _kept(own), [*own.words("tags"), family_of(source.model.config).name]),
        f"# {plain(source.folder.resolve().name)} as {facts.form}",
        f"{_described(source)}, exported by minilm {__version__}.",
        *_use(facts),
        *_checks(facts),
        _speed(facts.speeds),
        f"## The model's own card\n\n{text}" if text else "",
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


# --- Front matter ------------------------------------------------------------------------------------------------


def _front_matter(facts: Facts, known: Mapping[str, Any], tags: list[str]) -> str:
    head = facts.head
    by_format = [] if head is None else ["sentence-transformers"]
    if facts.form == "onnx":
        by_format += ["onnx", "transformers.js"]
    data = ModelCardData(
        **known,
        library_name="transformers" if head is None else "sentence-transformers",
        pipeline_tag="feature-extraction" if head is None else "sentence-similarity",
        tags=[*tags, *by_format],
    )
    return f"---\n{data.to_yaml()}\n---"


def _inherited(teacher: TeacherFacts) -> dict[str, Any]:
    """What a student's card takes from its teacher."""
    link = teacher.license_link
    if link and "://" not in link:  # a file of the teacher
        link = f"https://huggingface.co/{teacher.name}/blob/main/{link}" if teacher.on_hub else None
    base = {"base_model": teacher.name, "base_model_relation": "finetune"} if teacher.on_hub else {}
    return {
        "language": teacher.language or None,
        "license": teacher.license,
        "license_name": teacher.license_name,
        "license_link": link,
        **base,
    }


def _kept(own: Card) -> dict[str, Any]:
    """What an export keeps of the model's own card."""
    single = ("license", "license_name", "license_link", "base_model_relation")
    several = ("language", "base_model", "datasets")
    return {key: own.words(key) or None for key in several} | {key: own.word(key) for key in single}


def _without_format(text: str) -> str:
    """The card of an export without the sections about its format: that of an export made from it has its own."""
    sections = re.split(r"(?m)^(?=## )", text)
    return "".join(section for section in sections if section.split("\n")[0][3:] not in _OF_FORMAT).strip()


# --- Sections ----------------------------------------------------------------------------------------------------


def _described(source: Source) -> str:
    config = source.model.config
    family, parameters = family_of(config).name, count_parameters(source.model)
    shape = f"{config.num_hidden_layers} layers, {config.hidden_size} wide ({parameters:,} parameters, {source.dtype})"
    return f"A {family} encoder of {shape}"


def _purpose(head: SentenceHead | None, *, is_random: bool) -> str:
    """What the student is for. is_random: whether its untrained weights are random."""
    if head is not None:
        return "Its last part was not trained: fine-tune it, as its embeddings mean little." if is_random else ""
    without = " Without that, its outputs mean little." if is_random else ""
    return f"It is a general-purpose encoder to be fine-tuned for a task.{without}"


def _use(facts: Facts) -> Iterator[str]:
    source, head = facts.source, facts.head
    hidden_size = source.model.config.hidden_size
    width = hidden_size if head is None else head.width(hidden_size)
    auto = auto_class(facts.source.model.config).__name__
    yield loading(facts.form, head, width, auto=auto, quantised=bool(facts.verified.kept))
    if head is None:
        return
    longest = "not limited" if source.longest is None else f"{source.longest:,} tokens; longer texts are cut"
    after = ["dense layer" if isinstance(layer, Dense) else "scaled to length 1" for layer in head.layers]
    rows = [
        ("pooling", ", ".join(head.pooling)),
        ("after pooling", ", ".join(after) or "nothing"),
        ("dimensions", f"{width:,}"),
        ("longest text", longest),
        ("similarity", plain(head.similarity)),
        *((f"prompt {code(name)}", code(repr(prompt))) for name, prompt in head.prompts.items()),
    ]
    if head.default_prompt:
        rows.append(("prompt by default", code(head.default_prompt)))
    yield f"## Sentence embeddings\n\n{table(rows)}"


def _checks(facts: Facts) -> Iterator[str]:
    head, verified, folder = facts.head, facts.verified, facts.folder
    compared = "hidden states" if head is None else "hidden states and sentence embeddings"
    yield (
        f"## Verification\n\nLoaded back by {_LOADERS[facts.form]} and compared with the model that it was made of,"
        f" on texts alone and in a padded batch: the tokens are the same, and {compared} differ by at most"
        f" {verified.largest_difference:.1e} of the largest value."
    )
    if verified.kept:
        yield _quantised(verified.kept, head)
    files = sorted(path for end in ("safetensors", "onnx", "onnx.data") for path in folder.rglob(f"*.{end}"))
    rows = [(code(path.relative_to(folder).as_posix()), _megabytes(path.stat().st_size)) for path in files]
    yield table(rows, ["model file", "size"])


def _speed(speeds: Sequence[Speed]) -> str:
    if not speeds:
        return ""
    rows = [
        (plain(each.model), f"{each.megabytes:,.1f}", f"{each.single:,.0f}", f"{each.batched:,.0f}") for each in speeds
    ]
    header = ("on one CPU", "MB", "texts/s, one at a time", "texts/s, 32 at a time")
    return f"## Speed\n\n{table(rows, header)}"


def _quantised(kept: Mapping[str, Any], head: SentenceHead | None) -> str:
    what = "sentence embeddings" if head is not None else "mean hidden states"
    rows = [
        ("cosine to fp32, mean", f"{kept['cosine']:.4f}"),
        ("cosine to fp32, worst", f"{kept['lowest_cosine']:.4f}"),
        ("recall@10: the nearest text in fp32 is among the ten nearest", f"{kept['recall']:.1%}"),
        ("the ten nearest in fp32 that are still among the ten nearest", f"{kept['neighbours']:.1%}"),
    ]
    held_out = f", {kept['held_out']} of them held out of the training" if kept["held_out"] else ""
    header = (f"in 8 bits: {what} of {kept['texts']} texts{held_out}", "")
    batches = (
        "An embedding in 8 bits depends a little on the other texts of its batch, whose ranges are measured together."
    )
    return f"{table(rows, header)}\n\n{batches}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 10**6 else f"{size / 1e6:.2g} MB"
