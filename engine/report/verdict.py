"""Which of PTQ, QAT and fp32 to ship, and why, in a sentence. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.recipe.threshold import Threshold
from engine.report.doubt import IMAGES, Trained, of_classes, of_difference, of_outputs, of_text
from engine.report.figures import BaselineFigures, QuantizedFigures
from engine.report.steadiness import unsteady
from engine.tasks.metrics import Metric, Workload

_QUANTITIES = {"mse": "error", "sqnr": "SQNR", "agreement": "agreement"}


@dataclass(frozen=True)
class Quality:
    """One form on one split: the metric's ``value`` beside fp32's (± ``interval``), and the distance of the outputs from fp32's.
    ``samples`` counts what is independent of each other, and ``noun`` is what that is, as one and as many; ``chance`` is the metric of
    an answer that looks at nothing, and ``difference_error`` the standard error of the paired difference; None where they are not
    known."""

    value: float
    baseline: float
    error: Mapping[str, float]
    interval: float = 0.0
    samples: int = 0
    chance: float | None = None
    difference_error: float | None = None
    noun: tuple[str, str] | None = None

    def drop(self, metric: Metric) -> float:
        return metric.drop(self.baseline, self.value)


@dataclass(frozen=True)
class Verdict:
    """``chosen`` is ``fp32``, ``ptq`` or ``qat``; ``met`` whether the threshold is; ``doubt`` what the test cannot tell, empty where
    it tells what the verdict does."""

    chosen: str
    threshold: str
    met: bool
    text: str
    doubt: str = ""

    def to_dict(self) -> dict[str, object]:
        """The report's ``verdict``."""
        return {"chosen": self.chosen, "threshold": self.threshold, "met": self.met, "text": self.text, "doubt": self.doubt}


def met(threshold: Threshold, metric: Metric, quality: Quality) -> bool:
    """Whether the threshold is met on the split that ``quality`` is of."""
    error = quality.error
    return threshold.met(
        baseline=0.0,
        value=-quality.drop(metric),
        mse=error["mse"],
        sqnr_db=error["sqnr_db"],
        agreement=error.get("agreement", math.nan),
    )


def better(metric: Metric, threshold: Threshold, qat: Mapping[str, Quality], ptq: Mapping[str, Quality]) -> tuple[bool, str]:
    """Whether QAT is kept, and why; ``qat`` and ``ptq`` are by split. It must measure better on the validation split, by the quantity
    of the threshold and then by SQNR, and the test split must not say the opposite."""
    (new, old), (new_test, old_test) = (
        (_score(metric, threshold, qat[split]), _score(metric, threshold, ptq[split])) for split in ("validation", "test")
    )
    if new <= old:
        return False, f"QAT is not kept: {_figure(metric, new, old, threshold)} on validation, no better than PTQ"
    if new_test[0] < old_test[0]:
        figure = _figure(metric, new_test, old_test, threshold)
        return False, f"QAT is not kept: better on validation but worse on test, where {figure}"
    return True, f"QAT is kept: {_figure(metric, new_test, old_test, threshold)} on test"


def _score(metric: Metric, threshold: Threshold, quality: Quality) -> tuple[float, float]:
    """What ranks a form, greater is better: the threshold's own quantity, then the SQNR."""
    error = quality.error
    sqnr = error["sqnr_db"]
    named = {"drop": metric.rank(quality.value), "agreement": error.get("agreement", sqnr), "mse": -error["mse"]}
    return named.get(threshold.metric, sqnr), sqnr


def _figure(metric: Metric, new: tuple[float, float], old: tuple[float, float], threshold: Threshold) -> str:
    """The figure that decides: the threshold's own, or the SQNR where that is the same for both."""
    name = _QUANTITIES.get(threshold.metric, metric.name)
    if new[0] == old[0] and threshold.metric != "sqnr":
        return f"equal {name} and an SQNR of {new[1]:.1f} dB against PTQ's {old[1]:.1f} dB"
    return f"its {name} is {_show(metric, new, threshold)} against PTQ's {_show(metric, old, threshold)}"


def _show(metric: Metric, score: tuple[float, float], threshold: Threshold) -> str:
    if threshold.metric == "mse":
        return f"{-score[0]:.2e}"
    if threshold.metric == "sqnr":
        return f"{score[0]:.1f} dB"
    if threshold.metric == "agreement":
        return f"{score[0]:.2%}"
    return metric.format(metric.rank(score[0]))


