"""The first screen: a model, its data, and what was done before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widget import Widget

from engine.errors import EngineError
from qtui import actions, catalog, reasons
from qtui.actions import Action
from qtui.catalog import Choice, Model
from qtui.painting import titles
from qtui.screens.base import bindings
from qtui.screens.models_asks import Asking
from qtui.screens.models_rows import (
    MODEL_COLUMNS,
    OWN,
    RUN_COLUMNS,
    choice_parts,
    model_rows,
    model_sentence,
    no_runs,
    run_rows,
    run_sentence,
    training_sentence,
)
from qtui.state import State
from qtui.subject import short_name
from qtui.widgets.filter_bar import FilterBar
from qtui.widgets.lines import Piece, PieceLine
from qtui.widgets.sentence import Sentence
from qtui.widgets.table import Grid

if TYPE_CHECKING:
    from engine.runs.rundir import RunSummary


class ModelsScreen(Asking):
    """``choice`` is what a run would be asked; it belongs to the screen until the run begins."""

    stage = "model"
    BINDINGS = bindings("model")
    CSS_PATH = "models.tcss"

    def __init__(self) -> None:
        super().__init__()
        self.choice = Choice()
        self._given: tuple[str, ...] = ()
        self._set_aside: dict[str, tuple[str, str, str]] = {}
        self._data_of_task: dict[str, str] = {}
        self._models: tuple[Model, ...] = ()
        self._place = catalog.Place("", False)
        self._listed: object = None
        self._busy = False

    def compose_body(self) -> ComposeResult:
        with Vertical(id="models-pane", classes="pane"):
            yield Grid(id="models")
            yield PieceLine(id="choice")
            yield FilterBar()
        with Vertical(id="runs-pane", classes="pane"):
            yield Grid(id="runs")

    def on_mount(self) -> None:
        self._list(self.state)
        self.query_one("#models", Grid).focus()

    def update(self, state: State) -> None:
        if state.runs is not self._listed or state.trained:
            self._list(state)
        self._show(state)

    def _list(self, state: State) -> None:
        """Read again what there is; files are looked at here and not at every tick."""
        self._listed = state.runs
        task = self._measured_by()
        self._models = catalog.models(state.runs, self._given, self.choice.data)
        kept = {known: data for known, data in self._data_of_task.items() if known != task}
        others = {known: replace(catalog.place(data), task=known) for known, data in kept.items()}
        self._place = replace(catalog.place(self.choice.data), task=task if task != "own" else "", others=others)

    def _show(self, state: State) -> None:
        bar = self.query_one(FilterBar)
        models, runs = model_rows(self._models, self._place, bar.text), run_rows(state.runs, bar.text, self.size.width)
        self.query_one("#models", Grid).show(MODEL_COLUMNS, models)
        self.query_one("#runs", Grid).show(RUN_COLUMNS, runs)
        self.query_one("#runs", Grid).empty = no_runs(len(state.runs), bar.text) if state.listed else ""
        titles(self.query_one("#models-pane"), f"Models ─ {bar.filtered(len(models) - 1, len(self._models))}")
        self.set_class(state.listed and not state.runs, "-new")
        titles(self.query_one("#runs-pane"), f"Runs ─ {bar.filtered(len(runs), len(state.runs))}")
        self.query_one("#choice", PieceLine).show(self._choice_pieces)
        self._show_training(state)
        self.query_one(Sentence).keep(self._sentence())

    def _show_training(self, state: State) -> None:
        """A baseline's training stands where the runs are listed."""
        training = state.job is not None and state.job.kind == "train"
        panes = list(self.query("#baseline"))
        if training and not panes:
            from qtui.widgets.training_pane import TrainingPane

            panes = [TrainingPane(id="baseline")]
            self.query_one("#body").mount(panes[0])
        self.query_one("#runs-pane").display = not training
        self.set_class(training, "-training")
        for pane in panes:
            pane.display = training
            if training:
                self._paint_training(state, pane)

    def _paint_training(self, state: State, pane: Widget) -> None:
        from qtui.widgets.training_pane import TrainingPane, View

        assert isinstance(pane, TrainingPane)
        job = state.job
        status = "" if job is None else "stopping …" if job.stopping else "" if state.baseline_progress else "getting ready …"
        told = next((epoch.metric for epoch in reversed(state.baseline.epochs) if epoch.metric), None) or "accuracy"
        pane.show(View(job.title if job else "", state.baseline, state.baseline_progress, metric=told, status=status))

    def shown_actions(self, state: State) -> Sequence[Action]:
        """While a baseline trains, what can be done about it."""
        known = super().shown_actions(state)
        if state.job is None or state.job.kind != "train":
            return known
        stop = [action for action in actions.everywhere() if action.id in ("halt_run", "log")]
        return (*(action for action in known if action.id == "help"), *stop, *(action for action in known if action.id == "next"))

    def _choice_pieces(self, width: int) -> list[Piece]:
        pieces: list[Piece] = []
        used = 0
        for key, name, value in choice_parts(self.choice, self._reads_text()):
            used += len(key) + len(name) + len(value) + 5
            if used <= width + 3:
                pieces += [(f"{key} ", "key"), (f"{name} ", "dim"), (f"{value}   ", "strong")]
        return pieces

    def _reads_text(self) -> bool:
        model = self._model()
        return model is not None and model.text

    @property
    def on_runs(self) -> bool:
        return self.query_one("#runs", Grid).has_focus

    def _model(self) -> Model | None:
        name = self.query_one("#models", Grid).cursor
        return next((model for model in self._models if model.name == name), None)

    def _run(self) -> RunSummary | None:
        directory = self.query_one("#runs", Grid).cursor
        return next((run for run in self.state.runs if str(run.directory) == directory), None)

    def _sentence(self) -> str:
        if (job := self.state.job) is not None and job.kind == "train":
            return training_sentence(job, self.state.baseline)
        return run_sentence(self._run()) if self.on_runs else model_sentence(self._model(), self.choice, self._place)

    def on_grid_moved(self, event: Grid.Moved) -> None:
        if event.grid.id == "models" and event.key != OWN and event.key != (before := self.choice).model:
            # Weights, recipe and task belong to a model; the cursor may pass over others.
            self._set_aside[before.model] = (before.weights, before.recipe, before.task)
            weights, recipe, task = self._set_aside.get(event.key, ("", "", ""))
            after = replace(before, model=event.key, weights=weights, recipe=recipe, task=task)
            self.choice = replace(after, data=self._data_of(before, after))
            if self._measured_by() != catalog.task_name(before.model, before.task):
                self._list(self.state)
        self.say(self._sentence())
        self._show(self.state)

    def _data_of(self, before: Choice, after: Choice) -> str:
        """The data for another model or task: a folder of images is none for a language model, nor a text for a network on images.
        Each task keeps what was given for it."""
        was, task = (catalog.task_name(choice.model, choice.task) for choice in (before, after))
        if was == task:
            return before.data
        self._data_of_task[was] = before.data
        return self._data_of_task.get(task) or catalog.default_data(task)

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        self.action_do("next")

    def on_descendant_focus(self) -> None:
        self.say(self._sentence())
        self.query_one("#keys", PieceLine).show(lambda width: self.key_pieces(self.state, width))

    def label(self, action: Action) -> str:
        return "open ▸" if action.id == "next" and self.on_runs else super().label(action)

    def do_filter(self) -> None:
        self.query_one(FilterBar).open()

    def on_filter_bar_changed(self, event: FilterBar.Changed) -> None:
        models = self.query_one("#models", Grid)
        before = models.cursor
        self._show(self.state)
        first = next((row.key for row in models.rows if row.key != OWN), None)
        if event.text and first is not None and models.cursor != before:
            # The row under the cursor is gone: what was typed means the first that is left.
            models.move_to(first)

    def do_pane(self) -> None:
        to_runs = not self.on_runs
        # In a low window only the one with the focus is shown.
        self.set_class(to_runs, "-runs")
        self.query_one("#runs" if to_runs else "#models", Grid).focus()

    def do_next(self) -> None:
        if self.on_runs:
            self._open()
        elif self.query_one("#models", Grid).cursor == OWN:
            self.do_own()
        elif (model := self._model()) is not None:
            self._begin(model)

    def _begin(self, model: Model) -> None:
        if model.where(self._place) == "to train" and not self.choice.weights and not self.choice.recipe:
            self.do_baseline()
            return
        self.qtui.hold = False
        self.session.start(self.choice.with_model(model.name).fields())

    def _open(self) -> None:
        run = self._run()
        if run is None:
            self.explain("There is no run to open yet")
        elif self.state.busy:
            self.refuse(reasons.busy)
        else:
            self.session.open(run.directory)
            self.qtui.show_run()

    def do_resume(self) -> None:
        run = self._run() if self.on_runs else None
        if run is None or not catalog.can_resume(run):
            if run is not None:
                self.explain(f"{run.directory.name} is {run.state}: there is nothing to resume")
                return
            run = next((run for run in self.state.runs if catalog.can_resume(run)), None)
        if run is not None:
            self.qtui.hold = False
            self.session.resume(run)

    def _picked(self) -> RunSummary | None:
        """The run under the cursor, where it can be renamed or deleted; else why not is said."""
        run = self._run()
        if run is None or not self.on_runs:
            self.explain("Go to a run first: tab changes to the runs")
        elif str(run.directory) == self.state.run.directory:
            self.explain("This run is open here: open another one, or start one, first")
        else:
            return run
        return None

    def do_rename_run(self) -> None:
        from engine.runs.keeping import rename, wrong_name

        if (run := self._picked()) is not None:
            place = run.directory
            self.ask(
                "rename the run", "Its folder's name, beside the others.", place.name, lambda name: wrong_name(name, place),
                lambda name: self._kept(lambda: rename(place, name)) if name else None,
            )  # fmt: skip

    def do_delete_run(self) -> None:
        from engine.runs.keeping import delete

        if (run := self._picked()) is not None:
            place = run.directory
            about = f"{place.name}: {short_name(run.model)} on {short_name(run.data)}, {run.state}."
            text = f"{about}\nIts folder is deleted with all that is in it."
            self.confirm("delete the run", text, "delete", "keep", lambda yes: self._kept(lambda: delete(place)) if yes else None)

    def _kept(self, change: Callable[[], object]) -> None:
        """Carry out a change of the runs' folder and list them again."""
        try:
            change()
        except EngineError as error:
            self.explain(str(error))
        self.session.list_runs()
        self.qtui.refresh_state()

    def do_baseline(self) -> None:
        model = self._model()
        if model is not None and model.text:
            self.explain(f"{model.name} comes with its weights: `qtui train gpt2-mini` trains the one of the package anew")
            return
        if model is None or model.own:
            self.explain("A baseline is trained for a model of the list: your own comes with its weights, or w gives them")
            return
        data = catalog.data_for(self.choice.data, self._measured_by())
        have = model.where(self._place)
        text = (
            f"{model.name} on {short_name(data)}: its weights are {have}."
            if have != "to train"
            else f"{model.name} has no weights for {data}."
        )
        again = "Train a baseline? It is kept in the cache." + (
            "" if have == "to train" else "\nThe package's weights stay what a run takes."
        )
        self.confirm("train a baseline", f"{text}\n{again}", "train", "not now", self._train)

    def _train(self, yes: bool | None) -> None:
        model = self._model()
        if yes and model is not None:
            self.session.train(model.name, catalog.data_for(self.choice.data, self._measured_by()), self.choice.task)
            self.qtui.refresh_state()

    def _changed(self, choice: Choice) -> None:
        self.choice = choice
        self._list(self.state)
        self._show(self.state)
        self.say(self._sentence())
