"""Runs compared with what was recorded of them: ``record.py`` writes the recording.

What hangs on the weights alone is equal on every machine. What hangs on the order in which floats are summed is equal, bit for bit,
on machines of a class that was recorded, with the same minor version of torch; elsewhere it is near the nearest class.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from golden_cases import CASES, Case
from golden_runs import RECORDED, torch_minor

Found = Callable[[Case], dict[str, Any]]

# On another machine: accuracy by 0.6 points and two images of the smallest split, perplexity by a part, decibels by three.
ACCURACY, PERPLEXITY, DECIBELS = 0.006, 0.02, 3.0

all_cases = pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else []) for case in CASES]
)


def recorded(case: Case) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RECORDED / f"{case.name}.json").read_text(encoding="utf-8"))
    return content


def of_this_class(case: Case, found: dict[str, Any]) -> dict[str, Any] | None:
    """What was recorded on such a machine with such a torch."""
    kept = recorded(case)["machines"].get(found["machine"]["class"])
    return kept if kept and kept["torch"] == found["machine"]["torch"] else None


def nearest(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """The recorded machine that has most of its words in common with this one, such as ``AVX2`` and ``no VNNI``."""
    words = set(found["machine"]["class"].split(", "))
    kept: dict[str, dict[str, Any]] = recorded(case)["machines"]
    return kept[max(kept, key=lambda name: len(words & set(name.split(", "))))]


def by_content(shapes: dict[str, Any], sums: dict[str, str]) -> Counter[str]:
    """What tensors hold, whatever they are called."""
    return Counter(f"{shapes[name]['dtype']} {shapes[name]['shape']} {digest}" for name, digest in sums.items())


@all_cases
def test_integers_and_scales_from_the_weights_alone_are_as_recorded(case: Case, found: Found) -> None:
    now, kept = found(case)["everywhere"], recorded(case)
    exact = torch_minor() in {machine["torch"] for machine in kept["machines"].values()}
    if exact:
        assert by_content(now["tensors"], now["sha256"]) == by_content(kept["everywhere"]["tensors"], kept["everywhere"]["sha256"])
    assert set(now["sha256"]) == set(kept["everywhere"]["sha256"])


@all_cases
def test_integers_and_scales_from_sums_of_floats_are_as_recorded_on_such_a_machine(case: Case, found: Found) -> None:
    now = found(case)
    kept = of_this_class(case, now) or nearest(case, now)
    if of_this_class(case, now):
        shapes = recorded(case)["everywhere"]["tensors"]
        assert by_content(now["everywhere"]["tensors"], now["machine"]["sha256"]) == by_content(shapes, kept["sha256"])
    assert set(now["machine"]["sha256"]) == set(kept["sha256"])


@all_cases
def test_tensors_keep_their_names_types_and_shapes(case: Case, found: Found) -> None:
    assert found(case)["everywhere"]["tensors"] == recorded(case)["everywhere"]["tensors"]


@all_cases
def test_the_loaded_model_gives_what_was_recorded(case: Case, found: Found) -> None:
    now = found(case)
    kept = of_this_class(case, now) or nearest(case, now)
    if of_this_class(case, now):
        assert now["machine"]["outputs"] == kept["outputs"]
    first, then = now["machine"]["outputs"]["first"], kept["outputs"]["first"]
    spread = max(abs(value) for value in then)
    assert first == pytest.approx(then, abs=0.25 * spread)


@all_cases
def test_the_report_has_the_keys_that_were_recorded(case: Case, found: Found) -> None:
    missing = set(recorded(case)["everywhere"]["keys"]) - set(found(case)["everywhere"]["keys"])
    assert not missing, "keys of the report are gone, or of another type"


@all_cases
def test_figures_are_as_recorded(case: Case, found: Found) -> None:
    now = found(case)
    kept = of_this_class(case, now)
    moved = list(differences(now["machine"]["figures"], kept["figures"]) if kept else far(now, nearest(case, now)))
    assert not moved, "\n".join(moved)


@all_cases
def test_recipe_fingerprint_events_and_exit_code_are_as_recorded(case: Case, found: Found) -> None:
    now, kept = found(case)["everywhere"], recorded(case)["everywhere"]
    assert now["fingerprint"] == kept["fingerprint"]
    assert now["recipe"] == kept["recipe"]
    assert now["events"]["order"] == kept["events"]["order"]
    # Kinds of events and their fields are added, never taken away.
    fields = now["events"]["fields"]
    gone = {kind: set(names) - set(fields.get(kind, ())) for kind, names in kept["events"]["fields"].items()}
    assert not any(gone.values()), gone
    assert now["exit_code"] == kept["exit_code"]


def differences(now: dict[str, Any], then: dict[str, Any]) -> Iterator[str]:
    """A line for each figure that moved; floats may differ in the last of six digits. What came later has nothing to differ from, and
    the verdict's words follow its figures."""
    for place in sorted(then.keys() - {"verdict.text"}):
        was, value = then[place], now.get(place, "not there")
        close = isinstance(was, float) and isinstance(value, float) and value == pytest.approx(was, rel=1e-6, abs=1e-9)
        if value != was and not close:
            yield f"{place}: {was!r} became {value!r}"


def far(now: dict[str, Any], kept: dict[str, Any]) -> Iterator[str]:
    """A line for each figure that is further from another class of machine than machines are apart."""
    mine, theirs = now["machine"]["figures"], kept["figures"]
    text = theirs["baseline.metric"] == "perplexity"
    for place, was in theirs.items():
        value = mine.get(place, "not there")
        last = place.rpartition(".")[2]
        if last in ("name", "kind", "requested", "params", "rule", "threshold", "format", "bytes", "nodes", "metric"):
            same = value == was
        elif last == "size_bytes":
            # A file's header holds the grids as decimals, whose lengths differ.
            same = value == pytest.approx(was, rel=2e-3)
        elif place in ("baseline.value", "ptq.value", "qat.value"):
            same = value == pytest.approx(was, rel=PERPLEXITY) if text else abs(value - was) <= ACCURACY + 1e-9
        elif last == "sqnr_db" and isinstance(was, float) and not place.startswith(("exports", "qat")):
            same = value == pytest.approx(was, abs=DECIBELS)
        else:
            continue
        if not same:
            yield f"{place}: {was!r} became {value!r}"
