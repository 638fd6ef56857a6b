"""Train."""

from __future__ import annotations

from qtui.screens.base import StageScreen, bindings


class TrainScreen(StageScreen):
    stage = "train"
    BINDINGS = bindings("train")
