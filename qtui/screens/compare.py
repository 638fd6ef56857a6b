"""This run among the others: quality against size or time, and a table of them."""

from __future__ import annotations

from pathlib import Path

from textual.app import ComposeResult
from textual.events import Resize

from engine.tasks.metrics import ACCURACY
from qtui.drawing.scatter import scatter
from qtui.painting import titles
from qtui.runs import Past, PastRun, past
from qtui.screens import compare_rows as rows
from qtui.screens.base import bindings
from qtui.screens.over import Over
from qtui.state import State
from qtui.widgets.chart import Chart
from qtui.widgets.sentence import Sentence
from qtui.widgets.table import Grid

_WHERE = "compare"
_ABOUT = (
    "Each run is a point: what its quantized model is worth against what it costs. ● is beaten by no other run, ○ is; "
    "▸ is the run of the report, ◆ the one under the cursor, □ the fp32 model.\n\n"
)
_NONE = "No finished run to compare yet: the report of each run comes here."


class CompareScreen(Over):
    """Lies over the report; Esc goes back to it."""

    stage = "report"
    where = _WHERE
    about = _ABOUT
    BINDINGS = bindings(_WHERE)
    CSS_PATH = "compare.tcss"

    def __init__(self) -> None:
        super().__init__()
        self.axis = rows.AXES[0][0]
        self.all_tasks = False
        self._past = Past()
        self._listed: object = None
        self._runs: tuple[PastRun, ...] = ()
        self._marked: tuple[str, ...] = ()

    @property
    def here(self) -> Path:
        """The folder of the run that the report is about."""
        return Path(self.state.run.directory)

    def compose_body(self) -> ComposeResult:
        yield Chart(id="chart", classes="pane")
        yield Grid(id="runs", empty=_NONE, classes="pane")

    def on_mount(self) -> None:
        self.query_one("#runs", Grid).focus()

    def on_resize(self, event: Resize) -> None:
        self.set_class(event.size.height < 16, "-lowest")

    def update(self, state: State) -> None:
        if state.runs is not self._listed:
            first = self._listed is None
            self._listed = state.runs
            self._past = past(state.runs, self.here if state.run.report else None)
            self._select()
            if first:
                self.query_one("#runs", Grid).move_to(self._key_of_this())
        self._draw()

    def _select(self) -> None:
        # A recipe may name a folder where the reports name the data set that is in it.
        run = next((one for one in self._past.runs if rows.is_here(one, self.here)), self.state.run)
        self._runs = self._past.runs if self.all_tasks else rows.same_task(self._past.runs, run.model, run.data)
        grid = self.query_one("#runs", Grid)
        metrics = {one.measured for one in self._runs} or {ACCURACY}
        heads = {one.heads for one in self._runs}
        same = next(iter(heads)) if len(heads) == 1 else None
        listed = rows.rows(self._runs, self.axis, self.all_tasks, self.here, self._marked)
        grid.show(rows.columns(self.axis, metrics, self.all_tasks, same), listed)
        titles(grid, rows.title(self._past, self._runs, self.all_tasks, run.model, run.data))

    def _key_of_this(self) -> str:
        return next((rows.key(run) for run in self._runs if rows.is_here(run, self.here)), "")

    def _under_cursor(self) -> PastRun | None:
        cursor = self.query_one("#runs", Grid).cursor
        return next((run for run in self._runs if rows.key(run) == cursor), None)

    def _draw(self) -> None:
        chart, run = self.query_one("#chart", Chart), self._under_cursor()
        # Runs of another model or other data share neither an axis nor a front.
        shown = self._runs if run is None else rows.comparable(self._runs, run)
        found = rows.points(shown, self.axis, self.here, rows.key(run) if run else "")
        metric = run.measured if run else ACCURACY
        words = rows.axis_words(self.axis, metric.name)
        titles(chart, f"{metric.name} against {words} ─ left is {'smaller' if self.axis == 'size' else 'faster'}, up is better")
        chart.show(lambda width, height: scatter(found, width, height, x_label=words, y_format=rows.y_format(metric), empty=_NONE))
        self.query_one(Sentence).keep(rows.sentence(run, shown, self.axis, self.here) if run else "")

    def on_grid_moved(self, event: Grid.Moved) -> None:
        self.say("")
        self._draw()

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        self.action_do("open")

    def do_axis(self) -> None:
        names = [name for name, _ in rows.AXES]
        self.axis = names[(names.index(self.axis) + 1) % len(names)]
        self._select()

    def do_all(self) -> None:
        self.all_tasks = not self.all_tasks
        self._select()

    def do_mark(self) -> None:
        run = self._under_cursor()
        if run is None:
            self.explain(_NONE)
            return
        key = rows.key(run)
        # A third takes the place of the first.
        self._marked = tuple(one for one in self._marked if one != key) if key in self._marked else (*self._marked[-1:], key)
        self._select()

    def do_pair(self) -> None:
        """Those marked; or the one marked, else the run of the report, with the one under the cursor, or with the only other."""
        from qtui.screens.side_by_side import SideBySide

        by_key = {rows.key(one): one for one in self._past.runs}
        chosen = [by_key[key] for key in self._marked if key in by_key]
        if len(chosen) < 2 and (run := self._under_cursor()) is not None:
            chosen = [*(chosen or [one for one in self._past.runs if rows.is_here(one, self.here)]), run]
            others = [one for one in self._runs if rows.key(one) != rows.key(run)]
            if rows.key(chosen[0]) == rows.key(run) and len(others) == 1:
                chosen = [run, *others]
        if len(chosen) < 2 or rows.key(chosen[0]) == rows.key(chosen[1]):
            self.explain("Two runs are put side by side: mark them with space, or go to another one than this")
        else:
            self.app.push_screen(SideBySide(*chosen[:2]))

    def do_open(self) -> None:
        run = self._under_cursor()
        if run is None:
            self.explain(_NONE)
            return
        if not rows.is_here(run, self.here):
            self.session.open(run.directory)
        self.do_back()
        self.qtui.refresh_state()
