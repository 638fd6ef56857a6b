"""What a layer is asked to become: bit widths, granularity, observer. Torch-free; the words are the field's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from engine.algorithms.registry import METHODS as METHODS
from engine.recipe.number_formats import format_entry

Granularity = Literal["per-tensor", "per-channel", "per-group", "per-block"]
Observer = Literal["minmax", "moving-average", "percentile", "histogram-mse", "entropy"]
GRANULARITIES: tuple[Granularity, ...] = ("per-tensor", "per-channel", "per-group")
# Inputs and outputs that share a scale ``per-block``, as DeepSeek-V3 has them (arXiv:2412.19437, section 3.3.2).
BLOCK = 128


@dataclass(frozen=True)
class WeightSpec:
    """Weights of ``bits`` bits: integers, symmetric around zero or, in decoders, affine; or of the ``format`` of
    ``engine.recipe.number_formats``, which has its own bits and may have its own groups.

    ``group_size`` counts input features and is used by ``per-group`` alone; ``per-block`` shares a scale among ``BLOCK`` inputs of
    ``BLOCK`` outputs. ``method`` is how scales and integers are chosen, a
    name of ``engine.algorithms.registry``: ``nearest`` takes the scale from the largest weight, ``mse`` the clip with the least
    squared error.
    """

    bits: int = 8
    granularity: Granularity = "per-channel"
    group_size: int = 32
    method: str = "nearest"
    symmetric: bool = True
    format: str = ""

    @staticmethod
    def renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
        """``fields`` without ``scale``, whose ``mse`` is an older spelling of ``method: mse``: it counts where no other method is
        named. What a ``format`` settles is filled in. Raises UsageError for one that is not known."""
        named = {name: value for name, value in fields.items() if name != "scale"}
        old = fields.get("scale") == "mse" and fields.get("method", "nearest") == "nearest"
        named |= {"method": "mse"} if old else {}
        if named.get("format"):
            entry = format_entry(named["format"])
            named |= {"bits": entry.bits, "symmetric": True}
            named |= {"granularity": "per-group", "group_size": entry.block} if entry.block else {}
        elif "format" in named:
            named["format"] = ""
        return named

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> WeightSpec:
        """The spec in a recipe's words, older ones too."""
        return cls(**cls.renamed(fields))

    def __str__(self) -> str:
        groups = f" {self.group_size}" if self.granularity == "per-group" else ""
        if self.format:
            own = format_entry(self.format).block
            method = "" if self.method == "nearest" else f" {self.method}"
            return f"{self.format}{'' if own else f' {self.granularity}{groups}'}{method}"
        # Runs are compared by this text, and earlier ones named no plain rounding.
        method = "" if self.method in ("nearest", "mse") else f" {self.method}"
        return f"w{self.bits} {self.granularity}{groups}{'' if self.symmetric else ' affine'}{method}"


@dataclass(frozen=True)
class ActivationSpec:
    """Unsigned integer activations with one scale and zero point for the tensor (affine), or a zero point fixed in
    the middle of the range (symmetric). ``dynamic`` ones, of decoders, are signed, and have a scale for each token as it comes, or for
    each ``group_size`` channels of one where that is not 0. With a ``format``, of decoders too, they are floats of few bits around
    zero, and the scale is one number for the tensor where they are not dynamic."""

    bits: int = 8
    symmetric: bool = False
    observer: Observer = "minmax"
    dynamic: bool = False
    format: str = ""
    group_size: int = 0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> ActivationSpec:
        """The spec in a recipe's words. Raises UsageError for a format that is not known."""
        named = {**fields, "format": fields.get("format") or "", "group_size": fields.get("group_size") or 0}
        if named["format"]:
            entry = format_entry(named["format"])
            named |= {"bits": entry.bits, "symmetric": True}
            named |= {"dynamic": True, "group_size": entry.block} if entry.block else {}
        return cls(**named)

    def fields(self) -> dict[str, Any]:
        """The inverse of ``of``, in a recipe's words; those that came later are left out while they say nothing."""
        return {name: value for name, value in asdict(self).items() if value or name not in ("format", "group_size")}

    def __str__(self) -> str:
        name = self.format or f"a{self.bits}"
        if self.dynamic:
            own = bool(self.format) and format_entry(self.format).block == self.group_size
            return f"{name} per-token{f' {self.group_size}' if self.group_size and not own else ''} dynamic"
        return f"{name} per-tensor" + (" symmetric" if self.symmetric and not self.format else "")


@dataclass(frozen=True)
class LayerSpec:
    """``weights=None`` keeps the layer in fp32; ``activations=None`` with weights given is weight-only."""

    weights: WeightSpec | None = None
    activations: ActivationSpec | None = None

    def __str__(self) -> str:
        if self.weights is None:
            return "fp32"
        return f"{self.weights}, {self.activations or 'fp32 activations'}"


FP32 = LayerSpec()


@dataclass(frozen=True)
class Rule:
    """``match`` is a glob on the module path (``layer1.*``) or a kind (``kind:Linear``); the first rule that matches wins.

    ``line`` is where the recipe states it, for messages.
    """

    match: str
    spec: LayerSpec
    line: int | None = None

    @property
    def why(self) -> str:
        return f"the recipe's rule {self.match!r} asks for it"
