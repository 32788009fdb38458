"""The benchmarks run, with small sizes; what they measure then means nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tests.benchmarks.__main__ as benchmarks
from tests.benchmarks.tables import TABLES

from .conftest import Commands


@pytest.mark.slow
def test_quick_benchmarks_give_every_figure(minilm: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(module: str, *words: str) -> dict[str, float]:
        done = minilm(*words, program=("-m", f"tests.benchmarks.{module}"))
        assert done.returncode == 0, done.stderr
        report: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return report

    monkeypatch.setattr(benchmarks, "measure", measure)
    benchmarks.main(["--quick", "--output", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures.keys() == {"machine", "quick", *TABLES}
    assert all(figures[section] for section in TABLES)
    benchmarks.main(["--quick", "--only", "help", "--output", str(tmp_path / "figures.json")])
    again = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert again["measured_alone"]["help"]["torch"] == figures["machine"]["torch"]
    assert {name: again[name] for name in TABLES if name != "help"} == {
        name: figures[name] for name in TABLES if name != "help"
    }
