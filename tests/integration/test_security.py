"""The promises of docs/security.md: no unpickling, no code of a model runs, and no secret is written."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import minilm_cli
from minilm_cli.base.errors import MinilmError
from minilm_cli.settings import files
from minilm_cli.tokens.store import TokenStore

from .conftest import Commands

SECRETS = {
    "HF_TOKEN": "hf_s3cretOfTheHub",
    "HUGGING_FACE_HUB_TOKEN": "hf_s3cretOfTheHubToo",
    "WANDB_API_KEY": "s3cret0123456789ofwandb",
    "AWS_SECRET_ACCESS_KEY": "s3cretofaws",
}

#: A fake package that writes what it gets into the run's folder, where the test searches it.
WANDB = """
import json, pathlib

class Run:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def log(self, values, step):
        with (self.folder / "wandb.txt").open("a") as file:
            file.write(json.dumps(values))

    def finish(self):
        pass

def login():
    pass

def init(**options):
    (pathlib.Path(options["dir"]) / "wandb.txt").write_text(str(options))
    return Run(options["dir"])
"""


@pytest.mark.slow
def test_no_secret_is_written_or_printed(minilm: Commands, tiny_teacher: Path, tiny_corpus: Path) -> None:
    place = minilm.folder
    (place / "modules").mkdir()
    (place / "modules" / "wandb.py").write_text(WANDB, encoding="utf-8")
    environment = SECRETS | {"MINILM_DEBUG": "1", "PYTHONPATH": str(place / "modules")}
    distill = ("distill", "--teacher", tiny_teacher, "--student-config", "l2-h24", "--steps", "4", "--batch-size", "4")
    outputs = [
        minilm("tokenize", tiny_corpus, "--tokenizer", tiny_teacher, "--max-length", "32", **environment),
        minilm(*distill, "--report-to", "wandb", "--output", "run", **environment),
        minilm("resume", "run", "--steps", "6", **environment),
        minilm("export", "run", **environment),
        # Errors, and with them tracebacks.
        minilm("export", "run", **environment),
        minilm("resume", "nowhere", **environment),
        minilm("distill", "--teacher", "nobody/nothing", "--student-config", "l2-h24", **environment),
        minilm(*distill, "--lr", "1e38", "--warmup-steps", "1", "--output", "failed", **environment),
    ]
    assert [done.returncode for done in outputs[:4]] == [0] * 4, [done.stderr for done in outputs]
    assert all(done.returncode for done in outputs[4:])
    assert (place / "run" / "wandb.txt").is_file()
    assert list((place / "failed").glob("not-finite-*"))
    contents = {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    contents |= {f"output {number}": (done.stdout + done.stderr).encode() for number, done in enumerate(outputs)}
    assert len(contents) > 40
    for name, content in contents.items():
        for secret in SECRETS.values():
            assert secret.encode() not in content, name


@pytest.mark.slow
def test_an_export_names_no_local_folder(minilm: Commands, tiny_teacher: Path, tiny_corpus: Path) -> None:
    shutil.copytree(tiny_teacher, minilm.folder / "private" / "teacher")
    for words in (
        ("tokenize", tiny_corpus, "--tokenizer", "private/teacher", "--max-length", "32"),
        (
            *("distill", "--teacher", "private/teacher", "--student-config", "l2-h24", "--steps", "2"),
            *("--batch-size", "4", "--output", "run"),
        ),
        ("export", "run"),
    ):
        assert minilm(*words).returncode == 0
    for path in (minilm.folder / "run" / "export" / "hf").rglob("*"):
        assert b"private" not in path.read_bytes(), path
        assert str(minilm.folder).encode() not in path.read_bytes(), path


# --- Code --------------------------------------------------------------------------------------------------------

OWN_CODE = """
from pathlib import Path

from transformers import BertConfig, BertModel, BertTokenizer

(Path(__file__).parent / "ran").touch()
Path("ran").touch()


class OwnConfig(BertConfig):
    model_type = "own"


class OwnModel(BertModel):
    config_class = OwnConfig


class OwnTokenizer(BertTokenizer):
    pass
