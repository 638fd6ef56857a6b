"""Which layers cost a model most, and the cheapest thing to do about them, in a sentence. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.events.rows import LayerRow

_NAMED = 3
_MOST = 0.9
_EIGHT = 8


@dataclass(frozen=True)
class Harm:
    """What one layer costs as it is, by estimate: its weights and what it reads."""

    path: str
    weights: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.activations


@dataclass(frozen=True)
class Advice:
    """``worst`` are the layers that together have most of the harm, each with its part (0..1) of it; ``text`` names them and the
    cheapest remedy."""

    worst: tuple[tuple[str, float], ...]
    text: str

    def to_dict(self) -> dict[str, Any]:
        """What the report's ``verdict`` tells besides."""
        return {"worst": [{"layer": path, "share": round(share, 4)} for path, share in self.worst], "remedy": self.text}


def advice(harms: Sequence[Harm], rows: Sequence[LayerRow], threshold: str, searched: bool = False) -> Advice | None:
    """None where nothing is known of any layer's harm. ``searched`` says that a search has tried the remedies already."""
    total = sum(harm.total for harm in harms)
    if not total > 0:
        return None
    ranked = sorted(harms, key=lambda harm: -harm.total)
    worst: list[Harm] = []
    for harm in ranked[:_NAMED]:
        worst.append(harm)
        if sum(one.total for one in worst) >= _MOST * total:
            break
    shares = tuple((harm.path, harm.total / total) for harm in worst)
    named = ", ".join(f"{path} ({100 * share:.0f} %)" for path, share in shares)
    text = f"By estimate the harm is done by {named}; {_remedy(worst, {row.path: row for row in rows})}"
    if not searched:
        text += f"; `--target {threshold if threshold.startswith('drop:') else 'drop:0.005'}` tries this and what costs more"
    return Advice(shares, f"{text}.")


def _remedy(worst: Sequence[Harm], rows: Mapping[str, LayerRow]) -> str:
    weights, activations = sum(harm.weights for harm in worst), sum(harm.activations for harm in worst)
    specs = {harm.path: rows[harm.path].actual for harm in worst if harm.path in rows}
    several = "they are" if len(worst) > 1 else "it is"
    narrow = [path for path, spec in specs.items() if spec.weights is not None and spec.weights.bits < _EIGHT]
    if activations > weights:
        few = [path for path, s in specs.items() if s.activations is not None and s.activations.bits < _EIGHT - 1]
        if few:
            return f"most of it by what {'they read' if len(worst) > 1 else 'it reads'}: the cheapest remedy is 8-bit activations there"
        clipped = any(spec.activations is not None and spec.activations.observer == "minmax" for spec in specs.values())
        if clipped and not any(s.activations is not None and s.activations.dynamic for s in specs.values()):
            return "most of it by rounding what is read: the cheapest remedy is another observer (observer: percentile)"
        return "most of it by rounding what is read: the cheapest remedy is float activations there, or fp32"
    gptq = [p for p in narrow if p in rows and specs[p].weights.method in ("nearest", "mse") and "gptq" in rows[p].capabilities.methods]  # type: ignore[union-attr]
    if gptq:
        return "most of it by rounding weights: the cheapest remedy is GPTQ there (method: gptq), then 8 bits"
    if narrow:
        return f"most of it by rounding weights: the cheapest remedy is 8 bits for {', '.join(narrow)}"
    return f"{several} in 8 bits already: the cheapest remedy is to keep {'them' if len(worst) > 1 else 'it'} in fp32"
