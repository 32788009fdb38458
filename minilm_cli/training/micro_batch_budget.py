"""The tokens of a micro-batch, if the user leaves them to us: tried out, and remembered.

Larger micro-batches are faster until the caches or the GPU are full, which depends on the machine and the models. So
budgets are doubled as long as that makes real tokens go through faster. The result is kept in the user's cache folder:
the same run on the same machine is cut the same way each time, and so gives the same numbers.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from minilm_cli.base.atomic import renewed
from minilm_cli.base.errors import MinilmError
from minilm_cli.base.jsonio import write_json
from minilm_cli.base.seeding import derive
from minilm_cli.training.batches import BatchStream
from minilm_cli.training.distiller import Distiller
from minilm_cli.training.memory import out_of_memory
from minilm_cli.training.micro_batches import MicroBatch

logger = logging.getLogger(__name__)

#: The budgets that are tried, in turn.
_LADDERS = {"cpu": (1024, 2048, 4096, 8192, 16384), "cuda": tuple(2**power for power in range(12, 19))}

#: A run of fewer tokens than this is too short.
_WORTHWHILE_TOKENS = 2_000_000

#: How much faster a larger budget must be to be preferred.
_GAIN = 1.05


def untried(device: torch.device) -> int:
    """The budget of a run too short for a trial to pay off."""
    return 32_768 if device.type == "cuda" else 2048


def settle(distiller: Distiller, stream: BatchStream, *, run_tokens: float, facts: Mapping[str, Any]) -> None:
    """Set the budget of `stream` that is fastest for a run of `run_tokens` real tokens.

    facts: what the speed depends on besides the machine, about models and data.
    Raises `MinilmError` if not even the smallest budget fits into memory.
    """
    if run_tokens < _WORTHWHILE_TOKENS:
        return
    ladder = _LADDERS.get(distiller.device.type, _LADDERS["cuda"])
    key = derive(0, json.dumps({**facts, **_machine(distiller.device)}, sort_keys=True))
    file = _cache_folder() / f"budget-{key:016x}.json"
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        if (remembered := json.loads(file.read_text(encoding="utf-8"))["micro_batch_tokens"]) in ladder:
            stream.micro_batch_tokens = remembered
            return
    logger.info("Trying out how many tokens a micro-batch should have.")
    rates = _try_out(distiller, stream, ladder)
    tried = ", ".join(f"{rate:,.0f} with {budget:,}" for budget, rate in rates.items())
    logger.info("Micro-batches of %s tokens. Tokens a second: %s.", f"{stream.micro_batch_tokens:,}", tried)
    with suppress(OSError, MinilmError), renewed(file) as built:
        write_json(built, {"micro_batch_tokens": stream.micro_batch_tokens, "tokens_per_second": rates})


def _try_out(distiller: Distiller, stream: BatchStream, ladder: tuple[int, ...]) -> dict[int, float]:
    """Real tokens a second by budget, up to the first that gains nothing; leaves `stream` with the best."""
    rates: dict[int, float] = {}
    best = ladder[0]
    for budget in ladder:
        stream.micro_batch_tokens = budget
        micro_batches = stream.step(1).micro_batches
        try:
            # The first has the longest sequences, so it needs the most memory; the middle one represents them all.
            if distiller.device.type != "cpu" or not rates:
                distiller.rehearse(micro_batches[0])
            typical = micro_batches[(len(micro_batches) - 1) // 2]
            rates[budget] = typical.tokens / min(_seconds(distiller, typical) for _ in range(2))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if not rates:
                raise MinilmError(
                    f"memory is too small for micro-batches of {budget:,} tokens",
                    where=str(distiller.device),
                    hint="Lower --max-length, or choose a smaller student.",
                ) from None
            break
        if budget != best and rates[budget] < _GAIN * rates[best]:
            break
        best = budget
        if len(micro_batches) == 1:
            break
    stream.micro_batch_tokens = best
    return rates


def _seconds(distiller: Distiller, batch: MicroBatch) -> float:
    started = time.perf_counter()
    distiller.rehearse(batch)
    return time.perf_counter() - started


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.cpu.get_capabilities().get("cpu_name")
    return {"device": device.type, "name": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _cache_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minilm"
    except RuntimeError:  # in a container a user may have no home
        return Path(tempfile.gettempdir()) / "minilm"
