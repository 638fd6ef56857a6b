"""Repair benchmark: ResNet-20 on CIFAR-10 at few bits by each method, calibrated on 512 images, measured on the 10,000 of the test split.

usage: uv run python tests/bench/repair.py --weights resnet20-12fca82f.th --data DIR [--rows w4,w3] [--methods gptq,hqq]

DIR holds cifar-10-batches-py. Each row is one run of the program's own stages on integer kernels; seeds are fixed, and test images
are used for no choice. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.data import registry
from engine.events.cancellation import StopToken
from engine.kernels.choose import kernels_for
from engine.kernels.probe import probe
from engine.lowering.graph import calibration, conversion, reconstructing
from engine.lowering.graph.fuse import find_pairs, fuse
from engine.lowering.graph.layers import plan
from engine.lowering.graph.layout import arrange
from engine.lowering.graph.tracing import trace
from engine.models.custom import build
from engine.models.weights_file import load_into
from engine.recipe.spec import ActivationSpec, LayerSpec, Rule, WeightSpec
from engine.tasks.base import Task
from engine.tasks.classification import Classification

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FACTORY = f"{Path(__file__).parent / 'resnet20.py'}:resnet20"
IMAGES, BATCH = 512, 64
EIGHT = LayerSpec(WeightSpec(8), ActivationSpec(8))
# What each row asks: bits of weights and activations, and whether the first and last layer have 8 bits; and the aim, in percent.
ROWS: dict[str, tuple[WeightSpec, int, bool, float | None]] = {
    "w4": (WeightSpec(4), 8, False, 91.65),
    "w4g32": (WeightSpec(4, "per-group", 32), 8, False, None),
    "w3": (WeightSpec(3), 8, False, 91.0),
    "w3e8": (WeightSpec(3), 8, True, 91.4),
    "w2e8": (WeightSpec(2), 8, True, 86.0),
    "w4a4": (WeightSpec(4), 4, False, 90.0),
    "w4a4e8": (WeightSpec(4), 4, True, 91.2),
}
# What is drawn: other methods give the same with any seed.
DRAWN = ("adaround", "brecq")


def drain(steps: Generator[Any, Any, Any]) -> Any:
    """The result of a stage, its events passed over."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


class Bench:
    """The folded network, and runs of it."""

    def __init__(self, weights: str, task: Task) -> None:
        self.task, self.machine = task, probe()
        model = build(FACTORY).eval()
        load_into(model, Path(weights), "resnet20")
        self.example = next(task.batches("train", batch=8, limit=8)).args[0]
        graph = drain(trace(model, self.example)).graph
        self.gm = fuse(graph, self.example, find_pairs(graph))[0]

    def row(self, name: str, method: str, seed: int) -> dict[str, Any]:
        """Test accuracy in percent, seconds of calibration and of rounding, and what is said of the layers. ``method`` may name repairs
        that follow it: ``gptq/bn_reestimation``."""
        method, *repairs = method.split("/")
        weights, bits, ends, _ = ROWS[name]
        rules = [Rule("conv1", EIGHT), Rule("linear", EIGHT)] if ends else []
        asked = LayerSpec(replace(weights, method=method), ActivationSpec(bits, observer="histogram-mse" if bits < 8 else "minmax"))
        specs = plan(self.gm, self.machine, "w8a8", [*rules, Rule("*", asked)]).specs()
        layout = arrange(self.gm, specs)
        inputs = conversion.watched(self.gm, layout, specs, IMAGES)
        begun, stop = time.perf_counter(), StopToken()
        grids = drain(calibration.calibrate(self.gm, layout, self.task, IMAGES, BATCH, "cpu", stop, readers=inputs))
        calibrated = time.perf_counter()
        rounded = drain(conversion.round_layers(self.gm, layout, specs, inputs, stop))
        steps = reconstructing.reconstructed(self.gm, layout, specs, grids, rounded, self.task, IMAGES, {}, seed, stop)
        rounded, grids = drain(steps)
        for repair in repairs:
            steps = reconstructing.corrected(
                self.gm, layout, specs, grids, rounded, self.task, IMAGES, {}, stop, repair == "bn_reestimation"
            )  # fmt: skip
            rounded, _ = drain(steps)
        done = time.perf_counter()
        model = drain(conversion.convert(rounded.graph, layout, grids, rounded.weights, kernels_for(self.machine))).model
        return {
            "accuracy": 100 * self.accuracy(model), "calibration": calibrated - begun, "rounding": done - calibrated,
            "notes": dict(rounded.notes),
        }  # fmt: skip

    @torch.inference_mode()
    def accuracy(self, model: Any) -> float:
        right = count = 0
        for batch in self.task.batches("test", batch=250):
            batch = batch.laid_out()
            right += int((model(*batch.args).argmax(1) == batch.targets).sum())
            count += batch.count
        return right / count


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", required=True, help="resnet20-12fca82f.th")
    parser.add_argument("--data", required=True, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {', '.join(ROWS)}")
    parser.add_argument("--methods", default="nearest,mse,hqq,gptq,hqq+gptq,adaround,brecq")
    parser.add_argument("--seeds", type=int, default=3, help="of the methods that draw")
    parser.add_argument("--results", type=Path, help="a file that keeps each row as it is done; rows that it has are not run again")
    parser.add_argument("--notes", action="store_true", help="say how each layer was rounded")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    kept: dict[str, Any] = json.loads(arguments.results.read_text()) if arguments.results and arguments.results.exists() else {}
    bench = Bench(arguments.weights, Classification(registry.load(arguments.data, mean=MEAN, std=STD)))
    if "fp32" not in kept:
        kept["fp32"] = 100 * bench.accuracy(bench.gm)
    print(f"**ResNet-20 on CIFAR-10**, fp32 {kept['fp32']:.2f} %, activations of {bench.machine.activation_bits} bits, {IMAGES} images\n")
    print("| row | to reach | method | top-1 | seeds | calibration | rounding |\n|---|---:|---|---:|---|---:|---:|", flush=True)
    for name in arguments.rows.split(","):
        for method in arguments.methods.split(","):
            found = []
            for seed in range(arguments.seeds if method.split("/")[0] in DRAWN else 1):
                key = f"{name} {method} {seed}"
                if key not in kept:
                    kept[key] = bench.row(name, method, seed)
                    if arguments.results:
                        arguments.results.write_text(json.dumps(kept))
                found.append(kept[key])
                if arguments.notes:
                    print("\n".join(f"{key} {node}: {note}" for node, note in found[-1]["notes"].items()), file=sys.stderr)
            print(_line(name, method, found), flush=True)


def _line(name: str, method: str, found: list[dict[str, Any]]) -> str:
    values = [row["accuracy"] for row in found]
    aim = ROWS[name][3]
    seeds = f"{', '.join(f'{value:.2f}' for value in values)}" if len(values) > 1 else ""
    calibration, rounding = (sum(row[part] for row in found) / len(found) for part in ("calibration", "rounding"))
    mean = sum(values) / len(values)
    return f"| {name} | {aim or ''} | {method} | {mean:.2f} % | {seeds} | {calibration:.1f} s | {rounding:.1f} s |"


if __name__ == "__main__":
    main()
