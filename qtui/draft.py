"""A strategy while a person edits it: a value; each edit gives a new one, and undo is a list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.events import LayerRow, Planned
from engine.spec import LayerSpec


@dataclass(frozen=True)
class Draft:
    """``plan`` is the engine's last plan; ``specs`` is what each editable layer (by path) is asked to become now."""

    plan: Planned
    specs: Mapping[str, LayerSpec]
    marked: frozenset[str] = frozenset()
    past: tuple[Mapping[str, LayerSpec], ...] = ()
    future: tuple[Mapping[str, LayerSpec], ...] = ()

    @classmethod
    def of(cls, plan: Planned) -> Draft:
        return cls(plan, {row.path: row.requested for row in plan.layers if row.editable})

    def replanned(self, plan: Planned) -> Draft:
        """The same draft on the engine's next plan; what was before can be undone to."""
        new = Draft.of(plan)
        if new.specs == self.specs:
            return Draft(plan, self.specs, self.marked, self.past, self.future)
        return Draft(plan, new.specs, frozenset(), (*self.past, self.specs))

    @property
    def predicted_bytes(self) -> int:
        """The size of ``model.safetensors`` under these specs."""
        from engine.sizes import predicted_bytes

        return predicted_bytes(self.plan.fp32_bytes, self.plan.layers, self.specs)

    def layer(self, path: str) -> LayerRow | None:
        return next((row for row in self.plan.layers if row.path == path), None)
