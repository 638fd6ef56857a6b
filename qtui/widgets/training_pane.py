"""A training as it goes on, or as it went: progress, loss, validation, and the epochs."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.events import Resize

from qtui.drawing.line_chart import Series as Curve
from qtui.drawing.line_chart import line_chart
from qtui.drawing.spans import Line
from qtui.machine_line import machine_line
from qtui.painting import titles
from qtui.widgets import training_words as words
from qtui.widgets.chart import Chart
from qtui.widgets.progress import ProgressLine
from qtui.widgets.table import Grid
from qtui.widgets.training_words import View

__all__ = ["TrainingPane", "View"]

_SIDE_BY_SIDE = 70
_TABLE_FROM = 17
_STACKED_FROM = 16
_BORDERS_FROM = 10
_TALL_FROM = 30


class TrainingPane(Container):
    """``show(View(...))`` brings everything up to date and repaints what changed; ``logarithmic`` makes the loss axis logarithmic.

    It fills the room it gets: two charts side by side from 70 columns on, one above the other below that, the validation alone
    where there is no room for both, and the epochs in a list beneath from 17 rows on. Key handling and sentences
    (``training_words.best_so_far``) are the screen's.
    """

    DEFAULT_CSS = """
    TrainingPane {
        height: 1fr; layout: vertical;
        .pane { border: round $border-blurred; border-title-color: $text-muted; border-subtitle-color: $text-muted; padding: 0 1; }
        .pane:focus-within { border: round $border; border-title-color: $foreground; border-title-style: bold; }
        #training-progress { height: 3; border-title-color: $foreground; border-title-style: bold; }
        #training-charts { height: 1fr; layout: horizontal; }
        #training-charts > .pane { width: 1fr; height: 100%; }
        #training-epochs { height: 8; display: none; }
        &.-table #training-epochs { display: block; }
        &.-narrow #training-charts { layout: vertical; }
        &.-narrow #training-charts > .pane { width: 100%; height: 1fr; }
        &.-one #training-loss-pane { display: none; }
        &.-tall #training-epochs { height: 12; }
        &.-bare .pane { border: none; padding: 0; }
        &.-bare #training-progress { height: 1; border: none; padding: 0; }
    }
    """

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._view = View("training")
        self._log = False

    def compose(self) -> ComposeResult:
        with Vertical(id="training-progress", classes="pane"):
            yield ProgressLine(id="training-bar")
        with Container(id="training-charts"):
            with Vertical(id="training-loss-pane", classes="pane"):
                yield Chart(id="training-loss")
            with Vertical(id="training-value-pane", classes="pane"):
                yield Chart(id="training-value")
        with Vertical(id="training-epochs", classes="pane"):
            yield Grid(id="training-table", empty="The first epoch has not ended yet.")

    @property
    def logarithmic(self) -> bool:
        """Whether the loss has a logarithmic axis."""
        return self._log

    @logarithmic.setter
    def logarithmic(self, value: bool) -> None:
        if value != self._log:
            self._log = value
            self.show(self._view)

    def show(self, view: View) -> None:
        """Show this training from now on."""
        self._view = view
        if not self.is_mounted:
            return
        progress = self.query_one("#training-progress")
        titles(progress, words.title(view), machine_line(view.machine, progress.outer_size.width - 6) if view.running else "")
        self.query_one("#training-bar", ProgressLine).show(*words.line(view))
        points = words.series(view)
        self.query_one("#training-loss", Chart).show(lambda width, height: self._loss(points, width, height))
        self.query_one("#training-value", Chart).show(lambda width, height: self._value(points, width, height))
        titles(self.query_one("#training-loss-pane"), words.loss_title(view, self._log))
        best = view.training.best
        pane = self.query_one("#training-value-pane")
        titles(pane, f"validation {view.measure.head}", f"● best: epoch {best.epoch}" if best else "")
        titles(self.query_one("#training-epochs"), f"epochs ─ {len(view.training.epochs)}")
        self._show_epochs(view)

    def _show_epochs(self, view: View) -> None:
        grid, rows = self.query_one("#training-table", Grid), words.rows(view)
        at_end = not grid.rows or grid.cursor == grid.rows[-1].key
        grid.show(words.columns(view), rows)
        if at_end and rows:
            grid.move_to(rows[-1].key)

    def on_resize(self, event: Resize) -> None:
        width, height = event.size
        narrow = width < _SIDE_BY_SIDE
        self.set_class(narrow, "-narrow")
        self.set_class(height >= _TABLE_FROM and not (narrow and height < 26), "-table")
        self.set_class(narrow and height < _STACKED_FROM, "-one")
        self.set_class(height >= _TALL_FROM, "-tall")
        self.set_class(height < _BORDERS_FROM, "-bare")

    def _loss(self, points: words.Series, width: int, height: int) -> list[Line]:
        curves = [Curve(points.steps, "line")]
        curves += [Curve([point], "") for point in points.means]
        empty = "the loss comes with the first steps" if self._view.running else "no losses are kept"
        return line_chart(curves, width, height, x_label="step", x_range=(0.0, points.last_step), log=self._log, empty=empty)

    def _value(self, points: words.Series, width: int, height: int) -> list[Line]:
        scale = self._view.measure.scale
        curves = [Curve(points.values, "line")]
        if points.best:
            curves.append(Curve([points.best], "good", "best" if len(points.values) > 1 else ""))
        return line_chart(
            curves, width, height, baselines=[(name, scale * value, "base") for name, value in self._view.lines], x_label="epoch",
            x_range=(min(1.0, points.last_epoch - 1), points.last_epoch), empty="comes with the first epoch",
        )  # fmt: skip
