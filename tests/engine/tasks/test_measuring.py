"""What is measured of models, and the choice between models, against numpy and formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from engine.data import registry
from engine.data.images.base import Data, MemorySplit
from engine.errors import Cancelled, EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Progress
from engine.lowering.base import Baseline, Quantized
from engine.lowering.graph.fp32_forms import fp32_forms, fp32_size
from engine.lowering.graph.profile import profile
from engine.machine.repeats import passes
from engine.recipe.recipe import Recipe, Threshold
from engine.report.figures import BaselineFigures, QuantizedFigures, speedups
from engine.report.verdict import Quality, times
from engine.report.verdict import better as better_of
from engine.report.verdict import verdict as verdict_of
from engine.runs.measuring import measure
from engine.tasks.base import Batch, forward_of
from engine.tasks.classification import Classification
from engine.tasks.evaluate import REFERENCE, SplitResult, evaluate
from engine.tasks.metrics import ACCURACY, Metric, batched
from engine.tasks.timing import Latency, latencies

CLASSES = 4


class Clock:
    """Stands still but for what modules are told to spend."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def spend(self, module: nn.Module, seconds: list[float]) -> None:
        left = iter(seconds)
        module.register_forward_hook(lambda *_: setattr(self, "now", self.now + next(left)))


def a_split(count: int, seed: int) -> MemorySplit:
    g = torch.Generator().manual_seed(seed)
    return MemorySplit(
        torch.randint(0, 256, (count, 3, 6, 6), generator=g).to(torch.uint8), torch.randint(0, CLASSES, (count,), generator=g)
    )


@pytest.fixture
def data() -> Data:
    return Data(
        "noise", tuple("abcd"), (3, 6, 6), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), a_split(30, 1), a_split(20, 2), a_split(53, 3), False, 1
    )


def a_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, CLASSES)).eval().requires_grad_(False)


def finish(steps: Any) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def compare(
    models: dict[str, Any], reference: Any, data: Data, batch: int, stop: StopToken | None = None, limit: int | None = None
) -> Generator[Any, None, dict[str, SplitResult]]:
    """Models of images on the test split."""
    forms = {name: forward_of(model) for name, model in models.items()}
    return evaluate(Classification(data), forms, forward_of(reference), "test", batch=batch, stop=stop or StopToken(), limit=limit)


