"""Models."""

from __future__ import annotations

from qtui.screens.base import StageScreen, bindings


class ModelsScreen(StageScreen):
    stage = "model"
    BINDINGS = bindings("model")
