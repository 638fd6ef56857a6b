"""The report: what came out, layer by layer, and the files that were made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.events import Resize

from engine.export.registry import install
from engine.report.runtimes import fastest, paces
from qtui.actions import Action
from qtui.painting import titles
from qtui.reasons import cannot_export
from qtui.screens.base import StageScreen, bindings
from qtui.screens.depth import DepthChart
from qtui.screens.dialogs import Reading, Several
from qtui.screens.report_exports import (
    CHOICE,
    NO_RUNTIMES,
    choices,
    exported,
    lacking,
    runtime_columns,
    runtime_panel,
    runtime_rows,
    runtime_sentence,
    runtimes_subtitle,
    runtimes_title,
)  # fmt: skip
from qtui.screens.report_files import File, files_panel, run_files, side_lines
from qtui.screens.report_rows import figure_columns, figure_rows, layer_columns, layer_rows, layers_of, layers_title
from qtui.screens.report_summary import summary
from qtui.screens.report_words import layer_lines, layer_panel, layer_sentence, paragraph, progress_line, verdict_spans, verdict_title
from qtui.stage_table import digit
from qtui.state import State
from qtui.widgets.drawn import Drawn
from qtui.widgets.sentence import Sentence
from qtui.widgets.table import Grid

if TYPE_CHECKING:
    from qtui.screens.report_rows import Layer

_HIGH = 36
# Rows of a window in which the figures stay beside the chart of the depth.
_ROOM_FOR_ALL = 30
_VERDICT = ((24, 5), (20, 3), (16, 2))
"""Rows of a window, and the lines of the verdict that it shows at most: in a usual one it is read whole."""
_NO_LAYERS = "No layer is measured yet: that comes after the calibration."


class Figures(Grid, can_focus=False):
    """The forms side by side; nothing in it is to be chosen."""


class ReportScreen(StageScreen):
    stage = "report"
    BINDINGS = bindings("report")
    CSS_PATH = "report.tcss"

    def __init__(self) -> None:
        super().__init__()
        self.by_harm = False
        self.on_runtimes = False
        self._exporting = self._stopped = False
        self._layers: tuple[Layer, ...] = ()
        self._told = self._about = ""
        self._begin = False
        self._files: tuple[File, ...] = ()
        self._runtimes_of: tuple[int, int] | None = None
        self._files_of: tuple[str, object] | None = None

    def compose_body(self) -> ComposeResult:
        yield Drawn(id="verdict")
        yield Drawn(id="progress")
        yield Figures(id="figures")
        with Horizontal(id="lower"):
            with Vertical(id="main"):
                yield DepthChart(id="depth")
                yield Grid(id="layers", empty=_NO_LAYERS)
                yield Grid(id="runtimes", empty=NO_RUNTIMES)
                yield Drawn(id="about")
            yield Drawn(id="side")

    def on_mount(self) -> None:
        self.query_one("#layers", Grid).focus()

    def on_resize(self, event: Resize) -> None:
        self.set_class(event.size.height < 16, "-lowest")
        self.set_class(event.size.height >= _HIGH, "-high")

    def update(self, state: State) -> None:
        if state.run.directory != self._about:
            # What was said of one run is not for the next, nor is the layer that was looked at.
            self._about, self._told, self._begin = state.run.directory, "", True
            self._turn(False)
        if self._exporting and not state.exporting:
            self._turn(True)
            self._tell(exported(state.run, self._stopped))
        self._exporting = state.exporting
        self._stopped = state.exporting and state.job is not None and state.job.stopping
        self._show_verdict(state)
        self._show_figures(state)
        self._show_runtimes(state)
        self._show_layers(state)
        self._show_side(state)

    def _turn(self, on_runtimes: bool) -> None:
        """Show the runtimes, or the layers."""
        self.on_runtimes = on_runtimes and self.state.run.report is not None
        layers, runtimes = self.query_one("#layers", Grid), self.query_one("#runtimes", Grid)
        layers.display, runtimes.display = not self.on_runtimes, self.on_runtimes
        (runtimes if self.on_runtimes else layers).focus()

    def _show_runtimes(self, state: State) -> None:
        grid, run = self.query_one("#runtimes", Grid), state.run
        # Shown when the report is, so that turning to it moves no cursor.
        if self._runtimes_of == (id(run.report), self.size.width):
            return
        self._runtimes_of = (id(run.report), self.size.width)
        titles(grid, runtimes_title(run), runtimes_subtitle(run))
        grid.show(runtime_columns(self.size.width, paces(run.report or {})), runtime_rows(run, self.size.width))

    def _show_verdict(self, state: State) -> None:
        pane = self.query_one("#verdict", Drawn)
        spans = verdict_spans(state)
        height = self.size.height
        most = 1 if self._crowded else next((most for least, most in _VERDICT if height >= least), 1)
        titles(pane, verdict_title(state, self.size.width))
        for role in ("good", "harm"):
            pane.set_class(spans[0][1] == role, f"-{role}")
        pane.show(lambda width, height: paragraph(spans, width, most))
        bar = self.query_one("#progress", Drawn)
        bar.display = bool(progress_line(state, 40))
        bar.show(lambda width, height: [progress_line(state, width)])

    def _show_figures(self, state: State) -> None:
        grid = self.query_one("#figures", Figures)
        rows = figure_rows(state.run)
        grid.display = bool(rows) and not self._crowded
        grid.styles.height = len(rows) + 1
        grid.show(figure_columns(state.run, self.size.width), rows)

    def _show_layers(self, state: State) -> None:
        grid = self.query_one("#layers", Grid)
        self._layers = layers_of(state.run)
        titles(grid, layers_title(self._layers, self.by_harm))
        grid.show(layer_columns(self._layers, self.size.width), layer_rows(self._layers, self.by_harm, state.run.reads_text))
        if self._begin and grid.rows:
            self._begin = False
            grid.move_to(grid.rows[0].key)
        self.query_one(Sentence).keep(self._sentence())
        self._show_depth()
        self._show_about()

    @property
    def _has_depth(self) -> bool:
        return not self.on_runtimes and self.query_one(DepthChart).fits(self.size)

    @property
    def _crowded(self) -> bool:
        """Whether the chart and the layers leave no room for the figures."""
        return self._has_depth and self.size.height < _ROOM_FOR_ALL

    def _show_depth(self) -> None:
        chart = self.query_one(DepthChart)
        chart.display = self._has_depth
        if chart.display:
            row = self._under_cursor()
            chart.show_layers(self._layers, str(row.get("name")) if row else None)

    def _show_about(self) -> None:
        """Where there is room, what Enter would show."""
        pane, row = self.query_one("#about", Drawn), self._under_cursor()
        pane.display = self.has_class("-high") and row is not None and not self.on_runtimes
        if pane.display and row is not None:
            run = self.state.run
            titles(pane, f"{row.get('name') or '?'}")
            pane.show(lambda width, height: layer_lines(row, run, width))

    def _show_side(self, state: State) -> None:
        if not self.has_class("-wide"):
            return
        pane = self.query_one("#side", Drawn)
        run, files = state.run, self._run_files(state)
        count = len((run.report or {}).get("exports") or ())
        titles(pane, f"Exports ─ {count}" if count else "Exports")
        pane.show(lambda width, height: side_lines(run, files, width, height))

    def _run_files(self, state: State, again: bool = False) -> tuple[File, ...]:
        """The folder is looked at when its report changes, and when it is asked for."""
        key = (state.run.directory, state.run.report)
        if again or self._files_of is None or self._files_of[0] != key[0] or self._files_of[1] is not key[1]:
            self._files_of = key
            self._files = run_files(Path(state.run.directory)) if state.run.directory else ()
        return self._files

    def _sentence(self) -> str:
        if self.on_runtimes:
            return self._told or runtime_sentence(self.state.run, self.query_one("#runtimes", Grid).cursor)
        row = self._under_cursor()
        return self._told or (layer_sentence(row, self._layers) if row else "")

    def _tell(self, text: str) -> None:
        """Say what a key did, until the cursor moves."""
        self._told = text
        self.say(text)

    def _under_cursor(self) -> Layer | None:
        cursor = self.query_one("#layers", Grid).cursor
        return self._layers[int(cursor)] if cursor is not None and int(cursor) < len(self._layers) else None

    def on_grid_moved(self, event: Grid.Moved) -> None:
        self._told = ""
        self.say(self._sentence())
        self._show_depth()
        self._show_about()

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        self.action_do("detail")

    def do_detail(self) -> None:
        if self.on_runtimes:
            key = self.query_one("#runtimes", Grid).cursor
            if key is None:
                self.explain(NO_RUNTIMES)
            else:
                self.app.push_screen(Reading("runtime", runtime_panel(self.state.run, key)))
            return
        row = self._under_cursor()
        if row is None:
            self.explain(_NO_LAYERS)
        else:
            self.app.push_screen(Reading(f"layer ─ {row.get('name') or '?'}", layer_panel(row, self.state.run)))

    def do_microscope(self) -> None:
        from qtui.screens.microscope import ReportMicroscope
        from qtui.screens.microscope_words import NOT_KEPT

        row = self._under_cursor()
        path = str(row.get("name")) if row is not None and not self.on_runtimes else ""
        if not path:
            self.explain(_NO_LAYERS)
        elif path in self.state.run.inspected:
            self.app.push_screen(ReportMicroscope(path))
        elif self.state.run.inspected:
            self.explain(f"{path} has no weights that were rounded")
        else:
            self.explain(NOT_KEPT)

    def do_files(self) -> None:
        files = self._run_files(self.state, again=True)
        self.app.push_screen(Reading("this run", files_panel(self.state.run, files), hint="↑↓ scroll   esc back"))

    def do_changed(self) -> None:
        from qtui.screens.changed import Changed

        if (found := self.state.run.changed) is not None:
            self.app.push_screen(Changed(self.state.run, found))

    def label(self, action: Action) -> str:
        return "layers" if action.id == "view" and self.on_runtimes else super().label(action)

    def do_view(self) -> None:
        self._turn(not self.on_runtimes)
        self._told = fastest(self.state.run.report or {}) if self.on_runtimes else ""

    def do_export(self) -> None:
        rows, marked = choices(self.state.run)
        if not any(row.selectable for row in rows):
            self.explain(f"Nothing here writes other formats: {install(lacking(self.state.run))}")
            return
        self.app.push_screen(Several("export to", CHOICE, rows, marked, "space mark   ⏎ export   esc back"), self._export)

    def _export(self, formats: tuple[str, ...] | None) -> None:
        # A run may have begun while the panel was open.
        if formats and (reason := cannot_export(self.state)):
            self.explain(reason)
        elif formats:
            self.session.export(formats)
            self.qtui.refresh_state()

    def do_stop(self) -> None:
        self.session.stop()

    def do_order(self) -> None:
        self._turn(False)
        self.by_harm = not self.by_harm
        harm = "The layers that add the most noise come first; o orders them as in the graph again."
        self._tell(harm if self.by_harm else "The layers come as in the graph; o puts those that add the most noise first.")

    def do_depth(self) -> None:
        self._turn(False)
        if reason := self.query_one(DepthChart).turn(self.size):
            self.explain(reason)

    def do_compare(self) -> None:
        from qtui.screens.compare import CompareScreen

        self.session.list_runs()
        self.app.push_screen(CompareScreen())

    def do_copy(self) -> None:
        from engine.paths import cache_dir
        from qtui import terminal

        run = self.state.run
        write = getattr(getattr(self.app, "_driver", None), "write", lambda text: None)
        for folder in (Path(run.directory), cache_dir()):
            path = (
                terminal.copy(write, summary(run), os.environ, folder, "summary.md") if folder.is_dir() or folder == cache_dir() else None
            )
            if path is not None:
                break
        self._run_files(self.state, again=True)
        told = f"The same text is in {path}." if path else "It could not be written to a file."
        self._tell(f"The summary went to this terminal's clipboard, if the terminal takes it. {told}")

    def do_edit(self) -> None:
        row = self._under_cursor()
        self.qtui.go_to("strategy", str(row.get("name")) if row else None)

    def do_again(self) -> None:
        recipe = again(self.state)
        if recipe is None:
            self.explain(f"This run's recipe is not known: start from the models ({digit('model')})")
            return
        # What was agreed to in this run is in its recipe.
        self.session.again(recipe, {"optimize": True, "quantize": True})

    def do_next(self) -> None:
        self.qtui.go("model")


def again(state: State) -> dict[str, Any] | None:
    """What to start for the same run with training."""
    run = state.run
    if run.recipe:
        return {**run.recipe, "qat": {**(run.recipe.get("qat") or {}), "mode": "always"}}
    file = Path(run.directory) / "recipe.yaml"
    return {"file": str(file), "qat": {"mode": "always"}} if run.directory and file.is_file() else None
