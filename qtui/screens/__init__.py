"""One module a stage; the app imports each when it is first shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtui.stage_table import screen_class
from qtui.state import Stage

if TYPE_CHECKING:
    from qtui.screens.base import StageScreen


def make(stage: Stage) -> StageScreen:
    """A new screen of a stage."""
    return screen_class(stage)()
