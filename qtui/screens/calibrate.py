"""Calibrate: ranges while images run through the model; then what the quantized model measures, layer by layer."""

from __future__ import annotations

import time
from typing import Literal

from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.events import Resize

from engine.recipe.decisions import Train
from qtui.actions import Action
from qtui.drawing.histogram import histogram
from qtui.drawing.spans import Line
from qtui.machine_line import machine_line
from qtui.painting import titles
from qtui.screens import calibrate_layers as layers
from qtui.screens import calibrate_ranges as ranges
from qtui.screens import calibrate_result as result
from qtui.screens import calibrate_work as work
from qtui.screens.base import StageScreen, bindings
from qtui.screens.depth import DepthChart
from qtui.screens.dialogs import Prompt, Reading
from qtui.screens.report_rows import layers_of
from qtui.screens.report_words import layer_panel
from qtui.stage_table import digit
from qtui.state import Run, State
from qtui.widgets.chart import Chart
from qtui.widgets.drawn import Drawn
from qtui.widgets.progress import ProgressLine
from qtui.widgets.sentence import Sentence
from qtui.widgets.table import Grid

_COLUMN_BELOW = 70
_SHORT_BELOW = 16
_TICKS_A_CHART = 4
# Rows of a window in which the verdict stays whole beside the chart of the depth.
_ROOM_FOR_ALL = 34


