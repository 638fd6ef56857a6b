"""What was measured of a decoder, in the report's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.events.event import LayerRow
from engine.kernels.simulate import Simulate
from engine.lowering.modules.progress import MatrixQuantized
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.lowering.modules.runtime import Placement
from engine.planning.plan import Plan
from engine.recipe.recipe import Threshold
from engine.report.verdict import times
from engine.tasks.decode_timing import Speed
from engine.tasks.language_evaluation import Judged
from engine.tasks.perplexity import Perplexity


@dataclass(frozen=True)
class Seen:
    """One form of a decoder beside fp32; the speeds were measured in turns. ``earlier`` is that of the form that was measured
    before it, in the same turns."""

    validation: Judged
    test: Judged
    speed: Speed
    fp32_speed: Speed
    earlier: Speed | None = None

    def met(self, threshold: Threshold, split: str) -> bool:
        return met(threshold, self.test if split == "test" else self.validation)


def met(threshold: Threshold, judged: Judged) -> bool:
    """Of a perplexity, ``drop`` is the part by which it has risen."""
    close = judged.closeness
    return threshold.met(baseline=0.0, value=-judged.rise, mse=close.mse, sqnr_db=close.sqnr_db, agreement=close.agreement)


def perplexity(found: Perplexity) -> dict[str, Any]:
    """The protocol beside the figure."""
    return {
        "protocol": found.protocol, "context": found.context, "stride": found.stride, "tokens": found.tokens, "windows": found.windows,
        "nll": found.nll, "low": found.low, "high": found.high,
    }  # fmt: skip


def interval(found: Perplexity) -> float:
    """Half of the 95 % interval; 0 for a single window."""
    return 0.0 if found.low is None or found.high is None else (found.high - found.low) / 2


def baseline_entry(seen: Seen, size: int, halves: int) -> dict[str, Any]:
    """Contract 2's ``baseline``. ``size`` in fp32 and ``halves`` in fp16 are bytes, tied matrices counted once."""
    found = seen.test.fp32
    return {
        "metric": "perplexity", "value": found.value, "interval": interval(found), "size_bytes": size, "fp16_bytes": halves,
        **speeds(seen.fp32_speed), "kernel": "torch fp32", "perplexity": perplexity(found),
    }  # fmt: skip


def quantized_entry(
    seen: Seen, decoder: QuantizedDecoder, placed: Mapping[str, Placement], size: int, halves: int, seconds: float
) -> dict[str, Any]:
    """Contract 2's ``ptq``, and the measured part of ``qat``."""
    simulated = {label for label, _, _ in placed.values() if label.startswith(Simulate.name)}
    labels = sorted({label for label, _, stored in placed.values() if not stored} | simulated)
    stored = sum(alone for _, _, alone in placed.values())
    labels += ["torch fp32 on stored integers"] if stored and not labels else []
    found = seen.test.it
    return {
        "value": found.value, "interval": interval(found), "error": seen.test.closeness.error(), "size_bytes": size,
        "to_fp16": size / halves, **pace(seen.speed, seen.fp32_speed), "kernel": ", ".join(labels) or "torch fp32",
        "simulated": bool(simulated), "integer_layers": len(placed) - stored, "stored_layers": stored, "seconds": round(seconds, 3),
        "perplexity": perplexity(found),
        "validation": {
            "value": seen.validation.it.value, "baseline": seen.validation.fp32.value, "error": seen.validation.closeness.error(),
        },
    }  # fmt: skip


def pace(speed: Speed, fp32: Speed) -> dict[str, Any]:
    """The part of an entry that a second timing replaces."""
    ratios = {key: round(getattr(speed, key) / getattr(fp32, key), 2) for key in ("decode", "prefill")}
    return {**speeds(speed), "speedup": ratios}


def speeds(speed: Speed) -> dict[str, Any]:
    """Tokens a second, and the same as latencies: milliseconds a token with a cache, and those of the whole prompt."""
    return {
        "tokens_per_second": {
            "prefill": round(speed.prefill, 1), "decode": round(speed.decode, 1), "prompt": speed.prompt, "new": speed.new,
            **({"recorded": True} if speed.recorded else {}),
        },
        **latencies(speed),
    }  # fmt: skip


def latencies(speed: Speed) -> dict[str, Any]:
    """Milliseconds of a token that is written, and of the prompt that is read."""
    return {
        "latency_ms": {"p50": 1e3 / speed.decode, "p95": speed.token_p95, "batch": 1},
        "latency_batched_ms": {"p50": 1e3 * speed.prompt / speed.prefill, "p95": speed.prompt_p95, "batch": 1},
    }


