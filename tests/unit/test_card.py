"""What a model card says, of a run's student and of any model."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from minilm_cli import __version__
from minilm_cli.base.jsonio import write_json
from minilm_cli.base.overwrite import EXPORT_MARK
from minilm_cli.export.card import CURVE_FILE, PICTURE_FILE, Facts, run_card, write_card
from minilm_cli.export.card_training import Training, training_sections
from minilm_cli.export.formats import Verified
from minilm_cli.export.source import Source, source_of_folder
from minilm_cli.models.sentence_head import Dense, Normalize, SentenceHead
from minilm_cli.runs.plan import Plan, StoreFacts
from minilm_cli.settings.distill import DistillSettings
from minilm_cli.settings.load import load_distill_settings

from .run_folders import SETTINGS, create_run
from .test_plan import plan

PLAN = plan()
RECORDS: list[dict[str, float]] = [
    {"step": 0, "eval_loss": 9.5, "eval_loss_qk": 4.0, "eval_loss_vv": 3.0},
    {"step": 1, "loss": 9.0, "loss_qk": 3.5, "loss_vv": 4.0, "lr": 1e-5},
    {"step": 50, "loss": 5.0, "loss_qk": 2.0, "loss_vv": 2.0, "lr": 1e-4},
    {"step": 100, "loss": 2.5, "loss_qk": 1.0, "loss_vv": 1.0, "lr": 1e-5},
    {"step": 100, "eval_loss": 2.75, "eval_loss_qk": 1.125, "eval_loss_vv": 1.0},
    {"step": 150, "loss": 0.0625, "loss_qk": 0.0, "loss_vv": 0.125, "lr": 1e-6},
]
UNTRAINED_AND_LAST = [record for record in RECORDS if record["step"] <= 100]

MEAN = SentenceHead(("mean",), (Normalize(),))
KEPT = {
    "cosine": 0.99321,
    "lowest_cosine": 0.98412,
    "recall": 0.996,
    "neighbours": 0.9312,
    "texts": 250,
    "held_out": 40,
}


def settings_of(*assignments: str) -> DistillSettings:
    given = ["relations.weights=qk=2,vv=0.5", "teacher.revision=abc123", "schedule.warmup_steps=4000", *assignments]
    return load_distill_settings(None, given, {"teacher.name": "big/teacher", "student.config": "l3-h384"})


def training(plan: Plan = PLAN, *assignments: str, **values: Any) -> Training:
    return Training(
        **({"settings": settings_of(*assignments), "plan": plan, "records": UNTRAINED_AND_LAST, "step": 100} | values)
    )


def sections(plan: Plan = PLAN, *assignments: str, **values: Any) -> str:
    """The sections about the training."""
    return "\n\n".join(training_sections(training(plan, *assignments, **values), CURVE_FILE))


def changed(section: str, **values: Any) -> Plan:
    return PLAN.model_copy(update={section: getattr(PLAN, section).model_copy(update=values)})


def rows(text: str) -> dict[str, str]:
    """Maps the first cell to the second, of table rows with two cells."""
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def model(tiny_teacher: Path) -> Source:
    return source_of_folder(tiny_teacher)


@pytest.fixture
def card(model: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the card of a run's student; without matplotlib, as a picture takes long to draw."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    def make(
        form: str = "hf",
        *,
        head: SentenceHead | None = None,
        plan: Plan = PLAN,
        kept: dict[str, Any] | None = None,
        dtype: str = "float32",
    ) -> str:
        (tmp_path / "export").mkdir(exist_ok=True)
        source, verified = replace(model, head=head, dtype=dtype), Verified(1.25e-7, kept or {})
        return run_card(Facts(source, form, verified, tmp_path / "export"), training(plan))

    return make


# --- Front matter ------------------------------------------------------------------------------------------------


def entries(text: str) -> dict[str, Any]:
    """The front matter, as the Hub's library reads it."""
    found: dict[str, Any] = ModelCard(text).data.to_dict()
    return found


