"""``qtui models`` and ``qtui data``: what there is. Torch-free."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from engine.models.cached import cached_for
from engine.models.language_registry import LanguageEntry
from engine.models.registry import ModelEntry
from engine.models.size import file_size
from engine.models.text_registry import TextEntry
from engine.plain_text import escaped_json
from engine.tasks.registry import TASKS
from qtui import text
from qtui.catalog import recorded

IMAGENET = "imagenet"
# Under this name a data set lies in the cache once it has been downloaded.
CACHED_AS = {"cifar10": "cifar-10-batches-py"}


def models(args: Namespace) -> int:
    """The registry's models, with the weights that ship and how well they do."""
    from engine.models.language_registry import ENTRIES as LANGUAGE
    from engine.models.registry import ENTRIES
    from engine.models.text_registry import ENTRIES as TEXT_MODELS

    rows_of = {name: model_row(entry) for name, entry in ENTRIES.items() if entry.packaged}
    rows_of |= {name: text_row(entry) for name, entry in TEXT_MODELS.items()}
    rows_of |= {name: language_row(entry) for name, entry in LANGUAGE.items()}
    rows_of |= {name: model_row(entry) for name, entry in ENTRIES.items() if not entry.packaged}
    found = [row for name, row in rows_of.items() if fnmatchcase(name, args.filter or "*")]
    if args.json:
        return print_json(found)
    if not found:
        print(f"no model matches {text.plain(args.filter)}; qtui models lists them all")
        return 0
    rows = [(m["name"], m["task"], _count(m["params"]), _bytes(m["bytes"]), _input(m), _weights(m), m["description"]) for m in found]
    return print_table(("name", "task", "params", "fp32", "input", "weights, their metric on test", "what"), rows)


def model_row(entry: ModelEntry) -> dict[str, Any]:
    """One model as plain values; ``weights`` maps a data set to the recorded test accuracy, None where there is no record, and
    ``where`` to ``package``, ``cache`` or, for torchvision's on ``imagenet``, ``cached`` or ``to download``. ``size`` is the side
    of the images that published weights expect; ``shape`` is null where the model takes others too, and ``input`` says in words what
    it takes then; ``metric`` is what decides for its ``task``."""
    metric = TASKS[entry.task].metric if entry.task in TASKS else "accuracy"
    packaged = {data: path for data in entry.packaged if (path := entry.weights_for(data)) and path.is_file()}
    # What a run takes is the package's, where there are both.
    files = {**dict(cached_for(entry.name)), **packaged}
    order = [*packaged, *(data for data in files if data not in packaged)]
    published = entry.published
    size = file_size(next(iter(files.values()))) if files and published is None else None
    of_torchvision = {IMAGENET: published.top1} if published else {}
    state = {IMAGENET: "cached" if published.cached() else "to download"} if published else {}
    return {
        "name": entry.name,
        "description": entry.description,
        "shape": list(entry.shape) if entry.shape else None,
        "params": published.params if published else size.params if size else None,
        "bytes": published.bytes if published else size.bytes if size else None,
        "size": published.transform.size if published else None,
        "task": entry.task,
        "input": entry.input,
        "metric": metric,
        "weights": {**{data: recorded(files[data], metric) for data in order}, **of_torchvision},
        "where": {**{data: "package" if data in packaged else "cache" for data in order}, **state},
    }


def text_row(entry: TextEntry) -> dict[str, Any]:
    """A model on text that is no decoder, as ``model_row`` gives one."""
    size = file_size(entry.weights) if entry.place else None
    metric = TASKS[entry.task].metric
    return {
        "name": entry.name,
        "description": entry.description,
        "shape": None,
        "params": size.params if size else None,
        "bytes": size.bytes if size else None,
        "size": None,
        "task": entry.task,
        "input": "text",
        "metric": metric,
        "weights": {entry.data: entry.recorded(metric)} if size else {},
        "where": {entry.data: "package"} if size else {},
    }


def language_row(entry: LanguageEntry) -> dict[str, Any]:
    """A language model as ``model_row`` gives one: ``metric`` is perplexity, ``size`` the context in tokens, ``weights`` maps the text
    that it was trained on, or the hub's id, to the recorded perplexity on a test split."""
    measured = dict(entry.perplexity()) if entry.folder else {entry.hub: None}
    return {
        "name": entry.name,
        "description": entry.description,
        "shape": None,
        "params": entry.params,
        "bytes": 4 * entry.params,
        "size": entry.context,
        "task": "causal-lm",
        "input": f"{entry.context:,} tokens",
        "metric": "perplexity",
        "weights": measured,
        "where": dict.fromkeys(measured, entry.where),
    }


def data(args: Namespace) -> int:
    """The data sets, with where each one comes from."""
    from engine.data.images.cache import data_cache
    from engine.data.registry import ENTRIES
    from engine.data.text.corpora import ENTRIES as TEXTS

    cache = data_cache()
    found = [
        {
            "name": e.name,
            "description": e.description,
            "licence": e.licence,
            "task": e.task,
            "classes": e.classes,
            "shape": list(e.shape) if e.shape else None,
            "state": "offline" if e.offline else "cached" if (cache / CACHED_AS.get(e.name, e.name)).is_dir() else "to download",
        }
        for e in ENTRIES.values()
    ]
    found += [
        {
            "name": e.name,
            "description": e.description,
            "licence": e.licence,
            "task": "causal-lm",
            "classes": None,
            "shape": None,
            "state": e.where,
        }
        for e in TEXTS.values()
    ]
    if args.json:
        return print_json(found)
    rows = [(d["name"], d["task"], d["state"], d["description"], d["licence"]) for d in found]
    return print_table(("name", "task", "state", "what", "licence"), rows)


def tasks(args: Namespace) -> int:
    """The tasks, with the metric that decides."""
    found = [
        {"name": e.name, "metric": e.metric, "reads": e.reads, "data": e.data, "files": e.files, "what": e.title} for e in TASKS.values()
    ]
    if args.json:
        return print_json(found)
    rows = [(e["name"], e["metric"], e["data"], e["what"], e["files"]) for e in found]
    own = ("path/task.py:factory", "your own", "your own", "qtui new task.py writes one to begin with", "")
    header = ("name", "decides", "data by default", "what", "your own by --data")
    shown = [*rows, own]
    return print_table(header, shown) if any(row[-1] for row in rows) else print_table(header[:-1], [row[:-1] for row in shown])


def print_json(value: object) -> int:
    print(escaped_json(json.dumps(value, indent=2, ensure_ascii=False, default=str)), flush=True)
    return 0


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> int:
    from qtui.screen import Screen

    Screen(sys.stdout).table(columns, [["" if cell is None else str(cell) for cell in row] for row in rows])
    return 0


def _count(number: int | None) -> str:
    return "" if number is None else text.count(number)


def _bytes(number: int | None) -> str:
    return "" if number is None else text.size(number)


def _input(row: dict[str, Any]) -> str:
    if row["input"]:
        return str(row["input"])
    return "×".join(map(str, row["shape"])) if row["shape"] else str(row["size"] or "")


def _weights(row: dict[str, Any]) -> str:
    def one(data: str, accuracy: float | None) -> str:
        # A perplexity and an accuracy are known by their looks.
        figure = text.metric if row["metric"] == "perplexity" else text.titled
        known = data if accuracy is None else f"{data} {figure(row['metric'], accuracy)}"
        where = row["where"][data]
        return f"{known} (trained here)" if where == "cache" else known if where == "package" else f"{known} ({where})"

    return ", ".join(one(data, accuracy) for data, accuracy in row["weights"].items())
