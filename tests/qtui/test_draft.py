"""The editing of a strategy: undo, redo, rules that give back what was edited."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from engine.algorithms import registry
from engine.events.event import LayerRow, Planned
from engine.planning.legality import NO_KERNEL
from engine.recipe.capabilities import BLOCK
from engine.recipe.number_formats import NUMBER_FORMATS
from engine.recipe.recipe import Recipe
from engine.recipe.spec import FP32, METHODS, ActivationSpec, LayerSpec, Rule, WeightSpec
from qtui.draft import HISTORY, Draft
from qtui.edits import EDITS, WEIGHT_BITS, Before
from qtui.strategy_rules import exactly, fields_of, resolve, rules_of

W8A8 = LayerSpec(WeightSpec(), ActivationSpec())
W4A8 = LayerSpec(WeightSpec(4, "per-group", 32, "mse"), ActivationSpec())


def row(path: str, shape: tuple[int, ...], proposed: LayerSpec = W8A8, kind: str = "Conv2d", **fields: Any) -> LayerRow:
    made = LayerRow(path, kind, path, 1000, shape, proposed, proposed, proposed, "proposal", "why", "why", 0.1, "onednn int8", True)
    return replace(made, **fields)


BN = row("bn", (), FP32, "BatchNorm2d", editable=False, obstacle="folded into conv at conversion")
NORM = row("norm", (8,), FP32, "LayerNorm", editable=False, obstacle=NO_KERNEL)
ROWS = (
    row("conv", (8, 3, 3, 3)), BN, row("block.0.conv", (16, 8, 3, 3)), row("block.1.conv", (16, 16, 3, 3)), NORM,
    row("head[0]", (64, 512), W4A8, "Linear"), row("head*", (10, 64), kind="Linear"),
)  # fmt: skip
PLAN = Planned(ROWS, "default", 8, 300_000)
DRAFT = Draft.of(PLAN)
ALL = tuple(row.path for row in ROWS)


def one(draft: Draft, name: Any, path: str) -> LayerSpec:
    return draft.edit(name, [path]).draft.specs[path]


def follow(draft: Draft, name: Any, path: str, count: int) -> list[LayerSpec]:
    found = []
    for _ in range(count):
        draft = draft.edit(name, [path]).draft
        found.append(draft.specs[path])
    return found


def test_weight_bits_go_down_and_around() -> None:
    assert [spec.weights and spec.weights.bits for spec in follow(DRAFT, "weights", "conv", 5)] == [6, 4, 3, 2, 8]
    odd = replace(DRAFT, specs={**DRAFT.specs, "conv": LayerSpec(WeightSpec(5))})
    assert one(odd, "weights", "conv").weights == WeightSpec(4)


def test_activation_bits_end_in_weight_only_and_come_back_as_they_were() -> None:
    start = DRAFT.edit("observer", ["conv"]).draft.edit("symmetric", ["conv"]).draft
    found = [spec.activations for spec in follow(start, "activations", "conv", 5)]
    assert [a and a.bits for a in found] == [7, 6, 4, None, 8]
    assert found[-1] == ActivationSpec(8, True, "moving-average")


def test_groups_come_only_where_they_make_sense() -> None:
    def names(draft: Draft, path: str, count: int) -> list[str]:
        return [str(spec.weights).split(" ", 1)[1] for spec in follow(draft, "granularity", path, count)]

    assert names(DRAFT, "conv", 2) == ["per-tensor", "per-channel"]
    four = DRAFT.edit("weights", ALL).draft
    assert names(four, "conv", 2) == ["per-tensor", "per-channel"], "27 inputs hold no group of 32"
    assert names(four, "block.0.conv", 4) == ["per-group 32", "per-group 64", "per-tensor", "per-channel"]
    assert names(DRAFT, "head[0]", 4) == ["per-group 64", "per-group 128", "per-tensor", "per-channel"]
    odd = replace(DRAFT, specs={**DRAFT.specs, "head[0]": LayerSpec(WeightSpec(4, "per-group", 16))})
    assert names(odd, "head[0]", 1) == ["per-group 32"]


def test_it_says_why_groups_are_passed_over() -> None:
    assert "6 bits or fewer" in DRAFT.edit("granularity", ["block.0.conv"]).note
    assert "27" in DRAFT.edit("granularity", ["conv"]).note


def test_a_group_that_is_too_wide_stands_as_what_comes_of_it() -> None:
    wide = DRAFT.edit("weights", ["head[0]"]).draft.edit("weights", ["head[0]"]).draft.edit("weights", ["head[0]"]).draft
    assert wide.specs["head[0]"].weights == WeightSpec(8, "per-group", 32, "mse")
    actual, note = wide.actual("head[0]")
    assert actual.weights == WeightSpec(8, "per-channel", 32, "mse") and note and "6 bits" in note
    assert one(wide, "granularity", "head[0]").weights == WeightSpec(8, "per-tensor", 32, "mse")


def test_what_the_machine_makes_of_it() -> None:
    narrow = Draft.of(replace(PLAN, activation_bits=7))
    assert narrow.actual("conv")[0].activations == ActivationSpec(7) and "VNNI" in str(narrow.actual("conv")[1])
    assert narrow.actual("bn") == (FP32, BN.obstacle)


def test_kept_in_fp32_and_quantized_again() -> None:
    edited = DRAFT.edit("weights", ["conv"]).draft
    kept = edited.edit("keep", ["conv"]).draft
    assert kept.specs["conv"] == FP32 and kept.kept == 1 and kept.quantized == 4
    assert kept.edit("keep", ["conv"]).draft.specs == edited.specs
    never = Draft.of(replace(PLAN, layers=tuple(replace(r, requested=FP32, proposed=FP32) for r in ROWS)))
    assert one(never, "keep", "conv") == W8A8


def test_an_edit_of_many_gives_all_the_same() -> None:
    draft = DRAFT.edit("weights", ["conv"]).draft
    done = draft.edit("weights", ALL, first="conv")
    assert {spec.weights.bits for spec in done.draft.specs.values() if spec.weights} == {4}
    done = draft.edit("weights", ALL, first="block.0.conv")
    assert {spec.weights.bits for spec in done.draft.specs.values() if spec.weights} == {6}
    assert "conv" not in done.changed and done.note == "1 of 5 stay: conv is so already"


def test_what_cannot_be_of_one_layer_is_of_the_others() -> None:
    draft = DRAFT.edit("keep", ["conv"]).draft.edit("activations", ["head*"]).draft
    done = draft.edit("observer", ALL, first="conv")
    assert set(done.changed) == {"block.0.conv", "block.1.conv", "head[0]", "head*"}
    assert done.note == "1 of 5 stay: conv is kept in fp32: f quantizes it again"


@pytest.mark.parametrize(
    ("name", "draft", "path", "words"),
    [
        ("weights", DRAFT, "bn", "folded into conv"), ("weights", DRAFT, "nowhere", "no layer"), ("reset", DRAFT, "conv", "as proposed"),
        ("weights", DRAFT.edit("keep", ["conv"]).draft, "conv", "kept in fp32"),
        ("observer", Draft.of(replace(PLAN, layers=(replace(ROWS[0], requested=LayerSpec(WeightSpec())),))), "conv", "fp32 activations"),
        ("symmetric", Draft.of(replace(PLAN, layers=(replace(ROWS[0], requested=LayerSpec(WeightSpec())),))), "conv", "fp32 activations"),
    ],
)  # fmt: skip
def test_an_edit_that_changes_nothing_says_why(name: Any, draft: Draft, path: str, words: str) -> None:
    done = draft.edit(name, [path])
    assert done.draft is draft and done.changed == () and words in done.note


def test_resetting_is_what_was_proposed() -> None:
    draft = DRAFT.edit("weights", ALL).draft.edit("keep", ["head*"]).draft
    done = draft.edit("reset", ALL)
    assert done.draft.specs == DRAFT.specs and done.draft.diff() == () and done.draft.edited == frozenset()


def test_the_differences() -> None:
    draft = DRAFT.edit("keep", ["head*"]).draft.edit("weights", ["conv"]).draft
    assert [(d.path, d.proposed, d.wanted) for d in draft.diff()] == [
        ("conv", W8A8, LayerSpec(WeightSpec(6), ActivationSpec())), ("head*", W8A8, FP32),
    ]  # fmt: skip
    assert draft.edited == {"conv", "head*"} and not draft.as_planned


def test_marks() -> None:
    draft = DRAFT.mark(["conv", "bn"])
    assert draft.marked == {"conv"}, "what cannot be edited is not marked"
    assert draft.mark(["head*"]).marked == {"conv", "head*"}
    assert draft.mark(["conv"]).marked == frozenset() == draft.unmark().marked
    assert draft.mark(["conv", "head*"]).marked == {"conv", "head*"}, "some were not marked yet"


def test_a_preset_is_taken_and_given_back() -> None:
    draft = DRAFT.edit("weights", ["conv"]).draft
    four = draft.planned_from("w4", (Rule("block.*", FP32),))
    assert four.preset == "w4" and four.kept == 2 and four.edited == {"block.0.conv", "block.1.conv"}
    assert four.undo().specs == draft.specs and four.undo().preset == "default" and four.undo().edited == {"conv"}
    assert four.planned_from("w4", (Rule("block.*", FP32),)) is four


def test_a_new_plan_keeps_what_was_before() -> None:
    draft = DRAFT.edit("weights", ["conv"]).draft.mark(["conv"])
    same = Planned(tuple(replace(r, requested=draft.specs.get(r.path, r.requested)) for r in ROWS), "default", 8, 300_000)
    again = draft.replanned(same)
    assert again.specs == draft.specs and again.past == draft.past and again.marked == {"conv"} and again.as_planned
    other = draft.replanned(PLAN)
    assert other.specs == DRAFT.specs and other.undo().specs == draft.specs
    smaller = draft.replanned(replace(PLAN, layers=ROWS[:1]))
    assert smaller.past == () and set(smaller.specs) == {"conv"}


def test_the_history_is_bounded() -> None:
    draft = DRAFT
    for _ in range(HISTORY + 20):
        draft = draft.edit("weights", ["conv"]).draft
    assert len(draft.past) == HISTORY


OWN = (
    (), (Rule("block.*", FP32),), (Rule("kind:Linear", LayerSpec(WeightSpec(4))), Rule("*", W4A8)),
    (Rule("conv", LayerSpec(WeightSpec(3))), Rule("nothing", FP32), Rule(exactly("head[0]"), W8A8)), (Rule("bn", FP32), Rule("*", W8A8)),
)  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_any_edits_can_be_taken_back_done_again_and_written_as_rules(seed: int) -> None:
    chance = random.Random(seed)
    own = chance.choice(OWN)
    preset = chance.choice(("default", "w8a8", "w4a4", "w4"))
    wanted = resolve(ROWS, preset, own)
    plan = Planned(tuple(replace(r, requested=wanted.get(r.path, FP32)) for r in ROWS), preset, chance.choice((7, 8)), 300_000)
    draft, seen = Draft.of(plan), []
    for _ in range(chance.randrange(25)):
        paths = chance.sample(ALL, chance.randrange(1, len(ALL)))
        done = draft.edit(chance.choice(list(EDITS)), paths, chance.choice((None, *paths)))
        assert (done.draft is draft) == (not done.changed) and (done.changed or done.note)
        if done.changed:
            seen.append(draft)
            back = done.draft.undo()
            assert (back.specs, back.past, back.preset) == (draft.specs, draft.past, draft.preset)
            assert back.redo() == done.draft
        draft = done.draft
        rules = draft.rules(own)
        assert resolve(ROWS, draft.preset, rules) == draft.specs
        assert rules_of({"rules": [fields_of(rule) for rule in rules]}) == rules
        assert Recipe.make(model="any", rules=[fields_of(rule) for rule in rules]).layer_rules() == rules
        assert draft.predicted_bytes > 0
        assert all(spec.weights or not spec.activations for spec in draft.specs.values())
    for before in reversed(seen):
        draft = draft.undo()
        assert draft.specs == before.specs
    assert draft.undo() is draft and draft.as_planned and draft.rules(own) == Draft.of(plan).rules(own)


def test_nothing_edited_needs_no_rules_and_dead_ones_go() -> None:
    assert DRAFT.rules() == ()
    own = (Rule("conv", FP32), Rule("conv*", W8A8), Rule("nothing", FP32), Rule("head*", W4A8))
    plan = Planned(tuple(replace(r, requested=resolve(ROWS, "default", own).get(r.path, FP32)) for r in ROWS), "default", 8, 300_000)
    assert Draft.of(plan).rules(own) == (own[0], own[3])
    quantized = Draft.of(plan).edit("keep", ["conv"]).draft
    assert quantized.rules(own) == (own[1], own[3]), "what another rule or the preset gives needs no rule"


def test_an_exact_glob_matches_one_path() -> None:
    rules = DRAFT.edit("weights", ["head*"]).draft.rules()
    assert [rule.match for rule in rules] == ["head[*]"]
    assert exactly("kind:x") == "[k]ind:x"
    assert set(WEIGHT_BITS) == {8, 6, 4, 3, 2}


def test_every_method_of_the_engine_can_be_had_with_a_key() -> None:
    """The names come from one place: a method that is added there is in the engine's registry and on the key."""
    block = row("a", (8, 8), kind="Linear", capabilities=BLOCK)
    spec, seen = W8A8, []
    for _ in METHODS:
        aim = EDITS["rounding"].aim(block, spec)
        seen.append(aim)
        spec = LayerSpec(WeightSpec(method=aim), W8A8.activations)
    assert set(seen) == set(METHODS) == set(registry.METHODS) and "hqq+gptq" in seen


