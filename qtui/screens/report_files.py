"""What a run left behind: exports, files, the commands that use them, the graph's part. As lines and as a panel's text."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from engine.export.registry import formats_of
from engine.report.mismatch import DIFFERS, differs
from engine.report.runtimes import IMAGES, Paces, fastest, paces
from qtui import text
from qtui.drawing.spans import Line
from qtui.drawing.text import end, middle
from qtui.screens.report_rows import number, percent, shown, verdict
from qtui.state import Run

_PURPOSES = {
    "model.safetensors": ("the model", "the quantized model"),
    "report.md": ("to read", "this report, to read"),
    "report.json": ("for code", "every figure, for programs"),
    "recipe.yaml": ("run again", "what was asked: it runs again with this"),
    "summary.md": ("copied", "what y copied"),
    "events.jsonl": ("its log", "what the run said; it is reopened from this"),
    "state.json": ("its state", "how far the run came"),
    "traceback.txt": ("what failed", "where it failed, for a bug report"),
    "checkpoints": ("so far", "the work so far, to be resumed"),
    "previous": ("earlier runs", "earlier runs in this folder"),
}
_PANEL = 68
_ROOMY = 60
_EXPORTED, _OTHER = ("a model", "an exported model"), ("", "")
File = tuple[str, int, tuple[str, str]]


def run_files(directory: Path) -> tuple[File, ...]:
    """Name, bytes and purpose (short, long) of what is in a run's folder, the most useful first; empty where it cannot be read."""
    order = {name: index for index, name in enumerate(_PURPOSES)}
    found: list[File] = []
    try:
        for path in directory.iterdir():
            if not path.name.startswith("."):
                found.append((path.name, _bytes(path), _PURPOSES.get(path.name, _EXPORTED if _model(path) else _OTHER)))
    except OSError:
        return ()
    return tuple(sorted(found, key=lambda file: (order.get(file[0], 0), file[0])))


def _model(path: Path) -> bool:
    return path.suffix in (".onnx", ".pt2", ".xml", ".bin", ".safetensors", ".gguf", ".pt")


def _bytes(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file())
        return path.stat().st_size
    except OSError:
        return 0


def exports_of(run: Run) -> tuple[Mapping[str, Any], ...]:
    return tuple(entry for entry in (run.report or {}).get("exports") or () if isinstance(entry, Mapping))


def export_lines(entry: Mapping[str, Any], width: int, of: Paces = IMAGES) -> list[Line]:
    """One export in three lines: what it is, whether it was read back, how fast it is; ``of`` images or text."""
    agreement, worst = number(entry, "parity", "agreement"), number(entry, "parity", "max_abs")
    checked = bool(entry.get("verified", agreement is not None or worst is not None)) and entry.get("parity") is not None
    unread = ("○", "change", "not verified") if entry.get("path") else ("✗", "harm", "not exported")
    glyph, role, word = ("✗", "harm", DIFFERS) if differs(entry) else ("●", "good", "verified") if checked else unread
    role = "change" if entry.get("alarm") and role == "good" else role
    facts = ["" if agreement is None else f"agrees {percent(agreement, 0 if agreement == 1 else 1)} %"]
    facts.append("exact" if worst == 0 else "" if worst is None else f"Δ ≤ {text.small(worst)}")
    size, single = number(entry, "size_bytes"), number(entry, "latency_ms", "p50")
    value, batched = number(entry, "value"), number(entry, "latency_batched_ms", "p50")
    if of is IMAGES:
        top = shown(value, f"top-1 {percent(value, 2)} %")
        first, second = shown(single, "{:.2f} ms"), shown(batched, " (×64 {:.2f})")
    else:
        top = shown(value, "perplexity {:.2f}")
        first, second = shown(single, f"{{:.2f}} ms {of.short[0]}"), shown(batched, f", {{:.2f}} ms {of.short[1]}")
        if entry.get("format") == "safetensors":
            # To be compared it is read back in float32: its speed is the table's, of the form that it holds.
            first = second = ""
    pace = first + second if width >= _ROOMY else first
    top = top if width >= _ROOMY else ""
    about = [text.size(size) if size else "", str(entry.get("runtime") or ""), pace, top]
    kind = f"  {entry.get('format') or ''}"
    name = end(str(entry.get("path") or entry.get("format") or "?"), max(width - 2 - len(kind), 8))
    lines: list[Line] = [
        [(f"{glyph} ", role), (name, "title"), (end(kind, max(width - len(name) - 2, 0)), "dim")],
        [(f"  {word}", role), (end("".join(f", {fact}" for fact in facts if fact), max(width - len(word) - 2, 0)), "")],
        [(end("  " + " · ".join(fact for fact in about if fact), width), "dim")],
    ]
    said = text.one_line(entry.get("reason") or entry.get("alarm") or "")
    return [*lines, [(end(f"  {said}", width), "dim")]] if said else lines


