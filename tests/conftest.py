"""Fixtures for all tests: a tiny teacher, its tokenizer, text, tokens and a student's config.

Fixtures of the session are read-only: a test that changes a file copies it first. Files like this one import torch only
inside fixtures: xdist's main process reads them before it starts the others.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from minilm_cli.base.progress import NoProgress
from tests import tiny

# The same examples in every run, and no deadline, because the machine may be busy.
hypothesis_settings.register_profile("minilm", derandomize=True, deadline=None, max_examples=40)
hypothesis_settings.load_profile("minilm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures they use."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "minilm" in fixtures and item.path.parent.name == "integration":
            item.add_marker("process")
        if "disk" in fixtures:
            item.add_marker("disk")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Use one thread, because tests run in parallel."""
    import torch

    torch.set_num_threads(1)


# Background processes of a shell inherit an ignored SIGINT, those of nohup an ignored SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def silent() -> NoProgress:
    return NoProgress()


@pytest.fixture(scope="session")
def make_teacher(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder with a random BERT and the tiny tokenizer; keywords override its config."""

    def make(**overrides: Any) -> Path:
        folder = tmp_path_factory.mktemp("teacher")
        tiny.save_teacher(folder, **overrides)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_teacher(make_teacher: Callable[..., Path]) -> Path:
    """A folder with a BERT of 4 layers, 48 wide, 4 heads, dropout 0.1, random weights, and its tokenizer."""
    return make_teacher()


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 200 lines of 1 to 60 words, every tenth line blank."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    tiny.write_corpus(path)
    return path


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_corpus: Path) -> Path:
    """The token store of the tiny corpus: at most 32 tokens a sequence, so that some lines are split."""
    path = tmp_path_factory.mktemp("store") / "tokens"
    tiny.write_store(path, corpus=tiny_corpus, tokenizer=str(tiny_teacher))
    return path


@pytest.fixture(scope="session")
def tiny_student_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `config.json`: BERT, 2 layers, 24 wide, 4 heads, with the teacher's vocabulary."""
    path = tmp_path_factory.mktemp("student") / "config.json"
    tiny.write_student_config(path)
    return path


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Apply the permissions of files to root too, in this thread and the threads that it starts."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(0x20080522, 0), (_Capabilities * 2)()
    assert libc.capget(ctypes.byref(header), sets) == 0, os.strerror(ctypes.get_errno())
    before = sets[0].effective
    sets[0].effective &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(ctypes.byref(header), sets) == 0, os.strerror(ctypes.get_errno())
    yield
    sets[0].effective = before
    assert libc.capset(ctypes.byref(header), sets) == 0, os.strerror(ctypes.get_errno())
