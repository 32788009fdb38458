"""Students that keep only some of their teacher's tokens."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from minilm_cli.base.errors import MinilmError
from minilm_cli.base.progress import NoProgress
from minilm_cli.corpus.tokenize import tokenize
from minilm_cli.evaluate.during_training import judge_for
from minilm_cli.export import exporting
from minilm_cli.export.source import source_of_checkpoint
from minilm_cli.runs.folder import RunFolder
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.settings.export import ExportSettings
from minilm_cli.settings.load import load_distill_settings
from minilm_cli.settings.tokenize import TokenizeSettings
from minilm_cli.tokens.store import TokenStore
from minilm_cli.training import run, student_choice
from minilm_cli.training.student_choice import choose_student
from tests import multilingual

from .conftest import Crash, assert_same_result, crash_at, verify_here

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("same_process")]

#: Tokens that are kept of 3000.
KEPT = 1500

Data = tuple[Path, Path]
"""A teacher and its token store."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Data]:
    """Makes the teacher of a family, and the token store of a text in several scripts."""

    @cache
    def make(family: str) -> Data:
        folder = tmp_path_factory.mktemp(family)
        multilingual.save_teacher(family, folder / "teacher")
        (folder / "text.txt").write_text("\n".join(multilingual.lines(300)), encoding="utf-8")
        inputs, store = (str(folder / "text.txt"),), folder / "tokens"
        tokenize(
            TokenizeSettings(inputs=inputs, tokenizer=str(folder / "teacher"), output=store, max_length=32, workers=1),
            NoProgress(),
        )
        return folder / "teacher", store

    return make


def settings(data: Data, output: Path, **changes: Any) -> DistillSettings:
    teacher, store = data
    values = {
        "teacher.name": str(teacher),
        "student.config": "l2-h24",
        "student.init": "teacher",
        "student.keep_vocab": KEPT,
        "data.path": store,
        "training.steps": 4,
        "training.batch_size": 6,
        "training.micro_batch_tokens": 256,
        "evaluation.fraction": 0.05,
        "evaluation.every": 2,
        "checkpoint.every": 2,
        "output": output,
    }
    return load_distill_settings(flags=values | {name.replace("__", "."): value for name, value in changes.items()})


