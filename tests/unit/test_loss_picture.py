from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from minilm_cli.export.loss_curve import LINES
from minilm_cli.export.loss_picture import write_picture

from .test_card import RECORDS


def test_the_picture_is_a_png_of_the_same_bytes_each_time(tmp_path: Path) -> None:
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    for file in (one, other):
        assert write_picture(RECORDS, "l3-h384 from big/teacher", file)
    assert one.read_bytes() == other.read_bytes()
    assert one.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", one.read_bytes()[16:24]) == (1080, 540)


def test_the_picture_has_the_lines_and_axes_of_the_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure: Any = pytest.importorskip("matplotlib.figure").Figure
    drawn: list[Any] = []
    monkeypatch.setattr(figure, "savefig", lambda self, *_args, **_options: drawn.append(self))
    assert write_picture(RECORDS, "a $b$ <c>", tmp_path / "loss.png")
    [axes] = drawn[0].axes
    assert axes.get_title(loc="left") == "a $b$ <c>"
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "held out"]
    for line, (name, key, colour) in zip(axes.lines, LINES, strict=True):
        points = [(record["step"], record[key]) for record in RECORDS if key in record]
        assert (line.get_label(), line.get_color()) == (name, colour)
        assert list(zip(*line.get_data(), strict=True)) == points


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{"step": 0, "loss": 0.0}],
        [{"step": 1, "loss": 5.0}],
        [{"step": 0, "loss": 1e-300}, {"step": 10**6, "loss": 1e300}],
    ],
)
def test_any_losses_are_drawn(tmp_path: Path, records: list[dict[str, float]]) -> None:
    assert write_picture(records, "漢字 $ \\ _", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_the_settings_of_the_reader_s_matplotlib_change_nothing(tmp_path: Path) -> None:
    import matplotlib as mpl

    write_picture(RECORDS, "x", tmp_path / "one.png")
    with mpl.rc_context({"text.usetex": True, "axes.facecolor": "black", "savefig.bbox": "tight"}):
        write_picture(RECORDS, "x", tmp_path / "other.png")
        assert mpl.rcParams["text.usetex"]
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()


def test_nothing_is_drawn_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not write_picture(RECORDS, "x", tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()
