"""Two runs side by side, layer by layer: what differs most comes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.widgets import Static

from qtui import text
from qtui.drawing.rows import Cell, Column, Row
from qtui.runs import PastRun
from qtui.screens import compare_rows
from qtui.screens.dialogs import Panel
from qtui.screens.report_rows import megabytes, number, quality
from qtui.spec_words import respelled
from qtui.widgets.table import Grid

COLUMNS = (
    Column("layer", "layer", min=9, grow=2, priority=9),
    Column("a", "A", min=6, grow=1, cut="end", priority=7),
    Column("b", "B", min=6, grow=1, cut="end", priority=8),
    Column("sqnr", "Δ dB", align="right", priority=6),
    Column("size", "Δ kB", align="right", priority=5),
    Column("time", "Δ ms", align="right", priority=4),
)
_NONE = "Neither run kept figures of its layers."


@dataclass(frozen=True)
class Side:
    """A layer in one of the runs: as what it runs, the noise that it adds in dB, the bytes of its weights, and milliseconds of it
    alone for one item. None is not known."""

    actual: str
    sqnr_db: float | None = None
    size_bytes: int | None = None
    ms: float | None = None


@dataclass(frozen=True)
class Pair:
    """A layer of both runs; None where a run has no such layer."""

    name: str
    a: Side | None
    b: Side | None

    def change(self, what: str) -> float | None:
        """B less A of a figure of ``Side``."""
        before, after = (getattr(side, what, None) for side in (self.a, self.b))
        return None if before is None or after is None else float(after - before)

    @property
    def differs(self) -> bool:
        return self.a is None or self.b is None or self.a.actual != self.b.actual


def pairs(a: Mapping[str, Side], b: Mapping[str, Side]) -> tuple[Pair, ...]:
    """The layers of both, those that differ most in the noise that they add first, then in bytes."""
    found = [Pair(name, a.get(name), b.get(name)) for name in dict.fromkeys((*a, *b))]
    return tuple(sorted(found, key=_difference, reverse=True))


def _difference(pair: Pair) -> tuple[bool, float, float]:
    noise, size = pair.change("sqnr_db"), pair.change("size_bytes")
    return pair.differs, abs(noise or 0.0), abs(size or 0.0)


def sides(layers: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> dict[str, Side]:
    """A report's layers by name; ``sizes`` are the bytes of their weights. What is folded into another layer is none."""
    return {str(row.get("name")): _side(row, sizes) for row in layers if row.get("actual") != "folded"}


def _side(row: Mapping[str, Any], sizes: Mapping[str, int]) -> Side:
    own = number(row, "own_sqnr_db")
    integers = str(row.get("actual") or "").startswith("w")
    ms = number(row, "speedup", "int8_ms" if integers else "fp32_ms")
    return Side(respelled(row.get("actual")), number(row, "sqnr_db") if own is None else own, sizes.get(str(row.get("name"))), ms)


def read(directory: Path) -> dict[str, Side]:
    """The layers of a finished run, as its files tell them; empty where they do not."""
    from engine.errors import EngineError
    from engine.events import event as ev
    from engine.events import replay
    from engine.planning.size import weight_bytes
    from engine.report.report import Report

    try:
        told = Report.load(directory).data["layers"]
    except EngineError:
        return {}
    sizes: dict[str, int] = {}
    try:
        for event in replay.read(directory):
            if isinstance(event, ev.Planned):
                sizes = {row.path: weight_bytes(row, row.actual.weights) for row in event.layers if row.editable}
    except EngineError:
        pass  # Without its events a run's sizes by layer are not known.
    return sides([row for row in told if isinstance(row, Mapping)], sizes)


def rows(found: Sequence[Pair]) -> tuple[Row, ...]:
    """One row a layer. Where both run it alike it is dim."""
    return tuple(_row(pair) for pair in found)


def _row(pair: Pair) -> Row:
    noise, size, ms = (pair.change(what) for what in ("sqnr_db", "size_bytes", "ms"))
    specs = tuple(side.actual if side else "–" for side in (pair.a, pair.b))
    return Row(
        pair.name,
        (
            pair.name, specs[0], Cell(specs[1], "change" if pair.differs else ""), _signed(noise, "+.1f", good_is_less=False),
            _signed(None if size is None else size / 1e3, "+.1f"), _signed(ms, "+.3f"),
        ),
        role="" if pair.differs else "dim", glyph="●" if pair.differs else "·",
    )  # fmt: skip


