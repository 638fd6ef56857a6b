"""What a test cannot tell, and that no verdict is without it."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import tiny_language
import torch

from engine.data.images.base import Data, MemorySplit
from engine.events.cancellation import StopToken
from engine.recipe.recipe import Threshold
from engine.report.doubt import Trained, at_chance, drop_error, of_classes, of_text, quantile, wilson
from engine.report.figures import BaselineFigures, QuantizedFigures
from engine.report.verdict import Quality, verdict
from engine.tasks.base import Batch
from engine.tasks.classification import Classification
from engine.tasks.evaluate import REFERENCE, evaluate
from engine.tasks.metrics import ACCURACY, DECODE, PERPLEXITY, PREFILL, Metric, Workload, batched
from engine.tasks.metrics import wilson as half_width

T = TypeVar("T")

DROP, SQNR = Threshold.parse("drop:0.005"), Threshold.parse("sqnr:10")


@dataclass(frozen=True)
class Answers:
    """A form on ``images`` images: the part of right answers, and its distance from fp32."""

    right: float
    images: int
    agreement: float
    sqnr: float
    chance: float

    def beside(self, fp32: Answers) -> Quality:
        error = {"mse": 0.01, "sqnr_db": self.sqnr, "agreement": self.agreement}
        return Quality(self.right, fp32.right, error, interval(fp32.right * fp32.images, fp32.images), self.images, self.chance)


def interval(right: float, total: int) -> float:
    return half_width(right, total)


def quality(right: float, images: int, *, agreement: float = 1.0, sqnr: float = 40.0, chance: float = 0.1) -> Answers:
    return Answers(right, images, agreement, sqnr, chance)


def told(
    which: str, metric: Metric, workloads: tuple[Workload, ...], found: Quality, threshold: Threshold, before: Quality | None
) -> dict[str, Any]:
    speedup = {workload.key: 2.0 for workload in workloads}
    figures = QuantizedFigures(metric.name, found.value, 0.0, 250, "x86 int8", speedup=speedup, integer_layers=3)
    baseline = BaselineFigures(metric.name, found.baseline, found.interval, 1000, "torch fp32")
    return verdict(which, metric, workloads, figures, baseline, found, threshold, ptq=before).to_dict()


def of(found: Answers, fp32: Answers, threshold: Threshold = DROP, which: str = "ptq", before: Answers | None = None) -> dict[str, Any]:
    workloads = (batched(1), batched(64))
    return told(which, ACCURACY, workloads, found.beside(fp32), threshold, before.beside(fp32) if before else None)


def test_a_verdict_on_80_images_is_in_doubt_though_no_answer_differs() -> None:
    found = of(quality(0.95, 80, sqnr=9.5), quality(0.95, 80))
    assert found["met"] and "the same as fp32" in found["text"]
    assert "80 images tell the drop in accuracy to ±" in found["doubt"] and "SQNR 9.5 dB" in found["doubt"]
    assert "PTQ is chosen, in doubt:" in found["text"] and f"is met, but the test cannot tell: {found['doubt']}." in found["text"]


def test_both_at_chance_is_worth_nothing_however_many_images() -> None:
    for images in (80, 10_000):
        found = of(quality(0.25, images, chance=0.25), quality(0.25, images, chance=0.25), Threshold.parse("agreement:0.5"))
        assert found["met"] and "fp32 itself is right on 25.00%" in found["doubt"] and found["doubt"] in found["text"]


def test_four_regression_outputs_that_fit_four_folders_by_chance_are_in_doubt() -> None:
    # 26 % of 4 classes: significant on 10,000 images, and no skill all the same.
    assert of(quality(0.26, 10_000, chance=0.25), quality(0.26, 10_000, chance=0.25), SQNR)["doubt"]


def test_training_that_learned_the_labels_anew_is_in_doubt() -> None:
    fp32, ptq = quality(0.5, 10_000), quality(0.5, 10_000, sqnr=43)
    trained = of(quality(0.5833, 10_000, sqnr=18, agreement=0.8), fp32, DROP, "qat", ptq)
    assert trained["chosen"] == "qat" and "8.33 points over fp32" in trained["text"]
    assert "SQNR 18.0 dB after, 43.0 dB before" in trained["doubt"] and "8.33 points better than fp32's" in trained["text"]
    assert of(quality(0.5833, 10_000, sqnr=40, agreement=0.8), fp32, DROP, "qat", ptq)["doubt"] == ""
    assert of(quality(0.502, 10_000, sqnr=18, agreement=0.98), fp32, DROP, "qat", ptq)["doubt"] == ""


def test_a_test_that_can_tell_is_not_doubted() -> None:
    found = of(quality(0.95, 10_000, agreement=0.99), quality(0.951, 10_000))
    assert found["doubt"] == "" and "in doubt" not in found["text"] and found["text"].endswith("Threshold drop:0.005 is met.")
    lost = of(quality(0.5, 80, agreement=0.5), quality(0.95, 80))
    assert not lost["met"] and lost["doubt"] == ""
    assert of(quality(0.95, 80), quality(0.95, 80), Threshold.parse("sqnr:30"))["doubt"] == ""


def test_a_missed_threshold_that_the_test_cannot_tell_says_so_too() -> None:
    found = of(quality(0.9375, 80, agreement=0.9), quality(0.95, 80))
    assert not found["met"] and f"The test cannot tell: {found['doubt']}." in found["text"] and found["doubt"]


def test_an_agreement_is_known_to_its_interval() -> None:
    limit = Threshold.parse("agreement:0.99")
    assert "agreement" in of(quality(0.95, 80), quality(0.95, 80), limit)["doubt"]
    assert of(quality(0.95, 10_000, agreement=0.999), quality(0.95, 10_000), limit)["doubt"] == ""


def test_the_interval_of_a_drop_covers_the_truth() -> None:
    """19 of 20 samples of two models with a known difference, also where they hardly differ."""
    draw = random.Random(3)
    for images, lost, won in ((80, 0.01, 0.01), (80, 0.1, 0.04), (400, 0.02, 0.0)):
        hits = 0
        for _ in range(1500):
            cells = [draw.random() for _ in range(images)]
            worse, better = sum(c < lost for c in cells), sum(c > 1 - won for c in cells)
            error = drop_error((better - worse) / images, 1 - (worse + better) / images, images)
            hits += abs((better - worse) / (images + 2) - (won - lost)) <= error
        assert hits / 1500 >= 0.93, (images, lost, won)


def test_quantiles_and_intervals_are_those_of_the_tables() -> None:
    # Student's t at 97.5 %, and Wilson's interval of 8 of 10 (Brown, Cai & DasGupta 2001).
    for freedom, wanted in ((4, 2.776), (9, 2.262), (29, 2.045), (1000, 1.962)):
        assert quantile(freedom) == pytest.approx(wanted, abs=0.05)
    middle, error = wilson(0.8, 10)
    assert (middle - error, middle + error) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))


def test_chance_is_told_by_the_interval_and_by_the_skill() -> None:
    assert at_chance(0.3, 0.1, 0.25) and at_chance(0.54, 0.001, 0.5) and at_chance(1.0, 0.01, 1.0)
    assert not at_chance(0.56, 0.001, 0.5) and not at_chance(0.05, 0.004, 0.001) and not at_chance(0.99, 0.001, 0.9)


# Text.


def judged(rise: float, error: float | None, windows: int, chance: float, value: float = 30.0, sqnr: float = 30.0) -> Quality:
    close = {"mse": 1e-4, "sqnr_db": sqnr, "agreement": 0.99, "divergence": 1e-3}
    return Quality(value * (1 + rise), value, close, 0.0, windows, chance, error)


def text_verdict(found: Quality, which: str = "ptq", ptq: Quality | None = None) -> dict[str, Any]:
    return told(which, PERPLEXITY, (DECODE, PREFILL), found, Threshold.parse("drop:0.01"), ptq)


def test_perplexity_is_doubted_where_the_text_cannot_tell() -> None:
    assert text_verdict(judged(0.005, 0.001, 50, 500.0))["doubt"] == ""
    for found, words in (
        (judged(0.005, 0.01, 50, 500.0), "50 windows tell the rise in perplexity to ±2.0"),
        (judged(0.0, None, 1, 500.0), "a single window"),
        (judged(0.0, 1e-5, 50, 29.0), "fp32's perplexity is 30.00, and the frequencies of the text's tokens alone give 29.00"),
    ):
        verdict = text_verdict(found)
        assert verdict["met"] and words in verdict["doubt"]
        assert f"is met, but the test cannot tell: {verdict['doubt']}." in verdict["text"] and "in doubt" in verdict["text"]


def test_chance_and_the_error_of_the_difference_come_from_the_text_that_is_scored() -> None:
    draw = torch.Generator().manual_seed(0)
    stream = torch.randint(0, 7, (400,), generator=draw)
    first, second = (torch.randn(7, 7, generator=draw) for _ in range(2))

    def table(weights: torch.Tensor) -> Callable[[Batch], Any]:
        return lambda batch: SimpleNamespace(logits=weights[batch.kwargs["input_ids"]])

    task = tiny_language.task(stream, 20, context=20)
    steps = evaluate(task, {"other": table(first + 0.1 * second)}, table(first), "test", batch=1, stop=StopToken())
    found = finished(steps)["other"]
    scored = [int(token) for window in stream.reshape(20, 20) for token in window[1:]]
    counts = Counter(scored).values()
    entropy = -sum(c / len(scored) * math.log(c / len(scored)) for c in counts) + (len(counts) - 1) / (2 * len(scored))
    assert found.chance == pytest.approx(math.exp(entropy), rel=1e-9)
    # All windows score as many tokens: the error of a mean of their differences.
    moved = [first[window[:-1]].log_softmax(-1) - (first + 0.1 * second)[window[:-1]].log_softmax(-1) for window in stream.reshape(20, 20)]
    means = [float(m.gather(1, window[1:, None]).mean()) for m, window in zip(moved, stream.reshape(20, 20), strict=True)]
    assert found.samples == 20
    assert found.difference_error == pytest.approx(statistics.stdev(means) / math.sqrt(20), rel=1e-4)


def test_chance_is_the_part_of_the_most_frequent_class() -> None:
    labels = torch.tensor([0, 2, 2, 1, 2, 0, 2, 2])
    split = MemorySplit(torch.zeros(8, 3, 4, 4, dtype=torch.uint8), labels)
    data = Data("eight", ("a", "b", "c"), (3, 4, 4), (0.5,) * 3, (0.5,) * 3, split, split, split, False, 0)

    def zeros(batch: Batch) -> torch.Tensor:
        return torch.zeros(batch.count, 3)

    found = finished(evaluate(Classification(data), {"other": zeros}, zeros, "test", batch=3, stop=StopToken()))
    assert found["other"].chance == found[REFERENCE].chance == 5 / 8


def finished(steps: Generator[Any, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def test_fine_tuning_that_learned_the_text_is_doubted() -> None:
    found = text_verdict(judged(-0.2, 1e-4, 50, 500.0, sqnr=12.0), "qat", judged(0.001, 1e-4, 50, 500.0, sqnr=35.0))
    assert found["met"] and "the text learned anew" in found["doubt"] and "20.00 % better" in found["text"]


def test_every_threshold_that_is_met_says_its_doubt() -> None:
    """All that can be doubted, times all thresholds: none is met without the sentence."""
    metrics = [Threshold.parse(text) for text in ("drop:0.005", "agreement:0.9", "mse:1", "sqnr:5")]
    for threshold, images, chance in itertools.product(metrics, (1, 8, 80, 10_000), (0.01, 0.25, 1.0)):
        found = of(quality(0.25, images, chance=chance), quality(0.25, images, chance=chance), threshold)
        doubt = of_classes(
            threshold, baseline=0.25, interval=interval(0.25 * images, images), value=0.25, agreement=1.0, sqnr_db=40.0, images=images,
            chance=chance,
        )  # fmt: skip
        assert found["met"] and found["doubt"] == doubt and (doubt in found["text"])
        assert ("cannot tell" in found["text"]) == bool(doubt)
        if chance == 1.0:
            assert doubt
    assert of_text(DROP, baseline=10.0, rise=0.0, error=0.1, windows=2, chance=9.0, trained=Trained(40, 20, 0.5)).count(";") == 2
