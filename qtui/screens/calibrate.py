"""Calibrate."""

from __future__ import annotations

from qtui.screens.base import StageScreen, bindings


class CalibrateScreen(StageScreen):
    stage = "calibrate"
    BINDINGS = bindings("calibrate")
