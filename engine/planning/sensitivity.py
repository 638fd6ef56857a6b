"""What quantization costs layer by layer: candidates, their estimated harm, and plans that follow from it. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from engine.events.rows import LayerRow
from engine.events.rows import LayerSensitivity as LayerSensitivity
from engine.planning.size import weight_bytes
from engine.recipe.presets import DYNAMIC
from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, Rule, WeightSpec

Basis = Literal["kl", "loss", "mse", "noise"]
BITS = (8, 6, 4, 3, 2)
_GROUP = 64
# From so many bits down the widest weight is worth less than a finer step.
_CLIPPED = 3
_EIGHT = 8
# dB: the error halves.
_A_BIT = 20 * math.log10(2)


@dataclass(frozen=True)
class Candidate:
    """One part of a layer on integers, the rest of it in fp32: ``weights``, or ``activations`` (what the layer reads)."""

    weights: WeightSpec | None = None
    activations: ActivationSpec | None = None

    @property
    def bits(self) -> int:
        part = self.weights or self.activations
        assert part is not None
        return part.bits

    @property
    def name(self) -> str:
        """``w4`` or ``a8``."""
        return f"{'w' if self.weights else 'a'}{self.bits}"


def candidates(row: LayerRow, activation_bits: int = 8) -> tuple[Candidate, ...]:
    """What can be had of a layer's weights and of its activations at 8, 6, 4, 3 and 2 bits; ``activation_bits`` is the widest that the
    machine multiplies without saturating. Empty for a layer that is not ``editable``; of one whose matrix another layer has,
    activations alone."""
    if not row.editable:
        return ()
    weights = () if row.tied else tuple(Candidate(weights_of(row, bits)) for bits in BITS)
    if not row.capabilities.rounds_inputs:
        return weights
    widths = row.capabilities.activation_bits
    widest = max((bits for bits in widths if bits <= max(activation_bits, min(widths))), default=_EIGHT)
    # Nothing is narrower than what a machine without VNNI makes of 8 bits.
    widths = tuple(dict.fromkeys(min(bits, widest) for bits in BITS if bits in widths or bits == _EIGHT))
    return (*weights, *(Candidate(activations=activations_of(row, bits)) for bits in widths))


def weights_of(row: LayerRow, bits: int, method: str | None = None) -> WeightSpec:
    """The weights of a layer in ``bits`` bits: a scale per channel, and in matrices of language models below 8 bits one for each 64
    inputs with a zero point. ``method`` is that of the plan; by default the grid is min-max, of 3 bits and fewer that of least squared
    error."""
    found = method or ("mse" if bits <= _CLIPPED else "nearest")
    if method is not None and method not in row.capabilities.methods:
        found = "mse" if "mse" in row.capabilities.methods and bits < _EIGHT else "nearest"
    if row.capabilities.between_floats and bits < _EIGHT:
        return WeightSpec(bits, "per-group", _GROUP, found, symmetric=False)
    return WeightSpec(bits, "per-channel", method=found)


def activations_of(row: LayerRow, bits: int) -> ActivationSpec:
    """What a layer reads in ``bits`` bits, in the way that is the first for it."""
    return DYNAMIC if row.capabilities.activations[0] == "dynamic" else ActivationSpec(bits)


@dataclass(frozen=True)
class Sensitivity:
    """The harm of each candidate of each layer. ``basis``, ``items`` and ``seconds`` are those of ``events.Sensitivities``."""

    layers: tuple[LayerSensitivity, ...]
    basis: Basis
    items: int
    seconds: float = 0.0

    @cached_property
    def _by_path(self) -> Mapping[str, Mapping[str, LayerSensitivity]]:
        found: dict[str, dict[str, LayerSensitivity]] = {}
        for one in self.layers:
            found.setdefault(one.path, {})[one.candidate] = one
        return found

    @property
    def paths(self) -> tuple[str, ...]:
        """The layers that are known, in the model's order."""
        return tuple(self._by_path)

    def of(self, path: str) -> Mapping[str, LayerSensitivity]:
        """The candidates of a layer by name; empty for a layer that is not known."""
        return self._by_path.get(path, {})

    def harm(self, path: str, spec: LayerSpec) -> float:
        """The estimated rise of the loss where one layer becomes ``spec``: that of its weights and that of its activations."""
        weights = self._part(path, "w", spec.weights.bits if spec.weights else None)
        # What is stored in few bits and computed in fp32 reads floats.
        return weights + self._part(path, "a", spec.activations.bits if spec.weights and spec.activations else None)

    def _part(self, path: str, part: str, bits: int | None) -> float:
        """Of a width that was not looked at, the error halves with each bit: a fourth of the harm."""
        if bits is None:
            return 0.0
        known = {int(name[1:]): one.loss_increase for name, one in self.of(path).items() if name[0] == part}
        if not known:
            return 0.0
        nearest = min(known, key=lambda width: (abs(width - bits), width))
        return known[nearest] * 4.0 ** (nearest - bits)

    def noise_db(self, path: str, spec: LayerSpec) -> float | None:
        """The estimated SQNR (dB) of what a layer gives as ``spec`` has it: the noise of its weights and that of what it reads, added up.
        A bit is 6 dB where a width was not looked at. None where nothing is rounded, or nothing is known."""
        parts = [self._noise(path, "w", spec.weights.bits if spec.weights and not spec.weights.format else None)]
        if spec.weights and spec.activations:
            parts.append(self._noise(path, "a", spec.activations.bits))
        found = [one for one in parts if one is not None and not math.isnan(one)]
        power = math.fsum(10.0 ** (-one / 10) for one in found)
        return -10 * math.log10(power) if power else None

    def _noise(self, path: str, part: str, bits: int | None) -> float | None:
        known = {int(name[1:]): one.noise_db for name, one in self.of(path).items() if name[0] == part}
        if bits is None or not known:
            return None
        nearest = min(known, key=lambda width: (abs(width - bits), width))
        return known[nearest] + _A_BIT * (bits - nearest)

    def total(self, specs: Mapping[str, LayerSpec]) -> float:
        """The harm of a plan (specs by path), as the sum of that of its layers."""
        return math.fsum(self.harm(path, specs[path]) for path in self.paths if path in specs)

    def ranked(self, specs: Mapping[str, LayerSpec]) -> tuple[tuple[str, float], ...]:
        """The layers of a plan with their harm, worst first; what does no harm is left out."""
        found = [(path, self.harm(path, specs[path])) for path in self.paths if path in specs]
        return tuple(sorted(((path, harm) for path, harm in found if harm > 0), key=lambda pair: -pair[1]))

    def with_drops(self, drops: Mapping[tuple[str, str], float]) -> Sensitivity:
        """The same with what the metric lost, by path and candidate."""
        return replace(self, layers=tuple(replace(one, drop=drops.get((one.path, one.candidate), one.drop)) for one in self.layers))


def cured(rows: Sequence[LayerRow], worst: Iterable[str], cure: Literal["fp32", "w8a8"]) -> tuple[Rule, ...]:
    """Rules by which the layers ``worst`` are kept in fp32, or have 8 bits. A layer that has what the cure gives gets none."""
    paths = set(worst)
    found = []
    for row in rows:
        if row.path in paths and row.editable:
            activations = activations_of(row, _EIGHT) if row.capabilities.rounds_inputs else None
            spec = FP32 if cure == "fp32" else LayerSpec(weights_of(row, _EIGHT), activations)
            found += [Rule(row.path, spec)] if spec != row.actual else []
    return tuple(found)


def size_of(row: LayerRow, candidate: Candidate) -> int:
    """Bytes of a layer's weights as they are stored with ``candidate``; in fp32 where it leaves them so."""
    return weight_bytes(row, candidate.weights)
