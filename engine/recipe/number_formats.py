"""The number formats that a recipe can name beside integers of so many bits. Torch-free; a format is a line here.

Floats of few bits are those of the OCP 8-bit Floating Point Specification 1.0 (E4M3, E5M2) and of the OCP Microscaling Formats
Specification 1.0, section 5.3 (E2M3, E3M2, E2M1, INT8); blocks of ``mx…`` share a power of two (section 5.2). NVFP4 has blocks of 16
with scales in E4M3 and one float32 for the tensor; NF4 are quantiles of a normal distribution (Dettmers et al. 2023, arXiv:2305.14314,
appendix E). ``q…`` are the blocks of GGUF, the file format of llama.cpp (``ggml-common.h`` there, ``gguf.quants`` in Python).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from engine.errors import UsageError, nearest

Scale = Literal["float16", "e8m0", "e4m3"]


@dataclass(frozen=True)
class BlockLayout:
    """How a GGUF file stores ``weights`` consecutive weights of a row: in ``size`` bytes, with a float16 scale. Where ``multipliers`` is
    given, the least and the largest of an integer range, each group has one of it that multiplies that scale. With ``offset`` something
    is subtracted from each group besides: a float16, or an integer from 0 to the largest multiplier times a float16."""

    weights: int
    size: int
    multipliers: tuple[int, int] | None = None
    offset: bool = False


@dataclass(frozen=True)
class FormatEntry:
    """``levels`` are the values of the codes 0, 1, …, NaN where a code stands for no number. ``block`` is how many weights share a
    scale, 0 where whoever asks for the format says so. ``scale`` is how scales are stored: powers of two (``e8m0``), or ``e4m3`` with one
    float32 for the tensor beside. A format with a ``layout`` takes rows of whole blocks alone; ``instead`` is what llama.cpp stores
    other rows in. ``readers`` are the runtimes that an export of it is for, empty where there is none."""

    name: str
    bits: int
    title: str
    levels: tuple[float, ...]
    block: int = 0
    scale: Scale = "float16"
    layout: BlockLayout | None = None
    instead: str = ""
    readers: str = ""

    def divides(self, inputs: int) -> bool:
        """Whether rows of ``inputs`` weights can have it."""
        return self.layout is None or inputs % self.layout.weights == 0


def minifloat(exponent: int, mantissa: int, nonfinite: Literal["none", "nan", "ieee"] = "none") -> tuple[float, ...]:
    """The values of all codes of a float with a sign and so many bits of exponent and mantissa, the bias being 2^(exponent-1) - 1.
    ``nan`` takes the code of all ones for NaN, ``ieee`` the largest exponent for infinities and NaN: both are NaN here.

    >>> minifloat(2, 1)[:8]
    (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    """
    bias, largest = (1 << (exponent - 1)) - 1, (1 << exponent) - 1
    positive: list[float] = []
    for power in range(largest + 1):
        for part in range(1 << mantissa):
            fraction = part / (1 << mantissa)
            value = (1 + fraction) * 2.0 ** (power - bias) if power else fraction * 2.0 ** (1 - bias)
            all_ones = power == largest and part == (1 << mantissa) - 1
            beyond = (nonfinite == "nan" and all_ones) or (nonfinite == "ieee" and power == largest)
            positive.append(math.nan if beyond else value)
    return (*positive, *(-value for value in positive))


_E4M3, _E5M2 = minifloat(4, 3, "nan"), minifloat(5, 2, "ieee")
_E2M3, _E3M2, _E2M1 = minifloat(2, 3), minifloat(3, 2), minifloat(2, 1)
_INT8 = tuple((code - 256 if code > 127 else code) / 64 for code in range(256))
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434,
    0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def _integers(low: int, high: int) -> tuple[float, ...]:
    return tuple(float(value) for value in range(low, high + 1))


NUMBER_FORMATS: dict[str, FormatEntry] = {
    entry.name: entry
    for entry in (
        FormatEntry("fp8_e4m3", 8, "FP8 E4M3", _E4M3, readers="vLLM, SGLang"),
        FormatEntry("fp8_e5m2", 8, "FP8 E5M2", _E5M2),
        FormatEntry("mxfp8", 8, "MXFP8 E4M3, blocks of 32", _E4M3, 32, "e8m0", readers="vLLM, SGLang"),
        FormatEntry("mxfp6_e2m3", 6, "MXFP6 E2M3, blocks of 32", _E2M3, 32, "e8m0"),
        FormatEntry("mxfp6_e3m2", 6, "MXFP6 E3M2, blocks of 32", _E3M2, 32, "e8m0"),
        FormatEntry("mxfp4", 4, "MXFP4, blocks of 32", _E2M1, 32, "e8m0", readers="vLLM, SGLang, llama.cpp"),
        FormatEntry("mxint8", 8, "MXINT8, blocks of 32", _INT8, 32, "e8m0"),
        FormatEntry("nvfp4", 4, "NVFP4, blocks of 16", _E2M1, 16, "e4m3", readers="vLLM, SGLang"),
        FormatEntry("nf4", 4, "NF4", _NF4),
        # -128 is left out: kernels of llama.cpp take magnitudes in int8.
        FormatEntry("q8_0", 8, "GGUF Q8_0", _integers(-127, 127), 32, layout=BlockLayout(32, 34), readers="llama.cpp"),
        FormatEntry("q4_0", 4, "GGUF Q4_0", _integers(-8, 7), 32, layout=BlockLayout(32, 18), readers="llama.cpp"),
        FormatEntry("q4_1", 4, "GGUF Q4_1", _integers(0, 15), 32, layout=BlockLayout(32, 20, None, True), readers="llama.cpp"),
        FormatEntry("q5_0", 5, "GGUF Q5_0", _integers(-16, 15), 32, layout=BlockLayout(32, 22), readers="llama.cpp"),
        FormatEntry("q5_1", 5, "GGUF Q5_1", _integers(0, 31), 32, layout=BlockLayout(32, 24, None, True), readers="llama.cpp"),
        FormatEntry(
            "q6_k", 6, "GGUF Q6_K", _integers(-32, 31), 16, layout=BlockLayout(256, 210, (-128, 127)), instead="q8_0", readers="llama.cpp"
        ),
        FormatEntry(
            "q5_k", 5, "GGUF Q5_K", _integers(0, 31), 32, layout=BlockLayout(256, 176, (0, 63), True), instead="q5_1", readers="llama.cpp"
        ),
        FormatEntry(
            "q4_k", 4, "GGUF Q4_K", _integers(0, 15), 32, layout=BlockLayout(256, 144, (0, 63), True), instead="q5_0", readers="llama.cpp"
        ),
        FormatEntry(
            "q3_k", 3, "GGUF Q3_K", _integers(-4, 3), 16, layout=BlockLayout(256, 110, (-32, 31)), instead="q4_0", readers="llama.cpp"
        ),
        FormatEntry(
            "q2_k", 2, "GGUF Q2_K", _integers(0, 3), 16, layout=BlockLayout(256, 84, (0, 15), True), instead="q4_0", readers="llama.cpp"
        ),
    )
}


# The formats that what a layer reads is rounded to as well, by those of its weights: what GPUs multiply with one another.
PAIRS = {"fp8_e4m3": ("fp8_e4m3",), "mxfp8": ("mxfp8",), "mxfp4": ("mxfp4", "mxfp8")}
ACTIVATION_FORMATS = ("fp8_e4m3", "mxfp8", "mxfp4")
# The formats whose scales may be shared among outputs too, down to one for the whole matrix.
FLOAT_BLOCKS = ("fp8_e4m3", "fp8_e5m2")


def format_entry(name: str) -> FormatEntry:
    """Raises UsageError for a name that is not known."""
    if name not in NUMBER_FORMATS:
        raise UsageError(f"no number format {name!r}: {nearest(name, list(NUMBER_FORMATS))}")
    return NUMBER_FORMATS[name]


def stored_only() -> dict[str, tuple[str, ...]]:
    """The formats that no kernel here multiplies, by the runtimes that they are exported for; under an empty name those that are for
    none."""
    found: dict[str, tuple[str, ...]] = {}
    for entry in NUMBER_FORMATS.values():
        found[entry.readers] = (*found.get(entry.readers, ()), entry.name)
    return found
