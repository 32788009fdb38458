from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest

from minilm_cli.base.locks import Held, Lock, holder

HOLDS = """
import sys, time
from pathlib import Path
from minilm_cli.base.locks import Lock

lock = Lock(Path("lock"))
print("held", flush=True)
time.sleep(600)
"""


def test_lock_is_held_until_released(tmp_path: Path) -> None:
    with Lock(tmp_path / "lock") as lock:
        assert lock.holds
        assert (tmp_path / "lock").read_text().splitlines()[0] == str(os.getpid())
        with pytest.raises(Held, match=f"process {os.getpid()} on "):
            Lock(tmp_path / "lock")
        assert holder(tmp_path / "lock") is not None
    assert holder(tmp_path / "lock") is None
    assert (tmp_path / "lock").read_text() == ""
    with Lock(tmp_path / "lock"):
        pass


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Held, match=f"process {process.pid} on "):
            Lock(tmp_path / "lock")
        assert (holder(tmp_path / "lock") or "").startswith(f"process {process.pid} on ")
        process.send_signal(signal.SIGKILL)
        process.wait()
    with Lock(tmp_path / "lock") as lock:
        assert lock.holds


def test_patience_waits_for_a_shared_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    with (tmp_path / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert holder(tmp_path / "lock") is None
        with pytest.raises(Held):
            Lock(tmp_path / "lock")
        threading.Timer(0.1, fcntl.flock, (other, fcntl.LOCK_UN)).start()
        with Lock(tmp_path / "lock", patience=60) as lock:
            assert lock.holds
    assert (tmp_path / "lock").read_text() == ""


def test_missing_file_has_no_holder(tmp_path: Path) -> None:
    assert holder(tmp_path / "nothing") is None
    assert holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_moved_or_replaced_lock_is_not_in_place(tmp_path: Path) -> None:
    with Lock(tmp_path / "lock") as lock:
        assert lock.in_place()
        (tmp_path / "lock").rename(tmp_path / "moved")
        assert not lock.in_place()
        (tmp_path / "lock").touch()
        assert not lock.in_place()


def test_lock_does_not_hold_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(37, "No locks available")))
    with Lock(tmp_path / "lock") as lock, Lock(tmp_path / "lock") as other:
        assert not lock.holds
        assert not other.holds


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n", b"x" * 10_000], ids=["empty", "no text", "long"])
def test_lock_with_unreadable_content_is_held(tmp_path: Path, content: bytes) -> None:
    with Lock(tmp_path / "lock"):
        (tmp_path / "lock").write_bytes(content)
        with pytest.raises(Held) as caught:
            Lock(tmp_path / "lock")
        assert "process" in str(caught.value)
        assert len(str(caught.value)) < 300


def test_lock_needs_an_existing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Lock(tmp_path / "nowhere" / "lock")
