"""A screen of one's own, whole in one file: it counts the layers of the plan. ``COUNT`` is its line for the registry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from textual.widgets import Static

from qtui.actions import Action
from qtui.screens.base import StageScreen, bound
from qtui.stage_table import StageDef

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from qtui.state import State


def not_planned(state: State) -> str | None:
    return None if state.run.plan else "There is nothing to count yet: it comes with the plan"


class CountingScreen(StageScreen):
    stage = "count"
    ACTIONS = (
        Action("double", ("w",), "double", "Count every layer twice.", ("count",), 2, not_planned),
        Action("next", ("n",), "report ▸", "Go on to the report.", ("count",), 9),
    )
    BINDINGS = bound(ACTIONS)

    def __init__(self) -> None:
        super().__init__()
        self.times = 1

    def compose_body(self) -> Iterable[Static] | ComposeResult:
        yield Static(id="counted")

    def update(self, state: State) -> None:
        layers = state.run.plan.layers if state.run.plan else ()
        self.query_one("#counted", Static).update(f"{len(layers) * self.times} layers counted")

    def do_double(self) -> None:
        self.times = 2

    def do_next(self) -> None:
        self.qtui.go("report")


COUNT = StageDef(
    "count", "Count", "counting_screen:CountingScreen", ("count",), ("count?",), "How many layers there are.", not_planned, form="count"
)
