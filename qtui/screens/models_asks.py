"""What the first screen asks for: data, weights, a model of one's own, a recipe, the device, the threshold, the graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qtui import catalog
from qtui.catalog import Choice, Model
from qtui.screens.base import StageScreen
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

        def _data_of(self, before: Choice, model: str) -> str: ...

        def _changed(self, choice: Choice) -> None: ...

    def do_data(self) -> None:
        if self._reads_text():
            options = [*catalog.texts(), (FOLDER, "a file or folder of your text")]
            self.choose("data", options, catalog.data_for(self.choice.data, True), self._text)
            return
        options = [*catalog.data_sets(), (FOLDER, "a folder  of your images, DIR/CLASS/*, or with CIFAR-10's files")]
        self.choose("data", options, self.choice.data, self._data)

    def _data(self, value: str | None) -> None:
        if value == FOLDER:
            self.ask("data", "The folder with your images, one folder a class:", "", catalog.wrong_folder, self._folder)
        elif value:
            self._changed(replace(self.choice, data=value))

    def _text(self, value: str | None) -> None:
        if value == FOLDER:
            self.ask("data", "A text file, or a folder of them:", "", catalog.wrong_text, self._folder)
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
        self.ask("your own model", text, "", catalog.wrong_own_model, self._own)

    def _own(self, value: str | None) -> None:
        if value:
            self._given = tuple(dict.fromkeys((*self._given, value)))
            self._changed(replace(self.choice.with_model(value), data=self._data_of(self.choice, value)))
            self.query_one("#models", Grid).move_to(value)
            if ":" in value:
                words = "What is measured: empty for the class of an image, or a task of\nyour own as path/task.py:factory"
                about = f"{words}, with its data and metric."
                self.ask("your own task", about, self.choice.task, catalog.wrong_task, self._own_task)

    def _own_task(self, value: str | None) -> None:
        if value is not None:
            self._changed(replace(self.choice, task=value))

    def do_weights(self) -> None:
        if self._reads_text():
            self.explain(f"{self.choice.model} brings its weights: o takes the folder of another language model")
            return
        text = "A file of weights (.safetensors, or .pt that holds tensors only);\nempty takes those of the list."
        self.ask("weights", text, self.choice.weights, catalog.wrong_file, self._weights)

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
        drop = "drop, the part by which the perplexity may rise" if self._reads_text() else "drop of the accuracy"
        text = f"What the quantized model may lose, as METRIC:VALUE:\n{drop}, agreement, sqnr in dB, or mse."
        self.ask("threshold", text, self.choice.threshold, catalog.wrong_threshold, self._threshold)

    def _threshold(self, value: str | None) -> None:
        if value:
            self._changed(replace(self.choice, threshold=value))

    def do_recipe(self) -> None:
        text = "A recipe file (recipe.yaml of a run, or your own); empty takes none."
        self.ask("recipe", text, self.choice.recipe, catalog.wrong_recipe, self._recipe)

    def _recipe(self, value: str | None) -> None:
        if value == "":
            self._changed(replace(self.choice, recipe=""))
        elif value:
            choice = catalog.from_recipe(value)
            if choice.model not in [model.name for model in self._models]:
                self._given = (*self._given, choice.model)
            self._changed(choice)
            self.query_one("#models", Grid).move_to(choice.model)