def side_lines(run: Run, files: Sequence[File], width: int, height: int) -> list[Line]:
    """The pane beside the layers: exports, files, and the graph's part where there is room."""
    lines: list[Line] = []
    for entry in exports_of(run):
        lines += export_lines(entry, width, paces(run.report or {}))
    if not lines:
        lines.append([("No export yet", "dim")])
    if files:
        lines += [[], [("Files", "title"), (f"  {middle(run.directory, max(width - 7, 1))}", "dim")]]
        lines += [_file_line(file, width) for file in files]
    graph = [part for fact in graph_facts(run) for part in textwrap.wrap(fact, width)]
    if graph and height >= len(lines) + len(graph) + 2:
        lines += [[], [("Graph", "title")], *([(part, "")] for part in graph)]
    return lines[:height] if height else lines


def _file_line(file: File, width: int) -> Line:
    name, count, (short, long) = file
    purpose = long if width >= 60 else short
    left = f"{end(name, 17):<17} {text.size(count):>7}"
    return [(end(left, width), ""), (end(f"  {purpose}", max(width - len(left), 0)), "dim")]


def files_panel(run: Run, files: Sequence[File]) -> Text:
    """Everything that is to be had from this run."""
    out = Text()
    if said := text.spaced(text.one_line(verdict(run).get("text") or "")):
        _title(out, "Verdict")
        out.append("\n".join(textwrap.wrap(said, _PANEL)) + "\n\n")
    _title(out, "Exports")
    for entry in exports_of(run):
        for line in export_lines(entry, _PANEL, paces(run.report or {})):
            for part, role in line:
                out.append(part, {"title": "bold", "dim": "dim"}.get(role, ""))
            out.append("\n")
    if not exports_of(run):
        out.append("none\n", "dim")
    if said := fastest(run.report or {}):
        out.append("\n".join(textwrap.wrap(said, _PANEL)) + "\n")
    _title(out, "\nFiles")
    out.append(f"{text.plain(run.directory)}\n", "dim")
    for file in files:
        for part, role in _file_line(file, _PANEL):
            out.append(part, role)
        out.append("\n")
    if not files:
        out.append("the folder cannot be read\n", "dim")
    _title(out, "\nUse them")
    for command, what in commands(run.directory, paces(run.report or {}) is not IMAGES):
        out.append(f"{what}\n", "dim")
        out.append(f"  {command}\n")
    if graph := graph_facts(run):
        _title(out, "\nGraph")
        out.append("\n".join(graph) + "\n")
    if environment := (run.report or {}).get("environment"):
        _title(out, "\nMeasured on")
        out.append(" · ".join(f"{key} {text.one_line(value)}" for key, value in dict(environment).items()))
    return out


def _title(out: Text, title: str) -> None:
    out.append(f"{title}\n", "bold")


def commands(directory: str, decodes: bool = False) -> tuple[tuple[str, str], ...]:
    """Shell and Python lines that use a run's folder, each with what it does."""
    path = text.plain(directory)
    formats = ",".join(name for name in formats_of("modules" if decodes else "graph") if name != "safetensors")
    return (
        (f"qtui show {shlex.quote(path)}", "print this report"),
        (f"qtui run --recipe {shlex.quote(f'{path}/recipe.yaml')}", "run it again, here or on another machine"),
        (f"qtui export {shlex.quote(path)} --to {formats}", "write it for other runtimes, and check the files"),
        (f"model = engine.load_quantized({path!r})", "use the model in Python (import engine)"),
    )


def graph_facts(run: Run) -> list[str]:
    """The graph's part of the report in lines."""
    graph = (run.report or {}).get("graph")
    if not isinstance(graph, Mapping):
        return []
    nodes, fused, refused, untraced = (graph.get(key) for key in ("nodes", "fused", "refused", "untraced"))
    lines = [f"{nodes} nodes traced"] if nodes is not None else []
    if nodes is not None and (blocks := graph.get("blocks")):
        lines = [f"{nodes} modules, {blocks} blocks"]
    if fused:
        delta = number(graph, "fuse_delta")
        lines.append(f"{_count(fused, 'pair')} folded" + ("" if delta is None else f", output changed by {text.small(delta)}"))
    for pair in refused or ():
        lines.append(f"{pair.get('conv')} + {pair.get('bn')} not folded: {text.one_line(pair.get('reason') or '')}")
    for leaf in untraced or ():
        lines.append(f"{leaf.get('path')} stays whole: {text.one_line(leaf.get('reason') or '')}")
    return lines


def _count(items: Sequence[Any], word: str) -> str:
    return f"{len(items)} {word}" + ("s" if len(items) != 1 else "")
