"""The targets of a search in words."""

from __future__ import annotations

import pytest

from qtui.target_words import bounds, outcome


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["size:0.2MB"], "at most 0.20 MB"),
        (["size:200000B"], "at most 0.20 MB"),
        (["size:0.2"], "at most 0.2 of fp32's size"),
        (["latency:3ms"], "at most 3 ms"),
        (["latency:0.5"], "at most 0.5 of fp32's time"),
        (["bpw:4.5", "drop:0.003"], "at most 4.5 bits a weight and a drop of 0.003"),
        (["no:\x1b[31mtarget"], "at most no:?[31mtarget"),
        ([], ""),
        (None, ""),
        ("size:0.2", ""),
    ],
)
def test_bounds_are_said_with_what_they_are_a_part_of(targets: object, said: str) -> None:
    assert bounds(targets) == said


def test_the_outcome_says_whether_all_targets_are_met_and_where_a_drop_was_judged() -> None:
    assert outcome({"targets": ["size:200000B"], "met": True}) == "The target of at most 0.20 MB is met."
    assert outcome({"targets": ["size:0.1"], "met": False}) == "The target of at most 0.1 of fp32's size is not met."
    both = outcome({"targets": ["bpw:3", "drop:0.003"], "met": True})
    assert both == "The targets of at most 3 bits a weight and a drop of 0.003 are met on validation."
    assert outcome(None) == outcome({}) == outcome({"targets": [], "met": True}) == ""
