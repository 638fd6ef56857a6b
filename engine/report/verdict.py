"""compare: which of PTQ, QAT and fp32 to ship, and why, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.recipe.recipe import Threshold
from engine.runs.stages.evaluate import BATCH, Measurement

_BY = {"drop": "accuracy", "mse": "error", "sqnr": "SQNR", "agreement": "agreement"}


def better(qat: Measurement, ptq: Measurement, threshold: Threshold) -> tuple[bool, str]:
    """Whether QAT is kept, and why. It must measure better on the validation split, by the quantity of the threshold and
    then by SQNR, and the test split must not say the opposite."""
    on_validation, on_test = (_score(m, threshold, "validation") for m in (qat, ptq)), (_score(m, threshold, "test") for m in (qat, ptq))
    new, old = on_validation
    if new <= old:
        return False, f"QAT is not kept: {_figure(new, old, threshold)} on validation, no better than PTQ"
    new_test, old_test = on_test
    if new_test[0] < old_test[0]:
        return False, f"QAT is not kept: better on validation but worse on test, where {_figure(new_test, old_test, threshold)}"
    return True, f"QAT is kept: {_figure(new_test, old_test, threshold)} on test"


def _figure(new: tuple[float, float], old: tuple[float, float], threshold: Threshold) -> str:
    """The figure that decides: the threshold's own, or the SQNR where that is the same for both."""
    if new[0] == old[0] and threshold.metric != "sqnr":
        return f"equal {_BY[threshold.metric]} and an SQNR of {new[1]:.1f} dB against PTQ's {old[1]:.1f} dB"
    return f"its {_BY[threshold.metric]} is {_show(new, threshold)} against PTQ's {_show(old, threshold)}"


def _score(m: Measurement, threshold: Threshold, split: str) -> tuple[float, float]:
    quality = m.test if split == "test" else m.validation
    first = {"drop": quality.value, "agreement": quality.agreement, "mse": -quality.mse}.get(threshold.metric, quality.sqnr_db)
    return first, quality.sqnr_db


def _show(score: tuple[float, float], threshold: Threshold) -> str:
    if threshold.metric == "mse":
        return f"{-score[0]:.2e}"
    if threshold.metric == "sqnr":
        return f"{score[0]:.1f} dB"
    return f"{score[0]:.2%}"


def verdict(
    which: str, seen: Measurement, entry: Mapping[str, Any], size_before: int, threshold: Threshold, trained: str | None,
    device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Contract 2's ``verdict``; ``which`` is the better of ``ptq`` and ``qat``, ``trained`` what came of QAT. ``device`` is where
    the run calibrated and trained: figures are the processor's all the same."""
    met = seen.met(threshold, "test")
    drop = seen.test_baseline.value - seen.test.value
    side = "the same as fp32" if abs(drop) < 5e-5 else f"{100 * abs(drop):.2f} points {'under' if drop > 0 else 'over'} fp32"
    size = times(size_before / entry["size_bytes"], "smaller", "larger")
    speed = entry["speedup"]
    pace = (
        f"{times(speed['batch_1'], 'faster', 'slower')} at batch 1, {times(speed[f'batch_{BATCH}'], 'faster', 'slower')} at batch {BATCH}"
    )
    if device != "cpu":
        pace += " on the processor"
    if entry["simulated"]:
        pace = "simulated, so no speed is claimed"
    facts = f"{seen.test.value:.2%} on the test split (±{100 * seen.test.interval:.1f}), {side}; {size}; {pace}"
    name = which.upper()
    if not entry["integer_layers"] + entry["stored_layers"]:
        return {
            "chosen": "fp32",
            "threshold": str(threshold),
            "met": False,
            "text": "fp32 stays: nothing was quantized, see the layers and their reasons.",
        }
    if size_before <= entry["size_bytes"] and max(speed.values()) <= 1 and not entry["simulated"]:
        facts += "; neither smaller nor faster than fp32 here"
    if met:
        text = f"{name} is chosen: {facts}. Threshold {threshold} is met."
    else:
        text = f"fp32 stays: threshold {threshold} is not met. The better quantized model, {name}, has {facts}; it is in model.safetensors."
    return {"chosen": which if met else "fp32", "threshold": str(threshold), "met": met, "text": f"{text} {trained}." if trained else text}


def times(ratio: float, more: str, less: str) -> str:
    """``7.2× smaller``, ``1.3× larger``; within a tenth a ratio of noisy figures says nothing."""
    if 1 / 1.1 < ratio < 1.1:
        return f"about as {'fast as' if more == 'faster' else 'large as'} fp32"
    return f"{ratio:.1f}× {more}" if ratio > 1 else f"{1 / ratio:.1f}× {less}"
