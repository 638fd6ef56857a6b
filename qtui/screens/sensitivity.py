"""The layers that hurt: each with its estimated harm, and a line that is drawn under the worst of them."""

from __future__ import annotations

from textual.app import ComposeResult

from engine.events.event import Sensitivities
from engine.recipe.decisions import Sensitive
from qtui import text
from qtui.painting import titles
from qtui.screens import sensitivity_rows as rows
from qtui.screens.base import bindings
from qtui.screens.over import Over
from qtui.state import State
from qtui.widgets.sentence import Sentence
from qtui.widgets.table import Grid

_WHERE = "sensitivity"
_ABOUT = (
    "Each layer of the plan by the harm that is estimated for it: one backward pass over calibration items tells how much the loss "
    "would rise by the error of its weights, and of what it reads, at the bits that it has. The line is drawn under the worst: those "
    "above it get the cure.\n\n"
)
_NONE = "Nothing is estimated yet."


def estimating(state: State) -> str:
    """What is being done for the estimate, and how far it has come."""
    progress = state.run.progress
    far = f", {text.part(progress.done, progress.total)}" if progress is not None and progress.total else ""
    return f"{state.run.doing}{far}"


class SensitivityScreen(Over):
    """Lies over the strategy; Esc goes back to it."""

    stage = "strategy"
    where = _WHERE
    about = _ABOUT
    BINDINGS = bindings(_WHERE)
    DEFAULT_CSS = """
    SensitivityScreen #ranking {
        height: 1fr; border: round $border; border-title-style: bold; border-subtitle-color: $text-accent; padding: 0 1;
    }
    SensitivityScreen.-lowest #ranking { border: none; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.cut = 0
        self.cure: rows.Cure = "w8a8"

    def compose_body(self) -> ComposeResult:
        yield Grid(id="ranking", empty=_NONE)

    def on_mount(self) -> None:
        self.query_one(Grid).focus()

    @property
    def found(self) -> Sensitivities | None:
        return self.state.run.sensitivity

    def ranking(self) -> rows.Ranking | None:
        """The draft's layers by harm; None without a draft or estimates."""
        draft, found = self.state.run.draft, self.found
        return rows.rank(draft, found, self.cut, self.cure) if draft is not None and found is not None else None

    def update(self, state: State) -> None:
        grid, found, ranking = self.query_one(Grid), self.found, self.ranking()
        if ranking is None or found is None:
            working = state.busy and state.run.phase == "sensitivity"
            grid.empty = f"{estimating(state)} …" if working else _NONE
            grid.show((), ())
            titles(grid, "Sensitivity")
            return
        self.cut = ranking.cut
        first = not grid.rows
        grid.show(rows.COLUMNS, rows.rows(ranking, state.run))
        if first and grid.rows:
            grid.move_to(grid.rows[0].key)
        titles(grid, rows.title(ranking, found), rows.line(ranking, self.cure, state.run))
        self.query_one(Sentence).keep(rows.sentence(ranking, grid.cursor, state.run))

    def on_grid_moved(self, event: Grid.Moved) -> None:
        if (ranking := self.ranking()) is not None:
            self.say(rows.sentence(ranking, event.key, self.state.run))

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        self.action_do("take")

    def do_more(self) -> None:
        self.cut += 1

    def do_fewer(self) -> None:
        self.cut = max(self.cut - 1, 0)

    def do_cut_here(self) -> None:
        """The line under the layer that the cursor is on."""
        if (ranking := self.ranking()) is not None and (cursor := self.query_one(Grid).cursor) is not None:
            self.cut = [path for path, _ in ranking.layers].index(cursor) + 1

    def do_cure(self) -> None:
        self.cure = "fp32" if self.cure == "w8a8" else "w8a8"

    def do_measure(self) -> None:
        """The metric on validation with the layer under the cursor alone on integers."""
        ranking, cursor = self.ranking(), self.query_one(Grid).cursor
        if ranking is None or cursor is None:
            self.explain(_NONE)
            return
        if self.state.asking != "quantize":
            self.explain("The metric is measured while a run waits at its strategy: this one has gone on")
            return
        found = rows.parts(ranking.estimates, cursor, ranking.draft.actual(cursor)[0])
        wanted = tuple((one.path, one.candidate) for one in found if one is not None and one.drop is None)
        if not wanted:
            self.explain(f"{cursor} is measured already")
        else:
            self.session.answer(Sensitive(wanted))

    def do_take(self) -> None:
        ranking = self.ranking()
        if ranking is None:
            self.explain(_NONE)
        elif not ranking.cut:
            self.explain("The line is above all layers: + draws it under the worst")
        elif ranking.cured is ranking.draft:
            self.explain(f"These layers have {rows.CURES[self.cure]} already: c changes the cure")
        else:
            self.session.edit(ranking.cured)
            self.do_back()
            if (below := self.qtui.stage_screen) is not None:
                below.show(self.state)
                below.explain(f"The plan has the cure: {rows.line(ranking, self.cure, self.state.run)}. u takes it back, n goes on with it")
