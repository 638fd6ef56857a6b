"""What the report says of runtimes and of formats to export to: rows, sentences. Pure functions but for which packages are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from engine.export.registry import Format, formats_of, install
from engine.report.mismatch import DIFFERS, differs
from engine.report.runtimes import IMAGES, Paces, Runtime, fastest, paces, ratios, reference, runtimes
from engine.report.steadiness import ABOUT, spread
from qtui import text
from qtui.drawing.rows import Cell, Column, Row
from qtui.screens.report_files import export_lines, exports_of
from qtui.screens.report_rows import number, percent, shown
from qtui.state import Run

_MEDIUM, _WIDE = 60, 100
_PANEL = 68
NO_RUNTIMES = "No runtime is timed yet: x writes the model for other runtimes, and times them."
CHOICE = (Column("format", "format", priority=2), Column("file", "file", min=7), Column("state", "", min=39, grow=1, cut="end", priority=1))


def runtime_columns(width: int, of: Paces = IMAGES) -> tuple[Column, ...]:
    wide = width >= _WIDE
    first, second = of.short
    return (
        Column("runtime", "runtime", min=26 if width >= _MEDIUM else 12, grow=1, cut="end", priority=20),
        Column("file", "file", priority=3),
        Column("single", f"ms {first}", align="right", priority=19),
        *((Column("single95", f"p95 {first}", align="right", priority=1),) if wide else ()),
        Column("batched", f"ms {second}", align="right", priority=18),
        *((Column("batched95", f"p95 {second}", align="right", priority=1),) if wide else ()),
        Column("faster", f"faster {first}", align="right", priority=6),
        Column("faster64", second, align="right", priority=5),
        Column("same", "same %", align="right", priority=4),
    )


def runtime_rows(run: Run, width: int) -> tuple[Row, ...]:
    """fp32, the native path and each export, those without times last; the least time of each column stands out."""
    known = runtimes(run.report or {})
    fp32 = reference(known)
    least = [min((t[0] for one in known if (t := getattr(one, key)) and not _odd(one)), default=None) for key in ("single", "batched")]
    timed = {one.file for one in known}
    entries = {str(entry.get("path") or ""): entry for entry in exports_of(run)}
    rows = [_row(one, fp32, least, entries.get(one.file) if one.file else None, width) for one in known]
    others = [entry for entry in exports_of(run) if not entry.get("path") or str(entry["path"]) not in timed]
    return (*rows, *(_untimed(entry, width) for entry in others))


def _row(one: Runtime, fp32: Runtime | None, least: Sequence[float | None], entry: Mapping[str, Any] | None, width: int) -> Row:
    cells: dict[str, str | Cell] = {"runtime": one.name, "file": one.file, "same": percent(number(entry, "parity", "agreement"))}
    for key, times, best in (("single", one.single, least[0]), ("batched", one.batched, least[1])):
        odd = _odd(one)
        shape = "dim" if odd else "good" if times and times[0] == best else ""
        cells[key] = "" if times is None else Cell(f"{ABOUT if odd else ''}{times[0]:.2f}", shape)
        cells[f"{key}95"] = "" if times is None else f"{times[1]:.2f}"
    for key, ratio in zip(("faster", "faster64"), ratios(one, fp32), strict=True):
        # What is not steady is no measure, nor is it measured by anything.
        cells[key] = "" if _odd(one) or (fp32 is not None and _odd(fp32)) else shown(ratio, "{:.2f}×")
    return Row(one.file or one.name, tuple(cells[column.key] for column in runtime_columns(width)), glyph="●" if entry else " ")


def _odd(one: Runtime) -> bool:
    """Whether a runtime's times are not steady."""
    return any(times is not None and spread(*times) for times in (one.single, one.batched))


def _untimed(entry: Mapping[str, Any], width: int) -> Row:
    there = bool(entry.get("path"))
    verified = bool(entry.get("verified", entry.get("parity")))
    unread = ("○", "not verified", "change") if there else ("✗", "not exported", "harm")
    glyph, word, role = ("✗", DIFFERS, "harm") if differs(entry) else ("●", "not timed", "") if verified else unread
    name = f"{entry.get('format') or '?'}: {word}"
    cells: dict[str, str | Cell] = {
        "runtime": Cell(name, role), "file": str(entry.get("path") or ""), "same": percent(number(entry, "parity", "agreement")),
    }  # fmt: skip
    key = str(entry.get("path") or entry.get("format") or "?")
    return Row(key, tuple(cells.get(column.key, "") for column in runtime_columns(width)), glyph=glyph)


def runtimes_title(run: Run) -> str:
    count = len(runtime_rows(run, _WIDE))
    return f"Latency per runtime ─ {count}" if count else "Latency per runtime"


