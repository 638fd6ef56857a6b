"""The types of what a run writes: what a reader may rely on in files that anybody may have edited. Torch-free.

A shape is one of the words below, a mapping of keys to shapes (each key may be absent, keys that are not named may hold anything),
or a list of one shape for lists of any length. null stands for a figure that is not finite, and for a part that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NUMBER, WHOLE, TEXT, FLAG = "a number", "a whole number", "text", "true or false"
Shape = Any

_TIMES = {"p50": NUMBER, "p95": NUMBER, "batch": WHOLE}
_ERROR = {"mse": NUMBER, "sqnr_db": NUMBER, "agreement": NUMBER, "divergence": NUMBER}
_PARITY = {"max_abs": NUMBER, "sqnr_db": NUMBER, "agreement": NUMBER, "compared": NUMBER, "perplexity_rise": NUMBER}
_PACE = {"prefill": NUMBER, "decode": NUMBER, "prompt": WHOLE, "new": WHOLE}
FORM: Shape = {
    "metric": TEXT, "value": NUMBER, "interval": NUMBER, "size_bytes": NUMBER, "fp16_bytes": NUMBER, "to_fp16": NUMBER, "kernel": TEXT,
    "error": _ERROR, "latency_ms": _TIMES, "latency_batched_ms": _TIMES, "speedup": {"batch_1": NUMBER, "batch_64": NUMBER},
    "tokens_per_second": _PACE, "simulated": FLAG, "integer_layers": WHOLE, "stored_layers": WHOLE, "seconds": NUMBER, "why": TEXT,
    "perplexity": {"protocol": TEXT, "context": WHOLE, "stride": WHOLE, "tokens": WHOLE},
    "validation": {"value": NUMBER, "baseline": NUMBER, "error": _ERROR}, "epochs": WHOLE, "asked_epochs": WHOLE, "ended_early": FLAG,
    "best_epoch": WHOLE, "loss": [NUMBER], "validation_values": [NUMBER], "kept": FLAG,
}  # fmt: skip
LAYER: Shape = {
    "name": TEXT, "kind": TEXT, "requested": TEXT, "actual": TEXT, "kernel": TEXT, "reason": TEXT, "rule": TEXT, "sqnr_db": NUMBER,
    "own_sqnr_db": NUMBER, "params": WHOLE, "time_share": NUMBER, "speedup": {"int8_ms": NUMBER, "fp32_ms": NUMBER},
    "harm": NUMBER,
}  # fmt: skip
MEASURE: Shape = {"name": TEXT, "unit": TEXT, "higher_is_better": FLAG, "relative": FLAG, "digits": TEXT}
ITEMS: Shape = {"item": TEXT, "plural": TEXT, "unit": TEXT}
VERDICT: Shape = {
    "chosen": TEXT, "threshold": TEXT, "met": FLAG, "text": TEXT, "worst": [{"layer": TEXT, "share": NUMBER}], "remedy": TEXT,
}  # fmt: skip
_TRIED = {
    "title": TEXT, "key": TEXT, "value": NUMBER, "drop": NUMBER, "size_bytes": NUMBER, "size": NUMBER, "bpw": NUMBER, "seconds": NUMBER,
    "met": FLAG, "gain": NUMBER, "latency_ms": NUMBER, "latency": NUMBER, "harm": NUMBER, "kept": FLAG,
}  # fmt: skip
SEARCH: Shape = {
    "targets": [TEXT], "metric": TEXT, "chosen": TEXT, "met": FLAG, "tried": [_TRIED], "skipped": [{"title": TEXT, "why": TEXT}],
    "seconds": NUMBER, "front": [{"size_bytes": NUMBER, "bpw": NUMBER, "harm": NUMBER}],
    "test": {"value": NUMBER, "drop": NUMBER, "size_bytes": NUMBER, "size": NUMBER},
}  # fmt: skip
_EXPORT = {
    "format": TEXT, "path": TEXT, "size_bytes": NUMBER, "sha256": TEXT, "runtime": TEXT, "kernel": TEXT, "reason": TEXT,
    "parity": _PARITY, "parity_cached": _PARITY, "value": NUMBER, "interval": NUMBER, "verified": FLAG, "differs": FLAG,
    "layers_alone": {"compared": WHOLE, "rms_steps": NUMBER, "worst": TEXT, "outputs_sqnr_db": NUMBER},
    "seconds": NUMBER, "latency_ms": _TIMES, "latency_batched_ms": _TIMES, "tokens_per_second": _PACE,
}  # fmt: skip
_PAIR = {"conv": TEXT, "bn": TEXT, "max_abs_delta": NUMBER, "reason": TEXT}
REPORT: Shape = {
    "model": TEXT,
    "data": {
        "name": TEXT, "calibration": WHOLE, "calibration_tokens": WHOLE, "train": WHOLE, "validation": WHOLE, "test": WHOLE,
        "mean": [NUMBER], "std": [NUMBER], "transform": TEXT, "notes": [TEXT],
    },
    "environment": {"device": TEXT, "isa": TEXT, "vnni": FLAG, "torch": TEXT, "python": TEXT, "weights": TEXT, "recipe": TEXT},
    "graph": {
        "nodes": WHOLE, "blocks": WHOLE, "trace_delta": NUMBER, "fused": [_PAIR], "refused": [_PAIR], "fuse_delta": NUMBER, "order": TEXT,
        "later": [TEXT], "untraced": [{"path": TEXT, "kind": TEXT, "reason": TEXT, "where": TEXT}],
        "islands": [TEXT], "root": TEXT,
    },
    "layers": [LAYER], "baseline": FORM, "ptq": FORM, "qat": FORM, "verdict": VERDICT, "exports": [_EXPORT], "runtimes": [_EXPORT],
    "operations": [{"operation": TEXT, "count": WHOLE, "reason": TEXT}],
    "orders": [{"order": TEXT, "run": TEXT, "ptq": NUMBER, "ptq_mse": NUMBER, "qat": NUMBER, "qat_mse": NUMBER, "chosen": TEXT}],
    "changed": {
        "which": TEXT, "items": WHOLE, "changed": WHOLE, "worse": WHOLE, "better": WHOLE,
        "rows": [{
            "place": WHOLE, "label": TEXT, "fp32": TEXT, "quantized": TEXT, "before": NUMBER, "after": NUMBER, "file": TEXT,
        }],
    },
    "limits": {
        "threads": WHOLE, "kernel": TEXT, "peak_ops_per_s": NUMBER, "read_bytes_per_s": NUMBER,
        "reached": [{"workload": TEXT, "ops_per_s": NUMBER, "of_peak": NUMBER, "bytes_per_s": NUMBER, "of_bandwidth": NUMBER}],
    },
    "search": SEARCH, "order_key": TEXT, "task": TEXT, "measures": [MEASURE], "items": ITEMS,
}  # fmt: skip
_RULE = {"match": TEXT, "weights": {}, "activations": {}, "keep": TEXT}
RECIPE: Shape = {
    "model": TEXT, "weights": TEXT, "data": {"name": TEXT, "calibration": WHOLE, "batch": WHOLE, "limit": WHOLE, "size": WHOLE},
    "stem": TEXT, "preset": TEXT, "rules": [_RULE], "quantize_first": FLAG, "graph": TEXT, "slower": [TEXT], "fold_later": [TEXT],
    "equalize": FLAG, "bias_correction": FLAG, "bn_reestimation": FLAG, "stream": FLAG, "threshold": TEXT,
    "qat": {"mode": TEXT, "epochs": WHOLE, "batch": WHOLE, "lr": NUMBER}, "export": [TEXT], "device": TEXT,
    "seed": WHOLE, "isa": TEXT,
}  # fmt: skip
STATE: Shape = {
    "started": TEXT, "model": TEXT, "data": TEXT, "state": TEXT, "text": TEXT, "chosen": TEXT, "baseline": NUMBER, "value": NUMBER,
    "pid": WHOLE, "metric": TEXT, "measure": MEASURE,
}  # fmt: skip
# What an event carries beside values of its own: by the event's name and field.
EVENTS: Mapping[tuple[str, str], Shape] = {
    ("Measured", "figures"): FORM, ("Layers", "rows"): [LAYER], ("Judgement", "verdict"): VERDICT, ("Setting", "recipe"): RECIPE,
    ("Setting", "environment"): REPORT["environment"], ("Setting", "measures"): [MEASURE], ("Setting", "items"): ITEMS,
}  # fmt: skip
# Beyond this an integer cannot be a count of anything, and formatting or dividing it goes wrong in places.
_MOST = 1e300


def misfit(value: Any, shape: Shape, at: str = "") -> str | None:
    """The first thing in ``value``, of JSON's types, that is not of ``shape``: ``verdict.met is a list, not true or false``. None
    where all fits."""
    if value is None:
        return None
    if isinstance(shape, str):
        return None if _is(value, shape) else f"{at or 'it'} is {_named(value)}, not {shape}"
    if isinstance(shape, list):
        if not isinstance(value, list | tuple):
            return f"{at or 'it'} is {_named(value)}, not a list"
        rows = ("a mapping" if isinstance(shape[0], dict) else shape[0], shape[0])
        for index, item in enumerate(value):
            # A row of a list is there: null instead of one is a fault.
            found = (
                f"{at}[{index}] is null, not {rows[0]}" if item is None and rows[0] != NUMBER else misfit(item, rows[1], f"{at}[{index}]")
            )
            if found:
                return found
        return None
    if not isinstance(value, Mapping):
        return f"{at or 'it'} is {_named(value)}, not a mapping"
    return next((found for key, inner in shape.items() if (found := misfit(value.get(key), inner, f"{at}.{key}".lstrip(".")))), None)


def _is(value: Any, word: str) -> bool:
    if word == TEXT:
        return isinstance(value, str)
    if word == FLAG:
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int if word == WHOLE else int | float):
        return False
    return isinstance(value, float) or abs(value) < _MOST


def _named(value: Any) -> str:
    names = {bool: "true or false", str: "text", list: "a list", dict: "a mapping"}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "a number" if abs(value) < _MOST else "a number too large"
    return names.get(type(value), type(value).__name__)
