"""Uploads to a Hub on this machine."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.overwrite import EXPORT_MARK
from minilm_cli.base.progress import NoProgress
from minilm_cli.export import exporting
from minilm_cli.export.card import Facts
from minilm_cli.export.formats import Verified
from minilm_cli.export.source import Source
from minilm_cli.settings.export import ExportSettings
from tests.hub import TOKEN, Hub, Repository, running

from .conftest import TIMEOUT, Commands

# huggingface_hub gives the content of large files to httpx in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

Export = Callable[..., exporting.ExportReport]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as started:
        yield started


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """Environment variables of a process that uses the Hub."""
    variables = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, **variables}


@dataclass
class Made:
    """A format whose export has the given files."""

    files: Mapping[str, str] = field(default_factory=lambda: {"model.safetensors": "weights", "config.json": "{}"})

    def check(self, source: Source) -> None:
        """Allow everything."""

    def write(self, _: Source, folder: Path) -> None:
        """Write the files."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8")

    def verify(self, _source: Source, _folder: Path) -> Verified:
        """Find no difference."""
        return Verified(0.0)


@pytest.fixture
def export(
    monkeypatch: pytest.MonkeyPatch, hub: Hub, environment: dict[str, str], copied_run: Path, tmp_path: Path
) -> Iterator[Export]:
    """Exports the run to the folder `out` in this process, with an upload, in formats of a few bytes."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH"):
        monkeypatch.setattr(constants, name, str(tmp_path / name))
    monkeypatch.setenv("HF_TOKEN", environment["HF_TOKEN"])
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)

    def run(repository: str = "me/student", **options: Any) -> exporting.ExportReport:
        formats = {name: lambda _, made=made: made for name, made in options.pop("made", {"hf": Made()}).items()}
        monkeypatch.setattr(exporting, "FORMATS", formats)
        settings = {"model": copied_run, "output": tmp_path / "out", "formats": tuple(formats)}
        chosen = ExportSettings.model_validate({**settings, "push_to_hub": repository, **options})
        return exporting.export(chosen, NoProgress())

    yield run
    close_session()


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_command_uploads_the_export_to_a_new_private_repository(
    minilm: Commands, hub: Hub, environment: dict[str, str], finished_run: Path
) -> None:
    ended = minilm("export", finished_run, "--output", "out", "--push-to-hub", "me/student", **environment)
    assert (ended.returncode, ended.stdout) == (0, "out\n"), ended.stderr
    assert f"Uploaded to {hub.url}/me/student" in ended.stderr
    assert hub.calls == ["whoami", "create", "card", "modes", "batch", "put", "commit"]
    assert list(hub.repositories) == ["me/student"]
    repository = hub.repositories["me/student"]
    assert (repository.private, repository.commits) == (True, ["Upload the distilled student"])
    assert repository.files == content(minilm.folder / "out")


@pytest.mark.slow
def test_interrupted_upload_leaves_the_export_and_says_how_to_upload_it(
    minilm: Commands, hub: Hub, environment: dict[str, str], finished_run: Path
) -> None:
    uploading, ended = threading.Event(), threading.Event()
    hub.before["put"] = lambda: (uploading.set(), ended.wait(TIMEOUT))
    words = ("export", finished_run, "--output", "out", "--push-to-hub", "me/student")
    process = minilm.start(*words, **environment)
    try:
        assert uploading.wait(TIMEOUT)
        process.send_signal(signal.SIGINT)
        outcome = minilm.end(process)
    finally:
        ended.set()
    assert (outcome.returncode, outcome.stdout) == (130, ""), outcome.stderr
    assert "Stopped: uploading to me/student\n" in outcome.stderr
    assert "\n    hf upload me/student out --private\n" in outcome.stderr
    assert {"model.safetensors", "README.md"} <= content(minilm.folder / "out").keys()
    assert hub.repositories["me/student"].commits == []


@pytest.mark.parametrize("private", [True, False])
def test_visibility_of_a_new_repository_is_as_chosen(export: Export, hub: Hub, private: bool) -> None:
    export(private=private)
    assert hub.repositories["me/student"].private is private


def test_existing_repository_keeps_its_visibility_and_files(export: Export, hub: Hub) -> None:
    hub.repositories["me/student"] = Repository(private=False, files={"old.txt": b"old", "config.json": b"old"})
    report = export()
    repository = hub.repositories["me/student"]
    assert not repository.private
    assert repository.files == {"old.txt": b"old"} | content(report.path)


@pytest.mark.parametrize(("given", "full"), [("student", "me/student"), ("lab/student", "lab/student")])
def test_repository_is_the_user_s_own_unless_an_organisation_is_named(
    export: Export, hub: Hub, given: str, full: str
) -> None:
    report = export(given)
    assert report.url == f"{hub.url}/{full}"
    assert hub.repositories[full].files == content(report.path)


@pytest.mark.parametrize("order", [("hf", "onnx"), ("onnx", "hf")])
def test_formats_are_uploaded_together_in_one_commit(
    export: Export, hub: Hub, monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...]
) -> None:
    def write_card(facts: Facts) -> None:
        (facts.folder / "README.md").write_text(f"Card of {facts.form}", encoding="utf-8")

    monkeypatch.setattr(exporting, "write_card", write_card)
    made = {
        "hf": Made({"model.safetensors": "weights", "tokenizer.json": "fixed length"}),
        "onnx": Made({"onnx/model.onnx": "graph", "tokenizer.json": "any length"}),
    }
    export(made={name: made[name] for name in order})
    repository = hub.repositories["me/student"]
    assert len(repository.commits) == 1
    assert {name: text for name, text in repository.files.items() if name != EXPORT_MARK} == {
        "model.safetensors": b"weights",
        "onnx/model.onnx": b"graph",
        "tokenizer.json": b"any length",
        "README.md": f"Card of {order[-1]}".encode(),
    }


@pytest.mark.parametrize(
    ("call", "status", "said", "message"),
    [
        (
            "create",
            403,
            "No rights there.",
            "the Hub answered 403 Forbidden: No rights there\n",
        ),
        ("modes", 404, "Repository not found", "the Hub answered 404 Not Found: Repository not found\n"),
        ("batch", 401, "Expired", "the Hub answered 401 Unauthorized: Expired\n"),
        ("put", 413, "", "the Hub answered 413 Request Entity Too Large\n"),
        ("commit", 403, "No storage left\nSee the plans", "the Hub answered 403 Forbidden: No storage left\n"),
    ],
)
@pytest.mark.parametrize("private", [True, False])
def test_failed_upload_leaves_the_export_and_says_how_to_try_again(
    export: Export, hub: Hub, tmp_path: Path, call: str, status: int, said: str, message: str, private: bool
) -> None:
    hub.refusals[call] = (status, said)
    with pytest.raises(RunError) as caught:
        export(private=private)
    assert str(caught.value).startswith(f"the upload to me/student failed: {message}")
    retry = f"hf upload me/student {shlex.quote(str(tmp_path / 'out'))}{' --private' if private else ''}"
    assert f"\n    {retry}" in str(caught.value)
    assert {"model.safetensors", "README.md"} <= content(tmp_path / "out").keys()
    assert call in hub.calls
    assert all(repository.commits == [] for repository in hub.repositories.values())


def test_failed_upload_of_several_formats_names_each_folder(export: Export, hub: Hub, tmp_path: Path) -> None:
    hub.refusals["commit"] = (403, "")
    with pytest.raises(RunError) as caught:
        export(made={"onnx": Made(), "hf": Made()})
    # The last upload replaces the files of the first.
    folders = [shlex.quote(str(tmp_path / "out" / name)) for name in ("hf", "onnx")]
    commands = "\n".join(f"    hf upload me/student {folder} --private" for folder in folders)
    assert str(caught.value).endswith(commands)


def test_lost_connection_is_named(export: Export, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with running() as gone:
        pass
    # The Hub is away once it has said who asks.
    hub.before["whoami"] = lambda: monkeypatch.setattr(constants, "ENDPOINT", gone.url)
    with pytest.raises(RunError, match=f"to me/student failed: no connection to {gone.url}: .*refused"):
        export()
    assert (tmp_path / "out").is_dir()


def role(name: str) -> Callable[[Hub, pytest.MonkeyPatch], None]:
    """Give the token a role."""
    return lambda hub, _: hub.user["auth"]["accessToken"].update(role=name)


@pytest.mark.parametrize(
    ("repository", "prepare", "kind", "parts"),
    [
        ("a b/c", None, MinilmError, ("--push-to-hub a b/c: ",)),
        (
            "me/student",
            lambda _, patch: patch.setattr(constants, "HF_HUB_OFFLINE", True),
            MinilmError,
            ("--push-to-hub me/student: offline mode", "Unset HF_HUB_OFFLINE"),
        ),
        ("me/student", lambda _, patch: patch.delenv("HF_TOKEN"), MinilmError, ("needs a token", "hf auth login")),
        ("me/student", lambda _, patch: patch.setenv("HF_TOKEN", "hf_y"), MinilmError, ("401", "hf auth login")),
        ("me/student", role("read"), MinilmError, ("may only read", "HF_TOKEN")),
        ("you/student", None, MinilmError, ("the token of me may not write in you", "one of: me, Lab")),
        ("me/student", lambda hub, _: hub.refusals.update(whoami=(429, "")), RunError, ("429", "Wait")),
        (
            "me/student",
            lambda _, patch: patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:0"),
            RunError,
            ("no connection to http://127.0.0.1:0", "Check the network"),
        ),
    ],
)
def test_upload_that_cannot_succeed_is_refused_before_any_work(
    export: Export,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    repository: str,
    prepare: Callable[[Hub, pytest.MonkeyPatch], None] | None,
    kind: type[MinilmError],
    parts: tuple[str, ...],
) -> None:
    monkeypatch.setattr(exporting, "_source", lambda *_: pytest.fail("the model was loaded"))
    if prepare:
        prepare(hub, monkeypatch)
    with pytest.raises(kind) as caught:
        export(repository)
    assert type(caught.value) is kind
    for part in parts:
        assert part in str(caught.value)
    assert set(hub.calls) <= {"whoami"}
    assert not (tmp_path / "out").exists()


def test_owner_is_left_to_the_hub_if_the_token_has_rights_of_its_own(export: Export, hub: Hub) -> None:
    hub.user["auth"]["accessToken"]["role"] = "fineGrained"
    assert export("you/student").url == f"{hub.url}/you/student"


@pytest.mark.parametrize(("private", "option"), [(True, "--private"), (False, "--public")])
def test_visibility_without_a_repository_is_refused(export: Export, private: bool, option: str) -> None:
    with pytest.raises(MinilmError, match=f"{option} applies to a new Hub repository"):
        export(push_to_hub=None, private=private)