@pytest.fixture(scope="module")
def trimmed(data: Callable[[str], Data], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a run of a family whose student keeps half of the tokens."""

    @cache
    def make(family: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            verify_here(patch)
            output = tmp_path_factory.mktemp("runs") / family
            return run.distill(settings(data(family), output), NoProgress()).path

    return make


@pytest.fixture(params=multilingual.TOKENIZERS)
def family(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_the_student_has_the_kept_tokens(
    family: str, trimmed: Callable[[str], Path], data: Callable[[str], Data]
) -> None:
    folder, (teacher, store) = trimmed(family), data(family)
    facts = RunFolder(folder).plan().vocabulary
    tokenizer, whole = (AutoTokenizer.from_pretrained(path) for path in (folder / "student", teacher))
    student = AutoModel.from_pretrained(folder / "student")
    assert facts is not None
    assert KEPT - 20 < facts.tokens == len(tokenizer) == student.config.vocab_size <= KEPT
    assert facts.teacher_tokens == len(whole)
    assert 0 < facts.share_split < 0.2
    assert facts.share_unknown == 0
    assert facts.texts_compared > 0
    counts = TokenStore(store).token_counts()
    most_frequent = whole.convert_ids_to_tokens(np.argsort(-counts, kind="stable")[:500].tolist())
    assert {*most_frequent} <= tokenizer.get_vocab().keys()
    for name in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(tokenizer, f"{name}_token") == getattr(whole, f"{name}_token")
    assert student.config.pad_token_id == tokenizer.pad_token_id
    assert (
        student(**tokenizer(multilingual.lines(20), padding=True, return_tensors="pt"))
        .last_hidden_state.isfinite()
        .all()
    )


def test_card_and_banner_say_what_was_kept(trimmed: Callable[[str], Path]) -> None:
    text = (trimmed("bert") / "student" / "README.md").read_text(encoding="utf-8")
    assert f"| vocabulary | {KEPT:,} of the teacher's 3,000 tokens; " in text
    assert f"keep_vocab: {KEPT}" in text


def test_a_resumed_run_ends_as_an_uninterrupted_one(
    family: str, trimmed: Callable[[str], Path], data: Callable[[str], Data], tmp_path: Path
) -> None:
    resumed = tmp_path / family
    with pytest.raises(Crash):
        run.distill(settings(data(family), resumed), crash_at(3))
    run.resume(RunFolder(resumed), NoProgress())
    assert_same_result(resumed, trimmed(family))
    assert RunFolder(resumed).plan() == RunFolder(trimmed(family)).plan()


def test_texts_to_compare_exports_with_are_those_of_the_data(trimmed: Callable[[str], Path]) -> None:
    texts = source_of_checkpoint(RunFolder(trimmed("roberta")), "last").texts(20)
    lines = multilingual.lines(300)
    assert len(texts) == 20
    assert all(any(text.strip() in line for line in lines) for text in texts)


def test_a_trimmed_student_is_exported(trimmed: Callable[[str], Path], tmp_path: Path) -> None:
    forms = ("hf", "sentence-transformers", "onnx")
    wanted = ExportSettings(model=trimmed("xlm-roberta"), formats=forms, pooling="mean", output=tmp_path / "out")
    exported = exporting.export(wanted, NoProgress())
    sizes = [
        [len(AutoTokenizer.from_pretrained(folder)), AutoConfig.from_pretrained(folder).vocab_size]
        for folder in exported.path.iterdir()
    ]
    assert len(sizes) == len(forms)
    assert max(max(size) for size in sizes) <= KEPT


def test_a_student_of_the_teachers_widths_has_its_rows(data: Callable[[str], Data], tmp_path: Path) -> None:
    whole = AutoModel.from_pretrained(data("modernbert")[0])
    report = run.distill(
        settings(
            data("modernbert"), tmp_path / "run", student__config="l2-h48", training__steps=1, optimizer__lr=1e-12
        ),
        NoProgress(),
    )
    student, tokenizer = (kind.from_pretrained(report.path / "student") for kind in (AutoModel, AutoTokenizer))
    theirs = AutoTokenizer.from_pretrained(data("modernbert")[0]).get_vocab()
    former = [theirs[token] for token in sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)]
    ours, rows = student.get_input_embeddings().weight, whole.get_input_embeddings().weight[former]
    assert torch.allclose(ours, rows, atol=1e-6)


def test_it_is_scored_with_its_own_tokenizer(data: Callable[[str], Data], tmp_path: Path) -> None:
    task, lines = tmp_path / "pairs.tsv", multilingual.lines(20)
    rows = [f"{one}\t{other}\t{number % 5}" for number, (one, other) in enumerate(itertools.pairwise(lines))]
    task.write_text("\n".join(["sentence1\tsentence2\tscore", *rows]), encoding="utf-8")
    scored = settings(data("xlm-roberta"), tmp_path / "run", evaluation__task=str(task))
    report = run.distill(scored, NoProgress(), judge_for=judge_for)
    assert any("task_spearman" in record for record in report.records)


def test_a_tokenizer_that_is_missing_or_changed_is_refused(data: Callable[[str], Data], tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run.distill(settings(data("bert"), tmp_path / "run"), crash_at(3))
    folder = RunFolder(tmp_path / "run")
    shutil.rmtree(folder.trimmed_tokenizer)
    with pytest.raises(MinilmError, match="the run's tokenizer is missing"):
        run.resume(folder, NoProgress())
    with pytest.raises(MinilmError, match="the run's tokenizer is missing"):
        source_of_checkpoint(folder, "last")
    shutil.copytree(data("bert")[0], folder.trimmed_tokenizer)
    with pytest.raises(MinilmError, match="the student's tokenizer changed since the run began"):
        run.resume(folder, NoProgress())


def test_without_held_out_texts_others_are_compared(data: Callable[[str], Data], tmp_path: Path) -> None:
    plan = run.dry_run(settings(data("bert"), tmp_path / "run", evaluation__fraction=0.0))
    assert plan.vocabulary is not None
    assert plan.vocabulary.texts_compared > 0


def test_weights_of_stores_count(data: Callable[[str], Data], tmp_path: Path) -> None:
    """Of the text in several scripts, half is English; the other store has English alone."""
    teacher, store = data("xlm-roberta")
    (tmp_path / "english.txt").write_text("\n".join(multilingual.lines(300)[::2]), encoding="utf-8")
    english = tmp_path / "english"
    inputs = (str(tmp_path / "english.txt"),)
    tokenize(TokenizeSettings(inputs=inputs, tokenizer=str(teacher), output=english, workers=1), NoProgress())
    kept = []
    for weight in (0.02, 0.98):
        weighted = {store: weight, english: 1 - weight}
        mixed = settings((teacher, store), tmp_path / "run", data__path=weighted, student__keep_vocab=1200)
        choice = choose_student(
            mixed,
            AutoConfig.from_pretrained(teacher),
            AutoTokenizer.from_pretrained(teacher),
            [TokenStore(store), TokenStore(english)],
        )
        kept.append(choice.tokenizer.get_vocab().keys())
    assert len(kept[1] - kept[0]) > 20
    assert sum(not token.isascii() for token in kept[1]) > sum(not token.isascii() for token in kept[0])


# --- Which tokens ------------------------------------------------------------------------------------------------


def test_the_tokens_of_the_data_are_kept(data: Callable[[str], Data], tmp_path: Path) -> None:
    plan = run.dry_run(settings(data("bert"), tmp_path / "run", student__keep_vocab="tokens"))
    often = run.dry_run(settings(data("bert"), tmp_path / "run", student__keep_vocab="tokens", student__keep_count=3))
    assert plan.vocabulary is not None
    assert often.vocabulary is not None
    assert plan.vocabulary.share_split == 0
    assert often.vocabulary.share_split > 0
    assert often.vocabulary.tokens < plan.vocabulary.tokens < plan.vocabulary.teacher_tokens
    assert plan.vocabulary.texts_compared > 0.9 * plan.data.held_out
    assert not (tmp_path / "run").exists()


def test_a_second_run_goes_on_with_the_tokens_of_the_first(
    trimmed: Callable[[str], Path], data: Callable[[str], Data], tmp_path: Path
) -> None:
    first = trimmed("bert")
    same = {"student__config": str(first / "student"), "student__init": str(first)}
    report = run.distill(
        settings(data("bert"), tmp_path / "second", **same, student__keep_vocab=str(first)), NoProgress()
    )
    before, after = (AutoTokenizer.from_pretrained(path / "student").get_vocab() for path in (first, report.path))
    assert before == after
    listed = tmp_path / "kept.txt"
    listed.write_text("\r\n".join(before), encoding="utf-8")
    named = settings(data("bert"), tmp_path / "third", **same, student__keep_vocab=str(listed))
    third = run.distill(named, NoProgress())
    assert AutoTokenizer.from_pretrained(third.path / "student").get_vocab() == before
    text = (third.path / "student" / "README.md").read_text(encoding="utf-8")
    assert "keep_vocab: kept.txt" in text
    assert str(tmp_path) not in text
    swapped = [token for token in AutoTokenizer.from_pretrained(data("bert")[0]).get_vocab() if token not in before]
    ours = [token for token in before if len(token) > 6]
    other = tmp_path / "other.txt"
    other.write_text("\n".join([*(token for token in before if token != ours[0]), swapped[0]]), encoding="utf-8")
    with pytest.raises(MinilmError, match=r"is .* in the student and .* in this model"):
        run.distill(settings(data("bert"), tmp_path / "fourth", **same, student__keep_vocab=1000), NoProgress())
    with pytest.raises(MinilmError, match="has another vocabulary") as caught:
        run.distill(settings(data("bert"), tmp_path / "fifth", **same, student__keep_vocab=str(other)), NoProgress())
    assert caught.value.hint == f"Keep the tokens of that model: --keep-vocab {first}"


def test_a_size_leaves_out_the_rarest_tokens(data: Callable[[str], Data], tmp_path: Path) -> None:
    sized = settings(
        data("xlm-roberta"),
        tmp_path / "run",
        student__config=None,
        student__keep_vocab="auto",
        student__max_params=150_000,
    )
    report = run.distill(sized, NoProgress())
    facts, kept = report.plan.vocabulary, RunFolder(report.path).settings().student
    assert facts is not None
    assert facts.share_split < 0.01
    assert 140_000 < report.plan.student.parameters <= 150_000
    assert (kept.max_params, kept.keep_vocab) == (None, facts.tokens)
    update = {"student": sized.student.model_copy(update={"keep_vocab": "all"}), "output": None}
    with pytest.raises(MinilmError, match=r"even l2-h48 is larger: 190,608 parameters, 0\.8 MB with 3,000 tokens"):
        run.dry_run(sized.model_copy(update=update))


def test_a_size_keeps_all_tokens_of_a_tokenizer_that_cannot_be_trimmed(
    data: Callable[[str], Data], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(student_choice, "can_trim", lambda _: False)
    sized = {"student__config": None, "student__keep_vocab": "auto", "student__max_params": 200_000}
    plan = run.dry_run(settings(data("bert"), tmp_path / "run", **sized))
    assert plan.vocabulary is None
    assert plan.student.parameters <= 200_000
