"""The terminal app: shows the stage that is at work, takes keys, and drains the engine's events a few times a second."""

from __future__ import annotations

import os
import time
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from textual._compositor import CompositorUpdate
from textual.app import App
from textual.events import Event, InputEvent, Paste, Resize
from textual.geometry import Size

from qtui import actions, terminal, themes
from qtui.hangup import Hangup
from qtui.painting import Canvas
from qtui.remembered import remember, remembered
from qtui.screens import make
from qtui.screens.base import StageScreen, bound
from qtui.stage_table import find, ids
from qtui.state import Stage, State
from qtui.table_actions import TableActions
from qtui.widgets.first_steps import known as known_steps

if TYPE_CHECKING:
    from textual.screen import Screen

    from qtui.screens.palette import Choice
    from qtui.session import Session


_FOLLOW = 2.0
"""Seconds from one look at the folder of runs to the next."""
_SETTLED = 0.5
"""Seconds that a window keeps its size before all of it is painted anew."""


class QtuiApp(TableActions, App[int]):
    """``session`` holds the state; the app shows it and passes commands on."""

    TITLE = "qtui"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS = bound(action for action in actions.everywhere() if not action.goes)
    DEFAULT_MODE = "model"
    CSS = """
    Screen { background: $background; }
    """

    def __init__(
        self, session: Session | None = None, hertz: float | None = None, first_steps: bool = False, estimates: bool = False
    ) -> None:
        super().__init__(driver_class=terminal.driver_class())
        for stage in ids():
            self.add_mode(stage, partial(make, stage))
        for action in actions.everywhere():
            if action.goes:
                self.bind(",".join(action.keys), f"do('{action.id}')", description=action.label, show=False)
        self._canvas = Canvas()
        self._look_at = 0.0
        # The window as it was last seen, and when what changed is to be painted in full.
        self._window: Size | None = None
        self._settled_at: float | None = None
        self._given = session
        self.log_shown = False
        self.steps: int | None = known_steps() if first_steps else None
        self.estimates = estimates
        self.hold = False
        self.leaving = False
        # Before the first frame, so that it is in these colours.
        themes.register(self)
        self.theme = themes.theme_for(os.environ, remembered("theme"))
        self._hangup = Hangup(lambda number: self.leave())
        self.hertz = hertz or terminal.refresh_rate(os.environ)
        self._at: Stage = "model"
        self._problem: object = None

    @cached_property
    def session(self) -> Session:
        """Made when it is first asked for: what it needs is not needed for the first frame."""
        from qtui.session import Session

        return self._given or Session()

    def close_session(self, timeout: float = 20.0) -> bool:
        """End the engine's thread; whether it ended in time."""
        return self.session.close(timeout) if "session" in self.__dict__ else True

    @property
    def state(self) -> State:
        """The session's state, also before there is a session."""
        return self.session.state if "session" in self.__dict__ else State()

    def on_mount(self) -> None:
        self._hangup.install()
        if (hint := terminal.connection_hint(os.environ)) is not None:
            self.notify(hint, timeout=10)
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        """After the first frame: what was done before, then PyTorch, which takes seconds to import."""
        self.session.list_runs()
        self.session.examine()
        self.set_interval(1 / self.hertz, self._tick)
        self.refresh_state()

    def on_unmount(self) -> None:
        self._hangup.restore()

    @property
    def stage_screen(self) -> StageScreen | None:
        """The stage that is shown, also below a panel."""
        return next((screen for screen in reversed(self.screen_stack) if isinstance(screen, StageScreen)), None)

    def _tick(self) -> None:
        self._follow_window()
        changed = self.session.pump()
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _FOLLOW
            changed = self.session.follow_runs() or changed
        if changed:
            self.refresh_state()

    def _follow_window(self) -> None:
        """What a window's changes bring may be overtaken by a change of screen, or by frames that a slow line drops: once it keeps its
        size, the screen in front has that size and is painted in full."""
        now, before = self.size, self._window
        self._window = now
        if (window := getattr(self._driver, "window", None)) is not None and window != now:
            # A program may be started with the signal that tells of a change blocked.
            self.post_message(Resize(window, window))
        if before is not None and now != before:
            self._settled_at = time.monotonic() + _SETTLED
        elif self._settled_at is not None and time.monotonic() >= self._settled_at and self.screen_stack:
            self._settled_at = None
            self.screen.post_message(Resize(now, now))
            self.do_repaint()

    def refresh_state(self) -> None:
        """Show the session's state as it is now."""
        state = self.state
        # A panel is not taken away from the one who reads it: the stage changes when it is closed.
        if state.run.at != self._at and self.screen is self.stage_screen:
            left, self._at = self._at, state.run.at
            if not self.hold and self.stage_screen is not None and self.stage_screen.stage == left:
                self.go(state.run.at)
        if (screen := self.stage_screen) is not None:
            screen.show(state)
        if state.problem is not None and state.problem is not self._problem:
            self._problem = state.problem
            self._show_problem()
        if self.leaving and state.job is None:
            self.exit(0)

    def go(self, stage: Stage) -> None:
        if self.stage_screen is None or self.stage_screen.stage != stage:
            self.switch_mode(stage)

    def go_to(self, stage: Stage, line: str | None) -> None:
        """Go to a stage with its cursor on a line; where there is no such line the cursor stays."""
        self.go(stage)
        if line and (screen := self.stage_screen) is not None:
            screen.point_at(line)

    def show_run(self) -> None:
        """Go to the stage that a reopened run has come to."""
        self._at = self.state.run.at
        self.go(self._at)
        self.refresh_state()

    def _show_problem(self) -> None:
        from qtui.screens.panels import problem_panel

        problem = self.state.problem
        if problem is not None and not self.leaving:
            self.push_screen(problem_panel(problem), lambda _: self.session.dismiss())

    def action_do(self, name: str) -> None:
        if (screen := self.stage_screen) is not None:
            screen.action_do(name)

    def do_help(self) -> None:
        from qtui.screens.panels import help_panel
        from qtui.widgets.theme_style import theme_style

        if (screen := self.stage_screen) is not None:
            self.push_screen(help_panel(screen.stage, self.state, theme_style(self, "dim")))

    def do_palette(self) -> None:
        from qtui.screens.palette import Palette

        if (screen := self.stage_screen) is not None:
            self.push_screen(Palette(screen.stage, self.state), self._chosen)

    def _chosen(self, choice: Choice | None) -> None:
        if choice is None:
            return
        if choice.action:
            self.action_do(choice.action)
        elif (reason := find(choice.stage).unavailable(self.state)) is not None:
            if (screen := self.stage_screen) is not None:
                screen.explain(reason)
        else:
            self.go_to(choice.stage, choice.line)

    def do_previous(self) -> None:
        stages = ids()
        if (screen := self.stage_screen) is not None and (index := stages.index(screen.stage)) > 0:
            self.go(stages[index - 1])

    def do_back(self) -> None:
        if (screen := self.stage_screen) is not None and screen.is_mounted and not screen.forget_steps():
            screen.back()

    def do_halt_run(self) -> None:
        self.session.stop()

    def do_log(self) -> None:
        self.log_shown = not self.log_shown

    def do_machine(self) -> None:
        from qtui.screens.panels import machine_panel

        if (found := self.state.machine) is not None:
            self.push_screen(machine_panel(found))

    def _display(self, screen: Screen[Any], renderable: Any) -> None:
        # What is not painted is not taken down as shown.
        painted = self._running and not self._closed and not self._batch_count
        changes: Any = self._canvas.changed(renderable) if painted and isinstance(renderable, CompositorUpdate) else renderable
        super()._display(screen, changes)

    async def on_event(self, event: Event) -> None:
        # What was typed last comes, while the app ends, when no screen is left for it.
        if self.screen_stack or not isinstance(event, InputEvent | Paste):
            await super().on_event(event)

    def on_resize(self) -> None:
        self.repaint()
        if self.screen_stack:
            # A window that went and came back between two looks has the size it had, and none of what was painted.
            self.screen.refresh()

    def repaint(self) -> None:
        """Take nothing of what the terminal shows for granted with the next frame."""
        self._canvas.forget()

    def do_repaint(self) -> None:
        self.repaint()
        self.screen.refresh()

    def do_theme(self) -> None:
        names = themes.NAMES
        self.theme = names[(names.index(self.theme) + 1) % len(names)] if self.theme in names else names[0]
        remember("theme", self.theme)

    def do_quit(self) -> None:
        from qtui.screens.panels import leave_panel

        if not self.state.busy:
            self.exit(0)
        elif not self.leaving:
            self.push_screen(leave_panel(self.state), self._leave)

    def _leave(self, yes: bool | None) -> None:
        if yes:
            self.leave()

    def leave(self) -> None:
        """Stop what runs, save it, and exit when that is done."""
        self.leaving = True
        self.session.stop()
        self.refresh_state()


def main() -> int:
    """The app, until it ends; then the engine's thread."""
    app = QtuiApp(first_steps=os.environ.get("QTUI_HINTS") != "0", estimates=os.environ.get("QTUI_ESTIMATES") != "0")
    try:
        code = app.run(mouse=terminal.wants_mouse(os.environ))
    finally:
        busy = app.state.busy
        ended = app.close_session(20.0 if busy else 0.5)
    code = code if code is not None else app.return_code or 0
    if not ended:
        # A call into PyTorch that does not come back must not hold the shell, nor its import, which takes seconds.
        os._exit(1 if busy else code)
    return code
