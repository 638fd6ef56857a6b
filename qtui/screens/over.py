"""A screen that lies over a stage's own: Esc goes back to it, and what belongs to other stages is done from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text

from qtui import actions
from qtui.screens.base import StageScreen
from qtui.screens.dialogs import Reading
from qtui.state import State


class Over(StageScreen):
    """``where`` names its actions in the table of keys, ``about`` says what it shows."""

    leads = False
    where: ClassVar[str]
    about: ClassVar[str]

    def shown_actions(self, state: State) -> Sequence[actions.Action]:
        return actions.footer(self.where)

    def action_do(self, name: str) -> None:
        action = next((a for a in actions.of(self.where) if a.id == name), None)
        if action is None or name in ("help", "previous") or name.startswith("stage_"):
            self._leave(name)
            return
        if reason := action.why_not(self.state):
            self.explain(reason)
            return
        getattr(self if action.where != actions.EVERYWHERE else self.app, f"do_{name}")()
        if self.is_current:
            self.show(self.state)

    def _leave(self, name: str) -> None:
        if name == "help":
            self.app.push_screen(self._help())
            return
        self.do_back()
        if name != f"stage_{self.stage}" and (screen := self.qtui.stage_screen) is not None:
            screen.action_do(name)

    def _help(self) -> Reading:
        text = Text(self.about)
        for action in actions.of(self.where):
            keys = " ".join(actions.key_text(key) for key in action.keys)
            text.append(f"  {keys:<8}", "bold")
            text.append(f"{action.help}\n")
        return Reading(f"help ─ {actions.OVER[self.where]}", text, hint="↑↓ scroll   esc back")

    def do_back(self) -> None:
        if self.is_current:
            self.app.pop_screen()
