"""What a run takes of its machines, in one line: figures as they are now, and as they were in the last minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.events import event as ev
from qtui.drawing.sparkline import sparkline

# Figures that are kept: two minutes of them.
KEPT = 40
_SPARKS = (12, 8, 4, 0)
_BETWEEN = " │ "


@dataclass(frozen=True)
class Look:
    """What was seen at one time, and how fast the work went then."""

    use: ev.MachineUse
    rate: float | None = None


def machine_line(looks: Sequence[Look], width: int) -> str:
    """At most ``width`` cells; empty where nothing was seen. Several ranks stand side by side, as many as there is room for."""
    if not looks or not looks[-1].use.ranks:
        return ""
    many = len(looks[-1].use.ranks) > 1
    for cells in _SPARKS:
        parts = _of_ranks(looks, cells) if many else _of_one(looks, cells)
        line = _BETWEEN.join(parts)
        if len(line) <= width:
            return line
    while len(parts) > 1:
        parts.pop()
        line = _BETWEEN.join([*parts, "…"] if many else parts)
        if len(line) <= width:
            return line
    return ""


def _of_one(looks: Sequence[Look], cells: int) -> list[str]:
    now = looks[-1].use.ranks[0]
    found = [
        _part("CPU", _row(looks, now.rank, lambda use: use.cpu), cells, f"{now.cpu:.1f} of {now.cores:.3g}", now.cores),
        _part("memory", _row(looks, now.rank, lambda use: use.memory_bytes), cells, _size(now.memory_bytes)),
    ]
    if now.gpu_memory_bytes is not None:
        use = [] if now.gpu is None else [f"{now.gpu:.0%}"]
        found.append(_part("GPU", _row(looks, now.rank, lambda one: one.gpu), cells, " ".join([*use, _size(now.gpu_memory_bytes)]), 1.0))
    rates = [look.rate for look in looks]
    if cells and any(rate is not None for rate in rates):
        found.append(f"rate {sparkline(rates, cells)}")
    if now.written_bytes and now.written_bytes >= 1e6:
        found.append(f"{_size(now.written_bytes)} written")
    return found


def _of_ranks(looks: Sequence[Look], cells: int) -> list[str]:
    found = []
    for now in looks[-1].use.ranks:
        figures = [f"{now.cpu:.1f} CPU", _size(now.memory_bytes), *([] if now.gpu is None else [f"{now.gpu:.0%} GPU"])]
        figure, top = ((lambda use: use.cpu), now.cores) if now.gpu is None else ((lambda use: use.gpu), 1.0)
        spark = sparkline(_row(looks, now.rank, figure), cells, top).strip()
        found.append(" ".join(filter(None, (f"rank {now.rank}", spark, *figures))))
    return found


def _row(looks: Sequence[Look], rank: int, figure: Callable[[ev.Usage], float | None]) -> list[float | None]:
    """One figure of a rank over time."""
    found = []
    for look in looks:
        use = next((one for one in look.use.ranks if one.rank == rank), None)
        found.append(None if use is None else figure(use))
    return found


def _part(name: str, row: Sequence[float | None], cells: int, now: str, top: float | None = None) -> str:
    return " ".join(filter(None, (name, sparkline(row, cells, top).strip(), now)))


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