def inputs(data: Data, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    images, labels = data.test.read(torch.arange(len(data.test)))
    shape = (1, 3, 1, 1)
    x = (images.numpy().astype(np.float64) / 255 - np.reshape(data.mean, shape)) / np.reshape(data.std, shape)
    return x[:limit], labels.numpy()[:limit]


def outputs(model: nn.Module, x: np.ndarray) -> np.ndarray:
    linear = model[1]
    return x.reshape(len(x), -1) @ linear.weight.double().numpy().T + linear.bias.double().numpy()


@pytest.mark.parametrize(("batch", "limit"), [(7, None), (64, None), (8, 20), (1, 5)])
def test_compare_is_what_numpy_says(data: Data, batch: int, limit: int | None) -> None:
    reference, one, two = a_model(0), a_model(1), a_model(0)
    with torch.no_grad():
        two[1].weight.add_(0.01 * torch.randn(CLASSES, 108, generator=torch.Generator().manual_seed(5)))
    found = finish(compare({"one": one, "two": two}, reference, data, batch, limit=limit))
    x, labels = inputs(data, limit)
    exact = outputs(reference, x)
    for name, model in (("one", one), ("two", two), (REFERENCE, reference)):
        got, seen = outputs(model, x), found[name]
        assert seen.count == seen.samples == len(x)
        assert seen.value == np.mean(got.argmax(1) == labels)
        assert seen.closeness.agreement == np.mean(got.argmax(1) == exact.argmax(1))
        assert seen.closeness.mse == pytest.approx(np.mean((got - exact) ** 2), rel=1e-4, abs=1e-12)
        if name != REFERENCE:
            assert seen.closeness.sqnr_db == pytest.approx(10 * np.log10(np.sum(exact**2) / np.sum((got - exact) ** 2)), abs=1e-3)
    assert found[REFERENCE].closeness.sqnr_db == math.inf
    assert found["one"].closeness.sqnr_db < 5 < found["two"].closeness.sqnr_db


@pytest.mark.parametrize(("right", "total"), [(0, 20), (20, 20), (13, 20), (1, 20), (7, 7)])
def test_the_interval_is_wilsons(data: Data, right: int, total: int) -> None:
    labels = torch.arange(total) % CLASSES
    split = MemorySplit(torch.zeros(total, 3, 6, 6, dtype=torch.uint8), labels)
    few = Data("few", tuple("abcd"), (3, 6, 6), (0, 0, 0), (1, 1, 1), split, split, split, False, 1)
    answers = torch.where(torch.arange(total) < right, labels, (labels + 1) % CLASSES)
    seen: Iterator[int] = iter(range(total))

    def model(x: Tensor) -> Tensor:
        return nn.functional.one_hot(answers[[next(seen) for _ in range(len(x))]], CLASSES).float()

    found = finish(compare({}, model, few, 6))[REFERENCE]
    # The interval's ends solve (p - right/total)^2 = z^2 p (1 - p) / total.
    z, share = 1.96, right / total
    ends = np.roots([1 + z * z / total, -(2 * share + z * z / total), share * share])
    assert found.value == share
    assert found.first.interval == pytest.approx((ends.max() - ends.min()) / 2, abs=1e-9)
    assert found.first.interval > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reference_that_is_not_finite_is_refused(data: Data, bad: float) -> None:
    def model(x: Tensor) -> Tensor:
        return torch.full((len(x), CLASSES), bad)

    with pytest.raises(EngineError, match=r"NaN or infinity on the data: check"):
        finish(compare({}, model, data, 8))


def test_a_model_that_is_not_finite_never_meets_a_threshold(data: Data) -> None:
    def model(x: Tensor) -> Tensor:
        return torch.full((len(x), CLASSES), math.nan)

    found = finish(compare({"other": model}, a_model(0), data, 8))["other"].closeness
    assert math.isnan(found.mse) and math.isnan(found.sqnr_db)
    for text in ("mse:1e9", "sqnr:-100"):
        limit = Threshold.parse(text)
        assert not limit.met(baseline=0, value=0, mse=found.mse, sqnr_db=found.sqnr_db, agreement=found.agreement)


def test_comparing_stops_at_once_and_tells_how_far_it_is(data: Data) -> None:
    stop = StopToken()
    steps = compare({}, a_model(0), data, 8, stop)
    first = next(steps)
    assert isinstance(first, Progress) and (first.stage, first.done, first.total, first.unit) == ("evaluate", 8, 53, "img")
    stop.set()
    with pytest.raises(Cancelled):
        next(steps)
    last = list(compare({}, a_model(0), data, 8))[-1]
    assert last.done == 53 and last.rate and last.rate > 0 and last.eta == 0


# Times.


def test_latencies_are_times_of_the_calls() -> None:
    import time

    def slow(batch: Batch) -> Batch:
        time.sleep(0.004)
        return batch

    calls: list[str] = []

    def counted(batch: Batch) -> Batch:
        calls.append("quick")
        return batch

    found = latencies({"slow": slow, "quick": counted}, Batch((torch.zeros(3, 3, 4, 4),), count=3), StopToken(), seconds=0.05)
    assert found["slow"].p50 >= 4 > found["quick"].p50 >= 0
    assert all(times.p50 <= times.p95 and times.batch == 3 for times in found.values())
    assert len(calls) >= 15
    assert found["slow"].to_dict() == {"p50": found["slow"].p50, "p95": found["slow"].p95, "batch": 3}


def test_percentiles_are_of_all_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that makes the n-th timed call take n milliseconds."""
    now, taken = [0.0], iter(range(1, 1000))

    def model(batch: Batch) -> Batch:
        if timed[0]:
            now[0] += next(taken) / 1e3
        return batch

    timed = [False]
    real_check = StopToken.check

    def check(token: StopToken) -> None:
        timed[0] = True
        real_check(token)

    monkeypatch.setattr(StopToken, "check", check)
    monkeypatch.setattr("engine.tasks.timing.time.perf_counter", lambda: now[0])
    times = latencies({"it": model}, Batch((torch.zeros(1, 3, 2, 2),)), StopToken(), seconds=5.0)["it"]
    count = next(taken) - 1
    assert times.p50 == pytest.approx(np.median(np.arange(1, count + 1)), abs=1)
    assert times.p95 == pytest.approx(np.percentile(np.arange(1, count + 1), 95), abs=1.5)


def test_timing_stops_at_once() -> None:
    stop = StopToken()
    stop.set()
    with pytest.raises(Cancelled):
        latencies({"it": lambda batch: batch}, Batch((torch.zeros(1, 3, 2, 2),)), stop)


def test_both_forms_of_fp32_compute_the_same() -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval())
    x = torch.randn(2, 3, 8, 8)
    forms = fp32_forms(gm)
    assert len(forms) == 2
    for model in forms.values():
        torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), gm(x))


@pytest.mark.parametrize("fast", ["torch fp32, channels-last", "torch fp32, contiguous"])
def test_the_faster_form_at_each_batch_is_the_baseline(monkeypatch: pytest.MonkeyPatch, fast: str) -> None:
    """At batch 1 one form is faster, at batch 64 the other: each batch is held against its own best."""

    def timed(forms: Any, batch: Batch, *_: Any, **__: Any) -> Any:
        single = batch.count == 1
        return {name: Latency(9.0 if name == "quantized" else 1.0 if (name == fast) == single else 2.0, 3.0, batch.count) for name in forms}

    monkeypatch.setattr("engine.tasks.timing.latencies", timed)
    images = registry.load("digits")
    gm = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval())
    fp32, this = Baseline(fp32_forms(gm), fp32_size(gm)), Quantized(gm, b"12345", ("x86 int8",), False, 2, 0, None)
    recipe = Recipe.make(model="simplecnn", data={"limit": 64})
    seen = finish(measure(Classification(images), this, fp32, recipe, StopToken(), "cpu", 1.5))
    assert seen.baseline.kernel == fast and seen.baseline.size_bytes == fp32_size(gm)
    assert [times["p50"] for times in seen.baseline.latencies] == [1.0, 1.0]
    assert [times["batch"] for times in seen.baseline.latencies] == [1, 64]
    figures = seen.form.figures
    assert [times["p50"] for times in figures.latencies] == [9.0, 9.0] and figures.speedup == {"batch_1": 0.11, "batch_64": 0.11}
    assert (figures.size_bytes, figures.seconds, figures.kernel) == (5, 1.5, "x86 int8")
    # The same weights answer the same.
    assert figures.value == seen.baseline.value and figures.error["sqnr_db"] > 100 and figures.error["agreement"] == 1


def test_shares_of_time_add_up() -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 64, 5), nn.ReLU(), nn.Flatten()).eval())
    shares = profile(gm, torch.randn(1, 3, 32, 32)).shares
    assert set(shares) == {node.name for node in gm.graph.nodes}
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0


@pytest.mark.parametrize(("seconds", "expected"), [(0.01, 6), (0.2, 4), (10.0, 2)])
def test_a_graph_is_timed_a_few_times_and_for_a_bounded_time(seconds: float, expected: int) -> None:
    now = itertools.count(0.0, seconds)
    assert list(passes(lambda: next(now))) == list(range(expected))


def test_passes_that_were_disturbed_move_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five passes two meet a busy machine in the same layer; the one before them is not counted."""
    clock = Clock()
    gm = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval())
    for name, seconds in (("0", [99.0, *[1.0] * 5]), ("1", [1.0, 9.0, 9.0, 1.0, 1.0, 1.0])):
        clock.spend(gm.get_submodule(name), seconds)
    monkeypatch.setattr("engine.lowering.graph.profile.time", clock)
    shares = profile(gm, torch.randn(1, 3, 8, 8)).shares
    assert (shares["_0"], shares["_1"]) == (0.5, 0.5)


