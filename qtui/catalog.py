"""What can be chosen on the first screen: models with their weights, data sets, devices, past runs. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.data.registry import holds_imagenet
from engine.data.text.corpora import ENTRIES as TEXTS
from engine.errors import UsageError
from engine.models.cached import cached_for, cached_weights
from engine.models.language_registry import ENTRIES as LANGUAGE
from engine.models.language_registry import LanguageEntry
from engine.models.registry import ENTRIES, ModelEntry
from engine.models.size import file_size
from engine.models.text_registry import ENTRIES as TEXT_MODELS
from engine.models.text_registry import TextEntry
from engine.models.torchvision import Published
from engine.reading import MB, read_json
from engine.tasks.registry import TASKS, TaskEntry, task_of
from qtui import text
from qtui.options import Options, fields, merged

if TYPE_CHECKING:
    from engine.runs.rundir import RunSummary

DEFAULT_THRESHOLD = "drop:0.005"
RESUMABLE = ("cancelled", "failed")


@dataclass(frozen=True)
class Model:
    """A model of the list. ``weights`` maps a data set to its weights file; ``accuracy`` to the recorded test accuracy;
    ``own`` is a person's own factory; ``published`` is what torchvision offers, for photographs of ImageNet's classes alone,
    and ``cached`` whether its weights are here already; ``language`` is set for a language model of the list, ``text`` for every
    model that reads text: ``accuracy`` is then the recorded perplexity, as it is of any model the ``metric`` of its ``task``; ``input``
    says in words what it takes."""

    name: str
    description: str
    shape: tuple[int, ...] | None = None
    params: int | None = None
    bytes: int | None = None
    weights: Mapping[str, Path] = field(default_factory=dict)
    accuracy: Mapping[str, float] = field(default_factory=dict)
    packaged: frozenset[str] = frozenset()
    own: bool = False
    published: Published | None = None
    language: LanguageEntry | None = None
    text: bool = False
    cached: bool = False
    task: str = "classification"
    metric: str = "accuracy"
    input: str = ""
    others: tuple[str, ...] = ()
    of_torchvision: bool = False

    def where(self, data: str | Place) -> str:
        """Where the weights for ``data`` come from, in words."""
        here = place(data).of(self.task)
        if self.own:
            return "from its folder" if self.text else "from its factory"
        if self.language is not None:
            packaged, elsewhere = ("in the package", "to train") if self.language.folder else ("cached", "to download")
            return packaged if self.cached else elsewhere
        if here.name in self.packaged:
            return "in the package"
        if here.name in self.weights:
            return "trained here"
        if self.published is None or not here.imagenet:
            return "to train"
        return "cached" if self.cached else "to download"


@dataclass(frozen=True)
class Place:
    """Data as its folder tells: the ``name`` that weights for it are kept under, and whether it has ImageNet's classes. ``task`` is
    whose data it is, where a person has said so, and ``others`` are the data of other tasks."""

    name: str
    imagenet: bool
    task: str = ""
    others: Mapping[str, Place] = field(default_factory=dict)

    def of(self, task: str) -> Place:
        """The data for ``task``: this where it is, else what stands there for that task."""
        if (self.task or data_task(self.name) or task) == task:
            return self
        return self.others.get(task) or Place(default_data(task), False, task)


def place(data: str | Place) -> Place:
    """``data`` looked at on the disk, once: a folder of a thousand classes takes its time."""
    if isinstance(data, Place):
        return data
    name = data_name(data)
    return Place(name, holds_imagenet(name))


def data_name(data: str) -> str:
    """The data set that a folder holds, where its files tell; weights trained on it fit then."""
    folder = Path(data).expanduser()
    return "cifar10" if any((place / "data_batch_1").is_file() for place in (folder, folder / "cifar-10-batches-py")) else data


@dataclass(frozen=True)
class Choice:
    """What a run is to be asked, as far as a person has said. ``graph`` (modules, export) is that of a language model, ``task`` one's
    own as ``path/task.py:factory``, empty for what belongs to the model; ``options`` are what has no key of its own."""

    model: str = "simplecnn"
    data: str = "digits"
    weights: str = ""
    device: str = "auto"
    threshold: str = DEFAULT_THRESHOLD
    recipe: str = ""
    graph: str = "modules"
    task: str = ""
    options: Options = ()

    def fields(self) -> dict[str, Any]:
        """The fields of the recipe; with ``file`` a recipe's own stand behind them."""
        task = task_name(self.model, self.task)
        data, text = data_for(self.data, task), task == TEXT
        asked: dict[str, Any] = {"model": self.model, **({"data": {"name": data}} if data else {}), "device": self.device}
        if self.recipe or self.threshold != DEFAULT_THRESHOLD:
            # Without a word of it a task takes its own.
            asked["threshold"] = self.threshold
        if text:
            # The processor computes decoders; a GPU may have been chosen for another model.
            asked |= {"graph": self.graph, "device": "auto" if self.device == "cuda" else self.device}
        further = (("weights", self.weights), ("file", self.recipe), ("task", self.task))
        given = {name: value for name, value in further if value}
        return merged({**asked, **given}, fields(self.options))

    def with_model(self, name: str) -> Choice:
        """Another model: a weights file, a recipe or a task belongs to the one before."""
        return self if name == self.model else replace(self, model=name, weights="", recipe="", task="")


