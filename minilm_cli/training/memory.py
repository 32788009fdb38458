"""Memory that runs out: recognised, and answered once with smaller micro-batches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from minilm_cli.base.errors import RunError
from minilm_cli.training.batches import BatchStream

logger = logging.getLogger(__name__)

#: What other errors say that are this one: of cuBLAS, which finds no room for its workspace, and of a CPU.
_OUT_OF_MEMORY = ("CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")

Result = TypeVar("Result")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device or the machine has run out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)


class Backoff:
    """Halves the tokens of a micro-batch when memory runs out, once in a run."""

    def __init__(self, release: Callable[[], None]) -> None:
        """`release` frees what a failed attempt has left on the device."""
        self._release = release
        self._used = False

    def retry(self, work: Callable[[], Result], what: str, stream: BatchStream) -> Result:
        """The result of `work`; if memory runs out, of a second attempt with half of `stream`'s budget.

        Raises `RunError` if memory ran out before, and any other error as it is.
        """
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self._halve(what, stream)

    def _halve(self, what: str, stream: BatchStream) -> None:
        if self._used:
            raise RunError(
                f"{what}: out of memory, with micro-batches of {stream.micro_batch_tokens:,} tokens.",
                hint="Resume with a lower --set training.micro_batch_tokens=N, or start a run with a lower"
                " --max-length.",
            ) from None
        self._used = True
        self._release()
        stream.micro_batch_tokens //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        budget = f"{stream.micro_batch_tokens:,}"
        logger.warning("%s: out of memory; continuing with micro-batches of %s tokens.", what.capitalize(), budget)
