"""What a run found: contract 2 as plain JSON types, and as Markdown for a person."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import EngineError, one_line
from engine.plain_text import escaped_json
from engine.reading import MB, read_json
from engine.report.changed import section as changed
from engine.report.language import PERPLEXITY_THERE, exported, graph, perplexities, samples
from engine.report.limits import sentence as of_limits
from engine.report.markdown import number, table
from engine.report.measures import all_metrics, metrics_of
from engine.report.mismatch import DIFFERS, differs
from engine.report.runtimes import Runtime, fastest, paces, ratios, reference, runtimes
from engine.report.schema import REPORT, misfit
from engine.report.searched import section as searched
from engine.tasks.metrics import Metric

SCHEMA = 1
# A decoder of a thousand layers has a report of one or two.
_LARGEST = 64 * MB
_KEYS = ("model", "data", "environment", "graph", "layers", "baseline", "ptq", "qat", "verdict", "exports")


@dataclass(frozen=True)
class Report:
    data: dict[str, Any]

    @property
    def met(self) -> bool:
        return bool(self.data["verdict"]["met"])

    def to_json(self) -> str:
        """Strict JSON: a figure that is not finite becomes null, and what could steer a terminal is written as ``\\uXXXX``."""
        return escaped_json(json.dumps(finite(self.data), indent=1, ensure_ascii=False, allow_nan=False)) + "\n"

    def to_markdown(self) -> str:
        d = self.data
        parts = [f"# {d['model']} on {d['data']['name']}", "", d["verdict"]["text"], "", *_remedy(d), *_figures(d), "", *_limits(d)]
        parts += [*searched(d), *_exports(d), *changed(d), *samples(d), "## Layers", "", *_coverage(d), *_layers(d)]
        if d.get("operations"):
            parts += ["", "## Operations in fp32", "", *_operations(d)]
        parts += ["", "## Graph", "", *_graph(d), "", "## Environment", "", *_environment(d)]
        if d.get("orders"):
            parts += ["", "## Folding before or after quantization", "", *_orders(d)]
        return "\n".join(parts) + "\n"

    def shown(self, directory: Path) -> str:
        """``to_markdown`` of a report that was read from ``directory``. Raises EngineError where parts of it are missing or odd."""
        try:
            return self.to_markdown()
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
            said = f"{directory / 'report.json'} lacks figures or holds odd ones ({one_line(error)})"
            raise EngineError(f"{said}: {_again(directory)}, or see `qtui show {directory} --json`") from error

    @classmethod
    def load(cls, directory: Path) -> Report:
        """Raises EngineError when the folder holds no finished report."""
        path = directory / "report.json"
        try:
            data = read_json(path, _LARGEST)
        except FileNotFoundError as error:
            raise EngineError(
                f"{directory} holds no report.json ({error.strerror}): the run has not finished, `qtui resume {directory}` goes on with it"
            ) from error
        except OSError as error:
            raise EngineError(f"{path} cannot be read ({error.strerror or error}): {_again(directory)}") from error
        except ValueError as error:
            raise EngineError(f"{path} is not JSON ({one_line(error, 120)}): {_again(directory)}") from error
        if not isinstance(data, dict) or type(data.get("schema")) is not int:
            raise EngineError(f"{path} is not a report of schema {SCHEMA}: {_again(directory)}")
        if data["schema"] != SCHEMA:
            raise EngineError(
                f"{path} is not a report of schema {SCHEMA}: it belongs to another version, which has {data['schema']}: show it with that "
                f"one, or {_again(directory)}"
            )
        missing = [key for key in _KEYS if key not in data]
        if missing:
            raise EngineError(f"{path} lacks {', '.join(missing)}: {_again(directory)}")
        absent = [key for key in _KEYS if data[key] is None and key != "qat"]
        if damage := f"{absent[0]} is null" if absent else misfit(data, REPORT):
            raise EngineError(f"{path} is damaged ({damage}): {_again(directory)}")
        return cls(data)


def _again(directory: Path) -> str:
    return f"run it again with `qtui run --recipe {directory / 'recipe.yaml'}`"


def finite(value: Any) -> Any:
    """Plain JSON types, with null for a number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def _remedy(d: dict[str, Any]) -> list[str]:
    """Where the threshold is missed: the layers that cost most, and the cheapest remedy."""
    told = d["verdict"].get("remedy")
    return [told, ""] if told else []


