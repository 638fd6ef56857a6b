"""A strategy while a person edits it: a value; each edit gives a new one, and undo is a list."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from engine.events.event import LayerRow, Planned
from engine.planning.legality import legalize
from engine.recipe.presets import BY_ROLE
from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, Rule
from qtui.edits import EDITS, Before, Edit, EditName, no_groups
from qtui.strategy_rules import base, resolve, rules_for

HISTORY = 200
_RULE = "rule "
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Moment:
    """What undo goes back to."""

    specs: Mapping[str, LayerSpec]
    preset: str


@dataclass(frozen=True)
class Difference:
    """A layer that is asked to become something else than was proposed."""

    row: LayerRow
    wanted: LayerSpec

    @property
    def path(self) -> str:
        return self.row.path

    @property
    def proposed(self) -> LayerSpec:
        return self.row.proposed


@dataclass(frozen=True)
class Outcome:
    """What became of an edit: ``changed`` are paths; ``note`` says what was passed over and why, or is empty."""

    draft: Draft
    changed: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Draft:
    """``plan`` is the engine's last plan; ``specs`` is what each editable layer (by path) is asked to become now, ``preset``
    what they are edited from. ``past`` and ``future`` are for undo and redo, the nearest last. ``written`` are the rules (as
    ``LayerRow.rule`` has them) that decided before anything was edited."""

    plan: Planned
    specs: Mapping[str, LayerSpec]
    marked: frozenset[str] = frozenset()
    past: tuple[Moment, ...] = ()
    future: tuple[Moment, ...] = ()
    preset: str = "default"
    written: frozenset[str] = frozenset()

    @classmethod
    def of(cls, plan: Planned) -> Draft:
        specs = {row.path: row.requested for row in plan.layers if row.editable}
        return cls(plan, specs, preset=plan.preset, written=frozenset(row.rule for row in plan.layers))

    def replanned(self, plan: Planned) -> Draft:
        """The same draft on the engine's next plan; what was before can be undone to."""
        new = replace(Draft.of(plan), written=self.written)
        if new.specs == self.specs:
            return replace(self, plan=plan, preset=plan.preset)
        # Layers that are not there any more cannot be gone back to.
        past = (*self.past, self._now) if new.specs.keys() == self.specs.keys() else ()
        return replace(new, past=past[-HISTORY:])

    @cached_property
    def predicted_bytes(self) -> int:
        """The size of ``model.safetensors`` under these specs."""
        from engine.planning.size import predicted_bytes

        return predicted_bytes(self.plan.fp32_bytes, self.plan.layers, self.specs)

    def layer(self, path: str) -> LayerRow | None:
        return self._rows.get(path)

    def actual(self, path: str) -> tuple[LayerSpec, str | None]:
        """What this machine makes of what is asked of a layer, and a sentence where that is less."""
        row = self._rows[path]
        if row.tied in self.specs:
            return self._tied(row), row.obstacle
        if row.obstacle or not row.editable:
            return FP32, row.obstacle
        return legalize(self.specs[path], row.capabilities, self.plan.activation_bits)

    def _tied(self, row: LayerRow) -> LayerSpec:
        """A layer without a matrix of its own: the weights of the one whose it shares."""
        weights = self.actual(str(row.tied))[0].weights
        return LayerSpec(weights, base(row, self.preset).activations if weights else None)

    @cached_property
    def edited(self) -> frozenset[str]:
        """Layers that differ from what the preset alone asks."""
        return frozenset(path for path, spec in self.specs.items() if spec != base(self._rows[path], self.preset))

    @property
    def as_planned(self) -> bool:
        """Whether the engine has planned exactly this."""
        return all(self._rows[path].requested == spec for path, spec in self.specs.items())

    @property
    def kept(self) -> int:
        """How many layers that could be quantized stay in fp32."""
        return sum(spec.weights is None for spec in self.specs.values())

    @property
    def quantized(self) -> int:
        return len(self.specs) - self.kept

    def edit(self, name: EditName, paths: Collection[str], first: str | None = None) -> Outcome:
        """Carry an edit out on layers. ``first`` is the one whose next value all of them get; without it the first that has
        one. A draft without a change comes back as it was, with the reason as the note."""
        edit = EDITS[name]

        def able_first(row: LayerRow) -> tuple[bool, bool]:
            return isinstance(self._applied(edit, row, edit.aim(row, self.specs[row.path])), str), row.path != first

        lead = min(self._able(paths), key=able_first, default=None)
        return self.choose(name, paths, edit.aim(lead, self.specs[lead.path]) if lead else None, lead)

    def _able(self, paths: Collection[str]) -> list[LayerRow]:
        wanted = set(paths)
        return [row for row in self.plan.layers if row.path in wanted and row.editable]

    def choose(self, name: EditName, paths: Collection[str], aim: Any, lead: LayerRow | None = None) -> Outcome:
        """Make of layers what the ``aim`` of an edit says, one of ``EDITS[name].aims``. A draft without a change comes back as it was,
        with the reason as the note."""
        able = self._able(paths)
        if not able:
            return Outcome(self, note=_cannot([row for row in self.plan.layers if row.path in set(paths)]))
        edit, lead = EDITS[name], lead or able[0]
        specs, changed, passed = dict(self.specs), [], []
        for row in able:
            found = self._applied(edit, row, aim)
            if isinstance(found, str):
                passed.append(found)
            elif found != specs[row.path]:
                specs[row.path] = found
                changed.append(row.path)
            else:
                passed.append(f"{row.path} is so already")
        if not changed:
            return Outcome(self, note=passed[0])
        note = f"{len(passed)} of {len(able)} stay: {passed[0]}" if passed and name != "reset" else ""
        weights = specs[lead.path].weights
        if name == "granularity" and not note and weights and weights.granularity == "per-tensor":
            note = no_groups(lead, specs[lead.path]) or ""
        return Outcome(self._moved(specs, self.preset), tuple(changed), note)

    def undo(self) -> Draft:
        if not self.past:
            return self
        last = self.past[-1]
        return replace(self, specs=last.specs, preset=last.preset, past=self.past[:-1], future=(*self.future, self._now))

    def redo(self) -> Draft:
        if not self.future:
            return self
        after = self.future[-1]
        return replace(self, specs=after.specs, preset=after.preset, past=(*self.past, self._now), future=self.future[:-1])

    def mark(self, paths: Iterable[str]) -> Draft:
        """Mark these layers, or take the marks away where all of them are marked."""
        able = frozenset(path for path in paths if path in self.specs)
        return replace(self, marked=self.marked - able if able <= self.marked else self.marked | able)

    def mark_alike(self, paths: Iterable[str]) -> Draft:
        """Mark every layer of the same name whose modules differ from those of one of ``paths`` in their numbers alone: the same
        layer of all blocks, ``layer1.0.conv1`` and ``layer2.1.conv1``, not ``layer1.0.conv2``."""
        wanted = {_in_any_block(path) for path in paths}
        return replace(self, marked=self.marked | {path for path in self.specs if _in_any_block(path) in wanted})

    def unmark(self) -> Draft:
        return replace(self, marked=frozenset())

    def planned_from(self, preset: str, rules: Sequence[Rule]) -> Draft:
        """All layers as preset and rules ask: what the engine would plan, found here."""
        specs = resolve(self.plan.layers, preset, rules)
        return self if specs == self.specs and preset == self.preset else self._moved(specs, preset)

    def become(self, specs: Mapping[str, LayerSpec]) -> Draft:
        """With these specs in the place of theirs, which can be undone; itself where that changes nothing."""
        found = {**self.specs, **specs}
        return self if found == self.specs else self._moved(found, self.preset)

    def rules(self, own: Sequence[Rule] = ()) -> tuple[Rule, ...]:
        """Rules that, on ``preset``, give every layer what is asked of it here: a rule for each exact path where they are
        needed, then those of ``own`` (the recipe's) that still decide something."""
        return rules_for(self.plan.layers, self.preset, self.specs, own)

    def why(self, row: LayerRow) -> str:
        """The plan's reason; who never wrote a recipe is not told of its rules."""
        edited = row.rule.startswith(_RULE) and row.rule not in self.written
        return row.why.replace(Rule(row.rule.removeprefix(_RULE), row.requested).why, "your edit asks for it") if edited else row.why

    def diff(self) -> tuple[Difference, ...]:
        """What differs from the proposal, in the order of the graph."""
        found = (Difference(row, self.specs[row.path]) for row in self.plan.layers if row.path in self.specs)
        return tuple(change for change in found if change.wanted != change.proposed)

    @cached_property
    def _rows(self) -> dict[str, LayerRow]:
        return {row.path: row for row in self.plan.layers}

    @property
    def _now(self) -> Moment:
        return Moment(self.specs, self.preset)

    def _moved(self, specs: Mapping[str, LayerSpec], preset: str) -> Draft:
        return replace(self, specs=specs, preset=preset, past=(*self.past, self._now)[-HISTORY:], future=())

    def _applied(self, edit: Edit, row: LayerRow, aim: Any) -> LayerSpec | str:
        """A layer after an edit with that aim, or why it stays as it is."""
        return edit.apply(row, self.specs[row.path], aim, self._before(row))

    def _before(self, row: LayerRow) -> Before:
        """What the layer was when it was last quantized: here, in the plan, as proposed, or 8 bits."""
        known = [self.specs, *(moment.specs for moment in reversed(self.past))]
        last = BY_ROLE[row.capabilities.role]["w8a8"]
        candidates = [*(specs[row.path] for specs in known if row.path in specs), row.requested, row.proposed, last]
        spec = next(spec for spec in candidates if spec.weights)
        return Before(spec, next((spec.activations for spec in candidates if spec.activations), ActivationSpec()))


def _cannot(rows: Sequence[LayerRow]) -> str:
    if len(rows) == 1:
        return f"{rows[0].path} cannot be quantized: {rows[0].obstacle or 'it stays as it is'}"
    return "None of these can be quantized" if rows else "There is no layer here"


def _in_any_block(path: str) -> str:
    """A path without the numbers of the modules that it is in."""
    modules, dot, name = path.rpartition(".")
    return f"{_NUMBER.sub('#', modules)}{dot}{name}"
