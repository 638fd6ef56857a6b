"""The columns and rows of the graph's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from engine.events import NodeRow, PairRow
from qtui.drawing.rows import Cell, Column, Row, measure
from qtui.screens.graph_look import GLYPHS, ROLES, WORDS, Fate, Look, brackets
from qtui.widgets.filter_bar import matches

Kind = Literal["wide", "narrow", "half"]
"""All columns; those for 80 cells, with args and kwargs in one; those of one of two tables side by side."""


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


_SHORT: Mapping[str, str] = {
    "placeholder": "input", "call_module": "module", "call_function": "function", "call_method": "method", "get_attr": "attribute",
}  # fmt: skip
_SHOWN: Mapping[Kind, tuple[str, ...]] = {
    "wide": ("name", "opcode", "target", "args", "kwargs", "shape", "params", "time", "fold"),
    "narrow": ("name", "opcode", "target", "args", "shape", "params", "time", "fold"),
    "half": ("name", "target", "shape", "time", "fold"),
}


def table(look: Look, nodes: Sequence[NodeRow], kind: Kind, before: bool = False) -> Table:
    """A row for each node. ``before``: the graph as traced while there is a folded one."""
    drawn = brackets(nodes, look.rows)
    most = _most(nodes)
    rows = tuple(_row(look, node, kind, drawn, before, most) for node in nodes)
    return Table(_columns(kind, _indent(look, drawn), rows, bool(look.rows), look.folded and not before), rows)


def aligned(look: Look) -> tuple[Table, Table]:
    """Both graphs for tables side by side, row by row: where a normalization went away the folded graph has a gap."""
    drawn, kept = brackets(look.traced, look.rows), brackets(look.fused, look.rows)
    before, after, most = _indent(look, drawn), _indent(look, kept), _most(look.traced, look.fused)
    left = tuple(_row(look, node, "half", drawn, True, most) for node in look.traced)
    found = ((node, look.after(node.name)) for node in look.traced)
    right = tuple(_row(look, new, "half", kept, False, most) if new else _gap(look, old, after) for old, new in found)
    pairs = bool(look.rows)
    return Table(_columns("half", before, left, pairs, False), left), Table(_columns("half", after, right, pairs, True), right)


def _columns(kind: Kind, indent: int, rows: tuple[Row, ...], pairs: bool, after: bool) -> tuple[Column, ...]:
    """``indent`` is the room before the names for brackets and glyphs. Widths are those of all rows, so that a filter does
    not move the columns."""
    known = {
        "name": Column("name", " " * indent + "name", min=16 if kind == "half" else 20, priority=9),
        "opcode": Column("opcode", "opcode", priority=2),
        "target": Column("target", "target", min=8 if kind == "half" else 10, priority=4),
        "args": Column("args", "args", min=6, cut="end", priority=3),
        "kwargs": Column("kwargs", "kwargs", min=8, cut="end"),
        "shape": Column("shape", "shape", priority=5),
        "params": Column("params", "params", align="right", priority=1),
        "time": Column("time", "time %", width=9, align="right", priority=7),
        "fold": Column("fold", "change" if after else "fold", min=6, grow=1, cut="end", priority=6),
    }
    shown = tuple(known[key] for key in _SHOWN[kind] if pairs or key != "fold")
    return tuple(replace(column, width=found.full) for column, found in zip(shown, measure(shown, rows), strict=True))


def chosen(look: Look, rows: Sequence[Row], wanted: str, before: bool = True) -> tuple[Row, ...]:
    """The rows whose node holds ``wanted``, as traced or as in the folded graph."""
    return tuple(row for row in rows if matches(wanted, _fields(look, row.key, before))) if wanted else tuple(rows)


def _fields(look: Look, key: str, before: bool) -> tuple[str, ...]:
    # The key of a gap is that of its node with a space before it.
    node = look.node(key.strip()) if before else look.after(key)
    return (node.name, node.opcode, node.target, node.args, node.kwargs) if node else ()


def delta(value: float) -> str:
    """A small difference: ``2.4e-7``."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if value else "0"


def share(value: float | None) -> str:
    """A part of the time in percent, without the sign."""
    if value is None:
        return ""
    return "<1" if 0 < value < 0.005 else f"{value * 100:.0f}"


def _indent(look: Look, drawn: Mapping[str, str]) -> int:
    lanes = max(map(len, drawn.values()), default=0)
    # A folded pair is one node: its glyph needs room although no bracket is left.
    return lanes + (1 if lanes else 0) + 2 if look.rows else 0


def _most(*graphs: Sequence[NodeRow]) -> float:
    """The largest share of the time: bars are parts of it, or most of them would be slivers."""
    return max((node.time_share or 0.0 for graph in graphs for node in graph), default=0.0) or 1.0


def _row(look: Look, node: NodeRow, kind: Kind, drawn: Mapping[str, str], before: bool, most: float) -> Row:
    pair = look.pair(node.name)
    fate = look.fate(pair) if pair is not None else None
    lanes = drawn.get(node.name, "")
    start = f"{lanes} " if lanes else ""
    name: str | Cell = f"{start}  {node.name}" if look.rows else node.name
    fold: str | Cell = ""
    if pair is not None and fate is not None:
        name = Cell(f"{start}{GLYPHS[fate]} {node.name}", ROLES[fate])
        fold = _fold(node, pair, fate, before)
    time = "" if node.time_share is None else Cell(share(node.time_share), bar=node.time_share / most)
    if kind == "half":
        return Row(node.name, (name, node.target, node.shape, time, fold))
    params = f"{node.params:,}" if node.params else ""
    if kind == "wide":
        return Row(node.name, (name, node.opcode, node.target, node.args, node.kwargs, node.shape, params, time, fold))
    args = f"{node.args}, {node.kwargs}" if node.args and node.kwargs else node.args or node.kwargs
    return Row(node.name, (name, _SHORT.get(node.opcode, node.opcode), node.target, args, node.shape, params, time, fold))


def _fold(node: NodeRow, pair: PairRow, fate: Fate, before: bool) -> Cell:
    if fate == "folded" and (not before or node.name == pair.bn_node):
        return Cell(delta(pair.max_abs_delta or 0.0), ROLES[fate])
    if fate == "refused" and node.name == pair.bn_node:
        return Cell(str(pair.reason), "dim")
    return Cell(WORDS[fate], ROLES[fate] or "dim")


def _gap(look: Look, node: NodeRow, indent: int) -> Row:
    pair = look.pair(node.name)
    cells = {"name": f"{' ' * indent}{node.name}", "target": f"in {pair.conv_node}" if pair else ""}
    return Row(f" {node.name}", tuple(cells.get(key, "") for key in _SHOWN["half"]), role="dim", selectable=False)