def test_the_size_of_fp32_is_its_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    gm = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    save_file(gm.state_dict(), tmp_path / "w.safetensors")
    assert fp32_size(gm) == (tmp_path / "w.safetensors").stat().st_size


# The choice.


Pair = Mapping[str, Quality]


def quality(value: float, mse: float = 0.1, sqnr: float = 20.0, agreement: float = 0.9) -> Quality:
    return Quality(value, 0.95, {"mse": mse, "sqnr_db": sqnr, "agreement": agreement}, 0.01, 100)


def measured(validation: Quality, test: Quality) -> Pair:
    return {"validation": validation, "test": test}


def better(qat: Pair, ptq: Pair, threshold: Threshold) -> tuple[bool, str]:
    return better_of(ACCURACY, threshold, qat, ptq)


def verdict(which: str, seen: Pair, of: QuantizedFigures, size: int, threshold: Threshold, trained: str | None) -> dict[str, object]:
    test = seen["test"]
    baseline = BaselineFigures("accuracy", test.baseline, test.interval, size, "torch fp32")
    figures = replace(of, value=test.value, interval=test.interval)
    return verdict_of(which, ACCURACY, (batched(1), batched(64)), figures, baseline, test, threshold, trained).to_dict()


@pytest.mark.parametrize(
    ("threshold", "field", "good", "bad"),
    [("drop:0.005", "value", 0.94, 0.9), ("mse:1e-3", "mse", 0.01, 0.1),
     ("sqnr:30", "sqnr", 25.0, 20.0), ("agreement:0.99", "agreement", 0.95, 0.9)],
)  # fmt: skip
def test_training_is_kept_only_where_it_is_better_by_the_thresholds_own_measure(
    threshold: str, field: str, good: float, bad: float
) -> None:
    limit = Threshold.parse(threshold)

    def made(number: float) -> Quality:
        return quality(**{"value": 0.9, field: number})

    best, worst = made(good), made(bad)
    assert better(measured(best, best), measured(worst, worst), limit)[0] is True
    assert better(measured(worst, worst), measured(best, best), limit)[0] is False
    assert better(measured(worst, worst), measured(worst, worst), limit)[0] is False
    on_validation_alone, why = better(measured(best, worst), measured(worst, best), limit)
    assert on_validation_alone is False and "worse on test" in why
    assert better(measured(worst, best), measured(best, worst), limit)[0] is False