TEXT = "causal-lm"
"""The task of models that write text."""


def task_name(model: str, task: str = "") -> str:
    """The task of a model; ``own`` for one's own, and what belongs to the model where none is named."""
    try:
        return task_of(model, task or None).name
    except UsageError:
        return task_of(model).name


def task_entry(task: str) -> TaskEntry | None:
    return TASKS.get(task)


def default_data(task: str) -> str:
    """What a task is run on where nothing is said."""
    return TASKS[task].data if task in TASKS else "digits"


def data_task(data: str) -> str | None:
    """Whose data set that name is; None for a path."""
    from engine.data.registry import ENTRIES as KNOWN

    return TEXT if data in TEXTS else KNOWN[data].task if data in KNOWN else None


def reads_text(model: str) -> bool:
    """Whether a model's name stands for one that reads text, by the task that it has where none is named."""
    return task_of(model).reads == "text"


def data_for(data: str, task: str) -> str:
    """What a model is run on where a person has chosen ``data``: the data set of another task is no choice for ``task``."""
    found = data_task(data)
    return data if found in (None, task) or not default_data(task) or task not in TASKS else default_data(task)


def models(runs: Sequence[RunSummary] = (), given: Sequence[str] = (), data: str = "digits") -> tuple[Model, ...]:
    """The registry's own models, language models, a person's own (those ``given`` now and those of past ``runs``), then
    torchvision's."""
    own = dict.fromkeys((*given, *(run.model for run in runs if ":" in run.model or "/" in run.model)))
    listed = {entry.name: _registered(entry, data) for entry in ENTRIES.values()}
    first = [model for model in listed.values() if not model.of_torchvision]
    language = (_language(entry) for entry in LANGUAGE.values())
    return (
        *first,
        *(_of_text(entry) for entry in TEXT_MODELS.values()),
        *language,
        *(_own(name) for name in own),
        *sorted((model for model in listed.values() if model.of_torchvision), key=lambda model: model.published is None),
    )


def _registered(entry: ModelEntry, data: str) -> Model:
    packaged = {name: path for name in entry.packaged if (path := entry.weights_for(name)) and path.is_file()}
    files = {**dict(cached_for(entry.name)), **packaged}
    if data not in files and (kept := cached_weights(entry.name, data)).is_file():
        files[data] = kept
    chosen = files.get(data) or next(iter(files.values()), None)
    size = file_size(chosen) if chosen else None
    metric = TASKS[entry.task].metric if entry.task in TASKS else "accuracy"
    accuracy = {name: found for name, path in files.items() if (found := recorded(path, metric)) is not None}
    published = entry.published
    params, weighs = (published.params, published.bytes) if published else (None, None)
    return Model(
        entry.name, entry.description, entry.shape, size.params if size else params, size.bytes if size else weighs, files, accuracy,
        frozenset(packaged), published=published, cached=published is not None and published.cached() is not None,
        task=entry.task, metric=metric, input=entry.input, others=entry.others,
        of_torchvision=not entry.packaged,
    )  # fmt: skip


def _of_text(entry: TextEntry) -> Model:
    size = file_size(entry.weights) if entry.place else None
    metric = TASKS[entry.task].metric
    value = entry.recorded(metric)
    return Model(
        entry.name, entry.description, None, size.params if size else None, size.bytes if size else None,
        {entry.data: entry.weights} if size else {}, {} if value is None else {entry.data: value}, frozenset({entry.data} if size else ()),
        task=entry.task, metric=metric, input="text", others=entry.others,
    )  # fmt: skip


def _language(entry: LanguageEntry) -> Model:
    return Model(
        entry.name, entry.description, params=entry.params, bytes=4 * entry.params, accuracy=dict(entry.perplexity()), language=entry,
        cached=entry.place is not None, text=True, task=TEXT, metric="perplexity",
    )  # fmt: skip


def _own(name: str) -> Model:
    return Model(
        name, "your own language model" if (text := reads_text(name)) else "your own factory", own=True, text=text, task=task_name(name)
    )


