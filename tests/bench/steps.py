"""Where a quantized network's time goes: the share of each kind of step, in one table a network.

usage: uv run python tests/bench/steps.py [--only efficientnet_b0] [--threads 1] [--batch 1] [--write FILE]

Weights are drawn at random from a fixed seed; images are smooth noise of 224 pixels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from runtimes import Case, Noise, network
from tables import put
from vision import converted

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from engine.lowering.graph.step_times import step_times

NETWORKS = (
    "efficientnet_b0", "densenet121", "mobilenet_v3_large", "regnet_y_400mf", "convnext_tiny", "shufflenet_v2_x1_0", "vit_b_16", "swin_t",
)  # fmt: skip
MARKS = ("<!-- bench:steps -->", "<!-- /bench:steps -->")
IMAGES, SIDE = 8, 224


def table(name: str, batch: int) -> list[str]:
    case = Case(name, SIDE, batch, IMAGES)
    data = Noise(SIDE, max(32, batch))
    model = converted(network(case, data), data, "w8a8", IMAGES, IMAGES)
    found = step_times(model, next(data.batches("train", batch))[0])
    whole = sum(kind.seconds for kind in found)
    lines = [f"**{name}**, batch {batch}: {1e3 * whole:.2f} ms", "", "| kind of step | steps | ms | share |", "|---|---:|---:|---:|"]
    lines += [f"| {kind.kind} | {kind.count} | {1e3 * kind.seconds:.2f} | {100 * kind.seconds / whole:.1f} % |" for kind in found]
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="names, divided by commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--write", type=Path, help="put the tables between the markers of this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines: list[str] = []
    for name in arguments.only.split(",") if arguments.only else NETWORKS:
        lines += table(name, arguments.batch)
        print("\n".join(lines[-40:]), file=sys.stderr, flush=True)
    text = "\n".join(lines)
    print(text)
    put(text, arguments.write, MARKS)


if __name__ == "__main__":
    main()
