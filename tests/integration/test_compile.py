"""Compiled models: the same training, one graph on GPUs, and no compilation after the first steps."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.nn.attention.varlen import varlen_attn
from transformers import AutoConfig

from minilm_cli.models import tap
from minilm_cli.models.inputs import Inputs
from minilm_cli.models.student import build_student
from minilm_cli.models.student_config import student_config
from minilm_cli.models.tap import Tap
from minilm_cli.models.teacher import load_teacher
from minilm_cli.ops import attention
from minilm_cli.ops.attention import can_be_traced
from minilm_cli.settings.load import load_distill_settings
from minilm_cli.tokens.store import TokenStore
from minilm_cli.training.batches import BatchStream
from minilm_cli.training.distiller import Distiller
from minilm_cli.training.objective import RelationObjective
from minilm_cli.training.optim import LearningRate
from tests.families import FAMILIES, LAYER

STEPS = 12

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("c++") is None, reason="torch compiles for CPUs with the system's C++ compiler"),
    # Warnings of torch's compiler.
    pytest.mark.filterwarnings("ignore:`torch.jit.script.*` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


def distiller(teacher: Path, config: Path, *, compiled: bool) -> Distiller:
    settings = load_distill_settings(None, ["schedule.warmup_steps=2"], {"teacher.name": "t", "student.config": "s"})
    model, _ = load_teacher(str(teacher), layer=1)
    config_of_student = student_config(str(config), AutoConfig.from_pretrained(teacher))
    config_of_student.num_hidden_layers = 1
    config_of_student.hidden_dropout_prob = config_of_student.attention_probs_dropout_prob = 0.0
    return Distiller(
        Tap(model, [1]),
        Tap(build_student(config_of_student, seed=1), [1]),
        RelationObjective(settings.relations.weights, heads=12),
        settings.optimizer,
        LearningRate(settings.schedule, settings.optimizer.lr, STEPS),
        seed=settings.training.seed,
        device=torch.device("cpu"),
        bf16=False,
        compile_models=compiled,
    )


# Generating the code takes most of the time, so the second case only traces the models and runs the traces.
@pytest.mark.parametrize(("device", "backend"), [("cpu", "inductor"), ("gpu", "aot_eager")])
def test_compiled_training_is_the_same_and_compiles_only_in_the_first_steps(
    tiny_teacher: Path,
    tiny_student_config: Path,
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    *,
    device: str,
    backend: str,
) -> None:
    if device == "gpu":
        request.getfixturevalue("as_on_a_gpu")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    frames = torch._dynamo.utils.counters["frames"]
    frames.clear()
    compiled, eager = (
        distiller(tiny_teacher, tiny_student_config, compiled=True),
        distiller(tiny_teacher, tiny_student_config, compiled=False),
    )
    stream = BatchStream(
        TokenStore(tiny_store),
        seed=1,
        batch_size=12,
        micro_batch_tokens=100,
        max_length=24,
        layout="packed",
    )
    compiled_frames = []
    for report, expected in zip(
        compiled.steps(stream, first=1, last=STEPS), eager.steps(stream, first=1, last=STEPS), strict=True
    ):
        compiled_frames.append(dict(frames))
        assert report.loss == pytest.approx(expected.loss, rel=1e-4)
        assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-3)
    shapes = {batch.inputs.ids.shape for step in range(4, STEPS + 1) for batch in stream.step(step).micro_batches}
    assert len(shapes) > 5
    assert compiled_frames[0]["ok"] > 0
    assert compiled_frames[2] == compiled_frames[-1]
    torch._dynamo.reset()


# --- Graphs ------------------------------------------------------------------------------------------------------


def traceable_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    *_: Any,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """What torch's function for sequences of varying length computes, on a CPU and without a loop over them."""
    places = torch.arange(query.shape[0])
    sequence = torch.searchsorted(offsets, places.int(), right=True)
    ahead = places[None, :] - places[:, None]
    behind, before = (torch.inf if width < 0 else width for width in window_size)
    visible = (sequence[:, None] == sequence[None, :]) & (ahead >= -behind) & (ahead <= before)
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v, visible, scale=scale, enable_gqa=enable_gqa)
    return found[0].transpose(0, 1)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Packed rows and padded batches take the paths of a GPU."""
    torch._dynamo.reset()
    monkeypatch.setattr(attention, "varlen_attn", traceable_varlen)
    monkeypatch.setattr(attention, "_has_flash", lambda *_: True)
    monkeypatch.setattr(
        tap,
        "can_be_traced",
        lambda packing, *tensors, **options: packing is None or can_be_traced(packing, *tensors, **options),
    )
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("family", "attentions"),
    # MPNet does not use torch's attention. DeBERTa reads a number from a tensor in each layer: its graphs end there.
    [("bert", 1), ("modernbert", 1), ("t5", 1), ("mpnet", 0), ("deberta", None)],
)
def test_a_pass_on_a_gpu_is_one_graph_up_to_the_projections(
    family: str, attentions: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case,) = (case for case in FAMILIES if case.name == family)
    model = case.model()
    eager, compiled = Tap(model, [LAYER]).eval(), Tap(copy.deepcopy(model), [LAYER]).eval()
    seen: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        seen.append(graph)
        return make_boxed_func(graph.forward)

    whole = partial(torch.compile, backend=aot_autograd(fw_compiler=backend), fullgraph=attentions is not None)
    monkeypatch.setattr(torch, "compile", whole)
    compiled.compile_pass()
    arrange = Inputs.packed if case.layout == "packed" else Inputs.padded
    with torch.no_grad():
        for lengths in ((3, 7, 5), (4, 4, 9, 2), (8, 3, 6, 5, 7)):
            inputs = arrange([np.arange(3, 3 + length) % 40 for length in lengths])
            for found, expected in zip(compiled(inputs)[0], eager(inputs)[0], strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    counts = [sum("scaled_dot_product" in str(node.target) for node in graph.graph.nodes) for graph in seen]
    assert attentions is None or counts == [attentions]  # those of later layers are not in it


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(("dropout", "operator"), [(0.0, "_varlen_attn"), (0.1, "_flash_attention_forward")])
def test_kernels_of_gpus_are_in_the_graph(dropout: float, operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "varlen_attn", varlen_attn)
    monkeypatch.setattr(attention, "_drops_out_by_flash", lambda *_: True)
    operators: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    (case,) = (case for case in FAMILIES if case.name == "bert")
    compiled = Tap(case.model(attention_probs_dropout_prob=dropout), [LAYER])
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    compiled.compile_pass()
    with pytest.raises(NotImplementedError):  # a CPU does not have them
        compiled.train()(Inputs.packed([np.arange(3, 7), np.arange(5, 8)]))
    assert any(operator in name for name in operators)
