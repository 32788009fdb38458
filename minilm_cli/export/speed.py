"""Size and speed of a model, of its teacher and of its exports, on the CPU of this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from minilm_cli.base.errors import MinilmError
from minilm_cli.export.consumers import CONSUMERS
from minilm_cli.export.source import Source
from minilm_cli.models.auto import auto_class
from minilm_cli.models.hub import loading, quiet
from minilm_cli.models.size import count_parameters

logger = logging.getLogger(__name__)

#: Texts that are measured with, and how many are computed at once.
_TEXTS, _SMALL, _LARGE = 64, 1, 32

#: Each is measured at least so often, and for so many seconds.
_PASSES, _SECONDS = 3, 1.5


@dataclass(frozen=True)
class Speed:
    """A model in one of its forms."""

    model: str
    """`teacher`, `student` (or `model`, of a folder), `ONNX float32`, `ONNX int8`."""
    megabytes: float
    """Of its weights, in millions of bytes."""
    single: float
    """Texts a second, one at a time, with tokenisation."""
    batched: float
    """Texts a second, 32 at a time, with tokenisation."""


def speeds_of_models(source: Source) -> list[Speed]:
    """Of the teacher, where there is one that can be loaded, and of the model; both in fp32 by transformers."""
    here = _of_model("model" if source.run is None else "student", source.model, source.tokenizer, source)
    if source.run is None:
        return [here]
    teacher = source.run.settings().teacher
    try:
        with loading("teacher", teacher.name, teacher.revision), quiet():
            config = AutoConfig.from_pretrained(teacher.name, revision=teacher.revision)
            model = auto_class(config).from_pretrained(teacher.name, revision=teacher.revision, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(teacher.name, revision=teacher.revision)
    except MinilmError as error:
        logger.warning("The teacher is not measured: %s", error.message)
        return [here]
    return [_of_model("teacher", model.eval(), tokenizer, source), here]


def speeds_of_onnx(source: Source, folder: Path) -> list[Speed]:
    """Of the models in an ONNX export."""
    forms = {
        "onnxruntime": ("model.onnx", f"ONNX {source.dtype}"),
        "onnxruntime-int8": ("model_quantized.onnx", "ONNX int8"),
    }
    found = []
    for consumer, (file, name) in forms.items():
        if (folder / "onnx" / file).exists():
            size = sum(path.stat().st_size for path in (folder / "onnx").glob(f"{file}*"))
            found.append(Speed(name, size / 1e6, *_measure(CONSUMERS[consumer](folder, source.longest), source)))
    return found


def _of_model(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Source) -> Speed:
    takes = set(tokenizer.model_input_names) & {"input_ids", "attention_mask"}

    def encode(texts: Sequence[str]) -> object:
        inputs = tokenizer(
            list(texts), padding=len(texts) > 1, truncation=True, max_length=source.longest, return_tensors="pt"
        )
        with torch.inference_mode():
            return model(**{key: inputs[key] for key in takes})

    return Speed(name, count_parameters(model) * 4 / 1e6, *_measure(encode, source))


def _measure(encode: Callable[[Sequence[str]], object], source: Source) -> tuple[float, float]:
    """Texts a second, one at a time and 32 at a time: the median of several passes over the same texts."""
    texts = source.texts(_TEXTS)
    rates = []
    for size in (_SMALL, _LARGE):
        batches = [texts[begin : begin + size] for begin in range(0, len(texts), size)]
        encode(batches[0])
        seconds: list[float] = []
        while len(seconds) < _PASSES or sum(seconds) < _SECONDS:
            begin = time.perf_counter()
            for batch in batches:
                encode(batch)
            seconds.append(time.perf_counter() - begin)
        rates.append(len(texts) / median(seconds))
    return rates[0], rates[1]
