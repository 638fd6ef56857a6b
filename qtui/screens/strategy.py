"""The strategy: what each layer is to become, edited layer by layer."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Vertical

from engine.recipe.decisions import Sensitive, Strategy
from qtui.actions import Action
from qtui.draft import Draft
from qtui.edits import EditName
from qtui.painting import titles
from qtui.screens import strategy_detail as detail
from qtui.screens import strategy_files as files
from qtui.screens import strategy_words as words
from qtui.screens.base import bindings
from qtui.screens.microscope_words import NOT_KEPT, wanted
from qtui.screens.picker import Picker
from qtui.screens.sensitivity_rows import known
from qtui.screens.strategy_budget import Budget
from qtui.screens.strategy_keys import EditKeys
from qtui.screens.strategy_pane import StrategyPane
from qtui.screens.strategy_recipes import Recipes
from qtui.screens.strategy_tree import Entry
from qtui.stage_table import digit
from qtui.state import State
from qtui.strategy_rules import rules_of
from qtui.target_words import bounds
from qtui.widgets.budget_strip import BudgetStrip
from qtui.widgets.filter_bar import FilterBar
from qtui.widgets.lines import PieceLine
from qtui.widgets.sentence import Sentence
from qtui.widgets.table import Grid

_ESTIMATED = 500e6
"""Weights of a model up to which its noise is estimated without being asked for."""
_DETAILED = 32
"""Rows of a window that leaves room for everything about a layer beneath the table."""


class StrategyScreen(EditKeys, Recipes, Budget):
    """Which modules are closed belongs to the screen; what is edited is the run's draft."""

    stage = "strategy"
    BINDINGS = bindings("strategy")
    AUTO_FOCUS: ClassVar[str | None] = "#strategy"
    DEFAULT_CSS = """
    StrategyScreen {
        .pane { border: round $border-blurred; border-title-color: $text-muted; border-subtitle-color: $text-muted; }
        .pane:focus-within { border: round $border; border-title-color: $foreground; border-title-style: bold; }
        #strategy-pane { height: 1fr; border-subtitle-color: $text-accent; }
        #layer-pane { height: 10; display: none; }
        &.-tall #layer-pane { display: block; }
        #budget { display: none; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._follows = False
        self._news = ""
        self._about: object = None

    def compose_body(self) -> ComposeResult:
        yield StrategyPane(id="strategy-pane", classes="pane")
        with Vertical(id="layer-pane", classes="pane"):
            grid = Grid(id="layer")
            grid.can_focus = False
            yield grid
        yield BudgetStrip(id="budget")

    def on_mount(self) -> None:
        self.watch(self._pane.grid, "scroll_y", lambda y: self._scrolled(), init=False)

    def _scrolled(self) -> None:
        """By the wheel other layers come into view while the cursor stays."""
        if (draft := self._draft) is not None and draft.marked:
            self._pane.retitle(draft, self.size.width)
            self.query_one(Sentence).keep(self._sentence())

    def update(self, state: State) -> None:
        self.set_class(self.size.height >= _DETAILED, "-tall")
        self._estimate(state)
        self._budget(state)
        changed, about = (
            self._paint(state),
            (self._follows, self._news, self.size, self.strip.display, id(self._front), id(self.strip.chosen)),
        )
        if changed or about != self._about:
            # What the next keys would make of a layer takes a few predictions of the size.
            self._about = about
            self.query_one(Sentence).keep(self._sentence())
        if self._follows and not self.session.waits:
            self._follow(state)

    def _estimate(self, state: State) -> None:
        """Have the noise of each layer estimated beside the question, where that takes no more than minutes."""
        if not self.qtui.estimates or state.asking != "quantize" or state.run.sensitivity is not None or self.session.estimating:
            return
        if state.run.plan is not None and sum(row.params for row in state.run.plan.layers) <= _ESTIMATED:
            self.session.answer(Sensitive())

    def find(self, line: str) -> None:
        self._pane.reveal(line)
        self._paint(self.state)
        super().find(line)

    def _follow(self, state: State) -> None:
        """Go where the run that measures again has come to."""
        if state.job is None or state.asking is not None or state.run.at in ("calibrate", "train", "report"):
            self._follows = False
            if state.run.at != self.stage:
                self.qtui.go(state.run.at)

    def _paint(self, state: State) -> bool:
        changed = self._pane.show(self.shown(state), self.size.width, "a plan, not taken yet" if self.shown_plan else "")
        if changed:
            self._detail()
        return changed

    def _detail(self) -> None:
        """Everything about the layer under the cursor, where there is room for it."""
        pane, grid, draft, entry = self.query_one("#layer-pane"), self.query_one("#layer", Grid), self._draft, self._entry
        row = draft.layer(entry.paths[0]) if draft and entry and not entry.module else None
        if draft is None or row is None:
            grid.empty = "Put the cursor on a layer to see what each key would make of it." if draft else ""
            grid.show((), ())
            titles(pane, "layer")
            return
        titles(pane, detail.detail_title(draft, row, self.size.width - 6))
        grid.show(detail.DETAIL_COLUMNS, detail.detail(draft, row))

    def _settle(self) -> None:
        self._pane.grid.focus()

    @property
    def _pane(self) -> StrategyPane:
        return self.query_one(StrategyPane)

    @property
    def _draft(self) -> Draft | None:
        return self.state.run.draft

    @property
    def _entry(self) -> Entry | None:
        return self._pane.entry

    def _sentence(self) -> str:
        if self._follows:
            return "Measured again as a run of its own: it loads and folds first, then calibrates. The other run stays as it is."
        if self._news:
            # What the next key is for is said also while something else is.
            return f"{self._news} {words.target(self._draft, self._entry)}".rstrip()
        if self.strip.display and self.strip.has_focus:
            return self.budget_sentence()
        if (draft := self._draft) is None:
            return "A plan says what each layer becomes: how many bits, on which scales, and why."
        width, height = self.size
        room = width - 2 if height < 20 else 2 * (width - 2) - 10
        found = self.state.run.sensitivity
        searched = bounds(self.state.run.recipe.get("targets")) if self.state.asking == "quantize" else ""
        estimates = known(found) if found else None
        return words.sentence(draft, self._entry, room, self._pane.closed(self._entry), self._pane.hidden(draft), estimates, searched)

    def on_grid_moved(self, event: Grid.Moved) -> None:
        self._news = ""
        self._detail()
        self.say(self._sentence())
        self.query_one("#keys", PieceLine).show(lambda width: self.key_pieces(self.state, width))

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        self.action_do("detail")

    def on_filter_bar_changed(self, event: FilterBar.Changed) -> None:
        self._paint(self.state)
        self.say(self._sentence())

    def label(self, action: Action) -> str:
        if action.id == "next" and self.state.asking != "quantize" and self.state.run.measured.get("ptq"):
            return "measure ▸"
        if action.id == "keep" and (draft := self._draft) is not None:
            specs = [draft.specs[path] for path in self._aimed(draft) if path in draft.specs]
            return "quantize" if specs and all(spec.weights is None for spec in specs) else action.label
        return action.label

    def _aimed(self, draft: Draft) -> Collection[str]:
        """The layers that an edit is for: all marked ones, or what is under the cursor."""
        entry = self._entry
        return draft.marked or (entry.paths if entry else ())

    def back(self) -> None:
        if not self._pane.bar.clear():
            self.do_mark_none()

    def _change(self, draft: Draft, note: str = "", news: str = "") -> None:
        if self._follows:
            # The run that was started has taken the strategy as it was: what is changed now would be in neither.
            self.explain("This strategy is about to be measured: change it in that run, which will stand here in a moment, or X stops it")
            return
        if draft is not self._draft:
            self.session.edit(draft)
        self._news = news
        self._paint(self.state)
        self.say(self._sentence())
        if note:
            self.explain(note)

    def edit(self, name: EditName) -> None:
        draft, entry = self._draft, self._entry
        if draft is None or entry is None:
            self.explain("There is no layer under the cursor")
            return
        outcome = draft.edit(name, self._aimed(draft), None if entry.module else entry.paths[0])
        self._change(outcome.draft, outcome.note)

    def pick(self, name: EditName) -> None:
        draft, entry = self._draft, self._entry
        if draft is None or entry is None:
            self.explain("There is no layer under the cursor")
            return
        paths, first = self._aimed(draft), None if entry.module else entry.paths[0]
        found = self.state.run.sensitivity
        panel = Picker(draft, name, paths, first, known(found) if found else None)
        if not panel.options:
            # What the plain key says of the same layers is why there is nothing to choose.
            self.explain(draft.edit(name, paths, first).note or "There is nothing to choose here")
            return

        def chosen(key: str | None) -> None:
            # The plan may have been made anew while the panel was open.
            option = next((option for option in panel.options if option.name == key), None)
            if option is not None and self._draft is draft:
                outcome = draft.choose(name, paths, option.aim)
                self._change(outcome.draft, outcome.note)

        self.app.push_screen(panel, chosen)

    def do_mark(self) -> None:
        draft, entry = self._draft, self._entry
        if draft is None or entry is None:
            return
        if not any(path in draft.specs for path in entry.paths):
            self.explain(draft.edit("weights", entry.paths).note)
            return
        self._change(draft.mark(entry.paths))

    def do_alike(self) -> None:
        draft, entry = self._draft, self._entry
        if draft is not None and entry is not None:
            if not any(path in draft.specs for path in entry.paths):
                self.explain(draft.edit("weights", entry.paths).note)
                return
            marked = draft.mark_alike(entry.paths)
            self._change(marked)
            self.explain(f"{len(marked.marked)} layers are marked: an edit changes all of them, x takes the marks away")

    def do_next_marked(self) -> None:
        draft = self._draft
        path = self._pane.next_marked(draft) if draft is not None else None
        if path is None:
            self.explain("No layer is marked: space marks the one under the cursor, b that of all blocks")
        else:
            self.find(path)

    def do_mark_none(self) -> None:
        if (draft := self._draft) is not None and draft.marked:
            self._change(draft.unmark())

    def do_undo(self) -> None:
        if (draft := self._draft) is not None:
            self._change(draft.undo())

    def do_redo(self) -> None:
        if (draft := self._draft) is not None:
            self._change(draft.redo())

    def do_close(self) -> None:
        self._pane.close()

    def do_expand(self) -> None:
        if (entry := self._entry) is not None and self._pane.closed(entry):
            self._pane.turn(entry)

    def do_detail(self) -> None:
        draft, entry = self._draft, self._entry
        if draft is None or entry is None:
            return
        if entry.module:
            self._pane.turn(entry)
        elif (row := draft.layer(entry.paths[0])) is not None:
            from qtui.screens.dialogs import Reading

            figures = words.figures_of(self.state.run.layers).get(row.path, {})
            self.app.push_screen(Reading(detail.detail_title(draft, row), detail.reading(draft, row, figures)))

    def do_sensitivity(self) -> None:
        from qtui.screens.sensitivity import SensitivityScreen

        if self.state.run.sensitivity is None:
            if self.state.asking != "quantize":
                self.explain(f"What each layer costs is estimated while a run waits at its strategy: start one ({digit('model')}, then n)")
                return
            self.session.answer(Sensitive())
        self.app.push_screen(SensitivityScreen())

    def do_microscope(self) -> None:
        from qtui.screens.microscope import StrategyMicroscope

        draft, entry = self._draft, self._entry
        if draft is None or entry is None:
            self.explain("There is no layer under the cursor")
            return
        path = entry.paths[0]
        if entry.module or wanted(draft, path) is None:
            row = draft.layer(path)
            obstacle = row.obstacle if row is not None and not entry.module else None
            self.explain(
                f"{path} has no weights of its own to round: {obstacle or 'it stays as it is'}"
                if not entry.module
                else "Put the cursor on a layer: a module has none of its own"
            )
        elif self.state.asking != "quantize" and path not in self.state.run.inspected:
            self.explain(NOT_KEPT)
        else:
            self.app.push_screen(StrategyMicroscope(path))

    def do_diff(self) -> None:
        from qtui.screens.dialogs import Reading

        if (draft := self._draft) is not None:
            count = len(draft.diff())
            self.app.push_screen(Reading(f"against the proposal ─ {count} differ", detail.diff_text(draft)))

    def do_filter(self) -> None:
        self._pane.bar.open()

    def do_next(self) -> None:
        state, draft = self.state, self._draft
        if draft is None:
            return
        if state.asking == "quantize":
            self.qtui.hold = False
            rules = draft.rules(rules_of(state.run.recipe))
            self.session.answer(True if draft.as_planned else Strategy(draft.preset, rules))
        elif state.asking == "qat" and draft.as_planned:
            # Nothing was changed: what was measured waits for its answer there.
            self.qtui.go("calibrate")
        elif state.run.measured.get("ptq") and draft.as_planned:
            self.explain(
                f"This strategy is measured ({digit('calibrate')}): change a layer first, w, a and f do; "
                "then n measures it as a run of its own"
            )
        elif not state.run.recipe:
            self.explain(f"What this run was asked is not in its files: start anew from the models ({digit('model')})")
        else:
            self._again(state, draft)

    def _again(self, state: State, draft: Draft) -> None:
        """Measure what was edited in a run of its own, whose earlier questions are answered as before."""
        self.session.again(files.measured_again(state.run, draft), {"optimize": True, "quantize": True})
        if state.asking == "qat":
            self.session.answer(False)
        self._follows = True