def runtimes_subtitle(run: Run) -> str:
    """The fastest at each batch, in few words; empty where there is nothing to choose from."""
    known = runtimes(run.report or {})
    if len(known) < 3:
        return ""
    parts: list[str] = []
    names: list[str] = []
    for word, key in zip(paces(run.report or {}).short, ("single", "batched"), strict=True):
        timed = [(times[0], one.name) for one in known if (times := getattr(one, key)) and not _odd(one)]
        if timed:
            names.append(min(timed)[1].partition(",")[0].partition(" ")[0])
            parts.append(f"{word} {names[-1]} {min(timed)[0]:.2f} ms")
    return f"fastest: {names[0] if len(set(names)) == 1 else ' · '.join(parts)}"


def runtime_sentence(run: Run, key: str | None) -> str:
    """One runtime: what it is, and how near it is to what was measured; of an export that failed why."""
    known = runtimes(run.report or {})
    entry = next((e for e in exports_of(run) if key in (e.get("path"), e.get("format"))), None)
    one = next((one for one in known if key in (one.file, one.name)), None)
    why = "" if entry is None else entry.get("reason") or (DIFFERS if differs(entry) else "")
    if entry is not None and why:
        return f"{entry.get('path') or entry.get('format')}: {text.one_line(why)}."
    if one is None:
        return ""
    name = f"{one.file}: {one.name}" if one.file else one.name
    parts = [f"{name} on {text.kernels(one.kernel)}" if one.kernel and one.kernel != "fp32" else name]
    if entry is not None and (agreement := number(entry, "parity", "agreement")) is not None:
        worst, top = number(entry, "parity", "max_abs"), number(entry, "value")
        of = paces(run.report or {})
        parts.append(f"same answer on {percent(agreement)} % of the test {'images' if of is IMAGES else 'tokens'}")
        parts += [f"largest difference {text.small(worst)}"] if worst else ["exact"]
        parts += [f"top-1 {percent(top, 2)} %" if of is IMAGES else f"perplexity {top:.2f} on what was compared"] if top is not None else []
    if entry is not None and entry.get("alarm"):
        parts.append(text.one_line(entry["alarm"]))
    if one == reference(known):
        parts.append("what the others are compared with")
    if _odd(one):
        parts.append("its times are not steady: something else was at work")
    if not one.together:
        parts.append(paces(run.report or {}).apart)
    return "; ".join(parts) + "."


def runtime_panel(run: Run, key: str) -> Text:
    """Everything about one runtime."""
    out = Text()
    said = runtime_sentence(run, key)
    entry = next((e for e in exports_of(run) if key in (e.get("path"), e.get("format"))), None)
    for line in export_lines(entry, _PANEL, paces(run.report or {})) if entry else ():
        for part, role in line:
            out.append(part, {"title": "bold", "dim": "dim"}.get(role, ""))
        out.append("\n")
    out.append(f"\n{said}\n" if entry else f"{said}\n")
    if best := fastest(run.report or {}):
        out.append(f"\n{best}")
    out.rstrip()
    return out


def choices(run: Run) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The formats to choose from, and those to mark at first: what is not there yet and can be written."""
    known = {str(entry.get("format")): entry for entry in exports_of(run) if entry.get("path")}
    rows, marked, preset = [], [], str(run.recipe.get("preset") or "")
    formats = formats_of(lowering_of(run))
    for entry in (one for one in formats.values() if one.name != "safetensors"):
        lacks = entry.missing(entry.writes)
        there = known.get(entry.name)
        rows.append(
            Row(entry.name, (entry.name, entry.files[0], _state(entry, lacks, there)), selectable=not lacks, role="dim" if lacks else "")
        )
        if not lacks and there is None and (not entry.presets or preset in entry.presets):
            marked.append(entry.name)
    return tuple(rows), tuple(marked)


def lowering_of(run: Run) -> str:
    """The lowering of a run, whose formats there are to choose from; reports of earlier versions do not name it."""
    named = (run.report or {}).get("lowering")
    return named if isinstance(named, str) else "graph" if paces(run.report or {}) is IMAGES else "modules"


def lacking(run: Run) -> tuple[str, ...]:
    """The packages that writing the run's other formats needs and that are not installed."""
    missing = (name for entry in formats_of(lowering_of(run)).values() for name in entry.missing(entry.writes))
    return tuple(dict.fromkeys(missing))


def _state(entry: Format, lacks: Sequence[str], there: Mapping[str, Any] | None) -> str | Cell:
    if lacks:
        return f"needs {install(tuple(lacks))}"
    if there is not None:
        checked = "differs" if differs(there) else "verified" if there.get("verified") else "not verified"
        return Cell(f"there, {checked}; mark to write it again", "change")
    if entry.presets:
        return f"of the preset {entry.presets[0]}"
    if missing := entry.missing(entry.runs):
        return f"without a check: needs {install(missing)}"
    return f"checked by {entry.title}"


def exported(run: Run, stopped: bool) -> str:
    """What an export came to, for the line below the table."""
    said = "The export was stopped; what was finished is in the table. " if stopped else ""
    return said + (fastest(run.report or {}) or "x exports to more formats.")
