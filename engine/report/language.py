"""What a report says of a language model alone, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.plain_text import plain
from engine.report.markdown import number, table

PERPLEXITY_THERE = "Files are compared on the first windows of the test split: perplexity there, and its distance to the measured model's."


def protocol(how: Mapping[str, Any]) -> str:
    """What a perplexity was measured on, of an entry's ``perplexity``: ``sliding window, context 1,024, stride 512, …``."""
    stride = f"stride {how['stride']:,}, " if how.get("stride") else ""
    return f"{how['protocol']}, context {how['context']:,}, {stride}{how['tokens']:,} tokens of the test split"


def perplexities(d: dict[str, Any]) -> list[str]:
    """The forms with their perplexity, size and tokens a second, and below what each figure is of."""
    forms = [("fp32", d["baseline"])] + [(key.upper(), d[key]) for key in ("ptq", "qat") if d.get(key)]
    header = ("", "perplexity", "KL to fp32, nats a token", "SQNR of the logits", "same likeliest token", "size", "of fp16", "reads",
              "writes", "runs on")  # fmt: skip
    halves = d["baseline"].get("fp16_bytes")
    return [*table(header, [_row(name, found, halves) for name, found in forms]), "", *_told(d)]


def _told(d: dict[str, Any]) -> list[str]:
    baseline, data = d["baseline"], d["data"]
    how, speed = baseline.get("perplexity") or {}, baseline.get("tokens_per_second") or {}
    told = [f"Perplexity: {protocol(how)}; ± is half of the 95 % interval over windows, and all forms read the same ones."] if how else []
    if data.get("calibration_tokens"):
        told.append(
            f"Calibration text: {data['calibration']:,} windows of the training split, {data['calibration_tokens']:,} tokens, for the "
            "methods and grids that read any."
        )
    if baseline.get("fp16_bytes"):
        told.append(size(d))
    if speed.get("prompt"):
        recorded = ", each step a recorded CUDA graph" if speed.get("recorded") else ""
        told.append(
            f"Speed: one sequence; a prompt of {speed['prompt']:,} tokens read at once, {speed['new']:,} tokens written one by one with a "
            f"cache{recorded}."
        )
    return [f"- {text}" for text in told]


def size(d: dict[str, Any]) -> str:
    """What the size and its part of fp16 count: the embeddings are in both, and decide them in a small model."""
    rows = [(row["name"], str(row["actual"]).partition(",")[0]) for row in d.get("layers") or () if row["kind"] == "Embedding"]
    inside = " and ".join(f"{name} as {form}" for name, form in rows)
    return (
        f"Size: the whole file with its scales{f', {inside} included' if inside else ''}; fp16 is two bytes a parameter, "
        f"{d['baseline']['fp16_bytes'] / 1e6:.2f} MB, a tied matrix counted once."
    )


def _row(name: str, e: dict[str, Any], halves: int | None) -> tuple[str, ...]:
    error, speed = e.get("error") or {}, e.get("tokens_per_second") or {}
    return (
        name, number(e["value"], "{:.2f}") + number(e["interval"], " ±{:.2f}"), number(error.get("divergence"), "{:.4f}"),
        number(error.get("sqnr_db"), "{:.1f} dB"),
        number(error.get("agreement"), "{:.2%}"), f"{e['size_bytes'] / 1e6:.2f} MB",
        number(e["size_bytes"] / halves if halves else None, "{:.3f}"), number(speed.get("prefill"), "{:,.0f} tok/s"),
        number(speed.get("decode"), "{:,.1f} tok/s"), e["kernel"],
    )  # fmt: skip


def exported(e: dict[str, Any]) -> str:
    """An export's perplexity on the windows that it is compared on, and by how much that is over the measured model's there."""
    rise = (e.get("parity") or {}).get("perplexity_rise")
    return number(e.get("value"), "{:.2f}") + number(rise, " ({:+.2f})")


def graph(g: dict[str, Any]) -> str:
    """What was looked at of a decoder."""
    tied = "; the head shares the matrix of the embedding" if g.get("tied_head") else ""
    return f"{g['nodes']} modules, {g.get('blocks', 0)} blocks{tied}."


def samples(d: dict[str, Any]) -> list[str]:
    """What each form says after the same words."""
    lines: list[str] = []
    for sample in d.get("samples") or ():
        forms = [name for name in sample if name != "prompt"]
        rows = [(name, _quoted(sample[name])) for name in forms]
        lines += [*table(("after", _quoted(sample["prompt"])), rows), ""]
    return ["## The same words continued", "", *lines] if lines else []


def _quoted(text: str) -> str:
    """On one line, without what would steer a terminal: a model may write any bytes."""
    return plain(" ".join(text.split()), "�")
