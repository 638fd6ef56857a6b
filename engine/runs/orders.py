"""Both orders of folding and quantizing side by side, where the other one ran too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.recipe.recipe import Recipe
from engine.report.report import Report
from engine.runs.absolute import absolute


def with_orders(report: Report, recipe: Recipe, directory: Path) -> Report:
    """Both orders of folding and quantizing side by side, where the other one ran too: beside this run, or before it in
    the same folder."""
    later = () if recipe.quantize_first else recipe.fold_later
    key = absolute(recipe).model_copy(update={"quantize_first": False, "fold_later": later}).fingerprint()
    own = {"order": report.data["graph"]["order"], "key": key, "run": directory.name}
    report = Report({**report.data, "order_key": key})
    other = next((r for r in _others(directory) if r.get("order_key") == key and r["graph"]["order"] != own["order"]), None)
    if other is None:
        return report
    return Report({**report.data, "orders": [_order(report.data, directory.name), _order(other, other["run"])]})


def _others(directory: Path) -> list[dict[str, Any]]:
    places = [*directory.glob("previous/*/report.json"), *directory.parent.glob("*/report.json")]
    found = []
    for path in sorted(places, key=lambda p: p.stat().st_mtime, reverse=True)[:100]:
        try:
            found.append({**Report.load(path.parent).data, "run": path.parent.name})
        except EngineError:
            continue
    return found


def _order(data: Mapping[str, Any], run: str) -> dict[str, Any]:
    trained = data.get("qat")
    return {
        "order": data["graph"]["order"], "run": run, "ptq": data["ptq"]["value"], "ptq_mse": data["ptq"]["error"]["mse"],
        "qat": trained["value"] if trained else None, "qat_mse": trained["error"]["mse"] if trained else None,
        "chosen": data["verdict"]["chosen"],
    }  # fmt: skip
