"""The rows and sentences of the first screen: pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qtui import text
from qtui.catalog import TEXT, Choice, Model, Place, can_resume, data_for, default_data, place, task_entry, task_name, threshold_text
from qtui.drawing.rows import Cell, Column, Row
from qtui.stage_table import digit
from qtui.state import Job, Training
from qtui.subject import short_name, short_names
from qtui.what_is_lost import of_stopped, place_of
from qtui.widgets.filter_bar import matches

if TYPE_CHECKING:
    from engine.models.language_registry import LanguageEntry
    from engine.runs.rundir import RunSummary

OWN = "+own"
MODEL_COLUMNS = (
    Column("model", "model", min=12, grow=1, priority=6),
    Column("params", "params", align="right", priority=3),
    Column("size", "fp32", align="right", priority=2),
    Column("weights", "weights", priority=4),
    Column("accuracy", "quality", align="right", priority=2),
    Column("input", "input", priority=1),
    Column("task", "task", priority=0),
)
RUN_COLUMNS = (
    Column("state", "", width=9, priority=5),
    Column("when", "started", width=11, priority=2),
    Column("model", "model", min=9, priority=4),
    Column("data", "data", min=6, priority=3),
    Column("values", "fp32 → now", align="right", priority=4),
    Column("what", "verdict", min=10, grow=1, cut="end", priority=1),
)
_WIDE = 100
_STATES = {
    "finished": ("●", "finished", "good"), "running": ("◐", "running", "accent"), "cancelled": ("◌", "stopped", "change"),
    "failed": ("✗", "failed", "harm"), "damaged": ("✗", "damaged", "harm"),
}  # fmt: skip


def model_rows(models: Sequence[Model], data: str | Place, wanted: str = "") -> tuple[Row, ...]:
    """One row a model that the filter ``wanted`` keeps, and one to give one's own before the many of torchvision."""
    here = place(data)
    held = [model for model in models if matches(wanted, (model.name, model.description), _queried(model, here))]
    names = short_names({model.name for model in models})
    own = Row(OWN, ("your own …", "", "", "file.py:factory"), role="dim")
    return (
        *(_model(model, names[model.name], here) for model in held if not model.of_torchvision), own,
        *(_model(model, names[model.name], here) for model in held if model.of_torchvision),
    )  # fmt: skip


def _queried(model: Model, here: Place) -> dict[str, object]:
    """What a filter can ask of a model beside its name."""
    return {"weights": model.where(here), "params": model.params, "task": model.task}


def _model(model: Model, name: str, here: Place) -> Row:
    value = model.accuracy.get(here.of(model.task).name)
    where = model.where(here)
    missing = where.startswith("to ")
    return Row(model.name, (
        name if model.own else model.name,
        "" if model.params is None else text.count(model.params),
        "" if model.bytes is None else text.size(model.bytes),
        Cell(where, "change" if missing else ""),
        _accuracy(model, value),
        _input(model),
        Cell(model.task, "dim"),
    ))  # fmt: skip


def _accuracy(model: Model, value: float | None) -> Cell | str:
    if model.language is not None:
        return "".join(f"perplexity {text.metric('perplexity', found)}" for found in model.accuracy.values())
    if value is None and model.published is not None:
        return Cell(f"ImageNet {100 * model.published.top1:.1f} %", "dim")
    return "" if value is None else text.titled(model.metric, value)


def _input(model: Model) -> str:
    """The one shape that a model takes, or the side of the images that its published weights expect."""
    if model.language is not None:
        return f"{model.language.context:,} tokens"
    if model.input:
        return model.input
    if model.shape is not None:
        return "×".join(map(str, model.shape))
    return f"3×{model.published.transform.size}×{model.published.transform.size}" if model.published else ""


def run_rows(runs: Sequence[RunSummary], wanted: str = "", width: int = 80) -> tuple[Row, ...]:
    """One row a run, newest first, in a window of ``width``; its key is the folder."""
    names = short_names({run.model for run in runs})
    held = (run for run in runs if matches(wanted, (run.model, run.data, run.directory.name), _asked(run)))
    return tuple(_run(run, names[run.model], width < _WIDE) for run in held)


