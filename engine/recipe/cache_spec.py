"""What a decoder's cache of keys and values is asked to become. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from engine.errors import UsageError, nearest

CacheFormat = Literal["int8", "fp8_e4m3", "int4"]
CacheGranularity = Literal["per-token", "per-group", "per-channel", "per-tensor"]
CACHE_FORMATS: tuple[CacheFormat, ...] = get_args(CacheFormat)
CACHE_GRANULARITIES: tuple[CacheGranularity, ...] = get_args(CacheGranularity)
# Words of the command line for what is longer in a recipe.
_SHORT = {"fp8": "fp8_e4m3"}
_USUAL: Mapping[str, CacheGranularity] = {"int8": "per-token", "fp8_e4m3": "per-token", "int4": "per-group"}


@dataclass(frozen=True)
class CacheSpec:
    """Keys and values in ``format``, with a float16 scale for each token of a head (``per-token``) or for each ``group_size`` channels of
    it (``per-group``), as they come; or with scales from calibration, one for each channel of a head (``per-channel``) or one for all
    keys and one for all values of a layer (``per-tensor``). Integers of 4 bits in groups have an offset beside the scale."""

    format: CacheFormat = "int8"
    granularity: CacheGranularity = "per-token"
    group_size: int = 32

    @property
    def bits(self) -> int:
        return 4 if self.format == "int4" else 8

    @property
    def calibrated(self) -> bool:
        """Whether the scales come from calibration text."""
        return self.granularity in ("per-channel", "per-tensor")

    def __str__(self) -> str:
        return f"{self.format} {self.granularity}{f' {self.group_size}' if self.granularity == 'per-group' else ''}"

    @classmethod
    def parse(cls, text: str) -> CacheSpec:
        """``int8``, ``fp8:per-tensor``, ``int4:per-group:64``. Raises UsageError for anything else.

        >>> CacheSpec.parse("fp8:per-tensor")
        CacheSpec(format='fp8_e4m3', granularity='per-tensor', group_size=32)
        """
        name, *rest = text.split(":")
        name = _SHORT.get(name, name)
        if name not in CACHE_FORMATS:
            raise UsageError(f"no cache of {name!r}: {nearest(name, [*CACHE_FORMATS, *_SHORT])}")
        fields: dict[str, Any] = {"format": name, "granularity": rest[0] if rest else _USUAL[name]}
        if fields["granularity"] not in CACHE_GRANULARITIES:
            raise UsageError(f"no granularity {fields['granularity']!r} of a cache: {nearest(fields['granularity'], CACHE_GRANULARITIES)}")
        if len(rest) > 1:
            if fields["granularity"] != "per-group" or rest[1] not in ("16", "32", "64", "128") or len(rest) > 2:
                raise UsageError(f"cache {text!r}: a group size of 16, 32, 64 or 128 follows per-group alone, as in int4:per-group:64")
            fields["group_size"] = int(rest[1])
        return cls(**fields)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> CacheSpec:
        """From the fields of a recipe's ``cache``: what is null is the usual."""
        form: Any = fields.get("format") or ("int4" if fields.get("bits") == 4 else "int8")
        return cls(form, fields.get("granularity") or _USUAL[form], fields.get("group_size") or 32)
