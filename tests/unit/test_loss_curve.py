from __future__ import annotations

import itertools
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm_cli.export.loss_curve import logarithmic_ticks, loss_curve

from .test_card import RECORDS

SVG = "{http://www.w3.org/2000/svg}"


def lines(svg: str) -> list[list[tuple[float, float]]]:
    """The points of the polylines: training, then held out."""
    polylines = []
    for line in ET.fromstring(svg).iter(f"{SVG}polyline"):
        points = (line.get("points") or "").split()
        polylines.append([(float(x), float(y)) for x, y in (point.split(",") for point in points)])
    return polylines


def test_curve_is_valid_svg_with_both_series() -> None:
    svg = loss_curve(RECORDS, "l3-h384 from big/teacher")
    root = ET.fromstring(svg)
    training, held_out = lines(svg)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert root.tag == f"{SVG}svg"
    assert (len(training), len(held_out)) == (4, 2)
    assert len(list(root.iter(f"{SVG}circle"))) == 2
    assert {"training", "held out", "optimiser step", "l3-h384 from big/teacher"} <= set(texts)


def test_curve_falls_with_the_logarithm_of_the_loss() -> None:
    training, _ = lines(loss_curve([{"step": step, "loss": 2.0**-step} for step in range(5)], "x"))
    assert [x for x, _ in training] == sorted(x for x, _ in training)
    falls = [lower - upper for (_, upper), (_, lower) in itertools.pairwise(training)]  # SVG counts y downwards
    assert min(falls) > 1
    assert max(falls) - min(falls) < 0.3


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.35, 12.6, [0.5, 1, 2, 5, 10]),
        (0.95, 1.05, [0.96, 0.98, 1.0, 1.02, 1.04]),
        (2.1, 4.9, [2.5, 3.0, 3.5, 4.0, 4.5]),
        (0.0009, 2000, [0.001, 0.01, 0.1, 1, 10, 100, 1000]),
        (1e-12, 1e4, [1e-12, 1e-9, 1e-6, 1e-3, 1, 1e3]),
    ],
)
def test_losses_on_the_axis_are_round(low: float, high: float, expected: list[float]) -> None:
    assert logarithmic_ticks(low, high) == expected


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (1, ["0", "1"]),
        (4, ["0", "1", "2", "3", "4"]),
        (717, ["0", "100", "200", "300", "400", "500", "600", "700"]),
        (400_000, ["0", "50,000", *(f"{number},000" for number in range(100, 401, 50))]),
    ],
)
def test_steps_on_the_axis_are_round(last: int, expected: list[str]) -> None:
    svg = loss_curve([{"step": 0, "loss": 8.0}, {"step": last, "loss": 0.1}], "x")
    texts = [text for element in ET.fromstring(svg).iter(f"{SVG}text") if (text := element.text or "")]
    start = texts.index("0")
    assert texts[start : start + len(expected)] == expected
    assert texts[start + len(expected) :] == ["optimiser step", "loss (nats)", "training", "held out"]
    assert texts[1:start] == ["0.1", "0.2", "0.5", "1", "2", "5"]


@given(low=st.floats(1e-300, 1e300), ratio=st.floats(1.1, 1e6))
def test_axis_has_a_few_round_losses(low: float, ratio: float) -> None:
    found = logarithmic_ticks(low, low * ratio)
    assert 3 <= len(found) <= 9
    assert all(low <= loss <= low * ratio for loss in found)
    assert all(float(f"{loss:.12g}") == loss for loss in found)


def test_title_is_escaped() -> None:
    title = "<a & \"b\" 'c'> ж"
    root = ET.fromstring(loss_curve(RECORDS, title))
    assert root.findtext(f"{SVG}title") == title


@given(
    st.lists(
        st.fixed_dictionaries(
            {"step": st.integers(0, 10**6)},
            optional={"loss": st.just(0.0) | st.floats(1e-12, 1e4), "eval_loss": st.floats(1e-12, 1e4)},
        ),
        max_size=8,
    )
)
def test_points_stay_within_the_frame(records: list[dict[str, float]]) -> None:
    training, held_out = lines(loss_curve(records, "x"))
    assert len(training) == sum(record.get("loss", 0) > 0 for record in records)
    assert len(held_out) == sum("eval_loss" in record for record in records)
    for x, y in (*training, *held_out):
        assert 0 <= x <= 720
        assert 0 <= y <= 360
