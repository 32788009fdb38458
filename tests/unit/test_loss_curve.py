from __future__ import annotations

import itertools
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from minilm_cli.export.loss_curve import loss_curve

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
