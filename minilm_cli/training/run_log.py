"""The log file of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minilm_cli.base.errors import MinilmError

logger = logging.getLogger(__name__)


class _LogFile(logging.FileHandler):
    """A log file that warns once if it cannot be written, as on a full disk."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802  # logging's name
        """Warn the first time."""
        if not self.failed:
            self.failed = True
            logger.warning("%s cannot be written: lines will be missing.", self.baseFilename)


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """Write the package's messages to `file` too, and the error that ends the block."""
    handler = _LogFile(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("minilm_cli")
    root.addHandler(handler)
    try:
        yield
    except Exception as error:
        # The command line shows it; whoever reads the log on the next day wants to know too.
        logger.debug("Ended: %s", error, exc_info=not isinstance(error, MinilmError))
        raise
    finally:
        root.removeHandler(handler)
        with suppress(OSError):  # lines that are still unwritten
            handler.close()
