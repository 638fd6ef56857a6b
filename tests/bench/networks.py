"""Many networks of torchvision beside ONNX Runtime int8 and OpenVINO int8: one line each, latencies as ratios.

usage: uv run --group bench python tests/bench/networks.py [--only resnet18,vit_b_16] [--threads 2] [--batch 1] [--images 64]
       [--rounds 30] [--least] [--write FILE]

Weights are drawn at random from a fixed seed and images are smooth noise of 224 pixels. All runtimes of a network are measured in one
process, on the same threads, in turns; a runtime that does not take a network says why.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from peers import Peer, fp32_peers, int8_peers, timed
from runtimes import OPENVINO, Case, Noise, network, sqnr
from tables import put
from vision import bind, ours

from engine.errors import one_line
from engine.kernels.probe import probe

NETWORKS = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf",
    "shufflenet_v2_x1_0", "densenet121", "googlenet", "squeezenet1_1", "convnext_tiny", "vit_b_16", "swin_t",
)  # fmt: skip
MARKS = ("<!-- bench:networks -->", "<!-- /bench:networks -->")
FP32, ORT, SIDE, PART = "torch fp32 channels-last", "ONNX Runtime int8 min-max", 224, 16


def tried(make: Callable[[], list[Peer]], what: str, notes: list[str]) -> list[Peer]:
    try:
        return make()
    except Exception as error:
        notes.append(f"{what}: {type(error).__name__}: {one_line(error, 120)}")
        return []


def row(
    name: str, batch: int, images: int, threads: int, rounds: int, figure: Callable[[list[float]], float], notes: list[str]
) -> tuple[str, float | None, float | None]:
    """A line of the table, and our latency in parts of OpenVINO's and ONNX Runtime's."""
    data = Noise(SIDE, max(images, batch, 32))
    model = network(Case(name, SIDE, batch, PART), data)
    example = next(data.batches("train", batch))[0]
    calibration = [x.numpy() for x, _ in data.batches("train", PART, limit=images)]
    vnni = probe().activation_bits == 8
    found = [peer for peer in fp32_peers(model, example, threads, batch) if peer.name == FP32]
    for which in ("ONNX Runtime int8", "OpenVINO int8 (NNCF)"):
        found += tried(
            lambda which=which: int8_peers(model, example, calibration, threads, vnni=vnni, batch=batch, only=which),  # type: ignore[misc]
            f"{name}, {which}", notes,
        )  # fmt: skip
    found += tried(lambda: [ours(model, data, "w8a8", images, PART)], f"{name}, qtui", notes)
    x = example.numpy()
    times = {name: figure(ms) for name, ms in timed({peer.name: bind(peer.run, x) for peer in found}, rounds, 3).items()}
    exact, own = found[0].run(x), found[-1].name
    noise = {peer.name: sqnr(exact, peer.run(x)) for peer in found[1:]}
    ratios = [times[own] / times[peer] if peer in times else None for peer in (OPENVINO, ORT)]
    cells = [f"{times[peer]:.2f}" if peer in times else "–" for peer in (FP32, ORT, OPENVINO, own)]
    cells += ["–" if ratio is None else f"**{ratio:.2f}**" for ratio in ratios]
    cells += [f"{noise[peer]:.1f}" if peer in noise else "–" for peer in (ORT, OPENVINO, own)]
    cells += [f"{peer.seconds:.1f}" if peer else "–" for key in (ORT, OPENVINO, own) for peer in [named(found, key)]]
    return f"| {name} | {' | '.join(cells)} |", ratios[0], ratios[1]


def named(peers: list[Peer], name: str) -> Peer | None:
    return next((peer for peer in peers if peer.name == name), None)


def mean(ratios: list[float]) -> str:
    return f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}" if ratios else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="names, divided by commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--least", action="store_true", help="least times instead of medians, for a machine with other work")
    parser.add_argument("--write", type=Path, help="put the table between the markers of this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    notes: list[str] = []
    lines = [
        f"Batch {arguments.batch}, 224 pixels, {arguments.images} calibration images, {arguments.threads} threads; "
        f"{'least' if arguments.least else 'median'} of {arguments.rounds} in ms, SQNR in dB",
        "",
        "| | fp32 | ORT int8 | OpenVINO int8 | qtui | to OpenVINO | to ORT | SQNR ORT | OpenVINO | qtui | seconds ORT | OpenVINO | qtui |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    pairs = []
    for name in arguments.only.split(",") if arguments.only else NETWORKS:
        line, *ratios = row(
            name,
            arguments.batch,
            arguments.images,
            arguments.threads,
            arguments.rounds,
            min if arguments.least else statistics.median,
            notes,
        )
        pairs.append(ratios)
        lines.append(line)
        print(line, file=sys.stderr, flush=True)
    means = [mean([ratio for ratio in column if ratio is not None]) for column in zip(*pairs, strict=True)]
    machine = probe()
    about = {"ISA": machine.isa, "VNNI": machine.vnni, "torch": torch.__version__}
    lines += ["", f"Geometric mean: {means[0]} of OpenVINO int8, {means[1]} of ONNX Runtime int8.", *notes, ""]
    lines.append(f"{json.dumps(about)[1:-1].replace(chr(34), '')}; latencies vary between machines, read them as ratios.")
    text = "\n".join(lines)
    print(text)
    put(text, arguments.write, MARKS)


if __name__ == "__main__":
    main()
