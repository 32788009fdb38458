"""Signals that a run answers at a time that suits it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from minilm_cli.base.errors import Interrupted

logger = logging.getLogger(__name__)


class Signals:
    """Ctrl-C, SIGTERM and SIGHUP stop the run after the current micro-batch; a second one stops it at once.

    SIGUSR1 asks for a checkpoint; the run continues.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._save = False
        self._at_once: tuple[str, str] | None = None

    def pending(self) -> int:
        """The number of the signal that stops the run, or 0."""
        return self.received or 0

    def take_save(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        asked, self._save = self._save, False
        return asked

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Handle the signals inside the block. Ignored ones (nohup) and handlers not set from Python are left alone."""
        handlers = {
            signal.SIGINT: self._stop,
            signal.SIGTERM: self._stop,
            signal.SIGHUP: self._stop,
            signal.SIGUSR1: self._ask_to_save,
        }
        before = {number: signal.getsignal(number) for number in handlers}
        before = {number: earlier for number, earlier in before.items() if earlier not in (None, signal.SIG_IGN)}
        for number in before:
            signal.signal(number, handlers[number])
        try:
            yield
        finally:
            for number, earlier in before.items():
                signal.signal(number, earlier)

    def end_at_once(self, message: str, hint: str) -> None:
        """From now on one signal is enough, also one received before: `Interrupted` with this message is raised."""
        self._at_once = message, hint
        if self.received is not None:
            raise Interrupted(message, self.received, hint=hint)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self._at_once is not None:
            message, hint = self._at_once
            raise Interrupted(message, number, hint=hint)
        if self.received is not None:
            raise Interrupted("at once, without saving.", number, hint="Resuming starts from the last checkpoint.")
        self.received = number
        logger.info("%s: saving a checkpoint, then stopping; once more stops at once.", signal.Signals(number).name)

    def _ask_to_save(self, _number: int, _frame: FrameType | None) -> None:
        self._save = True
