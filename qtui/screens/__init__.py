"""One module a stage; ``SCREENS`` names them for the app, which imports each when it is first shown."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from qtui.state import Stage

if TYPE_CHECKING:
    from qtui.screens.base import StageScreen

SCREENS: dict[Stage, str] = {
    "model": "qtui.screens.models:ModelsScreen",
    "graph": "qtui.screens.graph:GraphScreen",
    "strategy": "qtui.screens.strategy:StrategyScreen",
    "calibrate": "qtui.screens.calibrate:CalibrateScreen",
    "train": "qtui.screens.train:TrainScreen",
    "report": "qtui.screens.report:ReportScreen",
}


def make(stage: Stage) -> StageScreen:
    module, _, name = SCREENS[stage].partition(":")
    screen: StageScreen = getattr(import_module(module), name)()
    return screen
