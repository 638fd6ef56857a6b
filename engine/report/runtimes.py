"""How fast each runtime is, from a report's figures. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.plain_text import one_line
from engine.report.mismatch import differing
from engine.report.steadiness import spread

# A tenth is within what two measurements of the same thing differ by.
_CLOSE = 1.1
_TIMES = ("latency_ms", "latency_batched_ms")
_LONGEST = 20
_NATIVE = "safetensors"
_HOW = {"safetensors": "engine.load_quantized", "pt2": "torch.export"}


@dataclass(frozen=True)
class Runtime:
    """``single`` and ``batched`` are (p50, p95) in milliseconds at batch 1 and 64; None where they were not measured. ``kernel``
    is what it computes with. ``together`` is False for figures of another hour than the others'; ``format`` is the export's."""

    name: str
    file: str
    kernel: str
    single: tuple[float, float] | None
    batched: tuple[float, float] | None
    together: bool = True
    format: str = ""


def runtimes(report: Mapping[str, Any]) -> tuple[Runtime, ...]:
    """fp32, the native path and every export that was timed; figures that are missing or odd are passed over, and those of files
    whose outputs are others than what was measured."""
    apart = differing(report.get("exports"))
    rows = [row for row in _rows(report.get("runtimes")) if str(row.get("format")) not in apart]
    timed = [_runtime(row) for row in rows]
    if any(row.get("format") == "fp32" for row in rows):
        return _measured(_of_the_run(rows, timed) if paces(report) is TEXT else timed)
    baseline = report.get("baseline")
    first = []
    if isinstance(baseline, Mapping):
        first = [replace(_runtime({**baseline, "runtime": baseline.get("kernel") or "fp32", "kernel": "fp32"}), together=not rows)]
    entries = [entry for entry in _rows(report.get("exports")) if str(entry.get("format")) not in apart]
    if paces(report) is TEXT:
        entries = [_as_run(entry, report) if entry.get("format") == "safetensors" else entry for entry in entries]
    return _measured([*first, *(timed or map(_runtime, entries))])


def _of_the_run(rows: Sequence[Mapping[str, Any]], timed: Sequence[Runtime]) -> list[Runtime]:
    """A language model's own forms are timed in turns in the run, each file by itself after it."""
    own = [row.get("format") in ("fp32", "safetensors") for row in rows]
    return [replace(one, together=not (mine and not all(own))) for one, mine in zip(timed, own, strict=True)]