def test_front_matter_names_a_teacher_on_the_hub_and_inherits_from_its_card(card: Any) -> None:
    known = changed("teacher", license="other", license_name="own", license_link="LICENSE.md", language=["en", "no"])
    assert entries(card(plan=known)) == {
        "language": ["en", "no"],
        "license": "other",
        "license_name": "own",
        "license_link": "https://huggingface.co/big/teacher/blob/main/LICENSE.md",
        "base_model": "big/teacher",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["minilm", "distillation", "roberta"],
    }
    assert rows(card(plan=known))["licence"] == "own"


def test_front_matter_names_no_local_teacher(card: Any) -> None:
    local = changed("teacher", name="folder", on_hub=False, license="mit", license_link="LICENSE")
    assert entries(card(plan=local)) == {
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["minilm", "distillation", "roberta"],
    }
    assert rows(card(plan=local))["revision"] == "none: a local folder"


@pytest.mark.parametrize(
    ("form", "head", "library", "pipeline", "tags"),
    [
        ("hf", MEAN, "transformers", "feature-extraction", []),
        ("sentence-transformers", MEAN, "sentence-transformers", "sentence-similarity", ["sentence-transformers"]),
        (
            "onnx",
            MEAN,
            "sentence-transformers",
            "sentence-similarity",
            ["sentence-transformers", "onnx", "transformers.js"],
        ),
        ("onnx", None, "transformers", "feature-extraction", ["onnx", "transformers.js"]),
    ],
)
def test_front_matter_fits_the_format(
    card: Any, form: str, head: SentenceHead | None, library: str, pipeline: str, tags: list[str]
) -> None:
    found = entries(card(form, head=head))
    assert (found["library_name"], found["pipeline_tag"]) == (library, pipeline)
    assert found["tags"] == ["minilm", "distillation", "roberta", *tags]


def test_names_break_neither_the_front_matter_nor_the_tables(card: Any) -> None:
    name = "a|b\n---\n# c `d` [e](f) <g>: *h*"
    text = card(plan=changed("teacher", name=name, license=name, language=[name]))
    assert entries(text)["base_model"] == entries(text)["license"] == name
    assert entries(text)["language"] == [name]
    shown = r"a\|b --- # c \`d\` \[e\](f) \<g\>: \*h\*"
    assert f"| teacher | {shown} (bert, 12 layers, 768 wide) |" in text
    assert f"# l3-h384 distilled from {shown.replace(chr(92) + '|', '|')}\n" in text


# --- Sentence embeddings, loading, verification ------------------------------------------------------------------


def test_sentence_embeddings_are_described(card: Any, model: Source) -> None:
    head = SentenceHead(
        ("mean", "cls"),
        (Dense(torch.zeros(32, 96), None, "torch.nn.modules.activation.Tanh"), Normalize()),
        prompts={"query": "query|: ", "passage": "line\nend "},
        default_prompt="query",
        similarity="dot",
        max_length=64,
    )
    table = card("sentence-transformers", head=head)
    assert "| pooling | mean, cls |\n| after pooling | dense layer, scaled to length 1 |\n| dimensions | 32 |" in table
    assert "| longest text | 64 tokens; longer texts are cut |\n| similarity | dot |" in table
    assert "| prompt `query` | `'query\\|: '` |\n| prompt `passage` | `'line\\nend '` |" in table
    assert "| prompt by default | `query` |" in table
    assert "`model.encode(texts, prompt_name='query')` adds one" in table
    assert "## Sentence embeddings" not in card("hf", head=head)
    assert "| dimensions | 48 |" in card("onnx", head=MEAN)
    assert f"| longest text | {model.longest} tokens" in card("onnx", head=MEAN)