def verdict(
    which: str, metric: Metric, workloads: Sequence[Workload], figures: QuantizedFigures, baseline: BaselineFigures,
    quality: Quality, threshold: Threshold, trained: str | None = None, measured_on: str = "", ptq: Quality | None = None,
    of_data: str = "",
) -> Verdict:  # fmt: skip
    """``which`` is the better of ``ptq`` and ``qat``, ``quality`` its test split, ``trained`` what came of QAT. ``measured_on`` names
    where the times were taken, if not where the run calibrated and trained; ``ptq`` is PTQ's test split where ``which`` is ``qat``;
    ``of_data`` is what the data cannot tell whatever is measured on them."""
    if not figures.integer_layers + figures.stored_layers:
        text = "fp32 stays: nothing was quantized, see the layers and their reasons."
        return Verdict("fp32", str(threshold), False, text)
    is_met = met(threshold, metric, quality)
    facts = _facts(metric, workloads, figures, baseline, quality, measured_on)
    name = which.upper()
    found = (of_data, of_outputs(threshold, figures.metrics), _doubt(metric, threshold, quality, ptq))
    doubt = "; ".join(filter(None, found))
    text = _sentence(name, facts, threshold, is_met, doubt, alone=ptq is None and trained is None)
    return Verdict(which if is_met else "fp32", str(threshold), is_met, f"{text} {trained}." if trained else text, doubt)


def _sentence(name: str, facts: str, threshold: Threshold, is_met: bool, doubt: str, alone: bool) -> str:
    """A verdict on the quantized model ``name`` in words, the only one where it is ``alone``. One that is met in ``doubt`` is never said
    to be met without it."""
    if is_met and doubt:
        return f"{name} is chosen, in doubt: {facts}. Threshold {threshold} is met, but the test cannot tell: {doubt}."
    if is_met:
        return f"{name} is chosen: {facts}. Threshold {threshold} is met."
    which = "quantized model" if alone else "better quantized model"
    text = f"fp32 stays: threshold {threshold} is not met. The {which}, {name}, has {facts}; it is in model.safetensors."
    return f"{text} The test cannot tell: {doubt}." if doubt else text


def _doubt(metric: Metric, threshold: Threshold, quality: Quality, ptq: Quality | None) -> str:
    error = quality.error
    gain = -quality.drop(metric)
    trained = Trained(ptq.error["sqnr_db"], error["sqnr_db"], gain) if ptq else None
    if metric.logarithmic:
        return of_text(
            threshold, baseline=quality.baseline, rise=quality.drop(metric), error=quality.difference_error, windows=quality.samples,
            chance=quality.chance, trained=trained,
        )  # fmt: skip
    if metric.unit == "%" and "agreement" in error and quality.difference_error is None:
        return of_classes(
            threshold, baseline=quality.baseline, interval=quality.interval, value=quality.value, agreement=error["agreement"],
            sqnr_db=error["sqnr_db"], images=quality.samples, chance=quality.chance, trained=trained, noun=quality.noun or IMAGES,
            metric=metric.name,
        )  # fmt: skip
    return of_difference(
        threshold, metric, baseline=quality.baseline, value=quality.value, error=quality.difference_error, samples=quality.samples,
        chance=quality.chance, noun=quality.noun or ("item", "items"), trained=trained,
    )  # fmt: skip


def _facts(
    metric: Metric, workloads: Sequence[Workload], figures: QuantizedFigures, baseline: BaselineFigures, quality: Quality, measured_on: str
) -> str:
    interval = f" ({metric.half_width(figures.interval)})" if figures.interval else ""
    side = metric.difference(quality.baseline, quality.value)
    size = times(baseline.size_bytes / figures.size_bytes, "smaller", "larger")
    told = [(times(figures.speedup[w.key], "faster", "slower"), w.phrase) for w in workloads if w.key in figures.speedup]
    pace = ", ".join(f"{ratio} {phrase}" for ratio, phrase in told) + measured_on if workloads else "its speed was not measured"
    if unsteady(figures.to_dict()) or unsteady(baseline.to_dict()):
        pace = "the machine was too busy for steady times, so no speed is claimed"
    if figures.simulated:
        pace = "simulated, so no speed is claimed"
    facts = f"{metric.titled(figures.value)} on the test split{interval}, {side}; {size}; {pace}"
    if figures.stored_layers:
        count = "1 layer is" if figures.stored_layers == 1 else f"{figures.stored_layers} layers are"
        facts += f"; {count} stored in few bits and computed in fp32 here"
    slow = figures.speedup and not unsteady(figures.to_dict()) and max(figures.speedup.values()) <= 1 and not figures.simulated
    if baseline.size_bytes <= figures.size_bytes and slow:
        facts += "; neither smaller nor faster than fp32 here"
    return facts


def times(ratio: float, more: str, less: str) -> str:
    """``7.2× smaller``, ``1.3× larger``; within a tenth a ratio of noisy figures says nothing."""
    if ratio <= 0:
        # Ratios are kept to two decimals.
        return f"over 200× {less}"
    if 1 / 1.1 < ratio < 1.1:
        return f"about as {'fast as' if more == 'faster' else 'large as'} fp32"
    return f"{ratio:.1f}× {more}" if ratio > 1 else f"{1 / ratio:.1f}× {less}"