def test_all_blocks_are_those_whose_modules_differ_in_their_numbers() -> None:
    paths = ("layer1.0.conv1", "layer1.0.conv2", "layer2.1.conv1", "block1.denselayer5.conv2", "block2.denselayer12.conv2", "fc1", "fc2")
    draft = Draft.of(Planned(tuple(row(path, (8, 3, 3, 3)) for path in paths), "default", 8, 300_000))
    assert draft.mark_alike(["layer1.0.conv1"]).marked == {"layer1.0.conv1", "layer2.1.conv1"}
    assert draft.mark_alike(["block2.denselayer12.conv2"]).marked == {"block1.denselayer5.conv2", "block2.denselayer12.conv2"}
    assert draft.mark_alike(["fc1"]).marked == {"fc1"}


def test_after_the_fewest_bits_come_the_formats_that_are_no_integers_where_a_layer_can_have_them() -> None:
    decoder = replace(ROWS[0], capabilities=BLOCK)
    spec, seen = LayerSpec(WeightSpec(8)), []
    edit = EDITS["weights"]
    for _ in range(len(WEIGHT_BITS) + len(NUMBER_FORMATS)):
        found = edit.apply(decoder, spec, edit.aim(decoder, spec), Before(spec, ActivationSpec()))
        assert isinstance(found, LayerSpec) and found.weights is not None
        spec = found
        seen.append(found.weights.format or found.weights.bits)
    assert seen == [*WEIGHT_BITS[1:], *NUMBER_FORMATS, WEIGHT_BITS[0]]
    asked = edit.apply(ROWS[0], LayerSpec(WeightSpec(8)), "nvfp4", Before(spec, ActivationSpec()))
    assert isinstance(asked, str) and "language models" in asked