def _figures(d: dict[str, Any]) -> list[str]:
    if _reads_text(d):
        return perplexities(d)
    metric = metrics_of(d)[0]
    forms = [("fp32", d["baseline"])] + [(k.upper(), d[k]) for k in ("ptq", "qat") if d.get(k)]
    heads = [f"p50 {head}" for head in paces(d).heads]
    header = ("", metric.name, "error (mse)", "SQNR", "agreement", "size", *heads, "runs on")
    rows = [_figure_row(name, found, metric) for name, found in forms]
    # What is not measured of a task, as equal answers of numbers, or a second latency, has no column.
    shown = [i for i in range(len(header)) if header[i] in ("", metric.name) or any(row[i] for row in rows)]
    cut = [tuple(row[i] for i in shown) for row in (header, *rows)]
    return [*table(cut[0], cut[1:]), *all_metrics(d)]


def _figure_row(name: str, e: dict[str, Any], metric: Metric) -> tuple[str, ...]:
    error = e.get("error") or {}
    times = [(e.get(key) or {}).get("p50") for key in ("latency_ms", "latency_batched_ms")]
    return (
        name, quality(metric, e), number(error.get("mse"), "{:.2e}"),
        number(error.get("sqnr_db"), "{:.1f} dB"), number(error.get("agreement"), "{:.2%}"), f"{e['size_bytes'] / 1e6:.2f} MB",
        *(number(p50, "{:.2f} ms") for p50 in times), e["kernel"],
    )  # fmt: skip


def quality(metric: Metric, e: dict[str, Any]) -> str:
    """``98.33 % ±0.8``; empty for a value that was not finite."""
    value, interval = e.get("value"), e.get("interval")
    return "" if value is None else metric.shown(value) + (f" {metric.half_width(interval)}" if interval else "")


def _limits(d: dict[str, Any]) -> list[str]:
    said = of_limits(d["limits"]) if isinstance(d.get("limits"), dict) else ""
    return [said, ""] if said else []


def _reads_text(d: dict[str, Any]) -> bool:
    return bool(d["baseline"]["metric"] == "perplexity")


def _exports(d: dict[str, Any]) -> list[str]:
    if not d["exports"]:
        return []
    text, metric = _reads_text(d), metrics_of(d)[0]
    rows = [_export_row(e, None if text else metric) for e in d["exports"]]
    answer, value = ("same likeliest token", "perplexity on what is compared") if text else ("same answer", metric.name)
    lines = ["## Exports", "", *table(("format", "file", "size", "read back by", answer, "SQNR", value), rows), ""]
    lines += [f"- {e['path']} is {e['alarm']}." for e in d["exports"] if e.get("alarm")]
    lines += [""] if lines[-1] else []
    if text:
        lines += [PERPLEXITY_THERE, ""]
    known = runtimes(d)
    if len(known) > 2:
        first, second = paces(d).heads
        header = ("runtime", "file", "computes with", f"{first} p50 / p95", f"{second} p50 / p95", f"speedup, {first}", second)
        lines += ["## Latency per runtime", "", *table(header, [_runtime_row(one, reference(known)) for one in known]), ""]
        if not all(one.together for one in known):
            apart = " and ".join(one.name for one in known if not one.together)
            lines += [f"{apart}: {paces(d).apart}.", ""]
        lines += [fastest(d), ""]
    return lines


def _runtime_row(one: Runtime, fp32: Runtime | None) -> tuple[str, ...]:
    times = [f"{t[0]:.2f} / {t[1]:.2f} ms" if t else "" for t in (one.single, one.batched)]
    return (one.name, one.file, one.kernel, *times, *(f"{r:.2f}×" if r else "" for r in ratios(one, fp32)))


