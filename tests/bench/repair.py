"""Repair benchmark: ResNet-20 on CIFAR-10 at few bits by each method, calibrated on 512 images, measured on the 10,000 of the test split.

usage: uv run python tests/bench/repair.py --weights resnet20-12fca82f.th --data DIR [--rows w4,w3] [--methods gptq,hqq]

DIR holds cifar-10-batches-py. Each row is one run of the program's own stages on integer kernels; seeds are fixed, and test images
are used for no choice. Prints a table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from engine.data import registry
from engine.events.cancellation import StopToken
from engine.kernels.choose import kernels_for
from engine.kernels.probe import probe
from engine.lowering.graph import calibration, conversion
from engine.lowering.graph.fuse import find_pairs, fuse
from engine.lowering.graph.layout import arrange
from engine.lowering.graph.tracing import trace
from engine.models.custom import build
from engine.models.weights_file import load_into
from engine.planning.plan import plan
from engine.recipe.spec import ActivationSpec, LayerSpec, Rule, WeightSpec
from engine.tasks.base import Task
from engine.tasks.classification import Classification

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FACTORY = f"{Path(__file__).parent / 'resnet20.py'}:resnet20"
IMAGES, BATCH = 512, 64
EIGHT = LayerSpec(WeightSpec(8), ActivationSpec(8))
# What each row asks: bits, granularity, and whether the first and last layer have 8 bits.
ROWS: dict[str, tuple[WeightSpec, bool]] = {
    "w4": (WeightSpec(4), False),
    "w4g32": (WeightSpec(4, "per-group", 32), False),
    "w3": (WeightSpec(3), False),
    "w3e8": (WeightSpec(3), True),
    "w2e8": (WeightSpec(2), True),
}


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

    def row(self, weights: WeightSpec, ends: bool) -> tuple[float, float, float, list[str]]:
        """Test accuracy, seconds of calibration, seconds of rounding, and what is said of the layers."""
        rules = [Rule("conv1", EIGHT), Rule("linear", EIGHT)] if ends else []
        specs = plan(self.gm, self.machine, "w8a8", [*rules, Rule("*", LayerSpec(weights, ActivationSpec(8)))]).specs()
        layout = arrange(self.gm, specs)
        inputs = conversion.watched(self.gm, layout, specs, IMAGES)
        readers = {node: moments.add for node, moments in inputs.items()}
        begun = time.perf_counter()
        stop = StopToken()
        grids = drain(calibration.calibrate(self.gm, layout, self.task, IMAGES, BATCH, "cpu", stop, readers=readers))
        calibrated = time.perf_counter()
        rounded = drain(conversion.round_layers(self.gm, layout, specs, inputs, stop))
        done = time.perf_counter()
        model = drain(conversion.convert(rounded.graph, layout, grids, rounded.weights, kernels_for(self.machine))).model
        return self.accuracy(model), calibrated - begun, done - calibrated, [f"{n}: {note}" for n, note in rounded.notes.items()]

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
    parser.add_argument("--methods", default="nearest,mse,hqq,gptq,hqq+gptq")
    parser.add_argument("--notes", action="store_true", help="say how each layer was rounded")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    bench = Bench(arguments.weights, Classification(registry.load(arguments.data, mean=MEAN, std=STD)))
    fp32 = 100 * bench.accuracy(bench.gm)
    print(f"**ResNet-20 on CIFAR-10**, fp32 {fp32:.2f} %, activations of {bench.machine.activation_bits} bits, {IMAGES} images\n")
    print("| row | method | top-1 | calibration | rounding |\n|---|---|---:|---:|---:|", flush=True)
    for name in arguments.rows.split(","):
        weights, ends = ROWS[name]
        for method in arguments.methods.split(","):
            spec = WeightSpec(weights.bits, weights.granularity, weights.group_size, method)
            value, calibrating, rounding, notes = bench.row(spec, ends)
            print(f"| {name} | {method} | {100 * value:.2f} % | {calibrating:.1f} s | {rounding:.1f} s |", flush=True)
            if arguments.notes:
                print("\n".join(notes), file=sys.stderr)


if __name__ == "__main__":
    main()