def _asked(run: RunSummary) -> dict[str, object]:
    """What a filter can ask of a run beside its names."""
    return {"state": _STATES[run.state][1], "verdict": run.text, "started": run.started}


def _run(run: RunSummary, name: str, short: bool) -> Row:
    glyph, word, role = _STATES[run.state]
    values = ""
    if run.baseline is not None and run.value is not None:
        values = text.summaries(text.metric_of_run(run), run.baseline, run.value)
    role_of_row = "dim" if run.state in ("failed", "damaged") else ""
    when = run.started[5:16].replace("T", " ")
    verdict = _verdict(run, short) if run.state == "finished" else _stopped_at(run, short) if can_resume(run) else run.text
    cells = (Cell(word, role), when, name, short_name(run.data), values, verdict)
    return Row(str(run.directory), cells, role_of_row, glyph=glyph)


def _stopped_at(run: RunSummary, short: bool) -> str:
    """Where it goes on: ``QAT epoch 2 of 5, step 310``, where there is no room ``QAT 2/5 step 310``."""
    said = place_of(run) if run.text else "r resumes" if short else "r resumes it"
    return re.sub(r" epoch (\d+) of (\d+),?", r" \1/\2", said) if short else said


def _verdict(run: RunSummary, short: bool) -> str:
    """The few words of a verdict that tell runs apart: ``QAT · 7.1× smaller``, where there is no room ``QAT 7.1×``."""
    size = re.search(r"[\d.]+× (?:smaller|larger)", run.text)
    if short:
        # Of what stays in fp32 the better model's size would not say whose it is.
        times = size[0].removesuffix(" smaller") if size and run.chosen != "fp32" else ""
        return " ".join(filter(None, ((run.chosen or "").upper(), times))).replace("FP32", "fp32 stays")
    return " · ".join(filter(None, (f"{(run.chosen or '').upper()}", size[0] if size else ""))).replace("FP32", "fp32 stays")


def choice_parts(choice: Choice, reads_text: bool) -> tuple[tuple[str, str, str], ...]:
    """(key, name, value) of what a run would be asked, in the order in which a narrow window shows it: what was given comes before
    what stands by itself. A language model has a choice of graphs, and none of devices or weights."""
    task = TEXT if reads_text and not choice.task else task_name(choice.model, choice.task)
    data = ("d", "data", short_name(data_for(choice.data, task)))
    device = ("v", "device", choice.device)
    error = ("e", "error", threshold_text(choice.threshold, task))
    weights = ("w", "weights", short_name(choice.weights) or "as listed")
    recipe = ("O", "recipe", short_name(choice.recipe) or "none")
    graph = ("m", "graph", choice.graph)
    if ":" in choice.task:
        # A task of one's own brings its data.
        data = ("o", "task", short_name(choice.task))
    shown = [data, error, graph, recipe] if reads_text else [data, device, error, weights, recipe]
    if choice.task and ":" not in choice.task:
        shown = [data, ("a", "task", choice.task), *shown[1:]]
    shown.append(("s", "options", f"{len(choice.options)} given" if choice.options else "none"))
    given = {"s": bool(choice.options), "w": bool(choice.weights), "O": bool(choice.recipe), "o": True, "a": True}
    return tuple(sorted(shown, key=lambda part: not given.get(part[0], False)))


