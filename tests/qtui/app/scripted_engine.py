"""An engine that says what a real one says, without PyTorch: for tests of the app. ``ScriptedEngine`` follows the order of
``engine.runs.job``; ``Gate`` lets a test hold it at a place."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.errors import Cancelled
from engine.events import event as ev
from engine.events.cancellation import Interrupted, StopToken
from engine.recipe.decisions import Answer, Fold, Inspect, Sensitive, Strategy, Train
from engine.recipe.spec import ActivationSpec, LayerSpec, Rule, WeightSpec
from qtui.strategy_rules import resolve, rules_of

MACHINE = {
    "python": "3.11.7", "torch": "2.15.0", "torchvision": "0.29.2", "isa": "AVX512", "vnni": True, "saturates": False, "activation_bits": 8,
    "kernels": {"qconv_pointwise": None, "qlinear_pointwise": None}, "threads": 2, "processors": 2, "gpus": [],
    "packages": {"onnxruntime": None}, "folders": {"cache": "cache", "data": "data", "runs": "runs"},
}  # fmt: skip
W8A8 = LayerSpec(WeightSpec(8, "per-channel"), ActivationSpec(8))
W4A8 = LayerSpec(WeightSpec(4, "per-group", 32, "mse"), ActivationSpec(8))

NODES = tuple(
    ev.NodeRow(*row)
    for row in (
        ("placeholder", "x", "x", "", "", "N×3×32×32", 0, 0.0),
        ("call_module", "conv1", "conv1", "x", "", "N×32×32×32", 896, 0.31),
        ("call_module", "bn1", "bn1", "conv1", "", "N×32×32×32", 64, 0.09),
        ("call_function", "relu", "torch.relu", "bn1", "inplace=False", "N×32×32×32", 0, 0.06),
        ("call_module", "pool", "pool", "relu", "", "N×32×16×16", 0, 0.05),
        ("call_module", "conv2", "conv2", "pool", "", "N×64×16×16", 18496, 0.30),
        ("call_module", "bn2", "bn2", "conv2", "", "N×64×16×16", 128, 0.04),
        ("call_function", "relu_1", "torch.relu", "bn2", "inplace=False", "N×64×16×16", 0, 0.03),
        ("call_module", "pool_1", "pool", "relu_1", "", "N×64×8×8", 0, 0.02),
        ("call_method", "flatten", "flatten", "pool_1, 1", "", "N×4096", 0, 0.01),
        ("call_module", "fc1", "fc1", "flatten", "", "N×128", 524416, 0.07),
        ("call_function", "relu_2", "torch.relu", "fc1", "", "N×128", 0, 0.01),
        ("call_module", "fc2", "fc2", "relu_2", "", "N×10", 1290, 0.01),
        ("output", "output", "output", "fc2", "", "N×10", 0, 0.0),
    )
)
PAIRS = (ev.PairRow("conv1", "bn1", "conv1", "bn1"), ev.PairRow("conv2", "bn2", "conv2", "bn2"))
REFUSED = ev.PairRow("stem.conv", "stem.bn", "stem_conv", "stem_bn", "stem.conv is also read by add")


def layer(path: str, kind: str, params: int, shape: tuple[int, ...], spec: LayerSpec, why: str, share: float) -> ev.LayerRow:
    return ev.LayerRow(path, kind, path, params, shape, spec, spec, spec, "proposal", why, why, share, "onednn int8", True)


LAYERS = (
    layer("conv1", "Conv2d", 896, (32, 3, 3, 3), W8A8, "first layer: it sees the raw image; 0.2 % of the parameters, so 8 bits cost nothing", 0.40),
    layer("conv2", "Conv2d", 18496, (64, 32, 3, 3), W8A8, "convolution with 38 % of the time: int8 weights, one scale a channel", 0.38),
    layer("fc1", "Linear", 524416, (128, 4096), W4A8, "linear with 96 % of the parameters: four bits halve it again, groups of 32", 0.09),
    layer("fc2", "Linear", 1290, (10, 128), W8A8, "last layer: its errors go straight into the scores; 8 bits cost nothing", 0.01),
)  # fmt: skip


def planned(preset: str, rules: Sequence[Rule]) -> tuple[ev.LayerRow, ...]:
    asked = {row.path: row.requested for row in LAYERS} | resolve(LAYERS, preset, rules)
    return tuple(replace(row, requested=asked[row.path], actual=asked[row.path]) for row in LAYERS)


def bell(count: int, at: float = 0.5, width: float = 0.15, scale: int = 4000) -> tuple[int, ...]:
    return tuple(round(scale * math.exp(-(((i / count) - at) ** 2) / (2 * width**2))) for i in range(count))


WEIGHTS = tuple(
    ev.WeightRow(row.path, -0.8, 0.9, -0.9, 0.9, 0.1, 0.9, row.weight_shape[0], ev.Bins(-0.8, 1.7 / 64, bell(64))) for row in LAYERS
)
MEASURED: dict[str, dict[str, Any]] = {
    "baseline": {
        "metric": "accuracy", "value": 0.9972, "interval": 0.005, "size_bytes": 2_181_000, "latency_ms": {"p50": 0.31, "p95": 0.4, "batch": 1},
        "latency_batched_ms": {"p50": 6.2, "p95": 7.0, "batch": 64}, "kernel": "torch fp32 channels-last",
    },
    "ptq": {
        "value": 0.9944, "interval": 0.007, "error": {"mse": 1.9e-2, "sqnr_db": 31.2, "agreement": 0.9972}, "size_bytes": 312_000,
        "latency_ms": {"p50": 0.33, "p95": 0.41, "batch": 1}, "latency_batched_ms": {"p50": 1.8, "p95": 2.1, "batch": 64},
        "kernel": "onednn int8", "speedup": {"batch_1": 0.94, "batch_64": 3.4}, "simulated": False, "integer_layers": 4, "stored_layers": 0,
        "seconds": 0.6, "validation": {"value": 0.9861, "baseline": 0.9931, "error": {"mse": 2e-2, "sqnr_db": 30.9, "agreement": 0.99}},
    },
}  # fmt: skip
MEASURED["qat"] = {
    **MEASURED["ptq"], "value": 0.9972, "epochs": 3, "best_epoch": 2, "loss": [0.31, 0.2, 0.15], "validation_values": [0.98, 0.9931, 0.99],
    "error": {"mse": 0.9e-2, "sqnr_db": 34.0, "agreement": 1.0}, "kept": True, "why": "QAT is kept: its accuracy is 99.72% against PTQ's 99.44% on test",
}  # fmt: skip


def layer_rows(bonus: float = 0.0) -> tuple[dict[str, Any], ...]:
    figures = {"conv1": (38.1, 38.1), "conv2": (33.0, 36.9), "fc1": (24.3, 25.0), "fc2": (31.0, 41.2)}
    return tuple(
        {
            "name": row.path, "kind": row.kind, "requested": str(row.requested), "actual": str(row.actual), "kernel": "onednn int8",
            "reason": row.why, "rule": "proposal", "sqnr_db": figures[row.path][0] + bonus, "own_sqnr_db": figures[row.path][1] + bonus,
            "params": row.params, "time_share": row.time_share,
        }
        for row in LAYERS
    )  # fmt: skip


def verdict(which: str, met: bool = True) -> dict[str, Any]:
    end = "Threshold drop:0.005 is met." if met else "threshold drop:0.0001 is not met."
    facts = "99.44% on the test split (±0.7), 0.28 points under fp32; 7.0× smaller; 3.4× faster at batch 64"
    text = (
        f"{which.upper()} is chosen: {facts}. {end}"
        if met
        else f"fp32 stays: {end} The better quantized model, {which.upper()}, has {facts}."
    )
    return {"chosen": which if met else "fp32", "threshold": "drop:0.005" if met else "drop:0.0001", "met": met, "text": text}


def ranges(seen: int, total: int, final: bool = False) -> ev.Ranges:
    grow = 0.6 + 0.4 * seen / total
    rows = tuple(
        ev.RangeRow(
            row.path, (row.path,), 0.0, 8.9 * grow, 0.0, 6.3 * grow, ev.Bins(0.0, 8.9 * grow / 64, bell(64, 0.1, 0.2, 100 * seen)),
            settled=min(seen, 64 * (i + 1)) if seen > 64 * (i + 1) else None,
        )
        for i, row in enumerate(LAYERS)
    )  # fmt: skip
    return ev.Ranges(seen, total, rows, final)


def report(directory: str, qat: bool = False, met: bool = True, model: str = "simplecnn", data: str = "digits") -> dict[str, Any]:
    return {
        "schema": 1, "model": model, "data": {"name": data, "calibration": 512, "train": 1077, "validation": 360, "test": 360},
        "environment": {"torch": "2.15.0", "device": "cpu", "isa": "AVX512", "vnni": True, "threads": 2, "seed": 0, "weights": "from the package"},
        "graph": {"nodes": 14, "trace_delta": 0.0, "fused": [{"conv": "conv1", "bn": "bn1", "max_abs_delta": 2e-7}], "refused": [], "untraced": []},
        "layers": list(layer_rows(3.0 if qat else 0.0)), "baseline": MEASURED["baseline"], "ptq": MEASURED["ptq"],
        "qat": MEASURED["qat"] if qat else None, "verdict": verdict("qat" if qat else "ptq", met),
        "exports": [{
            "format": "safetensors", "path": "model.safetensors", "size_bytes": 312_000, "runtime": "torch 2.15.0",
            "parity": {"max_abs": 0.0, "sqnr_db": None, "agreement": 1.0}, "latency_ms": {"p50": 0.33, "p95": 0.41, "batch": 1},
        }],
    }  # fmt: skip


FILES = {"onnx": "model.onnx", "openvino": "model.xml", "pt2": "model.pt2"}


def exported(found: Mapping[str, Any], formats: Sequence[str]) -> dict[str, Any]:
    """A report with more exports, each faster than the one before."""
    base = {"format": "safetensors", "runtime": "torch 2.15.0", "path": "model.safetensors", "kernel": "onednn int8"}
    times = {"latency_ms": {"p50": 0.33, "p95": 0.41, "batch": 1}, "latency_batched_ms": {"p50": 1.8, "p95": 2.1, "batch": 64}}
    baseline = found["baseline"]
    rows = [
        {"format": "fp32", "runtime": baseline["kernel"], "path": "", "kernel": "fp32", "latency_ms": baseline["latency_ms"],
         "latency_batched_ms": baseline["latency_batched_ms"]},
        {**base, **times},
    ]  # fmt: skip
    entries = [entry for entry in found["exports"] if entry["format"] not in formats]
    for index, name in enumerate(formats, 1):
        single, batched = round(0.33 - index / 20, 2), round(1.8 - index / 10, 2)
        own = {
            "format": name, "runtime": f"{name} 1.0", "path": FILES[name], "kernel": "CPU int8",
            "latency_ms": {"p50": single, "p95": single, "batch": 1}, "latency_batched_ms": {"p50": batched, "p95": batched, "batch": 64},
        }  # fmt: skip
        parity = {"max_abs": 1.5e-2, "sqnr_db": 40.0, "agreement": 0.9972}
        entries.append({**own, "size_bytes": 320_000, "parity": parity, "value": 0.9944, "verified": True})
        rows.append(own)
    return {**found, "exports": entries, "runtimes": rows}


@dataclass
class Found:
    data: dict[str, Any]


@dataclass
class Gate:
    """Holds the script at a place (``calibrate``, ``epoch 2`` …) until it is opened; ``reached`` tells that it got there."""

    place: str
    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)


HARM = {"conv1": 0.001, "conv2": 0.004, "fc1": 0.04, "fc2": 0.005}


def estimates(measured: bool = False) -> ev.Sensitivities:
    """Each bit less doubles the error of the weights; activations cost a tenth of them. ``measured`` is of ``fc1`` at 4 bits."""
    found = []
    for path, harm in HARM.items():
        for bits in (8, 6, 4, 3, 2):
            drop = 0.0109 if measured and path == "fc1" and bits == 4 else None
            found.append(ev.LayerSensitivity(path, f"w{bits}", 6.0 * bits, harm * 4.0 ** (4 - bits), 1000 if bits > 4 else 500, drop))
        found.append(ev.LayerSensitivity(path, "a8", 40.0, harm / 10, 2000))
    return ev.Sensitivities(tuple(found), "kl", 64, 1.5, int(measured))


def looked(path: str, spec: LayerSpec, asked: bool = True) -> ev.RoundedLayer:
    """A layer under the microscope: a bell that is rounded to seven levels; channel 7 stands out."""
    before = bell(128, width=0.18)
    after = tuple(sum(before[i - 9 : i + 10]) if i % 19 == 7 else 0 for i in range(128))
    highs = tuple(2.0 if i == 0 else 0.4 - 0.002 * i for i in range(64))
    values = ranges(512, 512, final=True).rows[0] if asked else None
    return ev.RoundedLayer(
        path, spec, 64, ev.Bins(-1.0, 2 / 128, before), ev.Bins(-1.0, 2 / 128, after), tuple(-0.88 + 0.297 * i for i in range(7)),
        tuple(-high for high in highs), highs, (ev.ChannelRow(7, -2.0, 2.0),), 1, 0.34, 17.9, 0.21, 0.0003, values,
    )  # fmt: skip


class ScriptedEngine:
    """``met`` is whether PTQ meets the threshold; ``fail`` maps a place to an exception; ``gates`` hold the script."""

    def __init__(self, root: Path, met: bool = True, gates: tuple[Gate, ...] = (), fail: Mapping[str, BaseException] | None = None) -> None:
        self.root, self.met, self.gates, self.fail = root, met, gates, dict(fail or {})
        self.asked: list[Any] = []
        self.estimates = 0
        self.stop: StopToken | None = None
        self.answers: dict[str, Answer] = {}
        self.calls: list[tuple[str, Any]] = []

    def examine(self) -> dict[str, Any]:
        return dict(MACHINE)

    def _at(self, place: str, stop: StopToken) -> None:
        for gate in self.gates:
            if gate.place == place:
                gate.reached.set()
                while not gate.opened.wait(0.01):
                    stop.check()
        if place in self.fail:
            raise self.fail[place]
        stop.check()

    def run(self, recipe: Mapping[str, Any], stop: StopToken) -> Generator[ev.Event, Answer, Found]:
        self.calls.append(("run", dict(recipe)))
        directory = self.root / f"20260102-03040{sum(1 for kind, _ in self.calls if kind == 'run')}-simplecnn-digits"
        directory.mkdir(parents=True, exist_ok=True)
        return self._saved(directory, self._run(dict(recipe), directory, stop))

    def resume(self, directory: Path, stop: StopToken) -> Generator[ev.Event, Answer, Found]:
        self.calls.append(("resume", directory))
        return self._saved(directory, self._run({"model": "simplecnn", "data": {"name": "digits"}}, directory, stop, resumed=True))

    def train(self, model: str, data: str, stop: StopToken) -> Generator[ev.Event, Answer, Path]:
        self.calls.append(("train", (model, data)))
        yield ev.StageStarted("train", f"training {model} on {data}: 3 epochs")
        for epoch in (1, 2, 3):
            self._at(f"baseline {epoch}", stop)
            yield ev.Progress("train", 500, 1077, "img", 900.0, 1.0)
            yield ev.Step("train", epoch, 3, epoch * 17, 51, 0.9 / epoch, 0.02)
            yield ev.EpochFinished(epoch, 3, 0.9 / epoch, 0.9 + epoch / 100, 0.02, True, "train")
        return self.root / "weights.safetensors"

    def export(self, directory: Path, formats: Sequence[str], stop: StopToken) -> Generator[ev.Event, Answer, Found]:
        self.calls.append(("export", (directory, tuple(formats))))
        yield ev.StageStarted("export", "Exporting")
        done: list[str] = []
        try:
            for name in formats:
                yield ev.Notice(f"{name}: writing {FILES[name]}")
                self._at(f"export {name}", stop)
                yield ev.Progress("export", 180, 360, "img", 900.0, 0.2)
                self._at(f"compare {name}", stop)
                yield ev.Notice(f"{FILES[name]}: 0.32 MB, read back by {name} 1.0, largest difference 1.5e-02, same answer 99.72%")
                done.append(name)
        finally:
            found = exported(json.loads((directory / "report.json").read_text()), done)
            (directory / "report.json").write_text(json.dumps(found))
        yield ev.StageFinished("export", 1.0)
        yield ev.Finished(str(directory), True, "exported")
        return Found(found)

    def _saved(self, directory: Path, steps: Generator[ev.Event, Answer, Found]) -> Generator[ev.Event, Answer, Found]:
        """A run's folder as the engine leaves it, so that lists of runs and reopening work."""
        answer: Answer = None
        about = {"started": f"2026-01-02T03:04:0{len(self.calls)}", "model": "simplecnn", "data": "digits", "pid": 1, "text": ""}
        with (directory / "events.jsonl").open("a", encoding="utf-8") as journal:
            while True:
                try:
                    event = steps.send(answer)
                except StopIteration as end:
                    found: Found = end.value
                    (directory / "report.json").write_text(json.dumps(found.data))
                    about |= {"state": "finished", "text": found.data["verdict"]["text"], "chosen": found.data["verdict"]["chosen"]}
                    about |= {"baseline": 0.9972, "value": found.data["ptq"]["value"]}
                    (directory / "state.json").write_text(json.dumps(about))
                    return found
                except Cancelled:
                    (directory / "state.json").write_text(json.dumps({**about, "state": "cancelled", "text": "QAT epoch 2 of 3, step 8"}))
                    yield ev.Stopped(str(directory), "qat")
                    raise
                if not isinstance(event, ev.Progress):
                    journal.write(json.dumps(event.to_dict()) + "\n")
                    journal.flush()
                answer = yield event

    def _ask(self, key: Any, default: bool = True) -> Generator[ev.Event, Answer, Answer]:
        answer = yield ev.Ask(key, f"{key}?", default)
        if self.stop is not None:
            self.stop.check()
        self.asked.append(key)
        self.answers[key] = answer
        return answer

    def _run(self, recipe: dict[str, Any], directory: Path, stop: StopToken, resumed: bool = False) -> Generator[ev.Event, Answer, Found]:
        model, data = str(recipe.get("model", "simplecnn")), str((recipe.get("data") or {}).get("name", "digits"))
        self.stop = stop
        yield ev.StageStarted("load", f"Loading {model}")
        self._at("load", stop)
        yield ev.Notice(
            f"{model} with 545,290 parameters, weights from the package; {data}: 1,077 training, 360 validation and 360 test images"
        )
        yield ev.StageFinished("load", 0.2)
        settings = {"preset": "default", "rules": [], "threshold": "drop:0.005" if self.met else "drop:0.0001", **recipe}
        yield ev.Setting(
            str(directory), settings, {"device": "cpu", "isa": "AVX512", "vnni": True, "threads": 2, "weights": "from the package"}
        )
        yield ev.StageStarted("trace", "Tracing")
        self._at("trace", stop)
        yield ev.Graph("traced", NODES)
        yield ev.StageFinished("trace", 0.1)
        pairs = (*PAIRS, REFUSED)
        yield ev.Pairs(pairs)
        answer: Answer = True if resumed else (yield from self._ask("optimize"))
        yield ev.StageStarted("fuse", "Folding")
        self._at("fuse", stop)
        chosen = answer.bns if isinstance(answer, Fold) else ("bn1", "bn2") if answer is not False else ()
        done = tuple(replace(p, max_abs_delta=2.4e-7) if p.bn in chosen else p for p in pairs)
        yield ev.Pairs(done, 4.8e-7, 0.36, 0.31)
        into = {pair.bn_node: pair.conv_node for pair in done if pair.bn in chosen}
        yield ev.Graph("fused", tuple(replace(node, args=into.get(node.args, node.args)) for node in NODES if node.name not in into))
        yield ev.StageFinished("fuse", 0.1)
        yield from self._plan(settings, resumed, stop)
        yield ev.Inspected(tuple(looked(row.path, row.actual, asked=False) for row in LAYERS))
        yield ev.StageStarted("calibrate", "Calibrating on 512 training images")
        yield ev.Weights(WEIGHTS)
        for seen in range(64, 513, 64):
            self._at(f"calibrate {seen}", stop)
            yield ranges(seen, 512)
            yield ev.Progress("calibrate", seen, 512, "img", 2140.0, (512 - seen) / 2140)
        yield ranges(512, 512, final=True)
        yield ev.StageFinished("calibrate", 0.3)
        yield ev.StageStarted("convert", "Converting to integer kernels")
        yield ev.StageFinished("convert", 0.1)
        yield ev.StageStarted("evaluate", "Measuring on validation and test images")
        self._at("evaluate", stop)
        yield ev.Progress("evaluate", 360, 360, "img", 4000.0, 0.0)
        yield ev.Measured("baseline", MEASURED["baseline"])
        yield ev.Measured("ptq", MEASURED["ptq"])
        yield ev.Layers("ptq", layer_rows())
        yield ev.Judgement("ptq", verdict("ptq", self.met))
        yield ev.StageFinished("evaluate", 0.5)
        always = (recipe.get("qat") or {}).get("mode") == "always"
        answer = True if resumed or always else (yield from self._ask("qat", default=not self.met))
        trained = bool(answer) if answer is not None else not self.met
        if trained:
            yield from self._train(answer.epochs if isinstance(answer, Train) else 3, stop)
        yield ev.StageStarted("export", "Exporting")
        self._at("export", stop)
        yield ev.Notice("model.safetensors: 0.31 MB, read back, largest difference 0.0e+00")
        yield ev.StageFinished("export", 0.1)
        found = report(str(directory), trained, self.met or trained, model, data)
        yield ev.Finished(str(directory), found["verdict"]["met"], found["verdict"]["text"])
        return Found(found)

    def _plan(self, recipe: Mapping[str, Any], resumed: bool, stop: StopToken) -> Generator[ev.Event, Answer, None]:
        preset = str(recipe["preset"])
        layers = planned(preset, rules_of(recipe))
        while True:
            yield ev.StageStarted("plan", "Planning")
            self._at("plan", stop)
            yield ev.Planned(layers, preset, 8, 2_181_000)
            yield ev.StageFinished("plan", 0.0)
            answer: Answer = True if resumed else (yield from self._ask("quantize"))
            while isinstance(answer, Sensitive | Inspect):
                what = "inspect" if isinstance(answer, Inspect) else "sensitivity"
                yield ev.StageStarted(what, "Looking at it" if what == "inspect" else "Estimating what each layer costs")
                if isinstance(answer, Inspect):
                    self._at("inspect", stop)
                    yield ev.Inspected((looked(answer.path, answer.spec),))
                else:
                    self.estimates += 1
                    try:
                        with stop.beside():
                            self._at("estimate", stop)
                    except Interrupted:
                        answer = yield from self._ask("quantize")
                        continue
                    yield estimates(bool(answer.measured))
                yield ev.StageFinished(what, 1.5)
                answer = yield from self._ask("quantize")
            if not isinstance(answer, Strategy):
                return
            layers = planned(answer.preset, answer.rules)
            preset = answer.preset
            if answer.go:
                yield ev.Planned(layers, preset, 8, 2_181_000)
                return

    def _train(self, epochs: int, stop: StopToken) -> Generator[ev.Event, Answer, None]:
        yield ev.StageStarted("qat", f"Training for {epochs} epochs")
        values = (0.98, 0.9931, 0.99)
        for epoch in range(1, epochs + 1):
            for part in range(1, 5):
                self._at(f"epoch {epoch} part {part}", stop)
                yield ev.Progress("qat", part * 269, 1077, "img", 1480.0, (4 - part) * 0.2)
                done = (epoch - 1) * 17 + part * 4
                yield ev.Step("qat", epoch, epochs, done, epochs * 17, 0.41 * math.exp(-done / 30) + 0.1, 0.002)
            self._at(f"epoch {epoch}", stop)
            yield ev.EpochFinished(epoch, epochs, 0.3 / epoch, values[(epoch - 1) % 3], 0.001, epoch <= 2, "qat")
            if stop.wants_enough:
                break
        yield ev.StageFinished("qat", 3.0)
        yield ev.StageStarted("evaluate", "Measuring the trained model")
        self._at("evaluate qat", stop)
        yield ev.Measured("qat", MEASURED["qat"])
        yield ev.Layers("qat", layer_rows(3.0))
        yield ev.Judgement("qat", verdict("qat"))
        yield ev.StageFinished("evaluate", 0.5)
