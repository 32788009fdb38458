"""The fused relation loss without a GPU: run by Triton's interpreter, and compiled for several kinds of GPU.

TRITON_INTERPRET=1 python -m tests.fused_kernels interpret
python -m tests.fused_kernels compile

Each prints JSON. Triton decides when it is imported whether it interprets, so each takes a process of its own.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilm_cli.ops import fused_relations, relation_kernels
from minilm_cli.ops.relation_backend import agrees
from minilm_cli.ops.relation_chunks import losses_and_gradients as plain
from minilm_cli.ops.relations import ByLetter, Relations

CPU = torch.device("cpu")
PAPER = {"qq": 1.0, "kk": 1.0, "vv": 1.0}
EVERY_PAIR = {left + right: 1.0 + number / 10 for number, (left, right) in enumerate(itertools.product("qkv", "qkv"))}


@dataclass(frozen=True)
class Case:
    """Random projections, and the relations between them."""

    lengths: Sequence[int]
    widths: tuple[int, int]
    """Of a relation head in teacher and student."""
    heads: int = 1
    weights: dict[str, float] = field(default_factory=lambda: PAPER)
    dtype: torch.dtype = torch.bfloat16
    scale: float = 1.0
    """Of the projections: of large ones, the softmax has a single term."""

    def relations(self) -> Relations:
        """With a position of padding before each sequence."""
        starts = itertools.accumulate((length + 1 for length in self.lengths[:-1]), initial=1)
        return Relations(tuple(zip(starts, self.lengths, strict=True)), self.heads, self.weights, 2**20)

    def sides(self, device: torch.device = CPU) -> list[ByLetter]:
        """The projections of teacher and student."""
        random = torch.Generator().manual_seed(0)
        positions = sum(self.lengths) + len(self.lengths)
        return [
            {
                letter: (torch.randn(positions, self.heads * width, generator=random) * self.scale).to(
                    device, self.dtype
                )
                for letter in "qkv"
            }
            for width in self.widths
        ]

    def gradients(self, student: ByLetter) -> ByLetter:
        """Zeros of fp32 and fp64, so that the sums are seen before they are rounded."""
        dtype = torch.float64 if student["q"].dtype == torch.float64 else torch.float32
        return {
            letter: student[letter].new_zeros(len(student[letter]) + 1, student[letter].shape[1], dtype=dtype)
            for letter in self.relations().letters
        }

    def fused(self, device: torch.device = CPU) -> tuple[Tensor, ByLetter]:
        """Losses and gradients by the kernels."""
        teacher, student = self.sides(device)
        gradients = self.gradients(student)
        return fused_relations.losses_and_gradients(
            self.relations(), teacher, student, gradients, torch.float32
        ), gradients

    def errors(self, device: torch.device = CPU) -> tuple[float, float]:
        """The largest relative errors of losses, and of gradients in the 2-norm, against fp64."""
        losses, gradients = self.fused(device)
        losses, gradients = losses.cpu(), {letter: gradient.cpu() for letter, gradient in gradients.items()}
        teacher, student = ({letter: tensor.double() for letter, tensor in side.items()} for side in self.sides())
        right = self.gradients(student)
        expected = plain(self.relations(), teacher, student, right, torch.float64)
        loss = ((losses - expected).abs() / expected.abs().clamp_min(1e-30)).max()
        norms = [
            (gradients[letter][:-1] - right[letter][:-1]).norm() / right[letter][:-1].norm().clamp_min(1e-30)
            for letter in right
        ]
        return float(loss), float(max(norms))


CASES = {
    "ragged": Case((130, 1, 64, 65, 2, 33), (16, 8), heads=2),
    "long": Case((512, 3), (16, 8), weights={"qq": 1.0, "kv": 1.0}),
    "every pair": Case((33, 1, 70), (24, 12), weights=EVERY_PAIR),
    "fp16": Case((70, 1, 33), (16, 8), heads=2, dtype=torch.float16),
    "wide scores": Case((70, 17), (16, 8), scale=4.0),
    **{f"widths {teacher} and {student}": Case((65, 5), (teacher, student), weights={"qq": 1.0, "vk": 0.5})
       for teacher, student in ((4, 4), (16, 6), (32, 32), (64, 4), (64, 64))},
}  # fmt: skip


def interpret() -> dict[str, Any]:
    """Errors by case; whether results repeat, padding stays zero, and the check at first use tells right from wrong."""
    ragged = CASES["ragged"]
    losses, gradients = ragged.fused()
    again, same = ragged.fused()
    starts = [start for start, _ in ragged.relations().spans]
    padding = [gradient[torch.tensor(starts) - 1].abs().max() for gradient in gradients.values()]

    def wrong(relations: Relations, *rest: Any) -> Tensor:
        found = fused_relations.losses_and_gradients(relations, *rest)
        rest[2]["k"].mul_(1.02)
        return found

    check = (torch.device("cpu"), (torch.bfloat16, 16), (torch.bfloat16, 8))
    return {
        "errors": {name: case.errors() for name, case in CASES.items()},
        "repeats": torch.equal(losses, again) and all(torch.equal(gradients[letter], same[letter]) for letter in same),
        "padding": float(max(padding)),
        "agrees": agrees(fused_relations.losses_and_gradients, *check),
        "agrees if wrong": agrees(wrong, *check),
    }


# --- Compiled ----------------------------------------------------------------------------------------------------

ARCHITECTURES = (80, 90, 100)
WIDTHS = ((16, 8), (64, 64))
GRADIENTS = (
    {"OWN": True, "OTHER": True, "ADD": False},
    {"OWN": True, "OTHER": False, "ADD": True},
    {"OWN": False, "OTHER": True, "ADD": True},
)


def variants() -> Iterator[tuple[str, Any, int, dict[str, Any]]]:
    """Name, kernel, architecture and constants of everything that is compiled."""
    for architecture, blocks, (teacher, student) in itertools.product(ARCHITECTURES, fused_relations.BLOCKS, WIDTHS):
        constants = fused_relations.constants(blocks, teacher, student)
        where = f"sm_{architecture}, {blocks.rows} rows, widths {teacher} and {student}"
        yield f"losses, {where}", relation_kernels.losses, architecture, constants | {"HEADS": 48}
        for flags in GRADIENTS:
            name = f"gradient {flags}, {where}"
            yield name, relation_kernels.gradient, architecture, constants | flags


def compiled(variant: tuple[str, Any, int, dict[str, Any]]) -> tuple[str, dict[str, int]]:
    """A kernel's registers, and the bytes that spill from them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    name, kernel, architecture, constants = variant
    types = dict.fromkeys(("x_t", "x_s", "y_t", "y_s", "into"), "*bf16")
    types |= dict.fromkeys(("log_t", "log_s", "loss"), "*fp32") | {"tiles": "*i32", "factor": "fp32"}
    names = kernel.arg_names
    signature = {one: "constexpr" if one in constants else types.get(one, "i32") for one in names}
    values = {(names.index(one),): value for one, value in constants.items() if one in names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, one in enumerate(names)
        if (one in types and one != "factor") or one.startswith(("stride_x", "stride_y", "stride_into"))
    }
    source = ASTSource(kernel, signature, values, aligned)
    options = {option: constants[option] for option in ("num_warps", "num_stages", "enable_fp_fusion")}
    found = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        said = subprocess.run([program, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return name, {"registers": numbers["REG"], "spilled": numbers["STACK"] + numbers["LOCAL"]}


def compile_all() -> dict[str, dict[str, int]]:
    """What `compiled` says of every variant."""
    with ThreadPoolExecutor(2) as threads:
        return dict(threads.map(compiled, variants()))


if __name__ == "__main__":
    print(json.dumps({"interpret": interpret, "compile": compile_all}[sys.argv[1]]()))