@pytest.mark.parametrize("quantised", [False, True])
def test_loading_is_shown_for_each_consumer_of_an_onnx_export(card: Any, quantised: bool) -> None:
    text = card("onnx", head=SentenceHead(("cls",)), kept=KEPT if quantised else None)
    file = "onnx/model_quantized.onnx" if quantised else "onnx/model.onnx"
    assert f'InferenceSession("THIS_FOLDER/{file}")' in text
    assert f'backend="onnx", model_kwargs={{"file_name": "{file}"}}' in text
    assert f'model_file="{file}"' in text
    assert "PoolingType.CLS" in text
    assert "normalization=False" in text
    assert f'{{ dtype: "{"q8" if quantised else "fp32"}" }}' in text
    assert '{ pooling: "cls", normalize: false }' in text
    assert "-v THIS_FOLDER:/model" in text


def test_consumers_that_pool_themselves_are_left_out_where_they_cannot(card: Any) -> None:
    for head in (
        SentenceHead(("max",)),
        SentenceHead(("mean", "cls")),
        SentenceHead(("weightedmean",), (Normalize(),)),
    ):
        text = card("onnx", head=head)
        assert '["sentence_embedding"]' in text
        assert 'backend="onnx"' in text
        assert not any(name in text for name in ("fastembed", "transformers.js;", "text-embeddings-inference"))
    text = card("onnx")
    assert '["last_hidden_state"]' in text
    assert 'pipeline("feature-extraction"' in text
    assert not any(name in text for name in ("SentenceTransformer", "fastembed", "text-embeddings-inference"))


@pytest.mark.parametrize("form", ["hf", "sentence-transformers", "onnx"])
def test_code_in_the_card_is_python(card: Any, form: str) -> None:
    found = re.findall(r"```python\n(.*?)```", card(form, head=MEAN), flags=re.DOTALL)
    assert len(found) == (3 if form == "onnx" else 1)
    for code in found:
        compile(code, "README.md", "exec")
        assert "THIS_FOLDER" in code


def test_a_new_head_for_a_task_must_be_trained(card: Any) -> None:
    assert "`AutoModelForMaskedLM`" in card("hf")
    assert "head with random weights: fine-tune the model before its predictions are used" in card("hf")


def test_verification_and_file_sizes_are_stated(card: Any, tmp_path: Path) -> None:
    (tmp_path / "export" / "onnx").mkdir(parents=True)
    for name, size in (("model.onnx", 91_234_567), ("model_quantized.onnx", 61_234)):
        with (tmp_path / "export" / "onnx" / name).open("wb") as file:
            file.truncate(size)
    text = card("onnx", head=MEAN, kept=KEPT)
    assert "hidden states and sentence embeddings differ by at most 1.2e-07 of the largest value" in text
    assert rows(text)["`onnx/model.onnx`"] == "91.2 MB"
    assert rows(text)["`onnx/model_quantized.onnx`"] == "0.061 MB"
    assert "in 8 bits: sentence embeddings of 250 texts, 40 of them held out of the training |" in text
    assert "depends a little on the other texts of its batch" in text
    assert rows(text)["cosine to fp32, mean"] == "0.9932"
    assert rows(text)["cosine to fp32, worst"] == "0.9841"
    assert rows(text)["recall@10: the nearest text in fp32 is among the ten nearest"] == "99.6%"
    assert rows(text)["the ten nearest in fp32 that are still among the ten nearest"] == "93.1%"
    assert "hidden states differ by at most" in card("hf")
    assert "8 bits" not in card("onnx", head=MEAN)
    assert "in 8 bits: mean hidden states of 250 texts |" in card("onnx", kept=KEPT | {"held_out": 0})


def test_outputs_of_a_student_with_random_weights_mean_little(card: Any) -> None:
    assert "Without that, its outputs mean little" in card()
    assert "its embeddings mean little" in card("sentence-transformers", head=MEAN)
    for form, head in (("hf", None), ("onnx", MEAN)):
        plan = changed("student", init_from_teacher_layers=[4, 8, 12])
        assert "mean little" not in card(form, head=head, plan=plan)


