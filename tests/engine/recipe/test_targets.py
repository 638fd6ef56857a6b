"""Targets as they are written, and what is wrong with them in one line."""

from __future__ import annotations

import pytest

from engine.errors import UsageError
from engine.recipe.recipe import Recipe
from engine.recipe.targets import Target, parsed


@pytest.mark.parametrize(
    ("text", "kind", "value", "unit"),
    [
        ("drop:0.005", "drop", 0.005, ""), ("drop:0", "drop", 0.0, ""), ("size:0.2", "size", 0.2, ""), ("size:1.5MB", "size", 1.5e6, "B"),
        ("size: 150 kB", "size", 1.5e5, "B"), ("latency:0.5", "latency", 0.5, ""), ("latency:3ms", "latency", 3.0, "ms"),
        ("bpw:4.5", "bpw", 4.5, ""), ("drop:1e-3", "drop", 0.001, ""),
    ],
)  # fmt: skip
def test_a_target_says_a_kind_and_a_bound(text: str, kind: str, value: float, unit: str) -> None:
    found = Target.parse(text)
    assert (found.kind, found.unit) == (kind, unit) and found.value == pytest.approx(value)
    assert Target.parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write KIND:VALUE"), ("0.5", "write KIND:VALUE"), ("sice:0.2", "did you mean size"), ("size:2", "a part of fp32's file"),
        ("size:0", "a part of fp32's file"), ("size:-1MB", "a part of fp32's file"), ("size:1.5TB", "or bytes, such as size:1.5MB"),
        ("bpw:0.5", "from 1 to 32"), ("bpw:nan", "from 1 to 32"), ("drop:5%", "0 to 1 of the metric"), ("drop:-0.1", "0 to 1"),
        ("latency:2", "a part of fp32's time"), ("latency:inf", "a part of fp32's time"), ("size:1e999", "must be"),
        ("drop:0.1\x1b[2J", "0 to 1"),
    ],
)  # fmt: skip
def test_a_target_that_is_wrong_is_told_in_one_line_with_the_next_step(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        Target.parse(text)
    assert said in str(error.value) and "\n" not in str(error.value) and "\x1b" not in str(error.value)


def test_two_targets_of_a_kind_are_refused() -> None:
    with pytest.raises(UsageError, match="two targets are of size"):
        parsed(["size:0.2", "size:1MB"])


def test_a_recipe_keeps_its_targets_and_one_without_is_as_before() -> None:
    plain = Recipe.make(model="simplecnn")
    assert "targets" not in plain.to_yaml()
    made = Recipe.make(model="simplecnn", targets=["drop:0.003", "size:300kB"])
    assert made.targets == ("drop:0.003", "size:300000B") and made.threshold == "drop:0.003"
    assert "targets: [drop:0.003, size:300000B]" in made.to_yaml() or "targets:" in made.to_yaml()
    assert made.fingerprint() != plain.fingerprint()
    own = Recipe.make(model="simplecnn", targets=["drop:0.003"], threshold="sqnr:20")
    assert own.threshold == "sqnr:20"
    with pytest.raises(UsageError, match="target is 'sice:1'"):
        Recipe.make(model="simplecnn", targets=["sice:1"])
