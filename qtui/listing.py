"""``qtui models`` and ``qtui data``: what there is. Torch-free."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from engine.models.cached import cached_for
from engine.models.registry import ModelEntry
from qtui import text

# Under this name a data set lies in the cache once it has been downloaded.
CACHED_AS = {"cifar10": "cifar-10-batches-py"}


def models(args: Namespace) -> int:
    """The registry's models, with the weights that ship and how well they do."""
    from engine.models.registry import ENTRIES

    found = [model_row(entry) for name, entry in ENTRIES.items() if fnmatchcase(name, args.filter or "*")]
    if args.json:
        return print_json(found)
    if not found:
        print(f"no model matches {args.filter}; qtui models lists them all")
        return 0
    rows = [(m["name"], "×".join(map(str, m["shape"])), _weights(m), m["description"]) for m in found]
    return print_table(("name", "input", "weights, test accuracy", "what"), rows)


def model_row(entry: ModelEntry) -> dict[str, Any]:
    """One model as plain values; ``weights`` maps a data set to the recorded test accuracy, None where there is no record, and
    ``where`` to ``package`` or ``cache``."""
    packaged = {data: path for data in entry.packaged if (path := entry.weights_for(data)) and path.is_file()}
    # What a run takes is the package's, where there are both.
    files = {**dict(cached_for(entry.name)), **packaged}
    order = [*packaged, *(data for data in files if data not in packaged)]
    return {
        "name": entry.name,
        "description": entry.description,
        "shape": list(entry.shape) if entry.shape else None,
        "weights": {data: _accuracy(files[data]) for data in order},
        "where": {data: "package" if data in packaged else "cache" for data in order},
    }


def data(args: Namespace) -> int:
    """The data sets, with where each one comes from."""
    from engine.data.cache import data_cache
    from engine.data.registry import ENTRIES

    cache = data_cache()
    found = [
        {
            "name": e.name,
            "description": e.description,
            "licence": e.licence,
            "classes": e.classes,
            "shape": list(e.shape) if e.shape else None,
            "state": "offline" if e.offline else "cached" if (cache / CACHED_AS.get(e.name, e.name)).is_dir() else "to download",
        }
        for e in ENTRIES.values()
    ]
    if args.json:
        return print_json(found)
    rows = [(d["name"], d["state"], d["description"], d["licence"]) for d in found]
    return print_table(("name", "state", "what", "licence"), rows)


def print_json(value: object) -> int:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str), flush=True)
    return 0


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> int:
    from qtui.screen import Screen

    Screen(sys.stdout).table(columns, [["" if cell is None else str(cell) for cell in row] for row in rows])
    return 0


def _accuracy(weights: Path) -> float | None:
    try:
        return float(json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))["test_accuracy"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _weights(row: dict[str, Any]) -> str:
    def one(data: str, accuracy: float | None) -> str:
        known = data if accuracy is None else f"{data} {text.metric('accuracy', accuracy)}"
        return f"{known} (trained here)" if row["where"][data] == "cache" else known

    return ", ".join(one(data, accuracy) for data, accuracy in row["weights"].items())
