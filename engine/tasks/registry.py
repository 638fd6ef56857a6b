"""The tasks by name. Torch-free; a new task is one module and one entry here.

A task's module has ``load(recipe, stop, device)``, a generator of events that returns the ``Subject``, and may have
``settled(recipe)``, the recipe with what the task takes where nothing was said, and ``alone(recipe)``, the task without its model.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from engine.data.registry import ENTRIES as DATA
from engine.errors import UsageError, nearest
from engine.models.language_registry import is_language
from engine.models.registry import ENTRIES as MODELS
from engine.models.text_registry import ENTRIES as TEXT_MODELS
from engine.models.text_registry import task_of_folder

if TYPE_CHECKING:
    from engine.events.cancellation import StopToken
    from engine.recipe.recipe import Recipe


_FILES = {
    "classification": "a folder of images, DIR/CLASS/*",
    "causal-lm": "a text file, or a folder of them",
    "fidelity": "a folder of images or audio, an .npy, .npz or .pt of inputs, or random:3x224x224",
    "segmentation": "a folder with images/ and masks/, or in VOC's layout",
    "multilabel": "a folder of images with a CSV, a column for each label",
    "detection": "a folder of images with COCO, YOLO or VOC annotations",
    "regression": "a CSV of numbers, or of images and numbers",
    "text-classification": "a CSV, JSONL or parquet file with a text and a label a row",
    "pair-classification": "a CSV, JSONL or parquet file with two texts and a label a row",
    "token-classification": "a CoNLL file, or JSON lines with words and their tags",
    "embeddings": "a text a line, or a CSV, JSONL or parquet file, pairs of texts with a score too",
    "seq2seq": "a CSV, JSONL or parquet file with a text and what becomes of it a row",
}
"""What one's own data look like, by task."""


@dataclass(frozen=True)
class TaskEntry:
    """``metric`` is what decides, ``data`` the data that a run takes where none is named. ``reads`` says what the model
    is given, and ``memory`` which key of the recipe to lower where memory runs out. ``module`` is imported when the task is used."""

    name: str
    title: str
    metric: str
    reads: Literal["images", "text", "anything"]
    data: str
    module: str
    memory: str = "data.batch"

    @property
    def files(self) -> str:
        """What one's own data look like."""
        return _FILES.get(self.name, "")

    def settled(self, recipe: Recipe) -> Recipe:
        """The recipe with the task's own data where none was named, and with whatever else the task takes."""
        settle = getattr(import_module(self.module), "settled", None)
        if settle:
            return settle(recipe)  # type: ignore[no-any-return]
        return self.with_data(recipe)

    def with_data(self, recipe: Recipe) -> Recipe:
        """The recipe with the data of this task that the model has weights for, or the task's own, where none was named."""
        packaged = MODELS[recipe.model].packaged if recipe.model in MODELS else ()
        name = next((data for data in packaged if data in DATA and DATA[data].task == self.name), self.data)
        if not name or "name" in recipe.data.model_fields_set:
            return recipe
        # Made anew, so that what is settled counts as said.
        named = type(recipe.data).model_validate({**recipe.data.model_dump(exclude_unset=True), "name": name})
        return recipe.model_copy(update={"data": named})

    def alone(self, recipe: Recipe) -> Any:
        """The run's ``Task`` without its model, for finished runs whose model is gone; None for tasks that need it."""
        make = getattr(import_module(self.module), "alone", None)
        return make(recipe) if make else None

    def load(self, recipe: Recipe, stop: StopToken, device: str) -> Generator[Any, None, Any]:
        """The run's ``Subject``. Raises UsageError or EngineError in one line."""
        return (yield from import_module(self.module).load(recipe, stop, device))


TASKS: dict[str, TaskEntry] = {
    entry.name: entry
    for entry in (
        TaskEntry("classification", "which class an image is of", "accuracy", "images", "digits", "engine.tasks.classification"),
        TaskEntry(
            "causal-lm", "the next token of a text", "perplexity", "text", "python-docs", "engine.tasks.causal_lm_loading", "data.context"
        ),
        TaskEntry("fidelity", "fp32's outputs, on inputs without labels", "SQNR", "anything", "", "engine.tasks.fidelity"),
        TaskEntry("segmentation", "the class of each pixel", "mIoU", "images", "digit-scenes", "engine.tasks.segmentation"),
        TaskEntry("multilabel", "which labels hold for an image", "mAP", "images", "digit-attributes", "engine.tasks.multilabel"),
        TaskEntry("detection", "what is where in an image", "mAP 50:95", "images", "digit-boxes", "engine.tasks.detection"),
        TaskEntry(
            "text-classification", "which label a text has", "accuracy", "anything", "python-modules", "engine.tasks.text_classification"
        ),
        TaskEntry(
            "pair-classification", "what two texts are to each other", "accuracy", "anything", "", "engine.tasks.pair_classification"
        ),
        TaskEntry(
            "token-classification", "the tag of each word of a text", "accuracy", "anything", "", "engine.tasks.token_classification"
        ),
        TaskEntry("embeddings", "vectors of texts", "cosine", "anything", "python-paragraphs", "engine.tasks.embeddings"),
        TaskEntry("seq2seq", "a text made of a text", "loss", "anything", "reversed-digits", "engine.tasks.seq2seq"),
        TaskEntry("regression", "numbers of an item", "MAE", "anything", "diabetes", "engine.tasks.regression"),
    )
}


def find(name: str) -> TaskEntry:
    """Raises UsageError with the nearest names."""
    if name not in TASKS:
        raise UsageError(f"task {name!r} is not known: {nearest(name, tuple(TASKS))}; your own is path/task.py:factory")
    return TASKS[name]


OWN = TaskEntry("own", "a task of your own", "", "anything", "", "engine.tasks.own")


def task_of(model: str, task: str | None = None) -> TaskEntry:
    """The task of that name, or of a model of which only the name is known. Raises UsageError for a name that is not known."""
    if task is not None:
        return OWN if ":" in task else find(task)
    if model in MODELS:
        return find(MODELS[model].task)
    if model in TEXT_MODELS:
        return find(TEXT_MODELS[model].task)
    if (found := task_of_folder(model)) in TASKS:
        return TASKS[str(found)]
    return TASKS["causal-lm" if is_language(model) else "classification"]
