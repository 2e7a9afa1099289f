"""Figures: text within them, colours that stay apart, and files that are sound."""

import itertools
import math
import re
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from evals.made_results import results
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.evals.reports import axes, figures, pdf, svg
from cdkit.evals.reports.canvas import LINES, PALETTE, Canvas, Label, shortened, text_width
from cdkit.evals.reports.curves import APART, apart, curves
from cdkit.evals.reports.forest import forest
from cdkit.evals.reports.label_places import Box, place_labels
from cdkit.evals.reports.results import Curve, Figure
from cdkit.evals.statistics.bootstrap import Estimate

DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)
"""Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB."""
PAPER = ("#ffffff", "#14171d")


def linear(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear sRGB."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, other: str) -> float:
    lights = sorted(float(np.array([0.2126, 0.7152, 0.0722]) @ linear(c)) for c in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


@pytest.mark.parametrize("place", [0, 1])
def test_colours_stay_apart_under_deuteranopia(place: int) -> None:
    for group in (("better", "worse", "even"), LINES):
        for one, other in itertools.combinations(group, 2):
            seen = [lab(DEUTERANOPIA @ linear(PALETTE[name][place])) for name in (one, other)]
            assert np.linalg.norm(seen[0] - seen[1]) > 14, (one, other)
    red_and_green = [lab(DEUTERANOPIA @ linear(c)) for c in ("#c24e00", "#7d6400")]
    assert np.linalg.norm(red_and_green[0] - red_and_green[1]) < 14  # the test can fail


@pytest.mark.parametrize("place", [0, 1])
def test_text_can_be_read_on_the_page(place: int) -> None:
    for name, colours in PALETTE.items():
        if name != "line":
            assert contrast(colours[place], PAPER[place]) >= 4.5, name


# ---- axes ----------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_round_and_within(low: float, width: float, count: int) -> None:
    high = low + width
    if not high > low:
        return
    found = axes.ticks(low, high, count)
    assert all(low - 1e-6 * width <= tick <= high + 1e-6 * width for tick in found)
    assert len(found) <= count + 2


def test_ticks_say_their_numbers() -> None:
    assert axes.tick_texts(axes.ticks(-0.4, 0.6, 5)) == (
        "\N{MINUS SIGN}0.4", "\N{MINUS SIGN}0.2", "0", "0.2", "0.4", "0.6",
    )  # fmt: skip


def test_an_axis_of_one_value_or_of_none_has_a_width() -> None:
    for values in ([3.0], [], [math.nan, math.inf], [0.0, 0.0]):
        low, high = axes.span(values)
        assert math.isfinite(low) and low < high


# ---- names ---------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.floats(0, 300), st.floats(0, 200)), min_size=1, max_size=25),
    st.integers(0, 12),
)
def test_labels_stand_on_nothing(points: list[tuple[float, float]], length: int) -> None:
    frame = Box(0.0, 0.0, 300.0, 200.0)
    names = ["n" * (1 + length + i % 3) for i in range(len(points))]
    placed = place_labels(points, names, frame, 10.0)
    assert len(placed) == len(points)
    named = [label for label in placed if not label.numbered]
    for one, other in itertools.combinations(named, 2):
        assert not one.box.meets(other.box)
    for label in named:
        assert label.box.within(frame)
        assert not any(
            label.box.left < x < label.box.right and label.box.top < y < label.box.bottom
            for x, y in points
        )
    numbers = [label.text for label in placed if label.numbered]
    assert numbers == [str(i) for i in range(1, len(numbers) + 1)]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_names_of_lines_stand_apart(wanted: list[float]) -> None:
    found = sorted(apart(wanted, 0.0, 100.0))
    assert all(b - a >= APART - 1e-9 for a, b in itertools.pairwise(found))


@given(st.text(max_size=40), st.floats(30, 200))
def test_a_shortened_name_fits_and_keeps_its_ends(name: str, width: float) -> None:
    told = shortened(name, width)
    whole = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    assert told == whole or (text_width(told) <= width and told[0] == whole[0])
    assert "\n" not in told


def texts(canvas: Canvas) -> list[Label]:
    return [shape for shape in canvas.shapes if isinstance(shape, Label)]


def test_every_figure_keeps_its_text_within() -> None:
    for canvas in figures.page_figures(results()).files().values():
        for label in texts(canvas):
            width = text_width(label.text, label.size)
            left = label.x - {"start": 0, "middle": width / 2, "end": width}[label.anchor]
            assert left >= -1 and left + width <= canvas.width + 1, label
            assert 0 <= label.y <= canvas.height


def test_a_forest_says_which_side_is_better_and_names_every_method() -> None:
    (first, _) = results().tables
    drawn = forest(first, "accuracy", controls=["=1+1"])
    told = {label.text: label for label in texts(drawn)}
    assert "← worse" in told and "better →" in told
    assert told["=1+1"].colour == "soft" and told["_hidden"].colour == "ink"
    assert "=1+1" in drawn.about and "plain" in drawn.about


def test_a_forest_of_a_metric_that_counts_mistakes_turns_the_sides() -> None:
    (first, _) = results().tables
    drawn = forest(first, "unknown")
    assert not {"← worse", "← better"} & {label.text for label in texts(drawn)}
    rows = {
        name: type(row)(name, {"chair_s": row.cells["accuracy"]})
        for name, row in first.rows.items()
    }
    drawn = forest(
        type(first)("c", "greedy", 1, 5, 20, ("chair_s",), first.sections, rows), "chair_s"
    )
    assert {"← better", "worse →"} <= {label.text for label in texts(drawn)}


@pytest.mark.parametrize("count", [1, 40])
def test_curves_name_themselves_and_bear_what_is_no_number(count: int) -> None:
    hole = Estimate(math.nan, math.nan, math.nan)
    y = (Estimate(1.0, 0.0, 2.0), hole, Estimate(3.0, 2.0, 4.0))
    lines = tuple(Curve(f"line {i}", (0.0, 1.0, 2.0), y) for i in range(count))
    drawn = curves(Figure("t", "x", "y", (*lines, Curve("empty", (0.0,), (hole,)))))
    assert {f"line {i}" for i in range(count)} <= {label.text for label in texts(drawn)}
    assert "nan" not in svg.document(drawn)


# ---- files ---------------------------------------------------------------------------------------


def test_files_have_names_that_any_system_takes() -> None:
    names = figures.page_figures(results()).files()
    assert len(names) == 2 + 2 + 1 + 1 and all(re.fullmatch("[a-z0-9-]+", name) for name in names)


def test_svg_files_are_sound_run_nothing_and_keep_names_as_text(tmp_path: Path) -> None:
    figures.write(tmp_path, figures.page_figures(results()))
    files = sorted((tmp_path / figures.FOLDER).glob("*.svg"))
    told = ""
    for file in files:
        root = ElementTree.parse(file).getroot()
        assert root.tag == f"{{{svg.NAMESPACE}}}svg"
        kinds = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert kinds <= {"svg", "title", "rect", "path", "text"}
        assert not any(key.startswith("on") for element in root.iter() for key in element.attrib)
        assert "var(" not in file.read_text("utf-8")  # its colours are its own
        told += "".join(root.itertext())
    assert len(files) == 6 and all(n in told for n in ("=1+1", "_hidden", "[a]*"))


@pytest.mark.skipif(not pdf.available(), reason="needs matplotlib: pip install 'cdkit[plots]'")
def test_a_pdf_draws_its_shapes_in_their_order(tmp_path: Path) -> None:
    """Lines of the grid stand behind areas and text, as in the SVG."""
    canvas = Canvas(40.0, 10.0, "all kinds")
    canvas.line([(0.0, 5.0), (40.0, 5.0)], "c0")
    canvas.area([(0.0, 0.0), (20.0, 0.0), (20.0, 9.0)], "c1")
    canvas.text(1.0, 9.0, "a", "c2")
    canvas.line([(3.0, 0.0), (3.0, 9.0)], "c3")
    pdf.write(tmp_path / "a.pdf", canvas)
    data = (tmp_path / "a.pdf").read_bytes()
    drawn = b"".join(
        zlib.decompress(stream)
        for stream in re.findall(
            rb"FlateDecode[^>]*>>\s*stream\r?\n(.*?)endstream", data, re.DOTALL
        )
    ).decode("latin1")
    numbers = {
        tuple(round(int(PALETTE[f"c{i}"][0][at : at + 2], 16) / 255, 3) for at in (1, 3, 5)): i
        for i in range(4)
    }
    told = re.findall(r"([\d.]+)\s+([\d.]+)\s+([\d.]+)\s+(?:rg|RG)", drawn)
    found = [numbers.get(tuple(round(float(v), 3) for v in colour)) for colour in told]
    assert list(dict.fromkeys(n for n in found if n is not None)) == [0, 1, 2, 3]


@pytest.mark.skipif(not pdf.available(), reason="needs matplotlib: pip install 'cdkit[plots]'")
def test_pdf_files_hold_no_font_and_are_the_same_twice(tmp_path: Path) -> None:
    (canvas, *_) = figures.page_figures(results()).files().values()
    for name in ("a.pdf", "b.pdf"):
        pdf.write(tmp_path / name, canvas)
    data = (tmp_path / "a.pdf").read_bytes()
    assert data.startswith(b"%PDF") and b"/FontFile" not in data and b"/BaseFont" not in data
    assert data == (tmp_path / "b.pdf").read_bytes()


def test_without_matplotlib_the_svg_is_there_and_the_rest_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pdf, "available", lambda: False)
    figures.write(tmp_path, figures.page_figures(results()))
    assert {file.suffix for file in (tmp_path / figures.FOLDER).iterdir()} == {".svg"}
    (note,) = figures.missing()
    assert "pip install 'cdkit[plots]'" in note and "\n" not in note
