"""Strategy."""

from __future__ import annotations

from qtui.screens.base import StageScreen, bindings


class StrategyScreen(StageScreen):
    stage = "strategy"
    BINDINGS = bindings("strategy")
