"""An edited strategy goes through a recipe into the engine's planner and comes back as it was."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from engine.events.event import Planned
from engine.kernels.probe import Machine
from engine.lowering.graph.fuse import find_pairs, fuse
from engine.lowering.graph.layers import plan
from engine.lowering.graph.normalize import functional_to_modules
from engine.lowering.graph.trace import trace
from engine.models.simplecnn import SimpleCNN
from engine.recipe.changes import with_strategy
from engine.recipe.recipe import Recipe
from qtui.draft import Draft
from qtui.edits import EDITS
from qtui.strategy_rules import resolve, rules_of

MACHINE = Machine("AVX2", False, True)
OWN = ({"match": "kind:Linear", "keep": "fp32"}, {"match": "*.0", "weights": {"bits": 4}}, {"match": "conv*", "weights": {"bits": 3}})


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3))
        self.head = nn.ModuleList([nn.Linear(16, 64), nn.Linear(64, 10)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x).mean((2, 3))
        for layer in self.head:
            x = layer(x)
        return x


@pytest.mark.parametrize("network", [SimpleCNN, Nested])
@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_rules_give_the_planner_what_was_edited(network: type[nn.Module], folded: bool, seed: int) -> None:
    chance = random.Random(seed)
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    graph = trace(network().eval(), x).module
    functional_to_modules(graph)
    if folded:
        graph = fuse(graph, x, find_pairs(graph))[0]
    rules = chance.sample(OWN, chance.randrange(4))
    recipe = Recipe.make(model="simplecnn", preset=chance.choice(["default", "w4a8", "w8"]), rules=rules)

    def planned(recipe: Recipe) -> Planned:
        return Planned(plan(graph, MACHINE, recipe.preset, recipe.layer_rules()).layers, recipe.preset, MACHINE.activation_bits, 10**7)

    draft = Draft.of(planned(recipe))
    own = rules_of(recipe.model_dump(mode="json"))
    assert resolve(draft.plan.layers, recipe.preset, own) == draft.specs
    for _ in range(12):
        paths = chance.sample(list(draft.specs), chance.randrange(1, len(draft.specs)))
        draft = draft.edit(chance.choice(list(EDITS)), paths).draft
        if chance.random() < 0.1:
            draft = draft.planned_from("w4a4", own)
    changed = with_strategy(recipe, draft.preset, draft.rules(own))
    again = planned(changed)
    assert Draft.of(again).specs == draft.specs
    assert {row.path: row.actual for row in again.layers} == {
        row.path: draft.actual(row.path)[0] for row in draft.plan.layers if row.editable
    } | {row.path: row.actual for row in again.layers if not row.editable}
    assert plan(graph, MACHINE, changed.preset, changed.layer_rules()).warnings == ()
    saved = Recipe.make(**{**recipe.model_dump(mode="json"), "preset": changed.preset, "rules": changed.model_dump(mode="json")["rules"]})
    assert saved.layer_rules() == tuple(replace(rule, line=None) for rule in changed.layer_rules())
    after = draft.replanned(again)
    assert after.as_planned and after.past == draft.past
    assert after.rules(rules_of(changed.model_dump(mode="json"))) == draft.rules(own)
