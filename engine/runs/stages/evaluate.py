"""evaluate: the quantized model against the best fp32 form, on validation for choices and on test for the report."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from engine.data.images.base import Data
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.lowering.graph.runtime import QuantizedModel
from engine.recipe.recipe import Recipe, Threshold
from engine.tasks.evaluation import Latency, Quality, compare, fp32_forms, latencies

BATCH = 64


@dataclass(frozen=True)
class Baseline:
    """The fused fp32 model in each of its forms, and its bytes."""

    forms: Mapping[str, nn.Module]
    size_bytes: int

    @property
    def reference(self) -> nn.Module:
        return next(iter(self.forms.values()))


@dataclass(frozen=True)
class Times:
    """``single`` and ``batched`` are a quantized model's latencies at batch 1 and ``BATCH``; ``fp32_single`` and ``fp32_batched``
    those of the baseline's faster form at that batch, timed in turns with it; ``fp32_form`` names the form that is faster at
    batch 1."""

    single: Latency
    batched: Latency
    fp32_single: Latency
    fp32_batched: Latency
    fp32_form: str


@dataclass(frozen=True)
class Measurement:
    """One quantized model. ``earlier`` are the times of the form that was measured before it, in the same turns."""

    validation: Quality
    validation_baseline: Quality
    test: Quality
    test_baseline: Quality
    times: Times
    earlier: Times | None = None

    def met(self, threshold: Threshold, split: str) -> bool:
        quality, baseline = (self.test, self.test_baseline) if split == "test" else (self.validation, self.validation_baseline)
        return threshold.met(
            baseline=baseline.value, value=quality.value, mse=quality.mse, sqnr_db=quality.sqnr_db, agreement=quality.agreement
        )


def fp32_size(gm: fx.GraphModule) -> int:
    """Bytes of the fused fp32 model as a safetensors file."""
    from safetensors.torch import save

    return len(save({name: tensor.contiguous().clone() for name, tensor in gm.state_dict().items()}))


def baseline(gm: fx.GraphModule) -> Baseline:
    return Baseline(fp32_forms(gm), fp32_size(gm))


def evaluate(
    model: QuantizedModel, fp32: Baseline, data: Data, recipe: Recipe, stop: StopToken, earlier: QuantizedModel | None = None
) -> Generator[Event, None, Measurement]:
    found: dict[str, Mapping[str, Quality]] = {}
    for split in ("validation", "test"):
        found[split] = yield from compare(
            "evaluate", {"it": model}, fp32.reference, data, split, recipe.data.batch, stop,
            limit=recipe.data.limit if split == "test" else None,
        )  # fmt: skip
    # Figures that stand in one table are of one timing: of two, fp32's alone may differ by more than what is told of the models.
    times = _race({"it": model, **({"earlier": earlier} if earlier else {})}, fp32, data, stop)
    return Measurement(
        found["validation"]["it"], found["validation"]["reference"], found["test"]["it"], found["test"]["reference"],
        times["it"], times.get("earlier"),
    )  # fmt: skip


def _race(models: Mapping[str, QuantizedModel], fp32: Baseline, data: Data, stop: StopToken) -> dict[str, Times]:
    single, batched = (latencies({**fp32.forms, **models}, next(data.batches("test", size, limit=size))[0], stop) for size in (1, BATCH))
    fastest = min(fp32.forms, key=lambda form: single[form].p50)
    best = min((batched[form] for form in fp32.forms), key=lambda t: t.p50)
    return {name: Times(single[name], batched[name], single[fastest], best, fastest) for name in models}


def baseline_entry(fp32: Baseline, seen: Measurement) -> dict[str, Any]:
    """Contract 2's ``baseline``."""
    return {
        "metric": "accuracy", "value": seen.test_baseline.value, "interval": seen.test_baseline.interval, "size_bytes": fp32.size_bytes,
        "latency_ms": seen.times.fp32_single.to_dict(), "latency_batched_ms": seen.times.fp32_batched.to_dict(),
        "kernel": seen.times.fp32_form,
    }  # fmt: skip


def quantized_entry(model: QuantizedModel, seen: Measurement, size: int, seconds: float) -> dict[str, Any]:
    """Contract 2's ``ptq``, and the measured part of ``qat``."""
    stored = len(model.program.layers) - len(model.placement)
    kernels = sorted({kernel for kernel, _ in model.placement.values()})
    kernels += ["torch fp32 on stored integers"] if stored else [] if kernels else ["torch fp32"]
    return {
        "value": seen.test.value, "interval": seen.test.interval, "error": seen.test.error(), "size_bytes": size,
        "kernel": ", ".join(kernels), **pace(seen.times),
        "simulated": model.simulated, "integer_layers": len(model.placement), "stored_layers": stored, "seconds": round(seconds, 3),
        "validation": {"value": seen.validation.value, "baseline": seen.validation_baseline.value, "error": seen.validation.error()},
    }  # fmt: skip


def pace(times: Times) -> dict[str, Any]:
    """The part of an entry that a second timing replaces."""
    return {
        "latency_ms": times.single.to_dict(), "latency_batched_ms": times.batched.to_dict(),
        "speedup": {"batch_1": ratio(times.fp32_single, times.single), f"batch_{BATCH}": ratio(times.fp32_batched, times.batched)},
    }  # fmt: skip


def ratio(before: Latency, after: Latency) -> float:
    return round(before.p50 / after.p50, 2)
