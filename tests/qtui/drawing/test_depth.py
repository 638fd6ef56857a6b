"""Noise along the depth of a model, drawn."""

from __future__ import annotations

import pytest

from qtui.drawing.depth import Place, depth_chart

LAYERS = [Place("conv1", 40.0, 40.0), Place("layer1.conv", 20.0, 19.9, "harm"), Place("relu", None, None), Place("fc", 50.0, 19.0)]


def drawn(places, width=40, height=6, **options):
    return ["".join(text for text, _ in line) for line in depth_chart(places, width, height, **options)]


def bar_heights(lines, left):
    """Eighths of a cell of each column's bar."""
    marks = " ▁▂▃▄▅▆▇█"
    return [sum(marks.index(line[x]) for line in lines if line[x] in marks) for x in range(left, len(lines[0]))]


def test_the_noisiest_layer_has_the_highest_bar_and_the_top_is_its_sqnr() -> None:
    lines = drawn([Place("a", 40.0, None), Place("b", 20.0, None), Place("c", 50.0, None)], 32)
    assert lines[0].startswith("20 dB") and "53 dB" in lines[4]
    heights = bar_heights(lines[:-1], 6)
    third = len(heights) // 3
    a, b, c = (max(heights[part * third : (part + 1) * third]) for part in range(3))
    assert b == 5 * 8 and b > a > c > 0


@pytest.mark.parametrize("cursor", range(4))
def test_the_last_row_tells_the_layer_under_the_cursor(cursor: int) -> None:
    last = drawn(LAYERS, 60, cursor=cursor)[-1]
    assert LAYERS[cursor].label in last and "▲" in last
    assert ("dB alone" in last) is (LAYERS[cursor].own is not None)


def test_more_layers_than_columns_show_the_worst_of_each() -> None:
    many = [Place(f"layer{index}", 40.0, None) for index in range(400)]
    many[201] = Place("worst", 5.0, None, "harm")
    lines = depth_chart(many, 46, 6, cursor=201)
    roles = {role for line in lines for _, role in line}
    assert "harm" in roles and "worst" in "".join(text for text, _ in lines[-1])


@pytest.mark.parametrize(("width", "height"), [(0, 0), (1, 1), (5, 2), (12, 3), (200, 30)])
@pytest.mark.parametrize("places", [[], LAYERS, [Place("one", 7.0, 7.0)], [Place("endless", float("inf"), float("nan"))]])
def test_it_fills_the_room_that_it_is_given(places: list[Place], width: int, height: int) -> None:
    lines = drawn(places, width, height, cursor=0, empty="nothing")
    assert len(lines) == height and all(len(line) == width for line in lines)
