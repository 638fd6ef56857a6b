"""A run in a few lines of Markdown, to be pasted somewhere."""

from __future__ import annotations

from collections.abc import Sequence

from engine.report.measures import interval
from qtui import text
from qtui.screens.report_rows import (
    FORMS,
    chosen_form,
    form,
    layers_of,
    megabytes,
    number,
    others,
    pace_heads,
    percent,
    quality,
    shown,
    speeds,
    verdict,
)
from qtui.state import Run


def summary(run: Run) -> str:
    """Verdict, figures, layers in fp32, and where the run is."""
    lines = [f"## {run.model} on {run.data}", "", text.claimed(verdict(run), run.measured), "", *_figures(run), ""]
    kept = [f"{row.get('name')} ({text.one_line(row.get('reason') or '')})" for row in layers_of(run) if form(row) == "fp32"]
    if kept:
        lines += [f"In fp32: {'; '.join(kept)}.", ""]
    environment = run.environment
    # A GPU calibrates and trains; figures are the processor's.
    device = environment.get("measured_on") or environment.get("device")
    about = [str(part) for part in (device, environment.get("isa")) if part]
    about += [f"torch {environment['torch']}"] if environment.get("torch") else []
    return text.plain("\n".join([*lines, f"Measured on {', '.join(about)}; run in `{run.directory}`.", ""]))


def _figures(run: Run) -> list[str]:
    chosen = chosen_form(run)
    further = others(run)
    rows = []
    for key, name in FORMS:
        if found := run.measured.get(key):
            rows.append((
                f"**{name}**" if key == chosen else name,
                quality(run.metric, number(found, "value"), number(found, "interval")),
                *(interval(metric, run.values.get(key, {}).get(metric.name)) for metric in further),
                shown(number(found, "error", "sqnr_db"), "{:.1f}"),
                percent(number(found, "error", "agreement")),
                megabytes(number(found, "size_bytes")),
                *speeds(found),
                "simulated" if found.get("simulated") else text.kernels(found.get("kernel")),
            ))  # fmt: skip
    header = (
        "",
        run.metric.head,
        *(metric.name for metric in further),
        "SQNR dB",
        "agreement %",
        "size MB",
        *pace_heads(run, True),
        "runs on",
    )
    return [_row(header), _row(["---", *["--:"] * (len(header) - 2), "---"]), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
