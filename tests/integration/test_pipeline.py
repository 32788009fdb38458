"""From text to a model that transformers loads, with default names."""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from minilm_cli.base.progress import NoProgress
from minilm_cli.corpus.tokenize import tokenize
from minilm_cli.settings.tokenize import TokenizeSettings
from minilm_cli.tokens.store import TokenStore
from minilm_cli.training import run, stores

from .conftest import Commands, Settings, metrics, wait_until


@pytest.fixture
def place(minilm: Commands, tiny_teacher: Path, tiny_student_config: Path, tiny_corpus: Path) -> Path:
    """The current folder of the commands, with a corpus, a teacher and a student's config."""
    shutil.copytree(tiny_teacher, minilm.folder / "teacher")
    shutil.copy(tiny_student_config, minilm.folder / "config.json")
    shutil.copy(tiny_corpus, minilm.folder / "corpus.txt")
    return minilm.folder


def test_tokenize_distill_and_export_make_a_model(minilm: Commands, place: Path) -> None:
    tokenized = minilm("tokenize", "corpus.txt", "--tokenizer", "teacher")
    assert (tokenized.returncode, tokenized.stdout) == (0, "tokens\n"), tokenized.stderr

    small = ("--steps", "6", "--batch-size", "6", "--warmup-steps", "2")
    distilled = minilm("distill", "--teacher", "teacher", "--student-config", "config.json", *small)
    assert distilled.returncode == 0, distilled.stderr
    run_folder = place / distilled.stdout.removesuffix("\n")
    assert run_folder.parent == place / "runs"
    files = {"settings.json", "environment.json", "metrics.jsonl", "log.txt", "checkpoints", "student"}
    assert files <= {path.name for path in run_folder.iterdir()}
    assert [path.name for path in (run_folder / "checkpoints").iterdir()] == ["step-00000006"]
    assert [record["step"] for record in metrics(run_folder)] == [0, 1, 6, 6]

    exported = minilm("export")
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout == f"{run_folder.relative_to(place)}/export/hf\n"

    folder = run_folder / "export" / "hf"
    model, student = AutoModel.from_pretrained(folder).eval(), AutoModel.from_pretrained(run_folder / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["the people of this world", "work"], return_tensors="pt", padding=True)
    with torch.no_grad():
        states = model(**batch).last_hidden_state
        assert torch.equal(states, student(**batch).last_hidden_state)
    assert states.shape == (2, 7, 24)
    trained = load_file(run_folder / "checkpoints" / "step-00000006" / "student.safetensors")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items() if name in trained)

    assert not [path for path in place.rglob("*") if path.name.startswith(".tmp")]
    assert {path.name for path in place.iterdir()} == {"corpus.txt", "teacher", "config.json", "tokens", "runs"}


def test_id_lists_give_the_same_training_as_a_store(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, tiny_store: Path, small_settings: Settings
) -> None:
    ids = tmp_path / "ids.jsonl.gz"
    settings = TokenizeSettings(
        inputs=(str(tiny_corpus),), tokenizer=str(tiny_teacher), output=ids, max_length=32, workers=1
    )
    assert tokenize(settings, NoProgress()).path == ids
    lists = [json.loads(line) for line in gzip.decompress(ids.read_bytes()).splitlines()]
    store = TokenStore(tiny_store)
    assert lists == [store[index].tolist() for index in range(len(store))]

    losses = []
    for data in (tiny_store, ids):
        report = run.distill(small_settings(tmp_path / f"run-{data.name}", data__path=data), NoProgress())
        losses.append([{k: v for k, v in record.items() if "loss" in k} for record in metrics(report.path)])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 7
    assert len(TokenStore(tmp_path / "run-ids.jsonl.gz" / "tokens")) == len(store)


def test_slow_preparations_are_logged(
    tmp_path: Path, small_settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("minilm_cli"), "propagate", True)
    caplog.set_level(logging.INFO, logger="minilm_cli.training.stores")
    monkeypatch.setattr(stores, "_LARGE", 80)
    ids = tmp_path / "ids.jsonl.gz"
    ids.write_bytes(gzip.compress(b"[2, 5, 3]\n" * 30))
    run.dry_run(small_settings(tmp_path / "run", data__path=ids))
    expected = [f"Converting {ids} to a token store.", f"Comparing the checksums of {ids}."]
    assert caplog.messages[:2] == expected
    caplog.clear()
    ids.write_bytes(gzip.compress(b"[2, 5, 3]\n" * 20))
    run.dry_run(small_settings(tmp_path / "run", data__path=ids))
    assert expected[0] in caplog.messages
    assert expected[1] not in caplog.messages


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status", "size"), [(signal.SIGINT, 130, 0), (signal.SIGTERM, 143, 2**20)])
def test_interrupted_tokenization_leaves_no_files(
    minilm: Commands, place: Path, number: signal.Signals, status: int, size: int
) -> None:
    text = (place / "corpus.txt").read_text(encoding="utf-8")
    (place / "corpus.txt").write_text(text * (2**25 // len(text)), encoding="utf-8")
    before = set(place.rglob("*"))
    process = minilm.start("tokenize", "corpus.txt", "--tokenizer", "teacher", "--workers", "2")
    wait_until(lambda: any(file.stat().st_size >= size for file in place.glob(".unfinished-tokens/store/*")), process)
    # Also to the workers, as a terminal does.
    os.killpg(process.pid, number)
    done = minilm.end(process)
    assert (done.returncode, done.stdout) == (status, "")
    assert "Traceback" not in done.stderr
    assert set(place.rglob("*")) == before
