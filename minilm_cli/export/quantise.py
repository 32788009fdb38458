"""8-bit weights for an ONNX model, by ONNX Runtime: of matrix products and of embedding tables.

It imports packages that may be missing, and is itself imported when it is needed.

The weights of products become int8 with one scale for each output channel, embedding tables have one scale each, and
activations become uint8, which CPUs multiply fastest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

_WEIGHTS: Mapping[str, Any] = {
    "per_channel": True,
    "weight_type": QuantType.QInt8,
    "extra_options": {"MatMulConstBOnly": True},  # products of two activations, as in attention, stay as they are
}

_PRODUCTS, _TABLES = ["MatMul", "Gemm"], ["Gather"]


def quantise_dynamic(model: Path, output: Path) -> None:
    """Quantise a model; the ranges of activations are found anew at every call."""
    quantize_dynamic(model, output, op_types_to_quantize=[*_PRODUCTS, *_TABLES], **_WEIGHTS)


def quantise_static(model: Path, output: Path, inputs: Iterable[Mapping[str, Any]]) -> None:
    """Quantise a model; the ranges of activations are those of these inputs, which saves finding them.

    Products that narrow, as the second of each feed-forward part, keep ranges found at every call: a few large values
    among their inputs would leave the others too coarse (cosine 0.94 of all-MiniLM-L6-v2, and 0.99 with this).
    """
    ranges_of_most = output.with_name(f"static-{output.name}")
    quantize_static(
        model,
        ranges_of_most,
        _Inputs(inputs),
        op_types_to_quantize=[*_PRODUCTS, *_TABLES],
        nodes_to_exclude=_narrowing(onnx.load(model, load_external_data=False)),
        **_WEIGHTS,
    )
    quantize_dynamic(ranges_of_most, output, op_types_to_quantize=_PRODUCTS, **_WEIGHTS)
    ranges_of_most.unlink()


class _Inputs(CalibrationDataReader):  # type: ignore[misc]  # it has no types
    def __init__(self, inputs: Iterable[Mapping[str, Any]]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> Any:
        return next(self._inputs, None)


def _narrowing(model: Any) -> list[str]:
    """The names of the products with a weight that has fewer columns than rows."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    weights = {node.name: shapes.get(node.input[1]) for node in model.graph.node if node.op_type in _PRODUCTS}
    return [name for name, shape in weights.items() if shape is not None and shape[-1] < shape[0]]