def test_the_card_shows_the_png_if_it_can_be_drawn(card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"]({CURVE_FILE})" in card()
    assert [path.name for path in (tmp_path / "export").iterdir()] == [CURVE_FILE]
    monkeypatch.undo()
    assert f"]({PICTURE_FILE})" in card()
    assert {path.name for path in (tmp_path / "export").iterdir()} == {CURVE_FILE, PICTURE_FILE}


# --- A model that is no run's ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A copy of a model, whose name has a special character."""
    return Path(shutil.copytree(tiny_teacher, tmp_path / "my[model]"))


def exported(folder: Path, form: str, head: SentenceHead | None = None) -> str:
    (export := folder.parent / "export").mkdir()
    write_card(Facts(replace(source_of_folder(folder), head=head), form, Verified(1e-7), export))
    return (export / "README.md").read_text(encoding="utf-8")


def test_the_card_of_a_folder_keeps_what_its_own_card_says(folder: Path) -> None:
    own = """---
license: cc-by-4.0
language: no
base_model: [a/b, c/d]
tags: [mine, "1"]
datasets: [x]
library_name: other
---
# Title

Its text.
"""
    (folder / "README.md").write_text(own, encoding="utf-8")
    (folder / CURVE_FILE).write_text("<svg/>", encoding="utf-8")
    text = exported(folder, "onnx", MEAN)
    assert entries(text) == {
        "language": ["no"],
        "license": "cc-by-4.0",
        "base_model": ["a/b", "c/d"],
        "datasets": ["x"],
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["mine", "1", "bert", "sentence-transformers", "onnx", "transformers.js"],
    }
    assert "\n# my\\[model\\] as onnx\n\nA bert encoder of 4 layers, 48 wide (" in text
    assert text.endswith("\n## The model's own card\n\n# Title\n\nIts text.\n")
    assert "with MiniLMv2" not in text
    for heading in ("How to load it", "Sentence embeddings", "Verification"):
        assert f"\n## {heading}\n" in text
    assert (folder.parent / "export" / CURVE_FILE).read_text(encoding="utf-8") == "<svg/>"


def test_the_card_of_an_export_of_an_export_has_one_way_to_load_it(folder: Path) -> None:
    (folder / "README.md").write_text(exported(folder, "hf"), encoding="utf-8")
    (folder / EXPORT_MARK).write_text("{}", encoding="utf-8")
    shutil.rmtree(folder.parent / "export")
    text = exported(folder, "onnx", MEAN)
    for heading in ("How to load it", "Verification"):
        assert text.count(f"\n## {heading}\n") == 1
    assert "AutoModel" not in text
    assert "## The model's own card\n\n# my\\[model\\] as hf\n\nA bert encoder" in text


@pytest.mark.parametrize("own", [None, "", "---\n[\n---\n", "---\nlicense: {a: b}\ntags: 3\n---"])
def test_a_folder_needs_no_card(folder: Path, own: str | None) -> None:
    if own is not None:
        (folder / "README.md").write_text(own, encoding="utf-8")
    text = exported(folder, "hf")
    assert "own card" not in text
    assert entries(text)["tags"] == (["3", "bert"] if own and "tags" in own else ["bert"])
    assert "license" not in entries(text)


# --- Training ----------------------------------------------------------------------------------------------------


def test_card_says_if_the_held_out_loss_did_not_improve() -> None:
    assert "did not improve" not in sections()
    records = [*RECORDS, {"step": 200, "eval_loss": 20.0, "eval_loss_qk": 4.0, "eval_loss_vv": 12.0}]
    assert (
        "\n**The held-out loss did not improve: 9.5 at the start, 20 at the end. The held-out loss was lowest at step"
        " 100: 2.75.**\n"
    ) in sections(records=records, step=200)


def test_changed_settings_are_listed() -> None:
    assert "changed after" not in sections()
    changes = [(1000, "optimizer.lr from 0.0006 to 0.0003"), (2000, "training.steps from 5000 to 6000")]
    text = sections(changes=changes)
    table = rows(text)
    assert table["changed after step 1,000"] == "optimizer.lr from 0.0006 to 0.0003"
    assert table["changed after step 2,000"] == "training.steps from 5000 to 6000"
    assert (
        text.replace("".join(f"| changed after step {n:,} | {change} |\n" for n, change in changes), "") == sections()
    )


def test_teacher_data_and_settings_are_listed() -> None:
    text = sections(PLAN, "optimizer.lr=0.003", "training.seed=7", "training.batch_size=64")
    table = rows(text)
    assert table["teacher"] == "big/teacher (bert, 12 layers, 768 wide)"
    assert table["revision"] == "abc123"
    assert (table["teacher layer"], table["student layer"]) == ("11", "3")
    assert table["relations"] == "QK × 2, VV × 0.5"
    assert table["relation heads"] == "48 (16 wide in the teacher, 8 in the student)"
    assert table["tokens"] == "tokens (99,000 sequences, 3,000,000 tokens)"
    assert table["tokenizer"] == "big/tokenizer"
    assert rows(sections(changed("data", tokenizer=None)))["tokenizer"] == "unknown: the data was token ids"
    assert table["held out"] == "99 sequences"
    assert table["longest sequence"] == "77 tokens"
    assert table["steps"] == "100 of 5,000, 64 sequences each"
    assert table["optimiser"].startswith("AdamW, lr 0.003, betas 0.9/0.999, eps 1e-06, weight decay 0.01")
    assert table["schedule"] == "linear, 4,000 warm-up steps"
    assert table["seed"] == "7"
    assert table["weights"] == "SHA-256 `2`, up to layer 11, without the pooler"
    assert table["manifest of the token store"] == "SHA-256 `0`"
    assert table["hardware"] == "cpu, processes: 1"
    assert not {"licence", "versions"} & table.keys()


def test_several_layers_are_listed() -> None:
    several = changed("teacher", tapped_layers=[6, 11])
    several = several.model_copy(update={"student": PLAN.student.model_copy(update={"tapped_layers": [2, 3]})})
    table = rows(sections(several))
    assert table["teacher layers"] == "6, 11"
    assert table["student layers"] == "2, 3; the loss is the mean over the pairs of layers"
    assert not {"teacher layer", "student layer"} & table.keys()


def test_versions_at_the_start_are_listed() -> None:
    found = {"format_version": 1, "minilm": "0.1.0", "python": "3.11.7", "torch": None, "transformers": ["<5>"]}
    assert rows(sections(environment=found))["versions"] == r"minilm 0.1.0, python 3.11.7, transformers \['\<5\>'\]"


def test_all_settings_are_listed_for_another_run(tmp_path: Path) -> None:
    local = {"teacher.name": str(tmp_path), "student.config": "private/config.json", "output": tmp_path}
    local |= {"student.init": str(tmp_path / "first"), "evaluation.task": str(tmp_path / "task.tsv")}
    data = [tmp_path / "one", tmp_path / "two"]
    settings = load_distill_settings(None, ["optimizer.lr=0.003"], local | {"data.path": data})
    text = sections(changed("teacher", name=tmp_path.name), settings=settings)
    [listed] = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    file = tmp_path / "settings.yaml"
    file.write_text(listed, encoding="utf-8")
    found = load_distill_settings(file)
    assert (found.teacher.name, found.student.config) == (tmp_path.name, "config.json")
    assert (found.student.init, found.evaluation.task) == ("first", "task.tsv")
    assert found.data.paths == (Path("one"), Path("two"))
    assert (found.optimizer, found.training) == (settings.optimizer, settings.training)
    assert str(tmp_path) not in text


def test_model_and_program_are_named(card: Any, model: Source) -> None:
    text = card(dtype="float16")
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    assert "# l3-h384 distilled from big/teacher\n" in text
    assert f"4 layers, 48 wide ({parameters:,} parameters, float16)" in text
    assert f"minilm {__version__}" in text


def test_each_token_store_is_listed_with_its_share() -> None:
    stores = [
        StoreFacts(name=name, sequences=9_000, tokens=70_000, share=share, weight=None, manifest_sha256="0")
        for name, share in (("books", 0.75), ("web", 0.25))
    ]
    text = sections(changed("data", stores=stores))
    assert "| tokens | books (9,000 sequences, 70,000 tokens; 75.00% of the sequences seen) |" in text
    assert "| tokens | web (9,000 sequences, 70,000 tokens; 25.00% of the sequences seen) |" in text
    assert text.count("| manifest of the token store | SHA-256 `0` |") == 2
    assert "99,000" not in text


def test_untrained_parameters_are_listed() -> None:
    text = sections()
    assert "- `encoder.layer.2.output.dense.weight`\n- `pooler.dense.bias`" in text
    assert "2 of 55 tensors, 1,234,567 parameters" in text
    assert "queries, keys and values of layer 3" in text
    assert sections(changed("student", untrained=[])).endswith("\n- none")


def test_initialisation_of_the_student_is_described() -> None:
    assert rows(sections())["student started from"] == "random weights"
    assert "(random). Fine-tune the model on a task" in sections()
    assert "minilm distill --init teacher" in sections()
    started = changed("student", init_from_teacher_layers=[4, 8, 12])
    assert rows(sections(started))["student started from"] == "the teacher's layers 4, 8, 12"
    assert "(from the teacher's layers 4, 8, 12). The layers before them have changed" in sections(started)
    assert "--init teacher" not in sections(started)


def test_losses_are_next_to_those_of_the_untrained_student() -> None:
    assert (
        "| | step | all | QK | VV |\n|---|---|---|---|---|\n"
        "| held out, untrained student | 0 | 9.5000 | 4.0000 | 3.0000 |\n"
        "| held out, last | 100 | 2.7500 | 1.1250 | 1.0000 |\n"
        "| training, first | 1 | 9.0000 | 3.5000 | 4.0000 |\n"
        "| training, last | 100 | 2.5000 | 1.0000 | 1.0000 |\n"
    ) in sections()
    assert "| held out, first | 100 |" in sections(records=UNTRAINED_AND_LAST[1:])


def test_what_a_run_says_is_read_up_to_the_exported_step(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    write_json(run.plan_file, PLAN.model_dump(mode="json"))
    write_json(run.environment_file, {"format_version": 1, "minilm": "0.1.0"})
    run.metrics_file.write_text("".join(f"{json.dumps(record)}\n" for record in RECORDS), encoding="utf-8")
    changes = [{"step": step, "setting": "optimizer.lr", "was": 0.1, "became": 0.2} for step in (50, 100)]
    write_json(run.changes_file, {"changes": changes})
    found = Training.of(run, 100)
    assert found.records == UNTRAINED_AND_LAST
    assert found.changes == [(50, "optimizer.lr from 0.1 to 0.2")]
    assert (found.plan, found.settings, found.environment) == (PLAN, SETTINGS, {"format_version": 1, "minilm": "0.1.0"})


@pytest.mark.parametrize("kept", ["loss", "eval_loss"])
def test_table_needs_only_one_kind_of_loss(kept: str) -> None:
    text = sections(records=[record for record in UNTRAINED_AND_LAST if kept in record])
    assert "| | step | all | QK | VV |\n|---|---|---|---|---|\n" in text
    assert ("| training, first" in text) is (kept == "loss")
    assert ("| held out, last" in text) is (kept == "eval_loss")


def test_table_is_empty_before_the_first_loss() -> None:
    assert "| | step | all |\n|---|---|---|\n\n" in sections(records=[])


def test_card_contains_no_local_path(tmp_path: Path) -> None:
    assert str(tmp_path) not in sections(PLAN, f"data.path={tmp_path / 'tokens'}")
