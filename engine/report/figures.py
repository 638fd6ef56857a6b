"""What was measured of one form of a model, typed: from stage to screen and into the report. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.tasks.metrics import MetricValue, Workload

# The report's names of the times of the first two workloads.
LATENCY_KEYS = ("latency_ms", "latency_batched_ms")


@dataclass(frozen=True)
class FormFigures:
    """``metric`` names what ``value`` is of. ``latencies`` are milliseconds (p50, p95, batch) in the order of the task's workloads;
    ``details`` are keys that a task or a lowering adds."""

    metric: str
    value: float
    interval: float
    size_bytes: int
    kernel: str
    latencies: tuple[Mapping[str, float], ...] = ()
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def times(self) -> dict[str, Any]:
        return dict(zip(LATENCY_KEYS, self.latencies, strict=False))


@dataclass(frozen=True)
class BaselineFigures(FormFigures):
    """fp32."""

    def to_dict(self) -> dict[str, Any]:
        """The report's ``baseline``."""
        return {
            "metric": self.metric, "value": self.value, "interval": self.interval, "size_bytes": self.size_bytes, **self.times(),
            "kernel": self.kernel, **self.details,
        }  # fmt: skip


@dataclass(frozen=True)
class QuantizedFigures(FormFigures):
    """A quantized form. ``error`` is its distance from fp32 on the test split, ``validation`` the same figures on the validation
    split; ``speedup`` is fp32's time over this one's by workload; ``seconds`` is the time that quantization took."""

    error: Mapping[str, float] = field(default_factory=dict)
    speedup: Mapping[str, float] = field(default_factory=dict)
    simulated: bool = False
    integer_layers: int = 0
    stored_layers: int = 0
    seconds: float = 0.0
    validation: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report's ``ptq``, and the measured part of ``qat``."""
        return {
            "value": self.value, "interval": self.interval, "error": dict(self.error), "size_bytes": self.size_bytes,
            "kernel": self.kernel, **self.times(), "speedup": dict(self.speedup), "simulated": self.simulated,
            "integer_layers": self.integer_layers, "stored_layers": self.stored_layers, "seconds": round(self.seconds, 3),
            "validation": dict(self.validation), **self.details,
        }  # fmt: skip


@dataclass(frozen=True)
class TrainingFigures:
    """How QAT went, beside the figures of what it gave. ``loss`` and ``values`` are of each epoch; ``kept`` is whether it is chosen
    over PTQ, ``why`` a sentence."""

    figures: QuantizedFigures
    asked_epochs: int
    best_epoch: int
    loss: Sequence[float]
    values: Sequence[float]
    kept: bool
    why: str

    def to_dict(self) -> dict[str, Any]:
        """The report's ``qat``."""
        return {
            "epochs": len(self.loss), "asked_epochs": self.asked_epochs, "ended_early": len(self.loss) < self.asked_epochs,
            "best_epoch": self.best_epoch, "loss": list(self.loss), "validation_values": list(self.values),
            **self.figures.to_dict(), "kept": self.kept, "why": self.why,
        }  # fmt: skip


def speedups(workloads: Sequence[Workload], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """fp32's p50 over the quantized form's, by workload."""
    return {w.key: round(before[w.key].p50 / after[w.key].p50, 2) for w in workloads if w.key in before and w.key in after}
