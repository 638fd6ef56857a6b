"""The signal-to-quantization-noise ratio."""

from __future__ import annotations

import math


def sqnr_db(signal: float, noise: float) -> float:
    """The ratio of two sums of squares in dB; infinite without noise, NaN where one of them is not finite."""
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return math.nan
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)