def recorded(weights: Path, metric: str) -> float | None:
    """The ``metric`` on the test split, of the record beside a file of weights."""
    try:
        return float(read_json(weights.with_suffix(".json"), MB)[f"test_{metric}"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def texts() -> tuple[tuple[str, str], ...]:
    """(name, text) of each text that has a name of its own."""
    return tuple((entry.name, f"{entry.name:<12} {entry.where} ─ {entry.description}") for entry in TEXTS.values())


def data_sets(task: str = "classification") -> tuple[tuple[str, str], ...]:
    """(name, text) of each data set of a task that has a name of its own."""
    from engine.data.images.cache import data_cache
    from engine.data.registry import of_task
    from qtui.listing import CACHED_AS

    found = []
    for entry in of_task(task):
        if entry.shape is None and task == "classification":
            continue
        state = (
            "offline" if entry.offline else "cached" if (data_cache() / CACHED_AS.get(entry.name, entry.name)).is_dir() else "to download"
        )
        found.append((entry.name, f"{entry.name:<10} {state} ─ {entry.description}"))
    return tuple(found)


def reads_files(task: str) -> bool:
    """Whether a task reads files of one's own."""
    from engine.data.registry import READERS

    return task in ("classification", TEXT) or task in READERS or not default_data(task)


def task_options() -> tuple[tuple[str, str], ...]:
    """(name, text) of each task that can be measured."""
    width = max(map(len, TASKS))
    return tuple((entry.name, f"{entry.name:<{width}} {entry.metric:<11} {entry.title}") for entry in TASKS.values())


def devices(machine: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """(value, text) of each device that can calibrate and train."""
    found = machine or {}
    processor = f"cpu    {found.get('isa', '')}{' with VNNI' if found.get('vnni') else ''}, {found.get('threads', '?')} threads"
    gpus = [f"{gpu['name']}, {_memory(gpu)}" for gpu in found.get("gpus") or ()]
    best = "the GPU where there is one, else the processor"
    return (("auto", f"auto   {best}"), ("cpu", processor), *((("cuda", f"cuda   {'; '.join(gpus)}"),) if gpus else ()))


def _memory(gpu: Mapping[str, Any]) -> str:
    return str(gpu["error"]) if gpu.get("error") else f"{gpu['free_bytes'] / 2**30:.1f} of {gpu['total_bytes'] / 2**30:.1f} GiB free"


def wrong_threshold(value: str) -> str | None:
    """What is wrong with METRIC:VALUE, or None."""
    from engine.errors import UsageError
    from engine.recipe.recipe import Threshold

    try:
        Threshold.parse(value)
    except UsageError as error:
        return str(error)
    return None


def wrong_own_model(value: str) -> str | None:
    """What is wrong with ``file.py:factory`` or ``package.module:factory``, as far as can be seen without running it."""
    if reads_text(value):
        return None
    place, colon, factory = value.rpartition(":")
    if not colon or not factory.isidentifier() or not place:
        return "write it as path/file.py:factory, package.module:factory, or a language model's folder or OWNER/MODEL"
    if place.endswith(".py") and not Path(place).expanduser().is_file():
        return f"there is no file {text.plain(place)}"
    return None


def wrong_task(value: str) -> str | None:
    """What is wrong with a task of one's own, as far as can be seen without running it; an empty name is none."""
    from engine.tasks.registry import TASKS

    if not value or value in TASKS:
        return None
    place, colon, factory = value.rpartition(":")
    if not colon or not factory.isidentifier() or not place:
        return f"write it as path/task.py:factory or one of {', '.join(TASKS)}, or leave it empty"
    if place.endswith(".py") and not Path(place).expanduser().is_file():
        return f"there is no file {text.plain(place)}: `qtui new task.py` writes one to begin with"
    return None


def wrong_folder(value: str) -> str | None:
    return None if Path(value).expanduser().is_dir() else f"there is no folder {text.plain(value)}"


def wrong_text(value: str) -> str | None:
    return None if Path(value).expanduser().exists() else f"there is no file or folder {text.plain(value)}"


def wrong_inputs(value: str) -> str | None:
    """What is wrong with data of a task without labels: files, the name of a data set, or a shape."""
    return None if value.startswith("random:") or data_task(value) else wrong_text(value)


def wrong_file(value: str) -> str | None:
    return None if not value or Path(value).expanduser().is_file() else f"there is no file {text.plain(value)}"


def wrong_recipe(value: str) -> str | None:
    """What is wrong with a recipe file, in one line, or None; an empty name is none."""
    from engine.errors import EngineError

    try:
        if value:
            from_recipe(value)
    except (EngineError, OSError) as error:
        return text.one_line(error)
    return None


def from_recipe(path: str) -> Choice:
    """The choice that a recipe file makes. Raises UsageError."""
    from engine.recipe.recipe import Recipe

    place = str(Path(path).expanduser())
    recipe = Recipe.load(place)
    return Choice(
        recipe.model, recipe.data.name, recipe.weights or "", recipe.device, recipe.threshold, place, recipe.graph, recipe.task or ""
    )


def threshold_text(value: str, task: str = "classification") -> str:
    """A threshold as a person says it: a drop is counted as the metric of ``task`` is, ``own`` being one's own."""
    metric, _, number = value.partition(":")
    try:
        figure = float(number)
    except ValueError:
        return value
    match metric:
        case "drop" if task == TEXT:
            return f"perplexity at most {100 * figure:g} % up"
        case "drop" if task not in TASKS:
            return f"metric at most {figure:g} worse"
        case "drop" if task != "classification":
            return text.worse(TASKS[task].metric, figure)
        case "drop":
            return f"at most {100 * figure:g} points lost"
        case "agreement":
            return f"at least {100 * figure:g} % equal answers"
        case "sqnr":
            return f"SQNR of {figure:g} dB or more"
        case "mse":
            return f"error of {figure:g} or less"
    return value


def can_resume(run: RunSummary) -> bool:
    return run.state in RESUMABLE
