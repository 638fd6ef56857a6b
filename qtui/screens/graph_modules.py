"""A language model's modules where others have the nodes of a graph: rows, the sentence about one, everything about one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.text import Text

from engine.events.event import NodeRow
from qtui.drawing.rows import Cell, Column, Row, measure
from qtui.drawing.text import middle
from qtui.screens.graph_look import Look
from qtui.screens.graph_rows import Table, share
from qtui.text import in_block, plain

_LONG = 44
"""Cells of a module's path in a sentence."""
_COLUMNS = (
    Column("name", "module", min=22, grow=1, priority=9), Column("target", "kind", priority=5), Column("args", "matrix", priority=7),
    Column("shape", "output", priority=6), Column("params", "params", align="right", priority=4),
    Column("time", "time %", width=11, align="right", priority=8),
)  # fmt: skip


def module_table(nodes: Sequence[NodeRow]) -> Table:
    """Each module by its own name below the one that it is in."""
    most = max((node.time_share or 0.0 for node in nodes), default=0.0) or 1.0
    rows = tuple(_row(node, most) for node in nodes)
    # Widths are those of all rows, so that a filter does not move the columns.
    sized = zip(_COLUMNS, measure(_COLUMNS, rows), strict=True)
    return Table(tuple(replace(column, width=column.width or found.full) for column, found in sized), rows)


def _row(node: NodeRow, most: float) -> Row:
    time = "" if node.time_share is None else Cell(share(node.time_share, True), bar=node.time_share / most)
    matrix = f"{node.args}{', tied' if node.kwargs else ''}"
    cells = (node.name.rpartition(".")[2], node.target, matrix, node.shape, f"{node.params:,}" if node.params else "", time)
    return Row(node.name, cells, role="" if node.params or node.time_share else "dim", indent=node.name.count("."))


def by_path(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Modules by their paths, for where a filter leaves out what they are in."""
    return tuple(replace(row, cells=(in_block(row.key), *row.cells[1:]), indent=0) for row in rows)


def module_sentence(look: Look, node: NodeRow) -> str:
    """What a module is: its kind, its matrix, what it costs."""
    kind = node.target
    if node.args:
        kind += f" of {node.args.replace(' × ', ' rows of ')}" if "×" in node.args else f", {node.args.replace('→', 'inputs to')} outputs"
    if node.kwargs:
        kind += f", {node.kwargs}"
    inside = sum(other.name.startswith(f"{node.name}.") for other in look.traced)
    about = [_parameters(look, node, " parameters"), _time(node)] if node.params else [_time(node)]
    told = ", ".join(filter(None, about)) or (f"{inside} modules are in it" if inside else "it has no weights")
    return f"{middle(node.name, _LONG)}: {kind}; {told}. ⏎ tells all."


def module_details(look: Look, node: NodeRow) -> Text:
    """All that is known of a module."""
    shape = f"{node.shape}: N texts of T tokens" if node.shape.startswith("N×T") else node.shape
    lines = (
        ("module", node.name), ("kind", node.target), ("matrix", ", ".join(filter(None, (node.args, node.kwargs)))), ("output", shape),
        ("parameters", _parameters(look, node)), ("time", _time(node)),
    )  # fmt: skip
    text = Text()
    for label, value in lines:
        text.append(f"{label:<12}", "bold")
        text.append(f"{plain(value) or '–'}\n", "" if value else "dim")
    text.rstrip()
    return text


def _parameters(look: Look, node: NodeRow, unit: str = "") -> str:
    if not node.params:
        return ""
    return f"{node.params:,}{unit}" + (f", {share(node.params / look.params, True)} % of the model" if look.params else "")


def _time(node: NodeRow) -> str:
    return "" if node.time_share is None else f"{share(node.time_share, True)} % of the fp32 time"
