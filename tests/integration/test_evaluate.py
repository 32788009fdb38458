"""Evaluation: fine-tuning, embeddings as they are, what is kept and not repeated, and the model card."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from minilm_cli.base.errors import Interrupted, MinilmError, RunError
from minilm_cli.base.progress import NoProgress
from minilm_cli.evaluate import evaluating, finetune, measuring
from minilm_cli.evaluate.candidate import Candidate, load_candidate
from minilm_cli.evaluate.during_training import judge_for
from minilm_cli.evaluate.evaluating import Report, evaluate
from minilm_cli.evaluate.finetune import FineTuner, Setting, best_setting, settings_to_try
from minilm_cli.evaluate.reading import read_task
from minilm_cli.evaluate.scores import METRICS
from minilm_cli.evaluate.task import LabelledTask
from minilm_cli.export import exporting
from minilm_cli.models.sentence_head import Normalize, SentenceHead, write_head
from minilm_cli.runs.evaluations import Evaluations
from minilm_cli.runs.folder import RunFolder
from minilm_cli.settings.evaluate import EvaluateSettings, FineTuning, LabelledData
from minilm_cli.settings.export import ExportSettings
from minilm_cli.training import run
from tests.tiny import WORDS

from .conftest import Commands, Crash, Settings, crash_at, metrics, metrics_without_times, result_files

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of two classes, which have different words."""
    pick = random.Random(1)
    path = tmp_path_factory.mktemp("data") / "reviews.tsv"
    rows = ["label\ttext"]
    for _ in range(160):
        good = pick.random() < 0.5
        words = pick.choices(WORDS[:20] if good else WORDS[20:40], k=pick.randint(3, 20))
        rows.append(f"{int(good)}\t{' '.join(words)}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of texts, and the share of words that they have in common."""
    pick = random.Random(2)
    path = tmp_path_factory.mktemp("data") / "pairs.tsv"
    rows = ["score\tsentence1\tsentence2"]
    for _ in range(60):
        first, common = pick.sample(WORDS, 8), pick.randint(0, 8)
        second = first[:common] + pick.sample(WORDS, 8 - common)
        rows.append(f"{common / 8:.3f}\t{' '.join(first)}\t{' '.join(second)}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def teacher(tiny_teacher: Path) -> Candidate:
    return load_candidate(str(tiny_teacher), CPU)


@pytest.fixture(scope="module")
def task(reviews: Path) -> LabelledTask:
    found = read_task(str(reviews), LabelledData(), training=True)
    assert isinstance(found, LabelledTask)
    return found


def tuner(candidate: Candidate, task: LabelledTask, **options: Any) -> FineTuner:
    return FineTuner(candidate, task, **{"device": CPU, "bf16": False, "batch_size": 16, "max_length": None} | options)


Evaluate = Callable[..., Report]


@pytest.fixture
def measure(tiny_teacher: Path, reviews: Path, tmp_path: Path) -> Evaluate:
    """Evaluates the teacher on the reviews: two settings, two seeds, few steps."""

    def run(progress: Any = None, **changes: Any) -> Report:
        values = {
            "models": [str(tiny_teacher)],
            "tasks": [str(reviews)],
            "tuning": {"lr": [1e-3, 1e-4], "epochs": [1], "seeds": 2},
            "precision": "fp32",
            "output": tmp_path / "results.json",
        }
        if {"zero_shot", "probe", "mteb"} & changes.keys():
            del values["tuning"]
        return evaluate(EvaluateSettings.model_validate(values | changes), progress or NoProgress())

    return run


# --- Fine-tuning -------------------------------------------------------------------------------------------------


def test_a_model_learns_a_task_and_its_scores_are_those_of_a_seed(teacher: Candidate, task: LabelledTask) -> None:
    steps: list[int] = []
    first = tuner(teacher, task).train(Setting(lr=2e-3, epochs=8), 1, steps.append)
    assert steps == [*range(1, len(steps) + 1)]
    assert first["test"]["accuracy"] > 0.9
    assert first.keys() == {"dev", "test"}
    torch.rand(3)  # what others draw does not matter
    again = tuner(teacher, task).train(Setting(lr=2e-3, epochs=8), 1, steps.append)
    assert again == first
    assert len(steps) == 2 * tuner(teacher, task).steps(Setting(lr=2e-3, epochs=8))


def test_training_leaves_the_model_as_it_is(tiny_teacher: Path, task: LabelledTask) -> None:
    candidate, untouched = load_candidate(str(tiny_teacher), CPU), load_candidate(str(tiny_teacher), CPU)
    tuner(candidate, task).train(Setting(lr=1e-2, epochs=1), 1, lambda _: None)
    assert candidate.source
    assert untouched.source
    for ours, theirs in zip(candidate.source.model.parameters(), untouched.source.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("is_pair", [False, True])
def test_a_micro_batch_gets_the_logits_that_transformers_computes(
    teacher: Candidate,
    task: LabelledTask,
    pairs: Path,
    tiny_teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_pair: bool,
) -> None:
    used = read_task(str(pairs), LabelledData(), training=True) if is_pair else task
    assert isinstance(used, LabelledTask)
    monkeypatch.setattr(finetune, "untried", lambda _: 256)
    fine = tuner(teacher, used)
    model = fine._build().eval()
    theirs = AutoModelForSequenceClassification.from_pretrained(tiny_teacher, num_labels=model.config.num_labels)
    theirs.classifier.load_state_dict(model.classifier.state_dict())
    theirs.bert.pooler.load_state_dict(model.bert.pooler.state_dict())
    split = used.splits["train"]
    texts = (split.texts, split.pairs) if split.pairs else (split.texts,)
    inputs = AutoTokenizer.from_pretrained(tiny_teacher)(*texts, padding=True, return_tensors="pt")
    assert int(inputs["token_type_ids"].max()) == is_pair
    train = fine._splits["train"]
    with torch.inference_mode():
        expected = theirs.eval()(**inputs).logits
        parts = [*fine._cut(train, np.arange(len(split)))]
        assert len(parts) > 1
        for part in parts:
            torch.testing.assert_close(fine._logits(model, train, part), expected[part], rtol=1e-4, atol=1e-5)


def test_the_cut_into_micro_batches_changes_nothing(
    make_teacher: Callable[..., Path], task: LabelledTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_teacher(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    candidate = load_candidate(str(folder), CPU)
    weights = []
    for budget in (32, 4096):
        monkeypatch.setattr(finetune, "untried", lambda _, budget=budget: budget)
        fine = tuner(candidate, task)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = fine._build()
        fine._take_steps(model, Setting(lr=1e-3, epochs=1), 1, lambda _: None)
        weights.append(model.classifier.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-5)


def test_scores_are_learnt_on_any_scale(teacher: Candidate, pairs: Path) -> None:
    task = read_task(str(pairs), LabelledData(), training=True)
    assert isinstance(task, LabelledTask)
    fine = tuner(teacher, task)
    labels = fine._splits["train"].labels
    assert abs(float(((labels - fine._mean) / fine._deviation).mean())) < 1e-6
    scores = fine.train(Setting(lr=1e-3, epochs=1), 1, lambda _: None)
    assert scores["test"].keys() == {"spearman", "pearson"}


def test_a_loss_that_is_not_finite_is_reported(
    teacher: Candidate, task: LabelledTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = tuner(teacher, task)
    monkeypatch.setattr(fine, "_loss", lambda logits, _: logits.sum() * float("nan"))
    with pytest.raises(RunError, match=r"the loss of fine-tuning is not finite with the learning rate 0.001"):
        fine.train(Setting(lr=1e-3, epochs=1), 1, lambda _: None)


def test_the_grid_has_fewer_epochs_for_large_data_and_one_setting_for_quick() -> None:
    assert len(settings_to_try(FineTuning(), 9_999)) == 9
    assert {setting.epochs for setting in settings_to_try(FineTuning(), 10_000)} == {3, 5}
    assert settings_to_try(FineTuning(quick=True), 100) == [Setting(4e-5, 3)]
    assert settings_to_try(FineTuning(lr=(1.0, 2.0), epochs=(7,)), 100) == [Setting(1.0, 7), Setting(2.0, 7)]
    assert best_setting({Setting(1.0, 1): 0.5, Setting(2.0, 1): 0.7, Setting(3.0, 1): 0.7}) == Setting(2.0, 1)


def test_more_tokens_than_the_model_reads_are_refused(teacher: Candidate, task: LabelledTask) -> None:
    assert tuner(teacher, task).length == 128
    with pytest.raises(MinilmError, match=r"--max-length: .* reads at most 128 tokens"):
        tuner(teacher, task, max_length=129)


# --- What is measured, kept and not repeated ---------------------------------------------------------------------


def test_the_setting_is_chosen_on_dev_and_trained_with_every_seed(
    measure: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[float, int]] = []

    def train(_: FineTuner, setting: Setting, seed: int, __: object) -> dict[str, dict[str, float]]:
        trained.append((setting.lr, seed))
        dev, test = (0.9, 0.25 * seed) if setting.lr == 1e-4 else (0.8, 1.0)
        return {"dev": {"accuracy": dev, "f1": 0.0}, "test": {"accuracy": test, "f1": 0.5}}

    monkeypatch.setattr(FineTuner, "train", train)
    accuracy, f1 = measure().results
    assert trained == [(1e-3, 1), (1e-4, 1), (1e-4, 2)]
    measure(force=True)
    assert trained[3:] == trained[:3]
    assert (accuracy.scores, accuracy.mean, f1.mean, f1.std) == ([0.25, 0.5], 0.375, 0.5, 0.0)
    assert accuracy.std == pytest.approx(0.25 / 2**0.5)
    assert (accuracy.setting["lr"], accuracy.split, accuracy.retention) == (1e-4, "test", None)


def test_an_interrupted_evaluation_continues_where_it_stopped(
    measure: Evaluate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real, trained = FineTuner.train, []

    def train(self: FineTuner, setting: Setting, seed: int, done: Any) -> Any:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append((setting, seed))
        return real(self, setting, seed, done)

    monkeypatch.setattr(FineTuner, "train", train)
    with pytest.raises(Interrupted, match=r"what was measured is kept in .*results.json") as caught:
        measure()
    assert caught.value.exit_status == 130
    trained[:] = [()]
    interrupted = measure()
    assert len(trained) == 2  # one of them is new
    monkeypatch.setattr(FineTuner, "train", real)
    whole = measure(output=tmp_path / "whole.json")
    assert [row.scores for row in interrupted.results] == [row.scores for row in whole.results]
    monkeypatch.setattr(FineTuner, "train", lambda *_: pytest.fail("it was trained again"))
    assert [row.scores for row in measure().results] == [row.scores for row in whole.results]
    with pytest.raises(pytest.fail.Exception):
        measure(force=True)


def test_texts_that_are_cut_are_counted(measure: Evaluate, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "minilm_cli"):
        measure(max_length=12, tuning={"lr": [1e-4], "epochs": [1], "seeds": 1})
    assert re.search(r"teacher0: [3-7]\d% of the texts have 12 tokens or more, and are cut to that", caplog.text)


def test_the_teacher_is_measured_once(measure: Evaluate, tiny_teacher: Path, pairs: Path) -> None:
    results = measure(models=[str(tiny_teacher)] * 2, teacher=str(tiny_teacher), tasks=[str(pairs)], zero_shot=True)
    assert [(row.metric, row.is_teacher) for row in results.results] == [("spearman", True), ("pearson", True)]


def test_a_missing_device_is_named_as_it_was_given(minilm: Commands, tiny_teacher: Path, pairs: Path) -> None:
    done = minilm("evaluate", tiny_teacher, "--task", pairs, "--zero-shot", "--device", "cuda:7")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("Error: --device: device 'cuda:7' is not available: ")


def test_one_class_for_all_is_reported(
    measure: Evaluate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def logits(_: FineTuner, model: Any, __: object, part: Any) -> torch.Tensor:
        bias: torch.Tensor = model.classifier.bias
        return bias.expand(len(part), 2) * 0 + torch.tensor([0.0, 1.0])

    monkeypatch.setattr(FineTuner, "_logits", logits)
    measure(tuning={"lr": [1e-4], "epochs": [1], "seeds": 1})
    assert "after fine-tuning, every prediction on reviews is the class 1." in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuning": {"quick": True}, "probe": True}, "--quick applies to fine-tuning"),
        ({"pooling": "cls"}, "--pooling applies to embeddings as they are"),
    ],
)
def test_options_that_would_be_ignored_are_refused(measure: Evaluate, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MinilmError, match=message):
        measure(**options)


def test_the_folder_of_the_results_is_made(measure: Evaluate, pairs: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "results.json"
    assert measure(tasks=[str(pairs)], zero_shot=True, output=path).path == path
    assert path.exists()


@pytest.mark.parametrize(
    "content",
    ['{"measurements": 5, "results": []}', '{"measurements": [], "results": [{"y": 1}]}'],
)
def test_a_damaged_file_of_evaluations_is_refused(
    measure: Evaluate, copied_run: Path, tmp_path: Path, content: str
) -> None:
    for path in (tmp_path / "results.json", copied_run / "evaluations.json"):
        path.write_text(content, encoding="utf-8")
    with pytest.raises(MinilmError, match="this is not a sound file of evaluations: "):
        measure()
    with pytest.raises(MinilmError, match="this is not a sound file of evaluations: "):
        exporting.export(ExportSettings(model=copied_run), NoProgress())


def test_another_file_is_not_overwritten(measure: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"mine": 1}', encoding="utf-8")
    with pytest.raises(MinilmError, match="this is not a file of evaluations"):
        measure()
    assert (tmp_path / "results.json").read_text(encoding="utf-8") == '{"mine": 1}'


# --- Embeddings as they are --------------------------------------------------------------------------------------


def test_similarities_are_those_of_the_embeddings_made_by_hand(
    measure: Evaluate, pairs: Path, tiny_teacher: Path
) -> None:
    spearman, pearson = measure(tasks=[str(pairs)], zero_shot=True).results
    rows = [line.split("\t") for line in pairs.read_text(encoding="utf-8").splitlines()[1:]]
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_teacher), AutoModel.from_pretrained(tiny_teacher).eval()
    with torch.inference_mode():
        first, second = (
            torch.stack(
                [model(**tokenizer(row[side], return_tensors="pt")).last_hidden_state[0].mean(0) for row in rows]
            )
            for side in (1, 2)
        )
    cosines = torch.nn.functional.cosine_similarity(first, second).numpy()
    labels = [float(row[0]) for row in rows]
    for result in (spearman, pearson):
        assert result.mean == pytest.approx(METRICS[result.metric](labels, cosines), abs=1e-4)
    assert (spearman.metric, spearman.protocol, spearman.setting["pooling"]) == ("spearman", "zero-shot", "mean")


def test_the_default_prompt_is_put_before_each_text(measure: Evaluate, pairs: Path, tiny_teacher: Path) -> None:
    plain = measure(tasks=[str(pairs)], zero_shot=True).results[0]
    folder = Path(shutil.copytree(tiny_teacher, pairs.parent / "prompted"))
    head = SentenceHead(
        ("mean",), (Normalize(),), prompts={"query": "the people of the world "}, default_prompt="query"
    )
    write_head(head, folder, hidden_size=48)
    assert measure(models=[str(folder)], tasks=[str(pairs)], zero_shot=True).results[0].mean != plain.mean


def test_a_probe_is_trained_on_embeddings(measure: Evaluate) -> None:
    accuracy, _ = measure(probe=True, tuning={}).results
    assert (accuracy.protocol, accuracy.std) == ("probe", 0.0)
    assert accuracy.mean > 0.9


def test_a_retrieval_folder_is_searched(measure: Evaluate, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    folder.mkdir()
    documents = [{"_id": f"d{n}", "title": "", "text": " ".join(WORDS[6 * n : 6 * n + 6])} for n in range(12)]
    queries = [{"_id": f"q{n}", "text": document["text"]} for n, document in enumerate(documents)]
    for name, lines in (("corpus", documents), ("queries", queries)):
        text = "\n".join(map(json.dumps, lines)) + "\n"
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    qrels = "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td{n}\t1\n" for n in range(12))
    (folder / "qrels.tsv").write_text(qrels, encoding="utf-8")
    results = measure(tasks=[str(folder)], tuning={}).results
    assert {result.metric: result.mean for result in results} == {"ndcg@10": 1.0, "recall@100": 1.0}
    assert {result.protocol for result in results} == {"zero-shot"}


def test_tasks_of_mteb_are_measured_for_what_sentence_transformers_loads(
    measure: Evaluate, monkeypatch: pytest.MonkeyPatch, copied_run: Path, tiny_teacher: Path
) -> None:
    scores = {str(tiny_teacher): 0.5, str(copied_run / "student"): 0.25}
    monkeypatch.setattr(evaluating, "find_tasks", lambda names: [*names])
    monkeypatch.setattr(measuring, "mteb_score", lambda model, task, **_: scores[model] * (task == "STS12"))
    [theirs, ours] = measure(
        models=[str(copied_run / "student")], teacher=str(tiny_teacher), tasks=[], mteb=["STS12"], tuning={}
    ).results
    assert (theirs.mean, ours.mean, ours.retention, ours.metric, ours.protocol) == (0.5, 0.25, 50.0, "main", "mteb")
    with pytest.raises(MinilmError, match="--mteb takes models that SentenceTransformer loads"):
        measure(models=[str(copied_run)], tasks=[], mteb=["STS12"], tuning={})


def test_zero_shot_refuses_classes(measure: Evaluate) -> None:
    with pytest.raises(MinilmError, match="--zero-shot compares the embeddings of two texts with a score") as caught:
        measure(zero_shot=True, tuning={})
    assert "--probe" in str(caught.value.hint)


# --- Runs --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("same_process")
def test_a_run_is_measured_next_to_its_teacher_and_its_card_states_the_scores(
    measure: Evaluate, copied_run: Path, pairs: Path, tiny_teacher: Path
) -> None:
    report = measure(models=[str(copied_run)], tasks=[str(pairs)], zero_shot=True, output=None)
    assert report.path == copied_run / "evaluations.json"
    theirs, _, ours, _ = report.results
    assert (theirs.model, theirs.is_teacher, theirs.retention) == (str(tiny_teacher), True, None)
    assert (ours.model, ours.is_teacher, ours.means_little) == (str(copied_run), False, True)
    assert ours.retention == (pytest.approx(100 * ours.mean / theirs.mean) if theirs.mean > 0 else None)
    settings = ExportSettings(model=copied_run)
    exported = exporting.export(settings, NoProgress()).path
    card = (exported / "README.md").read_text(encoding="utf-8")
    kept = "" if ours.retention is None else f"{ours.retention:.1f}%"
    row = f"| pairs, zero-shot, test | spearman | {100 * theirs.mean:.1f} | {100 * ours.mean:.1f} | {kept} |"
    assert row.replace("  ", " ") in card.replace("  ", " ")
    # An export of the same weights is the same model.
    again = measure(models=[str(exported)], tasks=[str(pairs)], zero_shot=True)
    assert again.results[0].weights == ours.weights
    assert again.results[0].means_little
    assert again.results[0].mean == pytest.approx(ours.mean, abs=1e-6)


def test_results_are_kept_in_each_run_whose_teacher_is_the_same(
    measure: Evaluate, copied_run: Path, pairs: Path, tmp_path: Path, make_teacher: Callable[..., Path]
) -> None:
    other = Path(shutil.copytree(copied_run, tmp_path / "other"))
    models = {"models": [str(copied_run), str(other)], "tasks": [str(pairs)], "zero_shot": True}
    results = measure(**models, output=None).results
    for run_folder in (copied_run, other):
        kept = Evaluations(run_folder / "evaluations.json").results
        assert [row.model for row in kept if not row.is_teacher and row.model == str(run_folder)] == [
            str(run_folder)
        ] * 2
        assert [row.mean for row in kept if row.is_teacher] == [row.mean for row in results if row.is_teacher]
    settings = json.loads((other / "settings.json").read_text(encoding="utf-8"))
    settings["teacher"]["name"] = str(make_teacher())
    (other / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(MinilmError, match="these runs have different teachers: "):
        measure(**models)


def test_a_teacher_that_is_gone_can_be_left_out(measure: Evaluate, copied_run: Path, pairs: Path) -> None:
    file = copied_run / "settings.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["teacher"]["name"] = str(copied_run / "gone")
    file.write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(MinilmError, match="there is no such model folder") as caught:
        measure(models=[str(copied_run)], tasks=[str(pairs)], zero_shot=True)
    assert "--no-teacher" in str(caught.value.hint)
    [ours, _] = measure(models=[str(copied_run)], tasks=[str(pairs)], zero_shot=True, no_teacher=True).results
    assert (ours.retention, ours.is_teacher) == (None, False)


# --- During training ---------------------------------------------------------------------------------------------


def scores_of(folder: Path) -> dict[int, float]:
    """The task's score by step."""
    return {int(line["step"]): line["task_spearman"] for line in metrics(folder) if "task_spearman" in line}


def test_a_student_is_scored_during_training_which_does_not_change_it(
    measure: Evaluate,
    small_settings: Settings,
    pairs: Path,
    tmp_path: Path,
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(pairs.parent)
    settings = small_settings(tmp_path / "run", evaluation__task=pairs.name)
    run.distill(settings, NoProgress(), judge_for=judge_for)
    scores = scores_of(tmp_path / "run")
    assert [*scores] == [0, 3, 6]
    assert Path(RunFolder(tmp_path / "run").settings().evaluation.task or "").is_absolute()
    result, *_ = measure(models=[str(tmp_path / "run")], tasks=[str(pairs)], zero_shot=True, no_teacher=True).results
    assert scores[6] == pytest.approx(result.mean, abs=1e-4)
    assert result_files(tmp_path / "run", 6) == result_files(finished_run, 6)


def test_texts_are_cut_during_training_as_the_teacher_cuts_them(
    measure: Evaluate, small_settings: Settings, pairs: Path, tmp_path: Path, tiny_teacher: Path
) -> None:
    teacher = Path(shutil.copytree(tiny_teacher, tmp_path / "teacher"))
    write_head(SentenceHead(("mean",), max_length=5), teacher, hidden_size=48)
    settings = small_settings(tmp_path / "run", teacher__name=str(teacher), evaluation__task=str(pairs))
    run.distill(settings, NoProgress(), judge_for=judge_for)
    result, *_ = measure(models=[str(tmp_path / "run")], tasks=[str(pairs)], zero_shot=True, no_teacher=True).results
    assert scores_of(tmp_path / "run")[6] == pytest.approx(result.mean, abs=1e-4)


def test_a_resumed_run_is_scored_alike(small_settings: Settings, reviews: Path, tmp_path: Path) -> None:
    tasks = {"evaluation__task": str(reviews), "evaluation__fraction": 0.0}
    run.distill(small_settings(tmp_path / "whole", **tasks), NoProgress(), judge_for=judge_for)
    with pytest.raises(Crash):
        run.distill(small_settings(tmp_path / "run", **tasks), crash_at(5), judge_for=judge_for)
    run.resume(RunFolder(tmp_path / "run"), NoProgress(), judge_for=judge_for)
    assert metrics_without_times(tmp_path / "run") == metrics_without_times(tmp_path / "whole")
    scored = [line for line in metrics(tmp_path / "run") if "task_accuracy" in line]
    assert [line["step"] for line in scored] == [0, 3, 6]
    assert scored[0].keys() == {"step", "task_accuracy", "task_f1"}


def test_a_dry_run_measures_the_scoring_too(small_settings: Settings, tmp_path: Path) -> None:
    scored = []
    settings = small_settings(tmp_path / "run", evaluation__fraction=0.0)
    plan = run.dry_run(settings, judge_for=lambda _: lambda student, _: scored.append(student) or {})
    assert len(scored) == 1
    assert plan.measured is not None
    assert plan.measured.seconds_per_evaluation is not None


def test_a_task_that_cannot_be_read_is_refused_before_training(small_settings: Settings, tmp_path: Path) -> None:
    settings = small_settings(tmp_path / "run", evaluation__task="no/such.tsv")
    for start in (run.distill, lambda *_, **options: run.dry_run(settings, **options)):
        with pytest.raises(MinilmError, match="there is no such file or folder"):
            start(settings, NoProgress(), judge_for=judge_for)
    assert not (tmp_path / "run").exists()
