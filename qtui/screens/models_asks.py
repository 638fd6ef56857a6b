"""What the first screen asks for: data, weights, a model of one's own, a recipe, the device, the threshold, the graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.tasks.metrics import known
from engine.tasks.registry import TASKS
from qtui import catalog
from qtui.catalog import Choice, Model
from qtui.options import Options
from qtui.screens.base import StageScreen
from qtui.screens.dialogs import Pick
from qtui.widgets.table import Grid

FOLDER = "+folder"


class Asking(StageScreen):
    """The keys of the first screen that change what a run would be asked; to be mixed into it, which lists models and has
    ``choice``."""

    if TYPE_CHECKING:
        choice: Choice
        _given: tuple[str, ...]
        _models: tuple[Model, ...]

        def _model(self) -> Model | None: ...

        def _reads_text(self) -> bool: ...

        def _data_of(self, before: Choice, after: Choice) -> str: ...

        def _changed(self, choice: Choice) -> None: ...

    def do_data(self) -> None:
        if self._reads_text():
            options = [*catalog.texts(), (FOLDER, "a file or folder of your text")]
            self.choose("data", options, catalog.data_for(self.choice.data, catalog.TEXT), self._text)
            return
        task = self._measured_by()
        if task not in TASKS:
            self.explain(f"{self.choice.task} brings its own data: o gives another task")
            return
        own = (FOLDER, "a folder  of your images, DIR/CLASS/*, or with CIFAR-10's files")
        if task != "classification":
            own = (FOLDER, f"a path    {TASKS[task].files or 'to your own files or folder'}")
        options = [*catalog.data_sets(task), *([own] if catalog.reads_files(task) else [])]
        if options == [own]:
            self._data(FOLDER)
            return
        self.choose("data", options, catalog.data_for(self.choice.data, task), self._data)

    def _measured_by(self) -> str:
        """The task that the choice is measured by."""
        return catalog.task_name(self.choice.model, self.choice.task)

    def _data(self, value: str | None) -> None:
        task = self._measured_by()
        if value == FOLDER and task != "classification":
            words = TASKS[task].files
            about = f"Your own data for {task}{f': {words}' if words else ', a file or a folder'}:"
            check = catalog.wrong_text if catalog.default_data(task) else catalog.wrong_inputs
            self.ask("data", about, "", check, self._folder, paths=True)
        elif value == FOLDER:
            self.ask("data", "The folder with your images, one folder a class:", "", catalog.wrong_folder, self._folder, paths=True)
        elif value:
            self._changed(replace(self.choice, data=value))

    def _text(self, value: str | None) -> None:
        if value == FOLDER:
            self.ask("data", "A text file, or a folder of them:", "", catalog.wrong_text, self._folder, paths=True)
        elif value:
            self._changed(replace(self.choice, data=value))

    def _folder(self, value: str | None) -> None:
        if value:
            self._changed(replace(self.choice, data=str(Path(value).expanduser())))

    def do_own(self) -> None:
        text = (
            "A callable without arguments that returns an nn.Module: your code,\nwith your rights. "
            "Or a language model's folder, or OWNER/MODEL."
        )
        self.ask("your own model", text, "", catalog.wrong_own_model, self._own, paths=True)

    def _own(self, value: str | None) -> None:
        if value:
            self._given = tuple(dict.fromkeys((*self._given, value)))
            changed = self.choice.with_model(value)
            self._changed(replace(changed, data=self._data_of(self.choice, changed)))
            self.query_one("#models", Grid).move_to(value)
            if ":" in value:
                self.do_task()

    def do_task(self) -> None:
        """What is measured of one's own model, or of one that takes several tasks."""
        model = self._model()
        if model is not None and not model.own and not model.others:
            self.explain(f"{model.name} is for {model.task}: o gives a model of your own, with any task")
            return
        options = catalog.task_options()
        if model is not None and not model.own:
            options = tuple(option for option in options if option[0] in (model.task, *model.others))
        about = "What is measured: ↑↓ choose, or type a name, or a task of your own\nas path/task.py:factory, with its data and metric."
        self.app.push_screen(Pick("task", about, options, self._measured_by(), catalog.wrong_task), self._own_task)

    def _own_task(self, value: str | None) -> None:
        if value is None:
            return
        model = self._model()
        # What belongs to the model by itself need not be said.
        task = "" if model is not None and value == model.task else value
        changed = replace(self.choice, task=task)
        asked = task in TASKS and task != self.choice.task
        self._changed(replace(changed, data=self._data_of(self.choice, changed)))
        if asked and catalog.reads_files(task):
            # One's own model has seldom been made for the data of the list.
            self.do_data()

    def do_weights(self) -> None:
        if self._reads_text():
            self.explain(f"{self.choice.model} brings its weights: o takes the folder of another language model")
            return
        text = "A file of weights (.safetensors, or .pt that holds tensors only);\nempty takes those of the list."
        self.ask("weights", text, self.choice.weights, catalog.wrong_file, self._weights, paths=True)

    def _weights(self, value: str | None) -> None:
        if value is not None:
            self._changed(replace(self.choice, weights=str(Path(value).expanduser()) if value else ""))

    def do_graph(self) -> None:
        if not self._reads_text():
            self.explain("Networks on images have one graph, that of torch.fx: the choice is between two of a language model")
            return
        self._changed(replace(self.choice, graph="modules" if self.choice.graph == "export" else "export"))

    def do_device(self) -> None:
        if self._reads_text():
            self.explain("Language models are calibrated and measured on the processor: there is no device to choose")
            return
        self.choose("device", catalog.devices(self.state.machine), self.choice.device, self._device)

    def _device(self, value: str | None) -> None:
        if value:
            self._changed(replace(self.choice, device=value))

    def do_threshold(self) -> None:
        task = self._measured_by()
        metric = TASKS[task].metric if task in TASKS else "metric"
        drop = "drop, the part by which the perplexity may rise" if self._reads_text() else f"drop of the {metric}"
        if known(metric).relative and not self._reads_text():
            drop = f"drop, the part by which the {metric} may be worse"
        text = f"What the quantized model may lose, as METRIC:VALUE:\n{drop}, agreement, sqnr in dB, or mse."
        self.ask("threshold", text, self.choice.threshold, catalog.wrong_threshold, self._threshold)

    def _threshold(self, value: str | None) -> None:
        if value:
            self._changed(replace(self.choice, threshold=value))

    def do_options(self) -> None:
        """What else a run can be asked."""
        from qtui.screens.options_panel import OptionsPanel

        def taken(given: Options | None) -> None:
            if given is not None and given != self.choice.options:
                self._changed(replace(self.choice, options=given))

        self.app.push_screen(OptionsPanel(self.choice.options), taken)

    def do_recipe(self) -> None:
        text = "A recipe file (recipe.yaml of a run, or your own); empty takes none."
        self.ask("recipe", text, self.choice.recipe, catalog.wrong_recipe, self._recipe, paths=True)

    def _recipe(self, value: str | None) -> None:
        if value == "":
            self._changed(replace(self.choice, recipe=""))
        elif value:
            choice = catalog.from_recipe(value)
            if choice.model not in [model.name for model in self._models]:
                self._given = (*self._given, choice.model)
            self._changed(choice)
            self.query_one("#models", Grid).move_to(choice.model)
