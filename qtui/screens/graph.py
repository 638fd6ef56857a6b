"""Graph."""

from __future__ import annotations

from qtui.screens.base import StageScreen, bindings


class GraphScreen(StageScreen):
    stage = "graph"
    BINDINGS = bindings("graph")