"""


@pytest.fixture
def teacher_with_code(minilm: Commands, tiny_teacher: Path) -> Path:
    """A teacher whose config and tokenizer refer to code in its folder."""
    folder = minilm.folder / "teacher"
    shutil.copytree(tiny_teacher, folder)
    (folder / "own.py").write_text(OWN_CODE, encoding="utf-8")
    for name, values in (
        (
            "config.json",
            {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}},
        ),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}),
    ):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")
    return folder


def test_code_of_a_model_runs_only_with_trust_remote_code(
    minilm: Commands, teacher_with_code: Path, tiny_corpus: Path, tiny_store: Path
) -> None:
    commands = (
        ("tokenize", tiny_corpus, "--tokenizer", "teacher", "--workers", "1"),
        ("distill", "--teacher", "teacher", "--student-config", "l2-h24", "--data", tiny_store, "--dry-run"),
        ("distill", "--teacher", "teacher", "--student-config", "teacher", "--data", tiny_store, "--dry-run"),
    )
    for words in commands:
        done = minilm(*words)
        assert "Traceback" not in done.stderr
        assert not list(minilm.folder.rglob("ran")), words
    minilm(*commands[0], "--trust-remote-code", "--force")
    assert list(minilm.folder.rglob("ran"))
    assert (teacher_with_code / "own.py").is_file()


def _calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node if ast.unparse(node.func) == "yaml.load" else node.func)
        elif isinstance(node, ast.Import):
            yield from (f"import {name.name}" for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"import {node.module}.{name.name}" for name in node.names)


#: Ways to run code from a file or from an argument.
DANGEROUS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("torch.load", "np.load", "numpy.load", "joblib.load", "yaml.unsafe_load", "yaml.full_load"),
    *("import pickle", "import marshal", "import shelve", "import pickle.load", "import pickle.loads"),
}


def test_the_package_has_no_call_that_unpickles_or_evaluates() -> None:
    files = sorted(Path(minilm_cli.__file__).parent.rglob("*.py"))
    assert len(files) > 30
    for file in files:
        calls = set(_calls(ast.parse(file.read_text(encoding="utf-8"))))
        assert calls & DANGEROUS == set(), file.name
        assert {call for call in calls if call.startswith("yaml.load(")} <= SAFE, file.name
        assert "shell=True" not in file.read_text(encoding="utf-8"), file.name


#: The second makes strings, lists and dicts only.
SAFE = {"yaml.load(text, _Loader)", "yaml.load(front_matter, yaml.BaseLoader)"}


def test_the_yaml_loader_is_safe() -> None:
    assert issubclass(files._Loader, yaml.SafeLoader)
    assert set(files._Loader.yaml_constructors) == set(yaml.SafeLoader.yaml_constructors)


class Harmful:
    """Unpickling it fails the test."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize("name", ["shard-00000.npy", "shard-00000.offsets.npy"])
def test_a_shard_with_a_pickle_is_refused_and_not_unpickled(tmp_path: Path, tiny_store: Path, name: str) -> None:
    shutil.copytree(tiny_store, tmp_path / "tokens")
    np.save(tmp_path / "tokens" / name, np.array([Harmful()], dtype=object), allow_pickle=True)
    with pytest.raises(MinilmError, match="this token store is damaged"):
        TokenStore(tmp_path / "tokens")


def test_pickled_weights_are_read_without_running_code(minilm: Commands, tiny_teacher: Path, tiny_store: Path) -> None:
    folder = minilm.folder / "teacher"
    shutil.copytree(tiny_teacher, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    words = ("distill", "--teacher", "teacher", "--student-config", "l2-h24", "--data", tiny_store, "--dry-run")
    torch.save(weights, folder / "pytorch_model.bin")
    assert minilm(*words, "--batch-size", "4").returncode == 0
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Harmful()}, protocol=2))
    refused = minilm(*words)
    assert refused.returncode == 2
    assert "the teacher cannot be loaded" in refused.stderr


@pytest.mark.parametrize("text", ["a: !!python/object/apply:os.mkdir [harmed]", "a: !!python/name:os.system"])
def test_yaml_tags_create_no_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(MinilmError, match="cannot be parsed"):
        files.read_settings_file(tmp_path / "run.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


# --- Paths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", ["../outside.npy", "/etc/passwd", "inner/shard-00000.npy", "shard-00000.npy\n", "shard-٠٠٠٠٠.npy", ".."]
)
def test_a_manifest_cannot_name_a_file_outside_its_folder(tmp_path: Path, tiny_store: Path, file: str) -> None:
    store = tmp_path / "tokens"
    shutil.copytree(tiny_store, store)
    shutil.copy(store / "shard-00000.npy", tmp_path / "outside.npy")
    shutil.copy(store / "shard-00000.offsets.npy", tmp_path / "outside.offsets.npy")
    manifest = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    manifest["shards"][0]["file"] = file
    (store / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(MinilmError, match="this token store is damaged") as caught:
        TokenStore(store)
    assert caught.value.where == str(store / "manifest.json")