def model_sentence(model: Model | None, choice: Choice, here: Place | None = None) -> str:
    """About the model under the cursor, and what a key would do; ``here`` is the choice's data as it was looked at."""
    if model is None:
        return "Your own model: a callable without arguments that returns an nn.Module. ⏎ asks for it, as file.py:factory."
    task = task_name(model.name, choice.task)
    data = short_name(data_for(choice.data, task))
    if choice.recipe:
        return f"The recipe {short_name(choice.recipe)} decides the strategy. n loads {short_name(model.name)} on {data}."
    if model.own and model.text:
        return f"{model.name}: your own language model. n loads it with {data}; d gives other text."
    if model.own:
        if choice.task and ":" not in choice.task:
            return (
                f"{model.name} for {choice.task}: n runs its factory and measures {_metric_of(task)} on {data}. d gives your own data, "
                "w a weights file."
            )
        if choice.task:
            return f"{model.name} as {short_name(choice.task)} measures it: n runs both, and shows the graph. w gives a weights file."
        if choice.weights:
            return f"{model.name} with {short_name(choice.weights)}: n runs its factory, loads {data} and shows the graph."
        return f"{model.name}: n runs its factory, loads {data} and shows the graph. w gives a weights file, d other data, a another task."
    if model.language is not None:
        return _language_sentence(model, model.language, short_name(data_for(choice.data, TEXT)), choice.graph)
    where = model.where(here or choice.data)
    if where == "to train" and not choice.weights:
        return f"{model.name} has no weights for {data} yet: t trains a baseline here, w takes a file of weights, d chooses other data."
    if where == "to download" and not choice.weights and model.published:
        size = text.size(model.published.bytes)
        return f"{_sentence(model.description)} n downloads torchvision's weights ({size}), checks them, and shows the graph."
    if choice.weights:
        return f"{_sentence(model.description)} n loads it with {short_name(choice.weights)} and {data}, and shows its graph."
    if model.packaged and where == "in the package" and data == short_name(default_data(task)):
        return f"{_sentence(model.description)} Weights and data are in the package: a first run needs nothing but ⏎."
    return f"{_sentence(model.description)} n loads it with {data}, traces it and shows its graph."


def _metric_of(task: str) -> str:
    entry = task_entry(task)
    return entry.metric if entry else "its metric"


def _language_sentence(model: Model, entry: LanguageEntry, data: str, graph: str) -> str:
    told = _sentence(entry.description)
    if not entry.folder and not model.cached:
        file = text.size(entry.download)
        return f"{told} n downloads {file} from the Hugging Face hub: its weights, and masks that are no parameters."
    measured = "".join(
        f" Perplexity {text.metric('perplexity', value)} on the test part of {name}." for name, value in model.accuracy.items()
    )
    if graph == "export":
        return f"{told} n loads it; its graph ({digit('graph')}) will be every operation that torch.export sees, without their times."
    return f"{told}{measured} n loads it with {data} and shows its modules."


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def no_runs(kept: int, wanted: str) -> str:
    """What stands in a list of runs without a row; ``kept`` is how many there are without the filter ``wanted``."""
    return f"None of {kept} runs holds “{wanted}”: Esc shows all." if kept else "No runs yet: ⏎ on a model begins the first one."


def training_sentence(job: Job, training: Training) -> str:
    """About a baseline that is being trained."""
    if job.stopping:
        return "stopping … it is saved where it stands."
    what = f"A baseline of {short_name(job.model)} on {short_name(job.data)}: its best epoch is kept as the weights."
    best = (
        f" Best so far: epoch {training.best.epoch}, {text.titled(training.best.metric or 'accuracy', training.best.value)}."
        if training.best
        else ""
    )
    return f"{what}{best} X stops it and saves where it stands."


def run_sentence(run: RunSummary | None) -> str:
    """About the run under the cursor."""
    if run is None:
        return "Every run is kept here with its recipe, figures and files."
    if run.state == "finished":
        return f"⏎ opens it. {text.spaced(run.text)}"
    if run.state == "running":
        return f"{run.directory.name} is at work in another process; it can be opened when it has ended."
    if run.state == "damaged":
        return f"{run.directory.name} is damaged: {run.text}. ⏎ looks at what there is."
    if not can_resume(run):
        what = run.text or "it ended before it was finished"
        return f"{what[:1].upper()}{what[1:]}. ⏎ looks at what there is."
    return f"{of_stopped(run)}. r goes on there, ⏎ looks at what there is."