def _as_run(entry: Mapping[str, Any], report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The file of a language model with the speed of the form that it holds: to be compared it is read back in float32."""
    qat = report.get("qat")
    form = qat if isinstance(qat, Mapping) and qat.get("kept") else report.get("ptq")
    return (
        {**entry, **{key: form.get(key) for key in ("kernel", "latency_ms", "latency_batched_ms")}} if isinstance(form, Mapping) else entry
    )


@dataclass(frozen=True)
class Paces:
    """What the two latencies of a report are of: in a sentence, as heads of columns, and in a few cells. ``apart`` says of a
    runtime that was timed in the run when the others were."""

    words: tuple[str, str]
    heads: tuple[str, str]
    short: tuple[str, str]
    apart: str


IMAGES = Paces(
    ("at batch 1", "at batch 64"), ("batch 1", "batch 64"), ("×1", "×64"), "timed in the run, the others together at another hour"
)
TEXT = Paces(
    ("a token", "a prompt"), ("a token", "a prompt"), ("token", "prompt"), "timed in the run, each other file by itself at another hour"
)


def paces(report: Mapping[str, Any]) -> Paces:
    """Of batches of items, or of a language model that writes a token after the other and reads a prompt."""
    baseline = report.get("baseline")
    if isinstance(baseline, Mapping) and baseline.get("metric") == "perplexity":
        return TEXT
    rows = _rows(report.get("workloads"))[:2]
    words, heads, short = (tuple(one_line(row.get(key) or "", _LONGEST) for row in rows) for key in ("word", "head", "short"))
    # A report of an earlier version does not say what was timed.
    if len(rows) < 2 or not all((*words, *heads, *short)):
        return IMAGES
    return Paces((words[0], words[1]), (heads[0], heads[1]), (short[0], short[1]), IMAGES.apart)


def fastest(report: Mapping[str, Any]) -> str:
    """A sentence that names the runtime to ship for on this machine; empty where there is nothing to choose from."""
    known = runtimes(report)
    parts = []
    for word, key in zip(paces(report).words, ("single", "batched"), strict=True):
        timed = [(times[0], one.name) for one in known if (times := getattr(one, key))]
        if len(timed) > 1:
            best, name = min(timed)
            near = [other for time, other in timed if time <= best * _CLOSE and other != name]
            parts.append(f"{name} {word} ({best:.2f} ms{f', with {near[0]} within a tenth' if near else ''})")
    hours = "" if all(one.together for one in known) else ", by timings of different hours"
    return f"Fastest on this machine{hours}: {'; '.join(parts)}." if parts and len(known) > 2 else ""


def ahead(report: Mapping[str, Any]) -> str:
    """A sentence that names the runtimes in which the quantized network is faster than on this program's own kernels, by more than a
    tenth; empty where there is none, and of times that are not steady."""
    known = [one for one in runtimes(report) if one.format and one.format != "fp32"]
    own = next((one for one in known if one.format == _NATIVE), None)
    parts: dict[str, list[str]] = {}
    apart = False
    for word, key in zip(paces(report).words, ("single", "batched"), strict=True):
        base: tuple[float, float] | None = getattr(own, key) if own else None
        timed = [(times, one) for one in known if one is not own and (times := getattr(one, key)) and not spread(*times)]
        if base is None or spread(*base) or not timed:
            continue
        best, one = min(timed, key=lambda pair: pair[0][0])
        if best[0] * _CLOSE < base[0]:
            name = f"{one.file} in {one.name}" if one.file else one.name
            parts.setdefault(name, []).append(f"{word} ({best[0]:.2f} ms to {base[0]:.2f} ms)")
            apart |= own is not None and own.together != one.together
    if not parts:
        return ""
    hours = ", by timings of different hours" if apart else ""
    found = [f"{name} {' and '.join(where)}" for name, where in parts.items()]
    return f"Faster on this machine than this program's kernels{hours}: {'; '.join(found)}."


def led(report: Mapping[str, Any], earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``report`` whose verdict begins with what is ``ahead``, in place of what that of the ``earlier`` report began with."""
    found = report.get("verdict")
    if not isinstance(found, Mapping) or not isinstance(found.get("text"), str):
        return dict(report)
    text = found["text"]
    if earlier is not None and (before := ahead(earlier)):
        text = text.removeprefix(f"{before} ")
    first = ahead(report)
    return {**report, "verdict": {**found, "text": f"{first} {text}" if first else text}}


def reference(known: Sequence[Runtime]) -> Runtime | None:
    """fp32, which the others are compared with."""
    return next((one for one in known if one.kernel == "fp32"), None)


def ratios(one: Runtime, fp32: Runtime | None) -> tuple[float | None, float | None]:
    """How many times as long fp32 takes, at batch 1 and 64; None where that cannot be told."""
    if fp32 is None or one is fp32:
        return None, None
    pairs = ((one.single, fp32.single), (one.batched, fp32.batched))
    single, batched = (base[0] / own[0] if own and base and own[0] > 0 else None for own, base in pairs)
    return single, batched


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list | tuple) else []


def _measured(found: Sequence[Runtime]) -> tuple[Runtime, ...]:
    return tuple(one for one in found if one.single or one.batched)


def _runtime(row: Mapping[str, Any]) -> Runtime:
    name, how = str(row.get("runtime") or row.get("format") or "?"), _HOW.get(str(row.get("format")))
    return Runtime(
        f"{how}, {name}" if how else name, str(row.get("path") or ""), str(row.get("kernel") or ""),
        _times(row.get("latency_ms")), _times(row.get("latency_batched_ms")), format=str(row.get("format") or ""),
    )  # fmt: skip


def _times(entry: Any) -> tuple[float, float] | None:
    values: list[Any] = [entry.get(key) for key in ("p50", "p95")] if isinstance(entry, Mapping) else []
    if len(values) == 2 and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        return float(values[0]), float(values[1])
    return None
