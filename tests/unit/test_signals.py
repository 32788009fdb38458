from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from minilm_cli.base.errors import Interrupted
from minilm_cli.training.signals import Signals

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def restore_handlers() -> Iterator[None]:
    """Restore handlers that a test has set."""
    before = {number: signal.getsignal(number) for number in (*ENDING, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_second_signal_ends_at_once(number: signal.Signals) -> None:
    signals = Signals()
    with signals.caught():
        assert signals.pending() == 0
        os.kill(os.getpid(), number)
        assert signals.pending() == number
        with pytest.raises(Interrupted, match="at once, without saving") as caught:
            os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_status == 143


def test_one_signal_ends_after_the_run_is_saved() -> None:
    signals = Signals()
    with signals.caught():
        signals.end_at_once("It is saved.", hint="Go on.")
        with pytest.raises(Interrupted, match="It is saved") as caught:
            os.kill(os.getpid(), signal.SIGTERM)
    assert (caught.value.exit_status, caught.value.hint) == (143, "Go on.")


def test_earlier_signal_ends_once_the_run_is_saved() -> None:
    signals = Signals()
    with signals.caught():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted, match="It is saved") as caught:
            signals.end_at_once("It is saved.", hint="Go on.")
    assert caught.value.exit_status == 130


def test_save_signal_is_handled_once_and_ends_nothing() -> None:
    signals = Signals()
    with signals.caught():
        assert not signals.take_save()
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.pending() == 0
        assert signals.take_save()
        assert not signals.take_save()


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (*ENDING, signal.SIGUSR1)]
    with Signals().caught():
        assert [signal.getsignal(number) for number in (*ENDING, signal.SIGUSR1)] != before
    assert [signal.getsignal(number) for number in (*ENDING, signal.SIGUSR1)] == before


def test_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = Signals()
    with signals.caught():
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.pending() == 0
