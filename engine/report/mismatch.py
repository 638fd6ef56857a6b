"""Whether a file's outputs are those that were measured, from its entry in a report. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

# Kernels that round ties apart, and convolutions that round once more, change a few answers in a hundred, and leave the outputs'
# differences below half of the outputs themselves: what lies beyond either is another computation.
LEAST_AGREEMENT = 0.9
LEAST_SQNR_DB = 6.0
# The same integers agree to within rounding steps: an eighth bit in which every value of a few layers is off by one leaves some
# 30 dB of the outputs. So a file that is further from the measured model than that is from fp32, and than a tenth of the outputs,
# computes something else; between both it is said.
OTHER_DB, STEP_DB = 20.0, 30.0
# Two models that round the same values by themselves, each as far from fp32, are that much further from one another: a network of few
# bits and channels, in which one value on the other step is much, gets there.
_INDEPENDENT_DB = 10 * math.log10(2)
# Other roundings do not lower the noise by half an amplitude: what is that much nearer to fp32 lacks an error of the measured model.
_NEARER_DB, _QUIET_DB = 6.0, 40.0
# Standard errors of a proportion: few answers tell little.
_ERRORS = 1.96
# A value that is rounded twice, or on the other side of a tie, is off by one step here and there, by two after a product of two such.
MOST_STEPS = 1.0
DIFFERS = "differs from what was measured: do not ship"
_PARITIES = ("parity", "parity_cached")


def differs(entry: Mapping[str, Any]) -> bool:
    """What the entry says, or where it says nothing what its parities come to."""
    known = entry.get("differs")
    return known if isinstance(known, bool) else any(_apart(entry.get(key)) for key in _PARITIES) and not _same_layers(entry)


def alarm(entry: Mapping[str, Any]) -> str:
    """What the SQNRs of a file, of the measured model and of fp32 say together that equal answers do not; empty where nothing."""
    parities = [parity for key in _PARITIES if isinstance(parity := entry.get(key), Mapping)]
    for parity in parities:
        if _nearer(parity):
            return (
                f"closer to fp32 than the measured model ({parity['fp32_sqnr_db']:.1f} dB against {parity['native_sqnr_db']:.1f} dB): the "
                "kernels of this program compute something else here, so the run's own figures are in doubt, and not this file"
            )
    if any(map(_apart, parities)) and _same_layers(entry):
        return f"not what was measured to its last layer ({_figures(next(filter(_apart, parities)))}), {_by_layers(entry)}"
    if parity := further(entry):
        said = f"further from the measured model ({parity['sqnr_db']:.1f} dB) than that is from fp32 ({parity['native_sqnr_db']:.1f} dB)"
        why = f", {_by_layers(entry)}" if _same_layers(entry) else ": that is more than rounding, so judge the file by its own figures"
        return said + why
    return ""


def _by_layers(entry: Mapping[str, Any]) -> str:
    return (
        f"though each of its {entry['layers_alone']['compared']} rounded values is, to within a rounding step, on the same inputs: the "
        "network makes much of a rounding, so judge the file by its own figures"
    )


def further(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The parity in which a file is further from the measured model than that is from fp32, by more than steps here and there."""
    for parity in (parity for key in _PARITIES if isinstance(parity := entry.get(key), Mapping)):
        noise, native = parity.get("sqnr_db"), parity.get("native_sqnr_db")
        if _known(noise) and _known(native) and noise < min(native, STEP_DB):
            return parity
    return None


def _nearer(parity: Mapping[str, Any]) -> bool:
    exported, native = parity.get("fp32_sqnr_db"), parity.get("native_sqnr_db")
    return _known(exported) and _known(native) and native < _QUIET_DB and exported > native + _NEARER_DB


def entered(entry: dict[str, Any]) -> bool:
    """Enter in a file's entry whether it ``differs``; one that does is not verified, and says so. ``alarm`` is entered where there
    is one."""
    entry["differs"] = differs(entry)
    if entry["differs"]:
        parity = next(entry[key] for key in _PARITIES if _apart(entry.get(key)))
        entry.update(verified=False, reason=f"{DIFFERS} ({_figures(parity)}); export to another format")
    elif said := alarm(entry):
        entry["alarm"] = said
    return bool(entry["differs"])


def differing(entries: Any) -> frozenset[str]:
    """The formats of a report's ``exports`` whose files differ."""
    known = entries if isinstance(entries, list | tuple) else ()
    return frozenset(str(entry.get("format")) for entry in known if isinstance(entry, Mapping) and differs(entry))


def _apart(parity: Any) -> bool:
    if not isinstance(parity, Mapping):
        return False
    if _nearer(parity):
        return False
    agreement, noise, native = (parity.get(key) for key in ("agreement", "sqnr_db", "native_sqnr_db"))
    least = max(LEAST_SQNR_DB, min(native - _INDEPENDENT_DB, OTHER_DB)) if _known(native) else LEAST_SQNR_DB
    # Where rounding itself turns that many answers they are near ties, and another rounding turns as many.
    native_agreement = parity.get("native_agreement")
    fewest = min(LEAST_AGREEMENT, native_agreement) if _known(native_agreement) else LEAST_AGREEMENT
    # Not "below": what is not a number is no agreement.
    return (_known(agreement) and not agreement + _slack(agreement, parity.get("compared")) >= fewest) or (
        _known(noise) and not noise >= least
    )


def _same_layers(entry: Mapping[str, Any]) -> bool:
    """Whether each layer of the file was found to compute, on the measured model's inputs, what that does, to within roundings."""
    layers = entry.get("layers_alone")
    if not isinstance(layers, Mapping):
        return False
    steps, outputs = layers.get("rms_steps"), layers.get("outputs_sqnr_db")
    return _known(steps) and steps <= MOST_STEPS and (outputs is None or (_known(outputs) and outputs >= OTHER_DB))


def _known(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float)


def _slack(agreement: float, compared: Any) -> float:
    return _ERRORS * math.sqrt(max(agreement * (1 - agreement), 0.0) / compared) if _known(compared) and compared > 0 else 0.0


def _figures(parity: Mapping[str, Any]) -> str:
    native = parity.get("native_sqnr_db")
    beside = f" where the measured model has {native:.1f} dB to fp32" if _known(native) else ""
    agreement, noise = parity.get("agreement"), parity.get("sqnr_db")
    same = [f"{agreement:.1%} the same answers"] if _known(agreement) else []
    near = [f"SQNR {noise:.1f} dB{beside}"] if _known(noise) else []
    return ", ".join([*same, *near])
