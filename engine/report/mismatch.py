"""Whether a file's outputs are those that were measured, from its entry in a report. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

# Kernels that round ties apart, and convolutions that round once more, change a few answers in a hundred, and leave the outputs'
# differences below half of the outputs themselves: what lies beyond either is another computation.
LEAST_AGREEMENT = 0.9
LEAST_SQNR_DB = 6.0
# Standard errors of a proportion: few answers tell little.
_ERRORS = 1.96
DIFFERS = "differs from what was measured: do not ship"
_PARITIES = ("parity", "parity_cached")


def differs(entry: Mapping[str, Any]) -> bool:
    """What the entry says, or where it says nothing what its parities come to."""
    known = entry.get("differs")
    return known if isinstance(known, bool) else any(_apart(entry.get(key)) for key in _PARITIES)


def entered(entry: dict[str, Any]) -> bool:
    """Enter in a file's entry whether it ``differs``; one that does is not verified, and says so."""
    entry["differs"] = differs(entry)
    if entry["differs"]:
        entry.update(verified=False, reason=f"{DIFFERS} ({_figures(entry)}); export to another format")
    return bool(entry["differs"])


def differing(entries: Any) -> frozenset[str]:
    """The formats of a report's ``exports`` whose files differ."""
    known = entries if isinstance(entries, list | tuple) else ()
    return frozenset(str(entry.get("format")) for entry in known if isinstance(entry, Mapping) and differs(entry))


def _apart(parity: Any) -> bool:
    if not isinstance(parity, Mapping):
        return False
    agreement, noise = (parity.get(key) for key in ("agreement", "sqnr_db"))
    # Not "below": what is not a number is no agreement.
    return (_known(agreement) and not agreement + _slack(agreement, parity.get("compared")) >= LEAST_AGREEMENT) or (
        _known(noise) and not noise >= LEAST_SQNR_DB
    )


def _known(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float)


def _slack(agreement: float, compared: Any) -> float:
    return _ERRORS * math.sqrt(max(agreement * (1 - agreement), 0.0) / compared) if _known(compared) and compared > 0 else 0.0


def _figures(entry: Mapping[str, Any]) -> str:
    parity = next(entry[key] for key in _PARITIES if _apart(entry.get(key)))
    return f"{parity['agreement']:.1%} the same answers, SQNR {parity['sqnr_db']:.1f} dB"
