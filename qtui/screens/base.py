"""What every stage's screen shares: the lines above and below its panes, and how a key becomes an action."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import Static

from qtui import actions, subject
from qtui.painting import Paced
from qtui.state import Stage, State
from qtui.widgets.lines import Piece, PieceLine
from qtui.widgets.log_pane import LogPane
from qtui.widgets.sentence import Sentence

if TYPE_CHECKING:
    from qtui.app import QtuiApp
    from qtui.session import Session

SMALLEST = (40, 12)


def bindings(where: str) -> list[BindingType]:
    """The bindings of a screen whose actions stand in the table."""
    return bound(actions.own(where))


def bound(known: Iterable[actions.Action]) -> list[BindingType]:
    """The bindings of actions."""
    # What is typed after the palette's key is for the palette: its key is taken before the others are handed on.
    return [
        Binding(",".join(a.keys), f"do('{a.id}')", a.label, show=False, tooltip=a.help, priority=a.id == "palette") for a in known if a.keys
    ]


class StageScreen(Paced, Screen[None]):
    """A stage. Subclasses name ``stage``, give ``compose_body`` and ``update``, and a method ``do_x`` for each action x.
    ``ACTIONS`` are those of a screen that ``qtui.actions`` does not list; ``bound`` makes its ``BINDINGS`` from them."""

    stage: ClassVar[Stage]
    ACTIONS: ClassVar[tuple[actions.Action, ...]] = ()
    _refused: Callable[[State], str | None] | None = None
    _wanted = ""
    leads = True
    """Whether the first steps may stand on it now: what lies over a stage needs the room."""
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (60, "-medium"), (100, "-wide")]
    DEFAULT_CSS = """
    StageScreen {
        layout: vertical;
        #body { height: 1fr; }
        &.-low Sentence { height: 1; }
        #too-small { display: none; width: 100%; height: 100%; content-align: center middle; text-align: center; }
        &.-too-small > * { display: none; }
        &.-too-small > #too-small { display: block; }
    }
    """

    @property
    def qtui(self) -> QtuiApp:
        return cast("QtuiApp", self.app)

    @property
    def session(self) -> Session:
        return self.qtui.session

    @property
    def state(self) -> State:
        return self.qtui.state

    def compose(self) -> ComposeResult:
        yield PieceLine(id="stages")
        yield PieceLine(id="subject")
        with Container(id="body"):
            yield from self.compose_body()
        yield Sentence(id="sentence")
        yield PieceLine(id="keys")

    def compose_body(self) -> ComposeResult:
        yield from ()

    def update(self, state: State) -> None:
        """Bring the panes up to ``state``; cheap when nothing in them changed."""

    def show(self, state: State) -> None:
        """Called by the app whenever the state changed while this screen is shown, and when it comes to the front."""
        if not self.is_mounted:
            return
        self.query_one("#stages", PieceLine).show(lambda width: subject.stage_bar(state, self.stage, width))
        self.query_one("#subject", PieceLine).show(lambda width: subject.subject(state, width))
        self.query_one("#keys", PieceLine).show(lambda width: self.key_pieces(state, width))
        self._show_log(state)
        self._show_steps()
        if self._refused is not None:
            self._refuse_still(self._refused(state))
        self.update(state)
        if self._wanted:
            wanted, self._wanted = self._wanted, ""
            self.find(wanted)

    def point_at(self, line: str) -> None:
        """Put the cursor on a line of this screen, as soon as it is there."""
        self._wanted = line
        self.show(self.state)

    def find(self, line: str) -> None:
        """Put the cursor on a line: on the first list that has it."""
        from qtui.widgets.table import Grid

        for grid in self.query(Grid):
            if grid.move_to(line):
                grid.focus()
                return

    def _show_steps(self) -> None:
        """What who is here for the first time does next, until it was done or taken away."""
        from qtui.widgets.first_steps import STEPS, FirstSteps, keep, taken

        shown = list(self.query(FirstSteps))
        if self.qtui.steps is None:
            return
        front = self.app.screen
        step = taken(self.qtui.steps, self.stage, str(getattr(front, "_title", "")) if front is not self else "")
        if step != self.qtui.steps:
            self.qtui.steps = step
            keep(step)
        over = step >= len(STEPS) or self.size.height < 20 or not self.leads
        for pane in shown:
            pane.show(step)
            if over:
                pane.remove()
        if not shown and not over:
            self.mount(FirstSteps(step), before="#sentence")

    def forget_steps(self) -> bool:
        """Take the first steps away for good; whether there were any."""
        from qtui.widgets.first_steps import STEPS, keep

        if self.qtui.steps is None or self.qtui.steps >= len(STEPS):
            return False
        self.qtui.steps = len(STEPS)
        keep(len(STEPS))
        return True

    def _show_log(self, state: State) -> None:
        panes = list(self.query(LogPane))
        if self.qtui.log_shown and not panes:
            panes = [LogPane()]
            self.mount(panes[0], before="#sentence")
        for pane in panes:
            pane.display = self.qtui.log_shown
            pane.show(state.log)

    def key_pieces(self, state: State, width: int) -> list[Piece]:
        """The footer: as many keys as fit, the one that goes on always."""
        shown = [(actions.key_text(a.keys[0]), self.label(a), a.why_not(state) is None) for a in self.shown_actions(state)]
        while len(shown) > 2 and sum(len(key) + len(label) + 4 for key, label, _ in shown) > width:
            shown.pop(-2)
        pieces: list[Piece] = []
        for key, label, can in shown:
            pieces += [(f" {key} ", "key" if can else "dim"), (f"{label}  ", "" if can else "dim")]
        return pieces

    def shown_actions(self, state: State) -> Sequence[actions.Action]:
        """What the footer names."""
        return actions.footer(self.stage)

    def do_samples(self) -> None:
        from qtui.screens.samples import samples_panel

        self.app.push_screen(samples_panel(self.state.run, min(self.size.width - 12, 96)))

    def label(self, action: actions.Action) -> str:
        """An action's name in the footer; a screen may say it more exactly."""
        return action.label

    def back(self) -> None:
        """Esc on the screen itself: the filters of its lists are taken away."""
        from qtui.widgets.filter_bar import FilterBar

        for bar in self.query(FilterBar):
            bar.clear()

    def choose(self, title: str, options: Sequence[tuple[str, str]], current: str, then: Callable[[str | None], None]) -> None:
        """Ask for one of (value, text)."""
        from qtui.screens.dialogs import Choose

        self.app.push_screen(Choose(title, options, current), then)

    def ask(
        self, title: str, text: str, value: str, check: Callable[[str], str | None], then: Callable[[str | None], None],
        paths: bool = False,
    ) -> None:  # fmt: skip
        """Ask for a line of text; of ``paths`` Tab completes it."""
        from qtui.screens.dialogs import Prompt

        self.app.push_screen(Prompt(title, text, value, check=check, paths=paths), then)

    def confirm(self, title: str, text: str, yes: str, no: str, then: Callable[[bool | None], None]) -> None:
        """Ask a question whose default is No."""
        from qtui.screens.dialogs import Confirm

        self.app.push_screen(Confirm(title, text, yes, no), then)

    def say(self, text: str) -> None:
        """The sentence about the thing under the cursor."""
        self.query_one(Sentence).say(text)

    def refuse(self, why_not: Callable[[State], str | None]) -> None:
        """Say why a key cannot act, for as long as that is so."""
        if reason := why_not(self.state):
            self.explain(reason)
            self._refused = why_not

    def _refuse_still(self, reason: str | None) -> None:
        """The reason as it is now: a run goes on while it is read."""
        if reason is None:
            self._refused = None
            self.query_one(Sentence).forget()
        else:
            self.query_one(Sentence).renew(reason)

    def explain(self, reason: str) -> None:
        self._refused = None
        if self.is_mounted:
            self.query_one(Sentence).explain(reason)

    def action_do(self, name: str) -> None:
        """Carry out an action of the table, or say why it cannot be. Keys that were typed before a panel stood in front are
        not for the screen behind it, and what works on a screen's contents waits for them."""
        action = next(a for a in actions.of(self.stage) if a.id == name)
        if self.app.screen is not self or not (self.is_mounted or action.where == actions.EVERYWHERE):
            return
        if action.why_not(self.state) is not None:
            self.refuse(action.why_not)
            return
        if self.is_mounted:
            # The reason for an earlier key would stand beside what this one does.
            self.query_one(Sentence).forget()
        if action.goes:
            self.qtui.go(action.goes)
        else:
            getattr(self if action.where != actions.EVERYWHERE else self.app, f"do_{name}")()
        self.qtui.refresh_state()

    def on_piece_line_pressed(self, event: PieceLine.Pressed) -> None:
        """A click on the stage bar goes there, one on the footer does what its key does."""
        pieces, index = event.pieces, event.index
        if event.line.id == "stages":
            # A narrow bar has parts of names, in the order of the stages.
            place = subject.stage_at(index)
            if place is not None:
                self.action_do(f"stage_{place}")
        elif event.line.id == "keys":
            key = pieces[index - index % 2][0].strip()
            found = next((action for action in self.shown_actions(self.state) if actions.key_text(action.keys[0]) == key), None)
            if found is not None:
                self.action_do(found.id)

    def on_screen_resume(self) -> None:
        self.call_after_refresh(self.qtui.refresh_state)

    def on_resize(self, event: Resize) -> None:
        width, height = event.size
        small = width < SMALLEST[0] or height < SMALLEST[1]
        if small and not self.query("#too-small"):
            self.mount(Static("This window is too small:\n40 columns by 12 rows are needed.", id="too-small"))
        self.set_class(small, "-too-small")
        self.set_class(height < 20, "-low")
        self.call_after_refresh(lambda: self.show(self.state))
