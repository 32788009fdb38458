"""Files that the user gives as input: what to report when one cannot be read."""

from __future__ import annotations

from minilm_cli.base.errors import MinilmError, remedy


def unreadable(error: Exception, where: str) -> MinilmError:
    """The error to raise for an input that cannot be opened, or not be read to its end.

    error: an `OSError`, or what a decompressor raises for damaged data.
    """
    if isinstance(error, FileNotFoundError):
        return MinilmError("there is no such file", where=where)
    if isinstance(error, OSError) and error.strerror:
        return MinilmError(f"the file cannot be read: {error.strerror}", where=where, hint=remedy(error))
    return MinilmError(f"the file is damaged or cut short: {error}", where=where)
