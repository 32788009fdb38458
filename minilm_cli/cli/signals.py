"""Signals outside training: they raise, so that temporary files are removed and the exit status is right."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """SIGTERM or SIGHUP came outside training, where there is no state to save."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _CtrlC(KeyboardInterrupt):
    """Ctrl-C outside training.

    Once a plain `KeyboardInterrupt` has left an `exec`, which any import of a dataclass is, `python -m` ends by the
    signal, whatever status `sys.exit` is given.
    """


def _on_ctrl_c(_number: int, _frame: FrameType | None) -> None:
    raise _CtrlC


def _on_terminate(number: int, _frame: FrameType | None) -> None:
    raise Terminated(number)


def _on_save(_number: int, _frame: FrameType | None) -> None:
    """Outside training there is nothing to save, and no reason to end."""


@contextmanager
def raised() -> Iterator[None]:
    """Within the block, signals that end the program raise; after it they end the program at once.

    After the block no temporary files are left, and an exception would come while Python shuts down.
    """
    handlers = {signal.SIGTERM: _on_terminate, signal.SIGINT: _on_ctrl_c, signal.SIGHUP: _on_terminate}
    # nohup ignores SIGHUP, and a shell ignores SIGINT in background jobs: that stays.
    heard = [number for number in handlers if signal.getsignal(number) is not signal.SIG_IGN]
    signal.signal(signal.SIGUSR1, _on_save)
    for number in heard:
        signal.signal(number, handlers[number])
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)
