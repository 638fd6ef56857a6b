"""Rows by a column."""

from __future__ import annotations

import pytest

from qtui.drawing.rows import Cell, Column, Row
from qtui.drawing.sorting import Order, is_flat, next_order, number_in, ordered, titled

COLUMNS = (Column("name", "name"), Column("ms", "ms"))
ROWS = tuple(
    Row(str(at), cells) for at, cells in enumerate((("b", "9.5"), ("C", "~10.2"), ("a", Cell("–")), ("d", "−3"), ("e", "1,000 ±2")))
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3.5", 3.5),
        ("~3.83", 3.83),
        ("−0.29 kB", -0.29),
        ("97.2 ±0.7", 97.2),
        ("1,234", 1234.0),
        ("1.3e-5", 1.3e-5),
        ("w4", None),
        ("", None),
    ],
)
def test_the_number_that_a_cell_begins_with(text: str, number: float | None) -> None:
    assert number_in(text) == number


def test_numbers_go_by_value_and_what_says_nothing_comes_last() -> None:
    assert [row.key for row in ordered(COLUMNS, ROWS, Order("ms"))] == ["4", "1", "0", "3", "2"]
    assert [row.key for row in ordered(COLUMNS, ROWS, Order("ms", False))] == ["3", "0", "1", "4", "2"]
    assert [row.key for row in ordered(COLUMNS, ROWS, Order("name", False))] == ["2", "0", "1", "3", "4"]
    assert ordered(COLUMNS, ROWS, Order("gone")) == ROWS


def test_a_tree_keeps_its_order() -> None:
    tree = (Row("a", ("x", "1")), Row("b", ("y", "2"), indent=1))
    assert not is_flat(tree) and ordered(COLUMNS, tree, Order("ms")) == tree


def test_the_orders_come_round() -> None:
    order, seen = None, []
    for _ in range(3):
        order = next_order(COLUMNS, order)
        seen.append(order)
    assert seen == [Order("name"), Order("ms"), None]
    assert [column.title for column in titled(COLUMNS, Order("ms", False))] == ["name", "ms ▴"]
