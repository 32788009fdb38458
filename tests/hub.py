"""A Hub on this machine: what huggingface_hub asks for to upload a model, answered from memory."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Names of files that are stored outside git, after a request of their own.
LARGE = (".safetensors", ".onnx")

#: The only token that is valid.
TOKEN = "hf_x"


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, **more: str) -> None:
        super().__init__(message)
        self.status = status
        self.content = {"error": message} | more


@dataclass
class Repository:
    """A repository."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    """Their messages."""


@dataclass
class Hub:
    """The content of a Hub, and how it answers."""

    url: str
    user: dict[str, Any] = field(
        default_factory=lambda: {
            "name": "me",
            "orgs": [{"name": "Lab"}],
            "auth": {"type": "access_token", "accessToken": {"role": "write"}},
        }
    )
    """What it knows of who asks."""
    repositories: dict[str, Repository] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    """The calls so far: `whoami`, `create`, `card`, `modes`, `batch`, `put`, `commit`."""
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    """The status and message with which it answers a call."""
    before: dict[str, Callable[[], object]] = field(default_factory=dict)
    """What to do before a call is answered."""
    large: dict[str, bytes] = field(default_factory=dict)
    """Large files by their sha256."""

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> Any:
        """The answer to a request, as JSON; raises `Refused`."""
        name, handle = self._call(method, path)
        self.calls.append(name)
        self.before.get(name, lambda: None)()
        if name in self.refusals:
            raise Refused(*self.refusals[name])
        if name != "put" and token != f"Bearer {TOKEN}":
            raise Refused(401, "Invalid username or password.")
        return handle(body)

    def _call(self, method: str, path: str) -> tuple[str, Callable[[bytes], Any]]:
        """The name of a call, and what answers it."""
        found: tuple[str, Callable[[bytes], Any]]
        match method, path.strip("/").split("/"):
            case "GET", ["api", "whoami-v2"]:
                found = "whoami", lambda _: self.user
            case "POST", ["api", "repos", "create"]:
                found = "create", self._create
            case "POST", ["api", "validate-yaml"]:
                found = "card", lambda _: {"errors": [], "warnings": []}
            case "POST", ["api", "models", owner, name, "preupload", "main"]:
                found = "modes", lambda body: self._modes(self._repository(owner, name), body)
            case "POST", [owner, name, "info", "lfs", "objects", "batch"]:
                found = "batch", lambda body: self._batch(self._repository(owner, name.removesuffix(".git")), body)
            case "PUT", ["large", checksum]:
                found = "put", lambda body: self.large.update({checksum: body})
            case "POST", ["api", "models", owner, name, "commit", "main"]:
                found = "commit", lambda body: self._commit(self._repository(owner, name), body)
            case _:
                raise Refused(404, "Not found")
        return found

    def _repository(self, owner: str, name: str) -> Repository:
        if (found := self.repositories.get(f"{owner}/{name}")) is None:
            raise Refused(404, "Repository not found")
        return found

    def _create(self, body: bytes) -> dict[str, str]:
        wanted = json.loads(body)
        name = f"{wanted['organization'] or self.user['name']}/{wanted['name']}"
        url = f"{self.url}/{name}"
        if name in self.repositories:
            raise Refused(409, "You already created this model repo", url=url)
        self.repositories[name] = Repository(private=wanted["visibility"] == "private")
        return {"url": url}

    def _modes(self, _: Repository, body: bytes) -> dict[str, list[dict[str, object]]]:
        paths = [file["path"] for file in json.loads(body)["files"]]
        return {
            "files": [
                {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
                for path in paths
            ]
        }

    def _batch(self, _: Repository, body: bytes) -> dict[str, list[dict[str, object]]]:
        return {
            "objects": [
                wanted | {"actions": {"upload": {"href": f"{self.url}/large/{wanted['oid']}"}}}
                for wanted in json.loads(body)["objects"]
            ]
        }

    def _commit(self, repository: Repository, body: bytes) -> dict[str, object]:
        for line in body.decode().splitlines():
            match json.loads(line):
                case {"key": "header", "value": {"summary": summary}}:
                    repository.commits.append(summary)
                case {"key": "file", "value": {"path": path, "content": content}}:
                    repository.files[path] = base64.b64decode(content)
                case {"key": "lfsFile", "value": {"path": path, "oid": checksum}}:
                    repository.files[path] = self.large[checksum]
        return {"commitUrl": f"{self.url}/me/student/commit/0", "commitOid": "0" * 40, "success": True}


@contextmanager
def running() -> Iterator[Hub]:
    """A Hub that answers in threads until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                status, content = 200, hub.answer(self.command, self.path, self.headers.get("Authorization"), body)
            except Refused as refused:
                status, content = refused.status, refused.content
            text = json.dumps(content).encode()
            with suppress(ConnectionError):  # who asked may have been interrupted
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        do_GET = do_POST = do_PUT = _answer  # noqa: N815  # names of the base class

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
