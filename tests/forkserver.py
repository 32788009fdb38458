"""A process that has imported everything `minilm` needs, and forks commands on request.

Starting Python and importing torch and transformers takes seconds, a fork takes milliseconds. The forked command is a
real process, a child of the process that asked: exit status, signals and streams are those of a cold start.
A command cannot set what is fixed when Python starts or a library is imported: the hash seed, and environment variables
such as `HF_HOME`. `can_fork` tells whether a command can be forked.

Linux only: a forked command becomes the child of the process that asked because that process adopts orphans.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import resource
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).parents[1]

#: Variables that Python, torch, transformers or huggingface_hub read once, at their import.
READ_AT_IMPORT = ("HF_HOME", "HF_HUB_", "TRANSFORMERS_", "TORCH_", "OMP_", "PYTHONHASHSEED", "PYTHONWARNINGS")

#: Their values in every command.
FIXED_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

#: CPU seconds after which the system ends a command: if pytest is killed, no endless run stays behind.
CPU_SECONDS = 600

_SET_NAME, _ADOPT_ORPHANS = 15, 36  # prctl's PR_SET_NAME and PR_SET_CHILD_SUBREAPER


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether a command with these variables set can be forked; otherwise it needs a cold start."""
    return sys.platform == "linux" and not any(name.startswith(READ_AT_IMPORT) for name in environment)


class Process:
    """A forked command, used like a `subprocess.Popen` whose streams go to files."""

    def __init__(self, pid: int, args: Sequence[str], out: IO[bytes] | None, err: IO[bytes] | None) -> None:
        """`out`, `err`: files that the command writes its streams to; None where the caller passed its own."""
        self.pid, self.args = pid, args
        self.returncode: int | None = None
        self._files = [out, err]
        self._written: list[str] = []

    def poll(self) -> int | None:
        """The exit status, or None while the process runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit status; raises `subprocess.TimeoutExpired`."""
        if self.poll() is None:
            descriptor = os.pidfd_open(self.pid)
            waiting = select.poll()
            waiting.register(descriptor, select.POLLIN)
            waiting.poll(None if timeout is None else max(0.0, timeout) * 1000)
            os.close(descriptor)
        if (status := self.poll()) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait, and return what the command wrote to stdout and stderr."""
        self.wait(timeout)
        while self._files:
            self._written.append(_content(self._files.pop(0)))
        out, err = self._written
        return out, err

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _content(file: IO[bytes] | None) -> str:
    if file is None:
        return ""
    with file:
        file.seek(0)
        return file.read().decode()


class ForkServer:
    """The client's side of a server."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        # A command's parent exits at once; the nearest process above it that adopts orphans becomes its parent.
        _prctl(_ADOPT_ORPHANS, 1)

    def start(
        self,
        words: Sequence[str],
        *,
        cwd: str | os.PathLike[str],
        environment: Mapping[str, str],
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Process:
        """Start `python WORDS...`, which begin with `-m MODULE` or `-c CODE`, in a session of its own.

        stdin, stdout, stderr: file descriptors; None for an empty stdin, and for outputs that `communicate` returns.
        """
        # Closed by `Process.communicate`.
        out = None if stdout is not None else tempfile.TemporaryFile()  # noqa: SIM115
        err = None if stderr is not None else tempfile.TemporaryFile()  # noqa: SIM115
        request = json.dumps({"words": words, "cwd": os.fspath(cwd), "environment": dict(environment)}).encode()
        with Path(os.devnull).open("rb") as empty:
            streams = [
                empty.fileno() if stdin is None else stdin,
                stdout if out is None else out.fileno(),
                stderr if err is None else err.fileno(),
            ]
            socket.send_fds(self._connection, [request], streams)
        answer = self._connection.recv(100)
        if not answer:
            raise RuntimeError("the fork server has ended: see what it printed")
        return Process(int(answer), words, out, err)

    def close(self) -> None:
        """End the server; the commands that it forked continue."""
        self._connection.close()


@cache
def server() -> ForkServer:
    """The server of this process, started when it is first needed."""
    client_end, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    home = tempfile.mkdtemp()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forkserver", str(server_end.fileno())],
        cwd=ROOT,
        # THP_MEM_ALLOC_ENABLE: as `minilm` sets it before it imports torch.
        env=os.environ | FIXED_ENVIRONMENT | {"HF_HOME": home, "THP_MEM_ALLOC_ENABLE": "1"},
        stdin=subprocess.DEVNULL,
        pass_fds=[server_end.fileno()],
        start_new_session=True,
    )
    server_end.close()
    client = ForkServer(client_end)

    @atexit.register
    def end() -> None:
        client.close()
        process.wait()
        shutil.rmtree(home)

    return client


