"""The page of figures and its plots show the measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.benchmarks import page
from tests.benchmarks.tables import TABLES

MADE_UP: dict[str, Any] = {
    "machine": {
        "processor": "Abacus & Sons",
        "cores": 77,
        "threads": 76,
        "memory_gb": 123.0,
        "torch": "9.8.7",
        "date": "2031-02-03",
    },
    "quick": False,
    "relation_loss": [
        {
            "length": length,
            "batch": 4096 // length,
            "ms": 11.5 * length,
            "plain_ms": 34.5 * length,
            "times_faster": 3.0,
            "extra_mb": 0.0,
            "plain_extra_mb": 1234.0,
        }
        for length in (32, 1024)
    ],
    "training": [
        {"name": "plain fp32", "sequences_per_second": 2.5, "tokens_per_second": 88, "peak_mb": 5, "times_faster": 1.0},
        {
            "name": "minilm bf16",
            "sequences_per_second": 8765.4,
            "tokens_per_second": 99_999,
            "peak_mb": 4,
            "share_of_gemm": 0.76,
            "times_faster": 3506.16,
        },
        {"name": "the larger batch", "sequences_per_second": 9, "tokens_per_second": 9, "peak_mb": 24_680},
    ],
    "families": [{"name": "quipu", "tokens_per_second": 2468, "times_faster": 0.97, "padding": 0.06}],
    "tokenisation": [
        {"name": "abacus", "tokens_per_second": 1, "mb_per_second": 5.55, "peak_mb": 1, "times_faster": 1.0}
    ],
    "tokenisation_memory": [{"megabytes": 4321, "tokens": 1_234_567_890, "peak_mb": 321}],
    "token_store": [{"sequences": 54_321, "open_seconds": 0.987, "extra_mb": 65, "batch_ms": 1.75}],
    "help": [{"cpu_seconds": 0.42}],
}


def test_the_page_of_figures_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert page.main(["--check"]) == 0, capsys.readouterr().err


def test_the_page_shows_the_figures() -> None:
    text = page.pages(MADE_UP)["figures.md"]
    assert text.startswith("<!-- Written by tests/benchmarks/page.py")
    for row in (
        "| processor | Abacus & Sons, 77 cores, 76 used by torch |",
        "| memory | 123 GB |",
        "| torch | 9.8.7 |",
        "| date | 2031-02-03 |",
        "| 1,024 | 4 | 11,776.0 | 35,328.0 | 3.00 | 0 | 1,234 |",
        "| minilm bf16 | 8,765.4 | 99,999 | 3506.16 | 76% | 4 |",
        "| the larger batch | 9.0 | 9 | – | – | 24,680 |",
        "| quipu | 2,468 | 0.97 | 6% | – |",
        "| abacus | 1 | 5.55 | 1.00 | 1 |",
        "| 4,321 | 1,234,567,890 | 321 |",
        "| 54,321 | 0.987 | 65 | 1.75 |",
        "| 0.42 |",
    ):
        assert row in text.splitlines()


@pytest.mark.parametrize("name", ["loss-time", "loss-memory", "training"])
@pytest.mark.parametrize("made_up", [True, False])
def test_plots_are_xml(name: str, made_up: bool) -> None:
    figures = MADE_UP if made_up else json.loads((page.DOCS / page.FIGURES).read_text(encoding="utf-8"))
    picture = ET.fromstring(page.pages(figures)[f"figures/{name}.svg"])
    assert picture.tag.endswith("svg")
    assert f"figures/{name}.svg" in page.pages(figures)["figures.md"]


def test_the_length_of_a_bar_is_proportional_to_its_value() -> None:
    picture = ET.fromstring(page.pages(MADE_UP)["figures/training.svg"])
    words = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert words[1:] == ["plain fp32", "2.5", "minilm bf16", "8,765.4"]
    _, plain, ours = (float(element.attrib["width"]) for element in picture.iter() if element.tag.endswith("rect"))
    assert plain / ours == pytest.approx(2.5 / 8765.4, abs=1e-3)


def test_check_finds_a_stale_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / page.FIGURES).write_text(json.dumps(MADE_UP), encoding="utf-8")
    monkeypatch.setattr(page, "DOCS", tmp_path)
    assert page.main(["--check"]) == 1
    assert page.main([]) == 0
    assert page.main(["--check"]) == 0
    (tmp_path / "figures/obsolete.svg").touch()
    assert page.main(["--check"]) == 1
    assert page.main(["--chekc"]) == 2


def test_the_figures_have_data_for_every_table() -> None:
    figures = json.loads((page.DOCS / page.FIGURES).read_text(encoding="utf-8"))
    assert figures.keys() - {"measured_alone"} == {"machine", "quick", *TABLES}


def test_the_page_says_what_was_measured_on_a_gpu() -> None:
    assert "Not measured. `python -m tests.gpu" in page.pages(MADE_UP)["figures.md"]
    row = {"sequences_per_second": 4321.0, "step_ms": 59.2, "peak_gb": 7.25}
    text = page.pages(
        MADE_UP,
        {
            "device": "Abacus 9000",
            "losses": {"32 × 128": {"chunks_ms": 9.5, "fused_ms": 0.75, "difference": 1e-7}},
            "training": {"full": {"bf16": row, "plain, fp32": {"error": "out of beads"}}, "product_tflops": 700.0},
            "parity": {"worst_loss": 2e-7, "worst_gradient": 5e-6},
            "resumption": {"equal": {"student": True}},
            "profile": {"launches_per_step": 1234.0, "idle_share": 0.25},
        },
    )["figures.md"]
    for said in (
        "On Abacus 9000",
        "| 32 × 128 | 9.5 | 0.75 | 1e-07 |",
        "| full, bf16 | 4,321 | 59.2 | 7.25 |",
        "| full, plain, fp32 | – | – | – |",
        "within\n5e-06",
        "resumed equals one",
        "1,234 kernels and has nothing to do for 25%",
    ):
        assert said in text
