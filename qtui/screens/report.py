"""Report."""

from __future__ import annotations

from qtui.screens.base import StageScreen, bindings


class ReportScreen(StageScreen):
    stage = "report"
    BINDINGS = bindings("report")
