"""Three lines over the first screens of who opens the app for the first time: one key a step."""

from __future__ import annotations

from rich.text import Text
from textual.widget import Widget

from qtui.remembered import remember, remembered
from qtui.state import Stage
from qtui.widgets.theme_style import theme_style

KEY = "first steps"
STEPS = (
    ("⏎", "loads the model under the cursor with its data and shows its graph"),
    ("n", "goes on at each stage: it is the last key of the line at the bottom"),
    ("?", "tells the keys of a screen; esc goes back, and takes this away"),
)


def known() -> int:
    """How many of the steps were taken before."""
    found = remembered(KEY)
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else 0


def taken(step: int, stage: Stage, panel: str) -> int:
    """The step that comes next, where ``stage`` or a panel of the title ``panel`` is in front."""
    if step == 0 and stage != "model":
        return 1
    if step == 1 and stage not in ("model", "graph"):
        return 2
    gone_on = stage not in ("model", "graph", "strategy")
    return len(STEPS) if step == 2 and (panel.startswith("help") or gone_on) else step


class FirstSteps(Widget):
    """The lines; the one whose turn it is stands out."""

    DEFAULT_CSS = """
    FirstSteps { height: 5; border: round $accent; border-title-style: bold; padding: 0 1; }
    """

    def __init__(self, step: int) -> None:
        super().__init__(id="first-steps")
        self.border_title = "the first steps ─ esc takes this away"
        self.step = step

    def show(self, step: int) -> None:
        """The step whose turn it is."""
        if step != self.step:
            self.step = step
            self.refresh()

    def render(self) -> Text:
        text = Text(no_wrap=True, overflow="ellipsis")
        for place, (key, what) in enumerate(STEPS):
            role = "dim" if place != self.step else "strong"
            mark = "●" if place < self.step else "▸" if place == self.step else "○"
            text.append(f"{mark} ", theme_style(self.app, role))
            text.append(f"{key} ", theme_style(self.app, "key" if place == self.step else "dim"))
            text.append(f"{what}\n", theme_style(self.app, role))
        text.rstrip()
        return text


def keep(step: int) -> None:
    """So many steps were taken."""
    remember(KEY, step)
