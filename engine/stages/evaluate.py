"""evaluate: the quantized model against the best fp32 form, on validation for choices and on test for the report."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from engine.cancel import StopToken
from engine.data.base import Data
from engine.evaluation import Latency, Quality, best_fp32, compare, latencies
from engine.events import Event
from engine.quant.runtime import QuantizedModel
from engine.recipe import Recipe, Threshold

BATCH = 64


@dataclass(frozen=True)
class Baseline:
    """The fp32 model in its fastest form, and what it weighs and scores on the test split."""

    form: str
    model: nn.Module
    size_bytes: int
    test: Quality | None = None


@dataclass(frozen=True)
class Measurement:
    """One quantized model. ``single`` and ``batched`` are its latencies at batch 1 and ``BATCH``; ``fp32_single`` and
    ``fp32_batched`` those of the baseline, timed in turns with it."""

    validation: Quality
    validation_baseline: Quality
    test: Quality
    test_baseline: Quality
    single: Latency
    batched: Latency
    fp32_single: Latency
    fp32_batched: Latency

    def met(self, threshold: Threshold, split: str) -> bool:
        quality, baseline = (self.test, self.test_baseline) if split == "test" else (self.validation, self.validation_baseline)
        return threshold.met(
            baseline=baseline.value, value=quality.value, mse=quality.mse, sqnr_db=quality.sqnr_db, agreement=quality.agreement
        )


def fp32_size(gm: fx.GraphModule) -> int:
    """Bytes of the fused fp32 model as a safetensors file."""
    from safetensors.torch import save

    return len(save({name: tensor.contiguous().clone() for name, tensor in gm.state_dict().items()}))


def baseline(gm: fx.GraphModule, example: Tensor, stop: StopToken) -> Baseline:
    form, model = best_fp32(gm, example[:1], stop)
    return Baseline(form, model, fp32_size(gm))


def evaluate(model: QuantizedModel, fp32: Baseline, data: Data, recipe: Recipe, stop: StopToken) -> Generator[Event, None, Measurement]:
    found: dict[str, Mapping[str, Quality]] = {}
    for split in ("validation", "test"):
        found[split] = yield from compare(
            "evaluate", {"it": model}, fp32.model, data, split, recipe.data.batch, stop,
            limit=recipe.data.limit if split == "test" else None,
        )  # fmt: skip
    times = {}
    for size in (1, BATCH):
        x, _ = next(data.batches("test", size, limit=size))
        times[size] = latencies({"fp32": fp32.model, "it": model}, x, stop)
    return Measurement(
        found["validation"]["it"], found["validation"]["reference"], found["test"]["it"], found["test"]["reference"],
        times[1]["it"], times[BATCH]["it"], times[1]["fp32"], times[BATCH]["fp32"],
    )  # fmt: skip


def baseline_entry(fp32: Baseline, seen: Measurement) -> dict[str, Any]:
    """Contract 2's ``baseline``."""
    return {
        "metric": "accuracy", "value": seen.test_baseline.value, "interval": seen.test_baseline.interval, "size_bytes": fp32.size_bytes,
        "latency_ms": seen.fp32_single.to_dict(), "latency_batched_ms": seen.fp32_batched.to_dict(), "kernel": fp32.form,
    }  # fmt: skip


def quantized_entry(model: QuantizedModel, seen: Measurement, size: int, seconds: float) -> dict[str, Any]:
    """Contract 2's ``ptq``, and the measured part of ``qat``."""
    kernels = sorted({kernel for kernel, _ in model.placement.values()}) or ["torch fp32 on dequantized weights"]
    return {
        "value": seen.test.value, "interval": seen.test.interval, "error": seen.test.error(), "size_bytes": size,
        "latency_ms": seen.single.to_dict(), "latency_batched_ms": seen.batched.to_dict(), "kernel": ", ".join(kernels),
        "speedup": {"batch_1": ratio(seen.fp32_single, seen.single), f"batch_{BATCH}": ratio(seen.fp32_batched, seen.batched)},
        "simulated": model.simulated, "seconds": round(seconds, 3),
        "validation": {"value": seen.validation.value, "baseline": seen.validation_baseline.value, "error": seen.validation.error()},
    }  # fmt: skip


def ratio(before: Latency, after: Latency) -> float:
    return round(before.p50 / after.p50, 2)