def _signed(value: float | None, form: str, good_is_less: bool = True) -> Cell:
    """A difference; its colour says whether B is better."""
    if value is None:
        return Cell("")
    said = format(value, form)
    if float(said) == 0:
        return Cell("=", "dim")
    return Cell(said, "good" if (value < 0) is good_is_less else "harm")


def headline(a: PastRun, b: PastRun) -> str:
    """Both as wholes: what they are worth with its intervals, what they cost, and whether the difference is more than chance."""
    metric, lines = a.measured, []
    for letter, run in (("A", a), ("B", b)):
        form = run.quantized
        figures = [f"{metric.name} {quality(metric, form.value, form.interval)}{f' {metric.unit}' if metric.unit else ''}"]
        figures += [f"{megabytes(form.size_bytes)} MB"] if form.size_bytes is not None else []
        figures += [f"{compare_rows.milliseconds(form, form.single)} ms"] if form.single is not None and not form.simulated else []
        lines.append(f"{letter}  {compare_rows.when(run)}  {compare_rows.strategy(run)}: {' · '.join(figures)}")
    return "\n".join([*lines, told_apart(a, b)])


def told_apart(a: PastRun, b: PastRun) -> str:
    """Whether the runs' figures lie within each other's intervals."""
    if a.measured != b.measured:
        return f"A is judged by {a.measured.name} and B by {b.measured.name}: their figures cannot be compared."
    before, after = a.quantized, b.quantized
    if before.value is None or after.value is None:
        return "One of them has no figure."
    if before.value == after.value:
        return "Both are worth the same."
    better = "B" if a.measured.drop(before.value, after.value) < 0 else "A"
    width = (before.interval or 0.0) + (after.interval or 0.0)
    if width and abs(before.value - after.value) < width:
        return f"{better} is the better one, but the intervals overlap: it may be chance."
    return f"{better} is the better one." if not width else f"{better} is the better one, beyond both intervals."


def sentence(pair: Pair) -> str:
    """What differs in a layer, in words."""
    name = text.one_line(pair.name)
    if pair.a is None or pair.b is None:
        return f"{name} is in {'B' if pair.a is None else 'A'} alone."
    said = f"{name}: {pair.a.actual} in A, {pair.b.actual} in B" if pair.differs else f"{name} runs as {pair.a.actual} in both"
    noise = pair.change("sqnr_db")
    if noise is not None and round(noise, 1):
        said += f"; it adds {'less' if noise > 0 else 'more'} noise in B ({pair.a.sqnr_db:.1f} → {pair.b.sqnr_db:.1f} dB)"
    return f"{said}."


class SideBySide(Panel[None]):
    """Lies over the list of runs."""

    CSS = """
    SideBySide { align: center middle; background: $background 60%; }
    SideBySide .panel { width: 95%; height: 95%; border: round $accent; border-title-style: bold; background: $surface; padding: 0 1; }
    SideBySide Grid { height: 1fr; }
    SideBySide .head { height: auto; max-height: 5; }
    SideBySide .said { height: auto; max-height: 2; color: $text-muted; }
    """
    BINDINGS = [Binding("escape,q,equals_sign", "back")]

    def __init__(self, a: PastRun, b: PastRun) -> None:
        super().__init__()
        self._a, self._b = a, b
        self._pairs: tuple[Pair, ...] = ()

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel") as panel:
            panel.border_title = "two runs side by side"
            panel.border_subtitle = "↑↓ layer   esc back"
            yield Static(text.plain(headline(self._a, self._b)), classes="head", markup=False)
            yield Grid(id="pairs", empty=_NONE)
            yield Static("", classes="said", markup=False)

    def on_mount(self) -> None:
        self._pairs = pairs(read(self._a.directory), read(self._b.directory))
        grid = self.query_one(Grid)
        grid.show(COLUMNS, rows(self._pairs))
        grid.focus()
        self._say()

    def _say(self) -> None:
        cursor = self.query_one(Grid).cursor
        found = next((pair for pair in self._pairs if pair.name == cursor), None)
        self.query_one(".said", Static).update(sentence(found) if found else "")

    def on_grid_moved(self, event: Grid.Moved) -> None:
        self._say()

    def action_back(self) -> None:
        self.done(None)