def layers(plan: Plan, told: Mapping[str, MatrixQuantized], placed: Mapping[str, Placement]) -> list[dict[str, Any]]:
    """The coverage of every layer: asked for, done, on what, and why."""
    return [_layer(row, told.get(row.tied or row.path), placed.get(row.path)) for row in plan.layers]


def _layer(row: LayerRow, told: MatrixQuantized | None, placed: Placement | None) -> dict[str, Any]:
    sqnr = told.sqnr_db if told and row.actual.weights else None
    kernel, refusal, _ = placed or Placement("torch fp32", None, False)
    notes = [row.why, refusal, told.note if told else None]
    notes.append(f"its scale is folded into {told.folded_into}" if told and told.folded_into else None)
    return {
        "name": row.path, "kind": row.kind, "requested": str(row.requested), "actual": str(row.actual), "kernel": kernel,
        "reason": "; ".join(dict.fromkeys(filter(None, notes))), "rule": row.rule,
        "sqnr_db": sqnr, "own_sqnr_db": sqnr, "params": row.params,
        "time_share": round(row.time_share, 4), "speedup": None,
        **({"bytes": told.bytes} if told and row.actual.weights and not row.tied else {}),
    }  # fmt: skip


def verdict(which: str, seen: Seen, entry: Mapping[str, Any], size: int, threshold: Threshold, trained: str | None) -> dict[str, Any]:
    """Contract 2's ``verdict``; ``size`` is fp32's bytes."""
    found, before = seen.test.it, seen.test.fp32
    rise = seen.test.rise
    side = (
        "the same as fp32" if abs(rise) < 5e-5 else f"{100 * abs(rise):.2f} % {'over' if rise > 0 else 'under'} fp32's {before.value:.2f}"
    )
    speed = entry["speedup"]
    alone, together = (times(speed[key], "faster", "slower") for key in ("decode", "prefill"))
    pace = f"{alone} at one token after the other, {together} at reading"
    if entry["simulated"]:
        pace = "simulated, so no speed is claimed"
    facts = f"perplexity {found.value:.2f} on the test split, {side}; {_smaller(size / entry['size_bytes'])} than fp32; {pace}"
    name = which.upper()
    if not entry["integer_layers"] + entry["stored_layers"]:
        text = "fp32 stays: nothing was quantized, see the layers and their reasons."
        return {"chosen": "fp32", "threshold": str(threshold), "met": False, "text": text}
    if entry["stored_layers"]:
        count = "1 matrix is" if entry["stored_layers"] == 1 else f"{entry['stored_layers']} matrices are"
        facts += f"; {count} stored in few bits and computed in fp32 here"
    good = seen.met(threshold, "test")
    if good:
        text = f"{name} is chosen: {facts}. Threshold {threshold} is met."
    else:
        text = f"fp32 stays: threshold {threshold} is not met. The better quantized model, {name}, has {facts}; it is in model.safetensors."
    return {
        "chosen": which if good else "fp32",
        "threshold": str(threshold),
        "met": good,
        "text": f"{text} {trained}." if trained else text,
    }


def _smaller(ratio: float) -> str:
    return f"{ratio:.1f}× smaller" if ratio >= 1 else f"{1 / ratio:.1f}× larger"


def better(qat: Seen, ptq: Seen) -> tuple[bool, str]:
    """Whether the trained form is kept: by the perplexity on validation, unless test says the opposite."""
    new, old = qat.validation.it.value, ptq.validation.it.value
    if new >= old:
        return False, f"QAT is not kept: its perplexity is {new:.2f} against PTQ's {old:.2f} on validation"
    new, old = qat.test.it.value, ptq.test.it.value
    if new > old:
        return False, f"QAT is not kept: better on validation but worse on test, {new:.2f} against PTQ's {old:.2f}"
    return True, f"QAT is kept: its perplexity is {new:.2f} against PTQ's {old:.2f} on test"


def tables(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], ...]:
    """The layers' rows as texts: layer, what it runs as, on what, SQNR, parameters, part of the time."""
    return tuple(
        (
            row["name"], row["actual"], row["kernel"], "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}", f"{row['params']:,}",
            f"{100 * row['time_share']:.1f}",
        )
        for row in rows
    )  # fmt: skip
