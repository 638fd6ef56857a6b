"""What a report says of a language model alone, as Markdown."""

from __future__ import annotations

from typing import Any

from engine.markdown import number, table


def perplexities(d: dict[str, Any]) -> list[str]:
    """The forms with their perplexity, size and tokens a second, and the protocol below."""
    forms = [("fp32", d["baseline"])] + [(key.upper(), d[key]) for key in ("ptq", "qat") if d.get(key)]
    header = ("", "perplexity", "KL to fp32", "SQNR", "agreement", "size", "reads", "writes", "runs on")
    how = d["baseline"].get("perplexity") or {}
    stride = f"stride {how['stride']:,}, " if how.get("stride") else ""
    said = f"Perplexity: {how['protocol']}, context {how['context']:,}, {stride}{how['tokens']:,} tokens of the test split."
    return [*table(header, [_row(name, found) for name, found in forms]), "", said]


def _row(name: str, e: dict[str, Any]) -> tuple[str, ...]:
    error, speed = e.get("error") or {}, e.get("tokens_per_second") or {}
    return (
        name, f"{e['value']:.2f} ±{e['interval']:.2f}", number(error.get("divergence"), "{:.4f}"),
        number(error.get("sqnr_db"), "{:.1f} dB"),
        number(error.get("agreement"), "{:.2%}"), f"{e['size_bytes'] / 1e6:.2f} MB", number(speed.get("prefill"), "{:,.0f} tok/s"),
        number(speed.get("decode"), "{:,.1f} tok/s"), e["kernel"],
    )  # fmt: skip


def samples(d: dict[str, Any]) -> list[str]:
    """What each form says after the same words."""
    lines: list[str] = []
    for sample in d.get("samples") or ():
        forms = [name for name in sample if name != "prompt"]
        rows = [(name, _quoted(sample[name])) for name in forms]
        lines += [*table(("after", _quoted(sample["prompt"])), rows), ""]
    return ["## The same words continued", "", *lines] if lines else []


def _quoted(text: str) -> str:
    return " ".join(text.split())
