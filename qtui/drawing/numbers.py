"""Numbers short enough for an axis."""

from __future__ import annotations

import math

_PREFIXES = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))
_PLAIN = 1e4  # Below this a figure is shorter, and exact, without a prefix.


def compact(value: float, digits: int = 3) -> str:
    """``545 k``, ``11.7 M``, ``1,250``, ``0.38``, ``1.2e-5``: about ``digits`` significant ones, without zeros at the end."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if 1e3 <= abs(value) < _PLAIN - 0.5:
        return f"{value:,.0f}"
    value = float(f"{value:.{digits}g}")
    size = abs(value)
    if size >= 1e15 or size < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{_trimmed(mantissa)}e{int(exponent)}"
    for factor, suffix in _PREFIXES:
        if size >= factor:
            return _significant(value / factor, digits) + suffix
    return _significant(value, digits)


def telling(*values: float) -> tuple[str, ...]:
    """Values of one axis with as many decimals as it takes to tell them apart: ``91.7`` over ``90.2``, ``98.61`` over ``98.58``."""
    sizes = [abs(value) for value in values if value]
    if not sizes or not all(map(math.isfinite, sizes)) or max(sizes) >= _PLAIN or max(sizes) < 1e-2 or max(sizes) > 1e4 * min(sizes):
        return _apart(values)
    span = max(values) - min(values)
    if not span:
        return tuple(compact(value, 4) for value in values)
    places = max(1 - _magnitude(span), 1 - _magnitude(min(sizes)), 0)
    texts = [f"{value:,.{places}f}" for value in values]
    while places and all(text.endswith("0") for text in texts):
        texts = [text[:-1] for text in texts]
        places -= 1
    return tuple("0" if value == 0 else text.rstrip(".") for value, text in zip(values, texts, strict=True))


def _apart(values: tuple[float, ...]) -> tuple[str, ...]:
    texts: tuple[str, ...] = ()
    for digits in range(3, 9):
        texts = tuple(compact(value, digits) for value in values)
        if len(set(texts)) == len(set(values)):
            break
    return texts


def _magnitude(value: float) -> int:
    return math.floor(math.log10(abs(value)))


def _significant(value: float, digits: int) -> str:
    return _trimmed(f"{value:.{max(digits - 1 - _magnitude(value), 0)}f}")


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text