def test_equal_accuracy_is_decided_by_the_nearness_of_the_outputs() -> None:
    limit = Threshold.parse("drop:0.005")
    near, far = quality(0.9, sqnr=30), quality(0.9, sqnr=20)
    assert better(measured(near, near), measured(far, far), limit)[0] is True
    assert better(measured(far, far), measured(near, near), limit)[0] is False


def entry(simulated: bool = False, **changes: Any) -> QuantizedFigures:
    figures = QuantizedFigures("accuracy", 0.0, 0.0, 250, "x86 int8", speedup={"batch_1": 2.0, "batch_64": 0.5}, integer_layers=3)
    return replace(figures, simulated=simulated, **changes)


@pytest.mark.parametrize(("baseline", "value"), [(math.inf, math.inf), (math.inf, 3.0), (3.0, math.inf), (math.nan, 3.0)])
@pytest.mark.parametrize("metric", [Metric("perplexity", "", False, relative=True), Metric("error", "")])
def test_a_value_that_is_not_finite_stands_beside_fp32s_without_a_difference(metric: Metric, baseline: float, value: float) -> None:
    assert metric.difference(baseline, value) == f"against fp32's {metric.bare(baseline)}"


def test_the_verdict_names_the_choice_the_reason_and_the_price() -> None:
    seen = measured(quality(0.9), quality(0.94))
    met = verdict("qat", seen, entry(), 1000, Threshold.parse("drop:0.02"), "QAT is kept: because")
    assert (met["chosen"], met["met"], met["threshold"]) == ("qat", True, "drop:0.02")
    for words in (
        "QAT is chosen",
        "94.00%",
        "1.00 points under fp32",
        "4.0× smaller",
        "2.0× faster at batch 1",
        "2.0× slower at batch 64",
        "is met",
        "because.",
    ):
        assert words in met["text"]
    missed = verdict("ptq", seen, entry(), 1000, Threshold.parse("drop:0.005"), None)
    assert (missed["chosen"], missed["met"]) == ("fp32", False) and "fp32 stays" in missed["text"]
    assert "The quantized model, PTQ, has" in missed["text"]
    compared = verdict("ptq", seen, entry(), 1000, Threshold.parse("drop:0.005"), "PTQ is kept")
    assert "The better quantized model, PTQ, has" in compared["text"]


def test_a_simulation_claims_no_speed() -> None:
    text = verdict("ptq", measured(quality(0.95), quality(0.96)), entry(True), 1000, Threshold.parse("drop:0.005"), None)["text"]
    assert "no speed is claimed" in text and "2.0×" not in text and "over fp32" in text


def test_where_nothing_was_quantized_the_verdict_says_so() -> None:
    nothing = entry(integer_layers=0)
    told = verdict("ptq", measured(quality(0.95), quality(0.95)), nothing, 250, Threshold.parse("drop:0.005"), None)
    assert (told["chosen"], told["met"]) == ("fp32", False) and "nothing was quantized" in told["text"]


@pytest.mark.parametrize(
    ("before_by_after", "text"),
    [(4.0, "4.0× smaller"), (0.5, "2.0× larger"), (1.05, "about as large as fp32"), (0.95, "about as large as fp32")],
)
def test_a_ratio_is_said_in_the_direction_it_has(before_by_after: float, text: str) -> None:
    assert times(before_by_after, "smaller", "larger") == text


def test_a_model_without_any_gain_is_called_that() -> None:
    worse = entry(size_bytes=2000, speedup={"batch_1": 0.5, "batch_64": 0.9})
    seen = measured(quality(0.95), quality(0.95))
    assert "neither smaller nor faster" in verdict("ptq", seen, worse, 1000, Threshold.parse("drop:0.005"), None)["text"]
    assert "neither" not in verdict("ptq", seen, entry(), 1000, Threshold.parse("drop:0.005"), None)["text"]


def test_equal_accuracy_is_not_given_as_the_reason() -> None:
    kept, why = better(
        measured(quality(0.9, sqnr=30), quality(0.9, sqnr=30)), measured(quality(0.9), quality(0.9)), Threshold.parse("drop:0.005")
    )
    assert kept and "equal accuracy" in why and "30.0 dB" in why


def test_a_speedup_is_before_divided_by_after() -> None:
    before, after = {"batch_1": Latency(3.0, 9.0, 1)}, {"batch_1": Latency(2.0, 1.0, 1)}
    assert speedups((batched(1), batched(64)), before, after) == {"batch_1": 1.5}