class CalibrateScreen(StageScreen):
    """``view`` is what is shown; it turns to the layers by itself when they are measured, once a run."""

    stage = "calibrate"
    BINDINGS = bindings("calibrate")
    CSS_PATH = "calibrate.tcss"

    def __init__(self) -> None:
        super().__init__()
        self.view: Literal["ranges", "layers"] = "ranges"
        self.order: layers.Order = "harm"
        self.logarithmic = False
        self._measured = self._begin = False
        self._drawn_at = 0.0
        self._drawn_for: tuple[str | None, bool] = (None, False)
        self._about = ""

    def compose_body(self) -> ComposeResult:
        with Vertical(id="work", classes="pane"):
            yield ProgressLine(id="bar")
        with Container(id="ranges-view"):
            with Vertical(id="ranges-pane", classes="pane"):
                yield Grid(id="ranges")
            with Vertical(id="histograms"):
                with Vertical(id="values-pane", classes="pane"):
                    yield Chart(id="values")
                with Vertical(id="weights-pane", classes="pane"):
                    yield Chart(id="weights")
        with Container(id="layers-view"):
            with Vertical(id="verdict", classes="pane"):
                yield Drawn(id="facts")
            yield DepthChart(id="depth", classes="pane")
            with Vertical(id="layers-pane", classes="pane"):
                yield Grid(id="layers", empty=layers.EMPTY)

    def on_mount(self) -> None:
        self._focus()

    def on_resize(self, event: Resize) -> None:
        super().on_resize(event)
        self.set_class(event.size.width < _COLUMN_BELOW, "-column")
        self.set_class(event.size.height < _SHORT_BELOW, "-short")

    def update(self, state: State) -> None:
        measured = result.measured(state.run)
        if (measured, state.run.directory) != (self._measured, self._about):
            self._begin = measured
            if measured != self._measured:
                self._turn("layers" if measured else "ranges")
            self._measured, self._about = measured, state.run.directory
        self._show_work(state)
        if self.view == "ranges":
            self._show_ranges(state)
        else:
            self._show_layers(state)
        self.query_one(Sentence).keep(self._sentence(state))

    def label(self, action: Action) -> str:
        if action.id == "pause" and self.state.job and self.state.job.paused:
            return "go on"
        if action.id == "view":
            return "layers" if self.view == "ranges" else "ranges"
        return super().label(action)

    def _show_work(self, state: State) -> None:
        self.set_class(work.working(state), "-working")
        pane = self.query_one("#work")
        # The corners of the border, and a cell beside them, stay free.
        titles(pane, work.title(state), machine_line(state.run.machine, pane.outer_size.width - 6) if work.working(state) else "")
        self.query_one("#bar", ProgressLine).show(*work.line(state))

    def _show_ranges(self, state: State) -> None:
        grid = self.query_one("#ranges", Grid)
        if not self._due(state, grid.cursor):
            return
        grid.empty = ranges.waiting(state.run) if state.busy else ranges.EMPTY
        at_top = bool(grid.rows) and grid.cursor == grid.rows[0].key
        grid.show(ranges.columns(state.run), ranges.rows(state.run))
        if at_top and grid.rows:
            # Weights are known before the ranges: who looks at the first line goes on doing so.
            grid.move_to(grid.rows[0].key)
        done, of = ranges.settled(state.run)
        stopped = f"stopped: {digit('model')}, then r goes on" if state.run.stopped else ""
        titles(self.query_one("#ranges-pane"), f"Ranges ─ {done} of {of} settled" if of else "Ranges", stopped)
        place = ranges.find(state.run, grid.cursor)
        values, weights = (place.values, place.weights) if place else (None, None)
        self._pane("#values-pane", f"{place.label} ─ activations" if place else "activations")
        # The title leaves the corners of its pane free.
        room = self.query_one("#weights-pane").outer_size.width - 6
        self._pane("#weights-pane", ranges.weights_title(state.run, weights, room) if weights else "weights")
        why = ranges.no_values(state.run, place)
        self.query_one("#values", Chart).show(lambda width, height: self._histogram(values, width, height, why))
        self.query_one("#weights", Chart).show(lambda width, height: self._histogram(weights, width, height, "no weights"))

    def _due(self, state: State, cursor: str | None) -> bool:
        """Growing charts are drawn less often than figures: each costs kilobytes over a connection."""
        seen, now = state.run.ranges, time.monotonic()
        # What a run that was stopped saw last is drawn too.
        first = seen is None or seen.final or not state.busy or (cursor, self.logarithmic) != self._drawn_for
        if not first and now - self._drawn_at < _TICKS_A_CHART / self.qtui.hertz:
            return False
        self._drawn_for, self._drawn_at = (cursor, self.logarithmic), now
        return True

    def _pane(self, name: str, title: str) -> None:
        pane = self.query_one(name)
        titles(pane, title, "log counts" if self.logarithmic else "")

    def _histogram(self, row: ranges.Spread | None, width: int, height: int, empty: str) -> list[Line]:
        if row is None:
            return histogram(0.0, 1.0, (), width, height, empty=empty)
        low, high = (ranges.cut_low(row), row.clip_high) if ranges.cuts(self.state.run, row) else (None, None)
        return histogram(
            row.bins.start, row.bins.width, row.bins.counts, width, height, clip_low=low, clip_high=high,
            scale="log" if self.logarithmic else "sqrt", x_format=ranges.figure,
        )  # fmt: skip

    def _show_layers(self, state: State) -> None:
        run = state.run
        title, role = result.headline(run)
        self.set_class(role == "good", "-met")
        self.set_class(role == "harm", "-missed")
        titles(self.query_one("#verdict"), title)
        self.query_one("#facts", Drawn).show(lambda width, height: result.verdict_lines(self.state, width, self.size.height))
        order = "most harm first" if self.order == "harm" else "as in the graph"
        rows = layers.rows(run, self.order, bars=self.size.width >= 100)
        after = " ─ after QAT" if rows and layers.form(run) == "qat" else ""
        titles(self.query_one("#layers-pane"), f"Layers ─ {len(rows)} ─ {order}{after}" if rows else "Layers")
        grid = self.query_one("#layers", Grid)
        grid.empty = layers.COMING if work.working(state) else layers.EMPTY
        grid.show(layers.columns(run), rows)
        if self._begin and rows:
            # The layer that does the most harm is what to look at first.
            self._begin = False
            grid.move_to(rows[0].key)
        self._show_depth(run)

    def _show_depth(self, run: Run) -> None:
        chart = self.query_one(DepthChart)
        chart.display = chart.fits(self.size)
        self.set_class(chart.display and self.size.height < _ROOM_FOR_ALL, "-crowded")
        if chart.display:
            chart.show_layers(run.layers.get(layers.form(run), ()), self.query_one("#layers", Grid).cursor)

    def _sentence(self, state: State) -> str:
        if self.view == "ranges":
            return ranges.sentence(state.run, self.query_one("#ranges", Grid).cursor)
        if work.working(state) and not state.run.layers:
            return layers.COMING.replace("\n", " ")
        return layers.sentence(state.run, self.query_one("#layers", Grid).cursor)

    def _turn(self, view: Literal["ranges", "layers"]) -> None:
        self.view = view
        self.set_class(view == "layers", "-layers")
        self._focus()

    def _focus(self) -> None:
        self.query_one(f"#{self.view}", Grid).focus()

    def on_grid_moved(self, event: Grid.Moved) -> None:
        if event.grid.id == self.view:
            self.update(self.state)
            self.say(self._sentence(self.state))

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        if self.view == "layers":
            self._open_layer(event.key)
        else:
            self.action_do("view" if self._measured else "next")

    def _open_layer(self, name: str) -> None:
        """Everything about a measured layer."""
        row = next((row for row in layers_of(self.state.run) if row.get("name") == name), None)
        if row is not None:
            self.app.push_screen(Reading(f"layer ─ {name}", layer_panel(row, self.state.run)))

    def do_view(self) -> None:
        self._turn("layers" if self.view == "ranges" else "ranges")
        self.update(self.state)
        self.say(self._sentence(self.state))

    def do_order(self) -> None:
        if self.view != "layers":
            self.explain("The order is that of the measured layers: v shows them")
            return
        self.order = "graph" if self.order == "harm" else "harm"

    def do_depth(self) -> None:
        if self.view != "layers":
            self.explain("The noise along the depth is that of the measured layers: v shows them")
            return
        if reason := self.query_one(DepthChart).turn(self.size):
            self.explain(reason)

    def do_log_scale(self) -> None:
        if self.view != "ranges":
            self.explain("The histograms are beside the ranges: v shows them")
            return
        self.logarithmic = not self.logarithmic

    def do_pause(self) -> None:
        self.session.pause()

    def do_stop(self) -> None:
        # A run that waits for an answer has ended with the key.
        word = "Stopped" if self.state.asking else "Stopping"
        self.session.stop()
        self.explain(f"{word}: what was done is kept, and r on the first screen ({digit('model')}) goes on with this run")

    def do_edit(self) -> None:
        self.qtui.go_to("strategy", self.query_one(f"#{self.view}", Grid).cursor)

    def do_train(self) -> None:
        self.session.answer(True)

    def do_epochs(self) -> None:
        asked = result.asked_epochs(self.state.run)
        text = "How often training goes through all training data (1 to 1000)."
        self.app.push_screen(Prompt("train for how many epochs?", text, str(asked or 5), check=result.wrong_epochs), self._train_for)

    def _train_for(self, value: str | None) -> None:
        if value is not None:
            self.session.answer(Train(int(value)))
            self.qtui.refresh_state()

    def do_next(self) -> None:
        if self.state.asking == "qat":
            self.session.answer(False)
        else:
            self.qtui.go("report")
