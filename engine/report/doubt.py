"""What a test cannot tell: sentences that stand beside a verdict whose figures do not carry it. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from engine.recipe.threshold import Threshold
from engine.tasks.metrics import SQNR, Metric, MetricValue

_Z = 1.96
# Above chance by less than half of it, or by less than a tenth of what is left to gain, is no skill to lose.
_TIMES, _SHARE = 1.5, 0.1
# Training within the rounding moves outputs by a few dB; a tenth of the noise power more is a model of its own.
_FALL_DB = 10.0
_GAIN = 0.01
# Fewer items than these have no interval: see engine.tasks.intervals.
_LEAST = 8
IMAGES = ("image", "images")


@dataclass(frozen=True)
class Trained:
    """The outputs' SQNR against fp32 in dB before (``ptq_db``) and after training (``qat_db``), and ``gain``, by which the trained
    model is better than fp32: in accuracy (0..1), or the part by which a relative metric is better."""

    ptq_db: float
    qat_db: float
    gain: float


def of_classes(
    threshold: Threshold, *, baseline: float, interval: float, value: float, agreement: float, sqnr_db: float, images: int,
    chance: float | None, trained: Trained | None = None, noun: tuple[str, str] = IMAGES, metric: str = "accuracy",
) -> str:  # fmt: skip
    """Why a test on ``images`` images (or what ``noun`` says) with one class each cannot tell what a verdict says; empty where it can.

    ``baseline`` (± ``interval``) and ``value`` are top-1 of fp32 and of the quantized model, ``agreement`` the part of equal
    answers, ``chance`` the part of the most frequent class, None where it is not known: all in 0..1. ``sqnr_db`` is of the
    quantized model's outputs.
    """
    found: list[str] = []
    if chance is not None and at_chance(baseline, interval, chance):
        found.append(
            f"fp32 itself is right on {baseline:.2%} of {images} {noun[1]}, and giving always the most frequent class is right on "
            f"{chance:.2%}: its outputs may not be these classes, and neither {metric} nor equal answers say that the model still works"
        )
    if threshold.metric == "drop" and images:
        drop, error = baseline - value, drop_error(value - baseline, agreement, images)
        if abs(threshold.value - drop) < error:
            found.append(
                f"{_counted(images, noun)} tell the drop in {metric} to ±{100 * error:.2f} points (SQNR {sqnr_db:.1f} dB), "
                f"and the threshold is {100 * threshold.value:g} points"
            )
    if threshold.metric == "agreement" and images:
        # Wilson's interval: its middle is not the agreement itself.
        middle, error = wilson(agreement, images)
        if abs(threshold.value - middle) < error:
            found.append(
                f"{_counted(images, noun)} tell the agreement to lie in {middle - error:.2%} to {middle + error:.2%} "
                f"(SQNR {sqnr_db:.1f} dB), and the threshold is {threshold.value:.2%}"
            )
    return _joined((*found, _moved(trained, metric, "points", "the labels")))


def of_text(
    threshold: Threshold,
    *,
    baseline: float,
    rise: float,
    error: float | None,
    windows: int,
    chance: float | None,
    trained: Trained | None = None,
) -> str:
    """Why a test of perplexity cannot tell what a verdict says; empty where it can.

    ``baseline`` is fp32's perplexity and ``rise`` the part by which it has risen; ``error`` is the standard error of the mean
    difference of both forms' losses over ``windows`` windows, nats a token, None where it is not known. ``chance`` is the
    perplexity of the text's own token frequencies.
    """
    found: list[str] = []
    if chance is not None and baseline >= chance:
        found.append(
            f"fp32's perplexity is {baseline:,.2f}, and the frequencies of the text's tokens alone give {chance:,.2f}: "
            "the text may not be of this model's language or tokenizer, and a rise says nothing of it"
        )
    if threshold.metric == "drop":
        if windows < 2:
            found.append("the test text is a single window, which tells no interval of the rise in perplexity")
        elif error is not None and abs(threshold.value - rise) < (wide := (1 + rise) * quantile(windows - 1) * error):
            found.append(
                f"{windows} windows tell the rise in perplexity to ±{100 * wide:.2f} %, and the threshold is {100 * threshold.value:g} %"
            )
    return _joined((*found, _moved(trained, "perplexity", "%", "the text")))


def of_outputs(threshold: Threshold, metrics: Mapping[str, MetricValue]) -> str:
    """Which single outputs of a model miss a threshold on the SQNR of all of them together; empty where none does. Large numbers of one
    output hide the errors of another."""
    start = f"{SQNR.name} of "
    single = {name.removeprefix(start): one.value for name, one in metrics.items() if name.startswith(start)}
    if threshold.metric != "sqnr" or not single:
        return ""
    short = [f"{name} {value:.1f} dB" for name, value in single.items() if value < threshold.value]
    return f"single outputs are further from fp32 than all together: {', '.join(short[:4])}" if short else ""


def of_difference(
    threshold: Threshold, metric: Metric, *, baseline: float, value: float, error: float | None, samples: int, chance: float | None,
    noun: tuple[str, str] = ("item", "items"), trained: Trained | None = None,
) -> str:  # fmt: skip
    """Why a test of any ``metric`` on ``samples`` items (or what ``noun`` says) cannot tell what a verdict says; empty where it can.

    ``baseline`` and ``value`` are fp32's and the quantized model's, ``error`` the standard error of their difference on the same items,
    in the metric's own unit, ``chance`` the metric of an answer that looks at nothing; None where they are not known.
    """
    found: list[str] = []
    if chance is not None and metric.rank(baseline) <= metric.rank(chance):
        found.append(
            f"fp32's {metric.name} is {metric.shown(baseline)}, and an answer that looks at nothing has {metric.shown(chance)}: "
            f"the data may not be this model's, and the {metric.name} says nothing of whether it still works"
        )
    if threshold.metric == "drop" and 0 < samples < _LEAST:
        found.append(f"{_counted(samples, noun)} tell no interval of the change in {metric.name}")
    elif threshold.metric == "drop" and error is not None:
        wide = quantile(samples - 1) * error / (abs(baseline) or math.inf if metric.relative else 1.0)
        if abs(threshold.value - metric.drop(baseline, value)) < wide:
            found.append(
                f"{_counted(samples, noun)} tell the change in {metric.name} to ±{metric.by(wide)}, "
                f"and the threshold is {metric.by(threshold.value)}"
            )
    # What is gained in a unit of its own says not whether that is much.
    comparable = metric.relative or metric.unit == "%"
    unit = "%" if metric.relative else "points"
    return _joined((*found, _moved(trained, metric.name, unit, "the data") if comparable else ""))


def at_chance(value: float, interval: float, chance: float) -> bool:
    """Whether an accuracy (0..1, ± ``interval``) is that of an answer that looks at nothing, or as good as that."""
    return value - interval <= chance or value < min(_TIMES * chance, chance + _SHARE * (1 - chance))


def drop_error(difference: float, agreement: float, images: int) -> float:
    """Half the width of the 95 % interval of a difference of two accuracies (0..1) on the same images, of which the part
    ``1 - agreement`` at most is answered otherwise. Agresti & Min 2005 (doi:10.1002/sim.1781): half an image more in each of the
    four cells; so that no difference seen on a few images is no proof of none."""
    other, moved = (images * (1 - agreement) + 1) / (images + 2), images * difference / (images + 2)
    return _Z * math.sqrt(max(other - moved * moved, 0.0) / (images + 2))


def wilson(part: float, count: int) -> tuple[float, float]:
    """The middle and half the width of Wilson's 95 % interval of a part (0..1) of ``count``."""
    shrink = 1 + _Z * _Z / count
    return (
        (part + _Z * _Z / (2 * count)) / shrink,
        _Z / shrink * math.sqrt(part * (1 - part) / count + _Z * _Z / (4 * count * count)),
    )


def quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t (Abramowitz & Stegun 26.7.5, two terms: too small below 4 degrees of freedom)."""
    return _Z + (_Z**3 + _Z) / (4 * freedom) + (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * freedom**2)


def _moved(trained: Trained | None, metric: str, unit: str, what: str) -> str:
    if trained is None or trained.gain <= _GAIN or not trained.qat_db < trained.ptq_db - _FALL_DB:
        return ""
    return (
        f"training moved the outputs away from fp32's (SQNR {trained.qat_db:.1f} dB after, {trained.ptq_db:.1f} dB before) and made the "
        f"{metric} {100 * trained.gain:.2f} {unit} better than fp32's: that is {what} learned anew, which fp32 was not given, "
        "and where the outputs mean something else it is lost"
    )


def _joined(sentences: Iterable[str]) -> str:
    return "; ".join(filter(None, sentences))


def _counted(count: int, noun: tuple[str, str]) -> str:
    return f"{count:,} {noun[count != 1]}"
