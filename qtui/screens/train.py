"""Train: the loss, and what the model reaches on validation images against fp32 and PTQ."""

from __future__ import annotations

from textual.app import ComposeResult

from qtui.actions import Action
from qtui.drawing.spans import Line
from qtui.drawing.table_lines import message
from qtui.screens import train_words as words
from qtui.screens.base import StageScreen, bindings
from qtui.state import State
from qtui.widgets.chart import Chart
from qtui.widgets.sentence import Sentence
from qtui.widgets.training_pane import TrainingPane


class TrainScreen(StageScreen):
    stage = "train"
    BINDINGS = bindings("train")
    DEFAULT_CSS = """
    TrainScreen {
        #untrained { display: none; }
        &.-untrained #untrained { display: block; }
        &.-untrained TrainingPane { display: none; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._epochs = 0

    def compose_body(self) -> ComposeResult:
        yield TrainingPane()
        yield Chart(id="untrained")

    def update(self, state: State) -> None:
        trained = words.any_training(state)
        self.set_class(not trained, "-untrained")
        if trained:
            self.query_one(TrainingPane).show(words.view(state))
        else:
            self.query_one("#untrained", Chart).show(self._empty)
        sentence, epochs = self.query_one(Sentence), len(state.run.training.epochs)
        # Why a key could not act is told until an epoch ends: then it may not hold any more.
        (sentence.keep if epochs == self._epochs else sentence.say)(words.sentence(state))
        self._epochs = epochs

    def _empty(self, width: int, height: int) -> list[Line]:
        return message(words.empty(self.state), width, height)

    def label(self, action: Action) -> str:
        if action.id == "pause" and self.state.job and self.state.job.paused:
            return "go on"
        if self.size.width < 70:
            return {"stop": "keep best", "halt": "save"}.get(action.id, super().label(action))
        return super().label(action)

    def do_stop(self) -> None:
        self.session.enough()

    def do_halt(self) -> None:
        self.session.stop()

    def do_pause(self) -> None:
        self.session.pause()

    def do_log_scale(self) -> None:
        pane = self.query_one(TrainingPane)
        pane.logarithmic = not pane.logarithmic

    def do_next(self) -> None:
        self.qtui.go("report")
