"""The columns and rows of the graph's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from engine.events.event import NodeRow, PairRow
from qtui.drawing.rows import Cell, Column, Row, measure
from qtui.screens.graph_look import GLYPHS, ROLES, WORDS, Fate, Look, brackets
from qtui.text import small
from qtui.widgets.filter_bar import matches

Kind = Literal["wide", "narrow", "half"]
"""All columns; those for 80 cells, with args and kwargs in one; those of one of two tables side by side."""


@dataclass(frozen=True)
class _Style:
    """``most`` is the largest share of the time: bars are parts of it, or most of them would be slivers. ``fine`` gives
    shares a decimal. ``brief`` leaves out targets that only repeat the name, and shortens opcodes. ``pairs`` is whether there
    is anything to fold, ``name`` how far names may be cut."""

    kind: Kind
    before: bool
    most: float
    fine: bool
    brief: bool
    pairs: bool
    name: int


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


_MANY = 24
"""From so many nodes on most take less than a percent of the time."""
_SHORT: Mapping[str, str] = {
    "placeholder": "input", "call_module": "module", "call_function": "function", "call_method": "method", "get_attr": "attribute",
}  # fmt: skip
_SHOWN: Mapping[Kind, tuple[str, ...]] = {
    "wide": ("name", "opcode", "target", "args", "kwargs", "shape", "params", "time", "fold"),
    "narrow": ("name", "opcode", "target", "args", "shape", "params", "time", "fold"),
    "half": ("name", "target", "shape", "time", "fold"),
}


def table(look: Look, nodes: Sequence[NodeRow], kind: Kind, room: int, before: bool = False) -> Table:
    """A row for each node, for ``room`` cells. ``before``: the graph as traced while there is a folded one."""
    if look.exported:
        nodes = [replace(node, target=node.target.removeprefix("aten.").removesuffix(".default")) for node in nodes]
    drawn = brackets(nodes, look.rows)
    indent = _indent(look, drawn)
    style = _style(look, kind, before, nodes, room - indent)
    rows = tuple(_row(look, node, drawn, style) for node in nodes)
    columns = _columns(style, indent, rows, look.folded and not before)
    return Table(tuple(column for column in columns if column.key != "time") if look.exported else columns, rows)


def aligned(look: Look, room: int) -> tuple[Table, Table]:
    """Both graphs for tables of ``room`` cells side by side, row by row: where a normalization went away the folded graph
    has a gap."""
    drawn, kept = brackets(look.traced, look.rows), brackets(look.fused, look.rows)
    before, after = _indent(look, drawn), _indent(look, kept)
    first = _style(look, "half", True, look.traced, room - before)
    second = replace(first, before=False)
    left = tuple(_row(look, node, drawn, first) for node in look.traced)
    found = ((node, look.after(node.name)) for node in look.traced)
    right = tuple(_row(look, new, kept, second) if new else _gap(look, old, after) for old, new in found)
    return Table(_columns(first, before, left, False), left), Table(_columns(second, after, right, True), right)


def _columns(style: _Style, indent: int, rows: tuple[Row, ...], after: bool) -> tuple[Column, ...]:
    """``indent`` is the room before the names for brackets and glyphs. Widths are those of all rows, so that a filter does
    not move the columns."""
    known = {
        "name": Column("name", " " * indent + "name", min=style.name, priority=9),
        "opcode": Column("opcode", "opcode", priority=3),
        "target": Column("target", "target", min=8 if style.kind == "half" else 10, priority=2 if style.brief else 5),
        "args": Column("args", "args", min=8, cut="middle" if style.brief else "end", priority=4),
        "kwargs": Column("kwargs", "kwargs", min=8),
        "shape": Column("shape", "shape", priority=6),
        "params": Column("params", "params", align="right", priority=1),
        "time": Column("time", "time %", width=9, align="right", priority=8),
        "fold": Column("fold", "change" if after else "fold", min=6, grow=1, cut="end", priority=7),
    }
    shown = tuple(known[key] for key in _SHOWN[style.kind] if style.pairs or key != "fold")
    return tuple(replace(column, width=found.full) for column, found in zip(shown, measure(shown, rows), strict=True))


def chosen(look: Look, rows: Sequence[Row], wanted: str, before: bool = True) -> tuple[Row, ...]:
    """The rows whose node holds ``wanted``, as traced or as in the folded graph."""
    return tuple(row for row in rows if _holds(wanted, look, row.key, before)) if wanted else tuple(rows)


def _holds(wanted: str, look: Look, key: str, before: bool) -> bool:
    # The key of a gap is that of its node with a space before it.
    node = look.node(key.strip()) if before else look.after(key)
    if node is None:
        return False
    about = {"op": node.opcode, "args": f"{node.args} {node.kwargs}", "shape": node.shape, "params": node.params}
    # What reads what has columns of its own here: all of these are seen.
    return matches(wanted, (node.name, node.opcode, node.target, node.args, node.kwargs), about)


def delta(value: float) -> str:
    """A small difference: ``2.4e-7``."""
    return small(value) if value else "0"


def share(value: float | None, fine: bool = False) -> str:
    """A part of the whole in percent, without the sign; ``fine`` with one decimal."""
    if value is None:
        return ""
    if fine:
        return "<0.1" if 0 < value < 0.0005 else f"{value * 100:.1f}"
    return "<1" if 0 < value < 0.005 else f"{value * 100:.0f}"


def _indent(look: Look, drawn: Mapping[str, str]) -> int:
    lanes = max(map(len, drawn.values()), default=0)
    # A folded pair is one node: its glyph needs room although no bracket is left.
    return lanes + (1 if lanes else 0) + 2 if look.rows else 0


def _style(look: Look, kind: Kind, before: bool, nodes: Sequence[NodeRow], room: int) -> _Style:
    """``room`` is that of the columns without the brackets."""
    most = max((node.time_share or 0.0 for node in (*nodes, *look.fused)), default=0.0) or 1.0
    return _Style(kind, before, most, len(nodes) > _MANY, _cramped(nodes, kind, room), bool(look.rows), 24 if room >= 40 else 18)


def _cramped(nodes: Sequence[NodeRow], kind: Kind, room: int) -> bool:
    """Whether names or what they read would be cut too much to be told apart, were every target shown."""
    name, shape, target, args = (max((len(getattr(node, key)) for node in nodes), default=0) for key in ("name", "shape", "target", "args"))
    # The last is those whose width does not depend on the model, and the gaps between all of them.
    if kind == "wide":
        return name + shape + target + min(args, 24) + 61 > room
    return name + shape + min(target, 10) + (min(args, 8) + 35 if kind == "narrow" else 23) > room


def _repeats(node: NodeRow) -> bool:
    """Whether the target says no more than the name does: ``layer1_0_relu_1`` of ``layer1.0.relu``."""
    path = node.target.replace(".", "_")
    return node.name == path or (node.name.startswith(f"{path}_") and node.name[len(path) + 1 :].isdigit())


def _row(look: Look, node: NodeRow, drawn: Mapping[str, str], style: _Style) -> Row:
    pair = look.pair(node.name)
    fate = look.fate(pair) if pair is not None else None
    lanes = drawn.get(node.name, "")
    start = f"{lanes} " if lanes else ""
    name: str | Cell = f"{start}  {node.name}" if style.pairs else node.name
    fold: str | Cell = ""
    if pair is not None and fate is not None:
        name = Cell(f"{start}{GLYPHS[fate]} {node.name}", ROLES[fate])
        fold = _fold(node, pair, fate, style.before)
    time = "" if node.time_share is None else Cell(share(node.time_share, style.fine), bar=node.time_share / style.most)
    target = Cell("·", "dim") if style.brief and _repeats(node) else node.target
    if style.kind == "half":
        return Row(node.name, (name, target, node.shape, time, fold))
    params = f"{node.params:,}" if node.params else ""
    opcode = node.opcode if style.kind == "wide" and not style.brief else _SHORT.get(node.opcode, node.opcode)
    if style.kind == "wide":
        return Row(node.name, (name, opcode, target, node.args, node.kwargs, node.shape, params, time, fold))
    args = f"{node.args}, {node.kwargs}" if node.args and node.kwargs else node.args or node.kwargs
    return Row(node.name, (name, opcode, target, args, node.shape, params, time, fold))


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
