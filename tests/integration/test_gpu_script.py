"""The script for GPUs, tried on the CPU, where it measures nothing that counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from tests import gpu

pytestmark = pytest.mark.slow

SMALL = gpu.Sizes(
    losses=((2, 16),),
    training=(("short", 8, 16),),
    batch=4,
    micro_batch_tokens=64,
    steps=1,
    compiled=False,
    product=64,
)


def small_models() -> tuple[BertModel, BertModel]:
    shape = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 48}
    return BertModel(BertConfig(num_hidden_layers=12, **shape)), BertModel(BertConfig(num_hidden_layers=6, **shape))


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "There is no CUDA device here" in capsys.readouterr().err


def test_every_part_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "models", small_models)
    file = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--output", str(file)], SMALL) == 0
    found = json.loads(file.read_text(encoding="utf-8"))
    assert "error" in found["parity"]  # the kernels need a GPU
    assert [part for part in gpu.PARTS if part != "parity" and "error" in found[part]] == []
    assert max(found["packing"].values()) < 0.05
    assert found["losses"]["2 × 16"]["chunks_ms"] > 0
    assert all(found["resumption"]["equal"].values())
    assert len(found["resumption"]["equal"]) == 3
    for name in ("bf16", "bf16, without kernels", "fp32", "plain, bf16", "plain, fp32"):
        assert found["training"]["short"][name]["sequences_per_second"] > 0
    assert found["training"]["short"]["share_of_product_rate"] > 0
    assert "training / short / bf16 / step_ms" in capsys.readouterr().out