def _export_row(e: dict[str, Any], metric: Metric | None) -> tuple[str, ...]:
    """Without a ``metric`` of a language model, whose perplexity is that of the first windows."""
    same = e.get("parity") or {}
    read = e["runtime"] if e.get("verified", bool(same)) else e.get("reason") or "not verified"
    read = e.get("reason") or DIFFERS if differs(e) else read
    sqnr, agreement = same.get("sqnr_db"), same.get("agreement")
    exact = "exact" if same.get("max_abs") == 0 else number(sqnr, "{:.1f} dB")
    size = f"{e['size_bytes'] / 1e6:.2f} MB" if e["path"] else ""
    value = exported(e) if metric is None else "" if e.get("value") is None else metric.shown(e["value"])
    return (e["format"], e["path"], size, read, number(agreement, "{:.2%}"), exact, value)


def _coverage(d: dict[str, Any]) -> list[str]:
    found = d.get("coverage")
    return [f"{found['text']}.", "", *_islands(d, found)] if found else []


def _islands(d: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Each island of a model whose root could not be traced, and what runs between them."""
    if not found.get("islands"):
        return []
    total = found["macs_total"] or 1
    rows = [
        (x["path"], x["kind"], str(x["calls"]), f"{x['integer_layers']} of {x['layers']}", f"{100 * x['macs'] / total:.1f} %",
         f"{100 * x['macs_integer'] / total:.1f} %", f"{100 * x['time_share']:.1f} %")
        for x in found["islands"]
    ]  # fmt: skip
    between = found["between"]
    names = ", ".join(x["path"] or x["kind"] for x in between["macs"][:3]) or "Python"
    outside = sum(x["macs"] for x in between["macs"])
    rows.append((f"between: {names}", "", "", "", f"{100 * outside / total:.1f} %", "", f"{100 * between['time_share']:.1f} %"))
    heads = ("island", "kind", "calls", "layers on integers", "multiply-adds", "on integers", "fp32 time")
    return [*table(heads, rows), *([f"The root is Python: {d['graph']['root']}.", ""] if d["graph"].get("root") else [])]


def _layers(d: dict[str, Any]) -> list[str]:
    """The layers, by what they cost where that was estimated, else in the model's order."""
    told = [x for x in d["layers"] if x.get("harm")]
    ordered = sorted(d["layers"], key=lambda x: -(x.get("harm") or 0.0)) if told else d["layers"]
    rows = [
        (x["name"], x["kind"], x["requested"], x["actual"], x["kernel"], number(x["sqnr_db"], "{:.1f} dB"),
         *((number(x.get("harm"), "{:.1e}"),) if told else ()), f"{x['params']:,}", f"{100 * x['time_share']:.1f} %", x["reason"])
        for x in ordered
    ]  # fmt: skip
    harm = ("estimated harm",) if told else ()
    return table(("layer", "kind", "requested", "actual", "runs on", "SQNR", *harm, "parameters", "fp32 time", "why"), rows)


def _operations(d: dict[str, Any]) -> list[str]:
    return table(("operation", "times", "why"), [(o["operation"], str(o["count"]), o["reason"]) for o in d["operations"]])


def _graph(d: dict[str, Any]) -> list[str]:
    g = d["graph"]
    if d.get("lowering") == "modules" or _reads_text(d):
        return [graph(g)]
    lines = [f"{g['nodes']} nodes traced, differing from the model by at most {g['trace_delta']:.1e}."]
    lines += [f"- {p['conv']} + {p['bn']}: folded, largest change {p['max_abs_delta']:.1e}" for p in g["fused"]]
    lines += [f"- {p['conv']} + {p['bn']}: not folded: {p['reason']}" for p in g["refused"]]
    return lines + [f"- {leaf['path']} ({leaf['kind']}) stays whole: {leaf['reason']} ({leaf['where']})" for leaf in g["untraced"]]


def _environment(d: dict[str, Any]) -> list[str]:
    return [f"- {key}: {value}" for key, value in d["environment"].items()]


def _orders(d: dict[str, Any]) -> list[str]:
    metric = metrics_of(d)[0]

    def shown(value: float | None) -> str:
        return "" if value is None else metric.shown(value)

    rows = [(o["order"], shown(o["ptq"]), number(o["ptq_mse"], "{:.3e}"), shown(o["qat"]), o["run"]) for o in d["orders"]]
    return table(("order", f"PTQ {metric.name}", "PTQ error", f"QAT {metric.name}", "run"), rows)
