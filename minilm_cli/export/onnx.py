"""The format `onnx`: one file for ONNX Runtime, next to what programs that serve embeddings look for."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minilm_cli.base.errors import MinilmError, RunError
from minilm_cli.base.packages import require
from minilm_cli.export.formats import Verified
from minilm_cli.export.sentence_transformers import write_sentence_files
from minilm_cli.export.source import Source
from minilm_cli.export.verify import Kept, calibration_texts, compare_quantised, verify
from minilm_cli.models.families import family_of
from minilm_cli.models.hub import quiet, reason
from minilm_cli.models.sentence_head import SentenceHead

logger = logging.getLogger(__name__)

#: Version of the operators: the first that has GELU.
OPSET = 20

#: Bytes of weights that fit into a single file.
_LARGEST_FILE = 2**31 - 2**20

#: What a quantised model must keep: the mean cosine, and the share of texts whose nearest neighbour is found.
LEAST_COSINE, LEAST_RECALL = 0.98, 0.98


@dataclass(frozen=True)
class Onnx:
    """Inputs `input_ids`, `attention_mask` and, where tokenizer and model have them, `token_type_ids`.

    They are (batch, tokens), int64.

    Outputs in fp32: `last_hidden_state`, and `sentence_embedding` where it is known how to pool.
    """

    quantize: str | None = None
    """`int8`, `int8-static`, or neither."""
    accept_loss: bool = False
    """Whether a quantised model is kept that differs much."""

    def check(self, source: Source) -> None:
        """Raise `MinilmError` if a package is missing, or ONNX Runtime does not compute in the type."""
        require("onnx", "--format onnx")
        if source.dtype == "bfloat16":
            raise MinilmError("ONNX Runtime does not compute in bfloat16 on CPUs", hint="Use --dtype float16.")
        if source.head is not None and source.head.lowercase and self._tells_case(source):
            logger.warning(
                "The teacher reads texts in lower case. Of the programs that read ONNX files only sentence-transformers"
                " makes them so: do it yourself for the others."
            )

    @staticmethod
    def _tells_case(source: Source) -> bool:
        """Whether the tokenizer tells upper and lower case apart."""
        upper, lower = (source.tokenizer(text)["input_ids"] for text in ("A SENTENCE", "a sentence"))
        return bool(upper != lower)

    def write(self, source: Source, folder: Path) -> None:
        """As every format."""
        config = deepcopy(source.model.config)
        config.architectures = [type(source.model).__name__]  # as `save_pretrained` of the model does
        config.dtype = source.dtype
        with quiet():
            config.save_pretrained(folder)
        write_sentence_files(source, folder)
        model = folder / "onnx" / "model.onnx"
        model.parent.mkdir()
        _convert(source, model)
        if self.quantize:
            from minilm_cli.export import quantise

            output = model.with_name("model_quantized.onnx")
            with _silent():
                if self.quantize == "int8":
                    quantise.quantise_dynamic(model, output)
                else:
                    quantise.quantise_static(model, output, _calibration(source))

    def verify(self, source: Source, folder: Path) -> Verified:
        """As every format; a quantised model must find the nearest neighbours that the model in fp32 finds."""
        difference = verify(source, folder, "onnxruntime")
        if not self.quantize:
            return Verified(difference)
        kept = compare_quantised(source, folder, "onnxruntime-int8")
        enough = kept.cosine >= LEAST_COSINE and kept.recall >= LEAST_RECALL
        if not enough and not self.accept_loss:
            raise RunError(
                f"quantised, the model keeps too little of its embeddings: {_described(kept)}",
                where=str(folder),
                hint=f"At least {LEAST_COSINE} and {LEAST_RECALL:.0%} are asked for. --accept-loss keeps it as it is.",
            )
        return Verified(difference, asdict(kept))


class _Graph(nn.Module):
    """What the file computes."""

    def __init__(self, model: PreTrainedModel, head: SentenceHead | None) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state.float()
        return (states,) if self.head is None else (states, self.head(states, attention_mask))


def _convert(source: Source, file: Path) -> None:
    """Write the ONNX file; raises `MinilmError` with torch's reason if the family cannot be converted."""
    model = deepcopy(source.model).to(getattr(torch, source.dtype))
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if source.takes_token_types else [])]
    # Neither batch nor length may be 1, which would be taken for a constant.
    example = {name: torch.ones((2, 7), dtype=torch.long) for name in names}
    try:
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # a dependency of onnxscript

        with _silent(), torch.no_grad():
            model.set_attn_implementation("eager")
            program = torch.onnx.export(
                _Graph(model, source.head).eval(),
                kwargs=example,
                input_names=names,
                output_names=["last_hidden_state", "sentence_embedding"][: 1 if source.head is None else 2],
                dynamic_shapes={name: {0: "batch", 1: "tokens"} for name in names},
                opset_version=OPSET,
                dynamo=True,
                external_data=size > _LARGEST_FILE,
                verbose=False,
            )
            assert program is not None
            ClearMetadataAndDocStringPass()(program.model)  # stack traces, with folders of this machine
            program.save(file, external_data=size > _LARGEST_FILE)
    except (MinilmError, OSError):
        raise
    except Exception as error:  # whatever torch's tracer and converter raise
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        family = family_of(model.config).name
        raise MinilmError(f"torch cannot convert {family} models to ONNX: {reason(cause)}") from error


def _calibration(source: Source) -> Iterator[dict[str, object]]:
    wanted = ["input_ids", "attention_mask", *(["token_type_ids"] if source.takes_token_types else [])]
    for text in calibration_texts(source):
        inputs = source.tokenizer(text, truncation=True, max_length=source.longest, return_tensors="np")
        yield {name: inputs[name] for name in wanted}


def _described(kept: Kept) -> str:
    return (
        f"cosine {kept.cosine:.3f} on average, {kept.lowest_cosine:.3f} at worst; the nearest neighbour is among the"
        f" ten nearest for {kept.recall:.1%} of {kept.texts} texts, and {kept.neighbours:.1%} of the ten nearest stay"
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Silence warnings and logs of the converters: about their own parts, which nobody can change."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