def fork_server() -> ForkServer:
    """Fork a server from this process, which was forked from a server itself."""
    client_end, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        client_end.close()
        os.chdir("/")
        run(serve(server_end))
    server_end.close()
    return ForkServer(client_end)


def preload() -> None:
    """Import what the commands import, without starting a thread: only then is a fork a sound process."""
    import minilm_cli

    for module in pkgutil.walk_packages(minilm_cli.__path__, "minilm_cli."):
        if not module.name.endswith(("__main__", "export.quantise")):  # onnxruntime starts a thread
            importlib.import_module(module.name)
    for name in ("transformers.models.bert.modeling_bert", "torch.utils.tensorboard", "torch.distributed.run"):
        importlib.import_module(name)
    from transformers import AutoModel, AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("bert")  # compiles a thousand patterns, once

    from minilm_cli.export import consumers

    # An export is verified in the command's own process: a new one would import everything again.
    consumers.run_task_elsewhere = consumers.run_task

    gc.collect()
    gc.freeze()  # or each command would visit, and so copy, every object when it ends
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, f"{len(threads)} threads after the imports"


def serve(connection: socket.socket) -> list[str]:
    """Answer requests until the client closes. Returns in each forked command, with the words that it has to run."""
    while True:
        message, streams, _, _ = socket.recv_fds(connection, 2**20, 3)
        if not message:
            os._exit(0)
        reading, writing = os.pipe()
        if (parent := os.fork()) == 0:
            if child := os.fork():
                os.write(writing, str(child).encode())
                os._exit(0)
            return _become(json.loads(message), streams)
        os.waitpid(parent, 0)
        connection.sendall(os.read(reading, 100))
        for descriptor in (reading, writing, *streams):
            os.close(descriptor)


def _become(request: dict[str, object], streams: Sequence[int]) -> list[str]:
    """Set this process up like one that was started; returns the words to run."""
    os.setsid()
    os.chdir(request["cwd"])
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.closerange(3, 256)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    sys.path[:0] = [str(Path.cwd()), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    _prctl(_SET_NAME, f"minilm-{os.environ.get('RANK', '')}".encode())
    return request["words"]


def run(words: Sequence[str]) -> NoReturn:
    """Run what `python WORDS...` runs, and exit.

    The exit is Python's own, except that it does not free each object first: in a fork that copies all their memory,
    half a second of work.
    """
    status: str | int | None = None
    try:
        _run(words)
    except SystemExit as ended:
        status = ended.code
        if isinstance(status, str):
            raise
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # None, full or closed: Python knows what to do
        sys.exit(status)
    os._exit(status or 0)


def _run(words: Sequence[str]) -> None:
    option, program, *rest = words
    if option == "-m":
        sys.argv = [program, *rest]
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        assert option == "-c"
        sys.argv = ["-c", *rest]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(program, sys.modules["__main__"].__dict__)


def _prctl(option: int, value: int | bytes) -> None:
    assert ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0


if __name__ == "__main__":
    preload()
    run(serve(socket.socket(fileno=int(sys.argv[1]))))
