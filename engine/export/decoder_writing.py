"""The exports of a run of a language model: made one after the other, told, and put beside each other."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice, Progress, Table
from engine.export.decoder_exports import Entry, Given, make
from engine.export.decoder_formats import find
from engine.export.making import fingerprint
from engine.report.mismatch import differs
from engine.tasks.decode_timing import Speed
from engine.tasks.forms_timing import timing_of
from engine.tasks.metrics import DECODE, PREFILL


def written(
    names: Sequence[str], given: Given, folder: Path, stop: StopToken, done: list[Entry] | None = None
) -> Generator[Event, None, list[Entry]]:
    """The entries of ``names``, each file read back, compared and timed; ``done`` has those that are finished, also when it is
    stopped. What cannot be written has no ``path`` and a ``reason``. Raises Cancelled on stop."""
    found: list[Entry] = [] if done is None else done
    unit = "format" if len(names) == 1 else "formats"
    for count, name in enumerate(names):
        stop.check()
        yield Progress("export", count, len(names), unit)
        made = make(name, given, folder, stop)
        found.append({**made, **latencies(made.get("latency") or {})})
        if made["path"] and (folder / made["path"]).is_file():
            found[-1]["sha256"] = fingerprint(folder, find(name))
        yield Notice(_told(made), "info" if made["verified"] and not made.get("alarm") else "warning")
    yield Progress("export", len(names), len(names), unit)
    yield Table("exports", f"Exports ─ {len(found)}", _COLUMNS, tuple(_row(made) for made in found))
    return found


def latencies(speed: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens a second as milliseconds: of a token that is written, and of the prompt that is read."""
    if not speed:
        return {"latency_ms": {}, "latency_batched_ms": {}}
    found = timing_of(Speed(**speed)).latencies
    times = {"latency_ms": found[DECODE.key].to_dict(), "latency_batched_ms": found[PREFILL.key].to_dict()}
    return {**times, "tokens_per_second": {key: round(speed[key], 1) for key in ("prefill", "decode")}}


def runtimes(entries: Sequence[Entry], baseline: Mapping[str, Any], native: Mapping[str, Any]) -> list[Entry]:
    """The report's ``runtimes``: fp32 and the kernels of this program as the run timed them, then each file in its own runtime;
    empty where nothing else was timed."""
    timed = [made for made in entries if made["verified"] and made["format"] != "safetensors"]
    if not timed:
        return []
    own = ("latency_ms", "latency_batched_ms", "tokens_per_second")
    forms = (("fp32", "torch", "fp32", baseline), ("safetensors", "qtui", native.get("kernel", ""), native))
    rows = [
        {"format": name, "runtime": runtime, "path": "", "kernel": kernel, **{key: form.get(key) for key in own}}
        for name, runtime, kernel, form in forms
    ]
    keys = ("format", "runtime", "path", "kernel", *own)
    return [*rows, *({key: made.get(key) for key in keys} for made in timed)]


_COLUMNS = ("format", "size", "read back by", "same likeliest", "largest difference", "writes", "reads")


def _row(made: Entry) -> tuple[str, ...]:
    same, speed = made["parity"] or {}, made.get("latency") or {}
    size = f"{made['size_bytes'] / 1e6:.2f} MB" if made["path"] else ""
    return (
        made["format"], size, made["runtime"] if made["verified"] else made["reason"],
        f"{same['agreement']:.2%}" if same else "", f"{same['max_abs']:.2g}" if same else "",
        f"{speed['decode']:,.0f} tok/s" if speed else "", f"{speed['prefill']:,.0f} tok/s" if speed else "",
    )  # fmt: skip


def _told(made: Entry) -> str:
    name = made["format"]
    if not made["path"]:
        return f"{name} was not exported: {made['reason']}"
    size = f"{made['path']}: {made['size_bytes'] / 1e6:.2f} MB"
    if not made["verified"]:
        return f"{size}, {'it ' if differs(made) else ''}{made['reason']}"
    note = "".join(f"; {part}" for part in (made.get("note"), made.get("alarm") and f"it is {made['alarm']}") if part)
    return f"{size}, read back by {made['runtime']}: largest difference {made['parity']['max_abs']:.2g}{note}"
