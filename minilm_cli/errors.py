"""What a person is told when something they can mend went wrong.

Ignores how it is shown (`console`) and what a bug looks like: a bug keeps its traceback.
"""

from __future__ import annotations

from minilm_cli import __version__

#: Characters of the name of a version.
_LONGEST_VERSION = 50


class MinilmError(Exception):
    """Something the user gave is wrong (exit status 2).

    `message` says what is wrong, `where` names the file, line or setting, `hint` says what to do about it.
    """

    exit_status = 2

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return "\n".join(part for part in (self._located(), self.hint) if part)

    def _located(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class RunError(MinilmError):
    """What the user gave is right, but the work failed while it ran (exit status 1)."""

    exit_status = 1


class Interrupted(MinilmError):
    """A signal ended the run after its state was saved (exit status 128 + the signal's number)."""

    def __init__(self, message: str, signal_number: int, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_status = 128 + signal_number


class Dismissed(MinilmError):
    """Another process of the same run says what happened: this one ends with its status, and says nothing."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(f"dismissed with exit status {exit_status}")
        self.exit_status = exit_status


def newer(what: str, version: int, written_by: object, readable: int, *, where: str) -> MinilmError:
    """What to raise for a file of a later format than this program reads."""
    by = written_by if isinstance(written_by, str) and len(written_by) < _LONGEST_VERSION else "of a later version"
    return MinilmError(
        f"this {what} has format {version}, written by minilm {by}; this minilm, {__version__}, reads up to {readable}",
        where=where,
        hint="Upgrade minilm.",
    )
