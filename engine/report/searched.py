"""What a search tried, as Markdown: the path to the plan, what each remedy brought and what it cost."""

from __future__ import annotations

from typing import Any

from engine.report.markdown import number, table
from engine.report.measures import metrics_of


def section(report: dict[str, Any]) -> list[str]:
    """Lines for ``report.md``; none for a run without a search."""
    found = report.get("search")
    if not found:
        return []
    metric = metrics_of(report)[0]
    seen = {key for one in found["tried"] for key, value in one.items() if value is not None}
    heads = [
        "tried",
        f"{metric.name} on validation",
        "drop",
        "gain",
        "of fp32's size",
        "bits per weight",
        "of fp32's time",
        "seconds",
        "met",
    ]
    keys = ["title", "value", "drop", "gain", "size", "bpw", "latency", "seconds", "met"]
    shown = [i for i, key in enumerate(keys) if key in seen]

    def cells(one: dict[str, Any]) -> tuple[str, ...]:
        met = {True: "yes", False: "no", None: ""}[one.get("met")]
        value = "" if one.get("value") is None else metric.shown(one["value"])
        row = (
            f"**{one['title']}**" if one["title"] == found["chosen"] else one["title"], value, number(one.get("drop"), "{:.4f}"),
            number(one.get("gain"), "{:+.4f}"), number(one.get("size"), "{:.3f}"), number(one.get("bpw"), "{:.2f}"),
            number(one.get("latency"), "{:.2f}"), number(one.get("seconds"), "{:.1f}"), met,
        )  # fmt: skip
        return tuple(row[i] for i in shown)

    trials = len(found["tried"])
    lines = ["## Search", "", f"For {', '.join(found['targets'])}, the cheapest remedy first; chosen on validation.", ""]
    lines += table(tuple(heads[i] for i in shown), [cells(one) for one in found["tried"]])
    lines += ["", *(f"- {one['title']} was not tried: {one['why']}." for one in found["skipped"])]
    end = "meets all targets on validation" if found["met"] else "comes nearest; no remedy before training met all targets"
    lines.append(f"{found['chosen']} {end}, after {trials} trials in {found['seconds']:.0f} s.")
    test = found.get("test")
    if test:
        drop = number(test["drop"], "{:.4f}")
        lines += ["", f"On test, which chose nothing: {metric.titled(test['value'])}, a drop of {drop}, {test['size']:.3f} of fp32's size."]
    return [*lines, ""]
