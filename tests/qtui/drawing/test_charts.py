"""Charts: exact in size whatever the data, and known data in known cells."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from rich.cells import cell_len

from qtui.drawing.braille import Canvas
from qtui.drawing.histogram import histogram
from qtui.drawing.line_chart import Series, line_chart
from qtui.drawing.scatter import Point, pareto, scatter
from qtui.drawing.sheet import Sheet
from qtui.drawing.spans import Line, plain

NAN, INF = float("nan"), float("inf")
SIZES = [(12, 3), (13, 4), (20, 5), (40, 8), (76, 12), (1, 1), (3, 2), (0, 0), (5, 0), (200, 40)]
VALUES: dict[str, list[float | None]] = {
    "none": [],
    "one": [0.5],
    "constant": [2.0] * 9,
    "gaps": [1, None, NAN, 3, INF, 2, -INF],
    "only gaps": [None, NAN],
    "huge": [1e300, -1e300, 1.7e308, -1.7e308],
    "tiny": [1e-300, 5e-324, 2e-300],
    "not above zero": [0, -1, -2],
    "mixed": [0, 1e-12, 1e12],
    "many": [math.sin(i / 50) for i in range(5000)],
}


def texts(lines: list[Line]) -> list[str]:
    return [plain(line) for line in lines]


def exact(lines: list[Line], width: int, height: int) -> None:
    assert len(lines) == height
    assert [cell_len(text) for text in texts(lines)] == [width] * height


def cells_of(lines: list[Line], role: str) -> str:
    return "".join(text for line in lines for text, own in line if own == role)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("log", [False, True])
def test_a_line_chart_fills_its_cells(name: str, log: bool) -> None:
    points = [(float(i), y) for i, y in enumerate(VALUES[name])]
    for width, height in SIZES:
        for baselines in ((), (("fp32", 1.0, "base"), ("PTQ", 0.99, "base"), ("画像", NAN, "base"), ("none", None, "base"))):
            for label in ("", "step"):
                exact(line_chart([Series(points, label=label)], width, height, baselines=baselines, x_label=label, log=log), width, height)


@pytest.mark.parametrize("name", VALUES)
def test_a_scatter_fills_its_cells(name: str) -> None:
    ys = [y for y in VALUES[name] if y is not None]
    for width, height in SIZES:
        exact(scatter([Point(i % 7, y, f"run 画 {i}") for i, y in enumerate(ys[:50])], width, height, x_label="MB"), width, height)
        exact(scatter([Point(y, i % 7, f"run {i}") for i, y in enumerate(ys[:50])], width, height), width, height)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("scale", ["linear", "sqrt", "log"])
def test_a_histogram_fills_its_cells(name: str, scale: str) -> None:
    counts = [y for y in VALUES[name] if y is not None]
    for width, height in SIZES:
        for start, step in ((0, 0.1), (-3.0, 1e-9), (-1e9, 1e8), (1, 0)):
            for low, high in ((None, None), (-1.0, 1.0), (NAN, 5), (0, 1e12)):
                exact(histogram(start, step, counts, width, height, clip_low=low, clip_high=high, scale=scale), width, height)  # type: ignore[arg-type]


def test_random_data_fills_the_cells_of_random_sizes() -> None:
    rng = random.Random(3)
    draws: tuple[Callable[[int, int], list[Line]], ...] = (
        lambda w, h: line_chart([Series([(i, rng.gauss(0, 1)) for i in range(rng.randrange(200))])], w, h, x_label="step"),
        lambda w, h: histogram(-1, 0.05, [rng.randrange(99) for _ in range(40)], w, h, clip_low=-0.5, clip_high=0.7),
        lambda w, h: scatter([Point(rng.random(), rng.random(), "run") for _ in range(20)], w, h, x_label="ms"),
    )
    for _ in range(60):
        width, height = rng.randrange(12, 120), rng.randrange(3, 30)
        for draw in draws:
            exact(draw(width, height), width, height)


def test_braille_dots() -> None:
    canvas = Canvas(2, 1)
    canvas.line(0, 0, 3, 3)
    assert canvas.rows() == ["⠑⢄"]
    canvas.dot(99, 99)
    assert Canvas(2, 1).rows() == ["  "]


def test_a_rising_line_goes_from_corner_to_corner() -> None:
    lines = line_chart([Series([(0, 0.0), (1, 1.0)])], 12, 3)
    assert texts(lines)[0] == "1       ⢀⡠⠔⠊" and texts(lines)[2] == "0 ⡠⠔⠊⠁      "


def test_base_lines_keep_both_their_labels() -> None:
    series = [Series([(1, 90.2), (2, 91.4)])]
    apart = texts(line_chart(series, 40, 8, baselines=[("fp32", 91.73, "base"), ("PTQ", 90.24, "base")]))
    assert apart[0].endswith("┈ fp32") and apart[-1].rstrip().endswith("┈ PTQ")
    assert apart[0].startswith("91.7") and apart[-1].startswith("90.2")
    for width, height in ((40, 8), (60, 4), (24, 3)):
        close = "".join(texts(line_chart(series, width, height, baselines=[("fp32", 91.73, "base"), ("PTQ", 91.72, "base")])))
        assert "fp32" in close and "PTQ" in close


def test_the_log_scale_is_straight_for_a_decay() -> None:
    lines = line_chart([Series([(i, 10.0**-i) for i in range(5)])], 40, 9, log=True)
    curve = [next(x for x, c in enumerate(text) if c >= "⠀") for text in texts(lines)]
    steps = [b - a for a, b in pairwise(curve)]
    assert max(steps) - min(steps) <= 2


def test_a_fixed_range_leaves_room_for_what_is_to_come() -> None:
    half = texts(line_chart([Series([(0, 1.0), (50, 0.0)])], 42, 5, x_range=(0, 100), x_label="step"))
    assert all(text[24:].strip() == "" for text in half[:-1])
    assert half[-1].split() == ["0", "step", "100"]


def test_a_gap_is_not_bridged() -> None:
    lines = line_chart([Series([(0, 1.0), (1, 1.0), (2, None), (8, 1.0), (9, 1.0)])], 42, 3)
    assert "   " in texts(lines)[1].strip()


def test_histogram_columns_and_clips() -> None:
    lines = histogram(0, 1, [8, 4, 2, 1], 4, 2, scale="linear")
    assert texts(lines)[0] == "█▄▂▁"
    lines = histogram(-4, 1, [1, 1, 4, 9, 9, 4, 1, 1], 32, 4, clip_low=-2, clip_high=2)
    assert [text[8] for text in texts(lines)[:-1]] == ["┆"] * 3 and [text[24] for text in texts(lines)[:-1]] == ["┆"] * 3
    assert texts(lines)[-1].split() == ["-4", "clip", "-2", "0", "clip", "2", "4"]
    assert set(cells_of(lines, "harm")) <= set(" ▁▂▃▄▅▆▇█") and len(cells_of(lines, "harm").replace(" ", "")) > 10
    inside = histogram(-4, 1, [1, 1, 4, 9, 9, 4, 1, 1], 32, 4)
    assert cells_of(inside, "harm") == "" and "┆" not in "".join(texts(inside))


def test_histogram_labels_never_touch() -> None:
    for width in range(8, 60):
        for high in (0.1, 1.0, 3.9):
            axis = plain(histogram(-1, 0.1, [3] * 50, width, 3, clip_low=-0.9, clip_high=high)[-1])
            words = [word for word in axis.split() if word != "clip"]
            assert set(words) <= {"-1", "-0.9", "0", f"{high:g}", "4"} and len(words) == len(set(words))


def test_rare_values_are_seen() -> None:
    lines = histogram(0, 1, [10**9, 0, 0, 1], 4, 3, scale="linear")
    assert texts(lines)[1] == "█  ▁"


def test_pareto_points() -> None:
    points = [Point(1, 1, "a"), Point(2, 2, "b"), Point(3, 1.5, "c"), Point(2, 1.9, "d"), Point(1, 1, "e"), Point(NAN, 9, "f")]
    assert [point.label for point in pareto(points)] == ["a", "e", "b"]


def test_the_front_is_drawn_and_labelled() -> None:
    lines = scatter([Point(2.2, 98.6, "fp32"), Point(0.4, 98.3, "int8"), Point(0.9, 97.5, "mixed")], 50, 8, x_label="MB")
    whole = "\n".join(texts(lines))
    assert whole.count("●") == 2 and whole.count("○") == 1
    assert all(label in whole for label in ("fp32", "int8", "mixed", "0.4", "2.2", "MB", "98.6", "97.5"))
    assert "●" in cells_of(lines, "accent") and "⠒" in cells_of(lines, "front")


def test_labels_in_a_crowd_do_not_overlap() -> None:
    points = [Point(1 + i / 100, 1 + i / 100, f"<run{i}>") for i in range(12)]
    for width, height in ((40, 8), (20, 4), (76, 12)):
        whole = "".join(texts(scatter(points, width, height)))
        assert whole.count("<") == whole.count(">")


def test_half_of_a_wide_character_never_stays() -> None:
    sheet = Sheet(6, 1)
    sheet.put(0, 0, "画像画")
    sheet.put(1, 0, "x")
    sheet.put(4, 0, "y")
    assert plain(sheet.lines()[0]) == " x像y "
    sheet.put(5, 0, "画")
    assert cell_len(plain(sheet.lines()[0])) == 6


def test_points_that_are_the_same_but_for_noise_lie_together() -> None:
    lines = scatter([Point(0.4408, 99.7, marker="a"), Point(0.4412, 99.7, marker="b")], 60, 8)
    line = next(text for text in ("".join(part for part, _ in line) for line in lines) if "b" in text)
    assert "a" not in line or line.index("b") - line.index("a") < 5
