from __future__ import annotations

import pickle
import signal

import pytest

from minilm_cli.base.errors import Interrupted, MinilmError, RunError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MinilmError("it is wrong"), "it is wrong"),
        (MinilmError("it is wrong", where="a.txt, line 3"), "a.txt, line 3: it is wrong"),
        (MinilmError("it is wrong", hint="Fix it."), "it is wrong\nFix it."),
        (MinilmError("it is wrong", where="a.txt", hint="Fix it."), "a.txt: it is wrong\nFix it."),
    ],
)
def test_message_has_place_reason_and_hint(error: MinilmError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MinilmError("x"), 2),
        (RunError("x"), 1),
        (Interrupted("x", signal.SIGINT), 130),
        (Interrupted("x", signal.SIGTERM), 143),
    ],
)
def test_exit_status_depends_on_the_class(error: MinilmError, status: int) -> None:
    assert error.exit_status == status
    assert isinstance(error, MinilmError)


@pytest.mark.parametrize("kind", [MinilmError, RunError])
def test_errors_can_be_pickled(kind: type[MinilmError]) -> None:
    sent = kind("it is wrong", where="a.txt, line 3", hint="Fix it.")
    arrived = pickle.loads(pickle.dumps(sent))
    assert type(arrived) is kind
    assert str(arrived) == str(sent)
    assert arrived.exit_status == sent.exit_status
