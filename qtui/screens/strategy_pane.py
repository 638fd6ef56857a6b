"""The pane of the strategy: the tree of layers with its filter, and the line that says what it comes to."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical

from engine.planning.sensitivity import Sensitivity
from qtui.draft import Draft
from qtui.painting import titles
from qtui.screens import strategy_words as words
from qtui.screens.sensitivity_rows import known
from qtui.screens.strategy_rows import columns, is_timed, queried, rows
from qtui.screens.strategy_tree import Entry, above, closed_at_first, tree, visible
from qtui.stage_table import digit
from qtui.state import State
from qtui.subject import short_name
from qtui.widgets.filter_bar import FilterBar, matches
from qtui.widgets.table import Grid

_EMPTY = f"There is no plan yet.\nLoad a model ({digit('model')}), then go on through its graph ({digit('graph')}): n plans its layers."
_COMING = "fp32 is measured and each layer looked at.\nThe plan stands here in a moment."


def estimates_of(state: State) -> Sensitivity | None:
    """What is estimated of each layer; without layers while it is being estimated, None where nothing is."""
    found = state.run.sensitivity
    if found is not None:
        return known(found) if found.layers else None
    return Sensitivity((), "noise", 0) if state.asking == "quantize" and state.run.phase == "sensitivity" else None


class StrategyPane(Vertical):
    """``entry`` is the line under the cursor. Which modules are closed is kept here while the layers stay the same."""

    def __init__(self, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._lines: tuple[Entry, ...] = ()
        self._shown: tuple[Entry, ...] = ()
        self._shut: frozenset[str] = frozenset()
        self._painted: tuple[object, ...] = ()
        self._found = ""
        self._estimated_of: tuple[object, ...] = ()
        self._estimated: Sensitivity | None = None

    def compose(self) -> ComposeResult:
        yield Grid(id="strategy", empty=_EMPTY)
        yield FilterBar()

    @property
    def grid(self) -> Grid:
        return self.query_one("#strategy", Grid)

    @property
    def bar(self) -> FilterBar:
        return self.query_one(FilterBar)

    @property
    def entry(self) -> Entry | None:
        key = self.grid.cursor
        return next((entry for entry in self._shown if entry.key == key), None)

    def closed(self, entry: Entry | None) -> bool:
        return entry is not None and entry.key in self._shut and not self.bar.text

    def show(self, state: State, width: int, note: str = "") -> bool:
        """Bring the table up to ``state``; whether anything in it changed. ``note`` is said in the title."""
        draft, text = state.run.draft, self.bar.text
        coming = draft is None and state.busy and state.asking is None and state.run.at == "strategy"
        estimates = self._estimates(state)
        what = (draft, state.run.layers, self._shut, text, width, coming, note, estimates)
        if len(self._painted) == len(what) and all(a is b for a, b in zip(what, self._painted, strict=True)):
            return False
        if draft is None:
            self._lines = self._shown = ()
            self.grid.empty = _COMING if coming else _EMPTY
            self.grid.show((), ())
            titles(self, "Strategy", "")
        else:
            self._paint(draft, state, text, width, note, estimates)
        self._painted = (draft, state.run.layers, self._shut, text, width, coming, note, estimates)
        return True

    def _estimates(self, state: State) -> Sensitivity | None:
        """``estimates_of``, the same object while the state says the same."""
        about = (state.run.sensitivity, state.asking, state.run.phase)
        if about != self._estimated_of:
            self._estimated_of, self._estimated = about, estimates_of(state)
        return self._estimated

    def _paint(self, draft: Draft, state: State, text: str, width: int, note: str, estimates: Sensitivity | None) -> None:
        lines = tree(draft.plan.layers, short_name(state.run.model) or "model")
        if lines is not self._lines:
            self._lines, self._shut = lines, closed_at_first(lines)
        count = len(draft.plan.layers)
        figures = words.figures_of(state.run.layers)
        kept = (
            [row.path for row in draft.plan.layers if matches(text, (row.path,), queried(draft, row, figures, estimates))] if text else None
        )
        self._shown = visible(lines, self._shut, kept)
        shut = self._shut if kept is None else frozenset[str]()
        nested = any(entry.module for entry in lines[1:])
        self.grid.empty = f"No layer holds “{text}”.\nEsc shows all." if text else _EMPTY
        shown = columns(width, figures, is_timed(draft), estimates is not None)
        self.grid.show(shown, rows(draft, self._shown, shut, figures, width, nested, estimates))
        found = ""
        if kept is not None:
            self.bar.count(len(kept), count)
            found = self.bar.filtered(len(kept), count)
        found = " ─ ".join(filter(None, (note, found)))
        self._found = found
        titles(self, words.title(draft, width, found, self.hidden(draft)), words.total(draft, width))

    def hidden(self, draft: Draft) -> int:
        """How many marked layers are not on the screen: scrolled away, or left out by a filter. A closed module stands for its layers."""
        lines = self.grid.in_view()
        shown = {path for entry in self._shown if entry.key in lines and (not entry.module or self.closed(entry)) for path in entry.paths}
        return len(draft.marked - shown)

    def retitle(self, draft: Draft, width: int) -> None:
        """After a scroll other marked layers may be in view."""
        titles(self, words.title(draft, width, self._found, self.hidden(draft)))

    def next_marked(self, draft: Draft) -> str | None:
        """The marked layer that comes after the line under the cursor, from the top again after the last."""
        order = [row.path for row in draft.plan.layers]
        here = self.entry
        at = order.index(here.paths[0]) if here and here.paths else -1
        # On a module its first layer is the next one.
        start = at if here is not None and here.module else at + 1
        return next((path for path in (*order[start:], *order[:start]) if path in draft.marked), None)

    def reveal(self, key: str) -> None:
        """Open the modules that a line is in, and take away a filter."""
        self.bar.clear()
        self._shut -= {entry.key for entry in self._lines if entry.module and key in entry.paths}

    def turn(self, entry: Entry) -> None:
        """Open a closed module, close an open one; while a filter is in effect all are open."""
        if entry.module and not self.bar.text:
            self._shut ^= {entry.key}

    def close(self) -> None:
        """Close the module under the cursor, or go to the one that its line is in."""
        entry = self.entry
        if entry is not None and entry.module and entry.key not in self._shut and not self.bar.text:
            self.turn(entry)
        elif entry is not None:
            self.grid.move_to(above(self._lines, entry.key))
