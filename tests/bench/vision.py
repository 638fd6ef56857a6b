"""Vision benchmark: this program beside ONNX Runtime and OpenVINO with NNCF, in one process, on the same threads.

usage: uv run --group bench python tests/bench/vision.py --weights resnet20-12fca82f.th --data DIR [--qat] [--write FILE]

DIR holds cifar-10-batches-py. Prints one table, and with --write puts it between the markers of that file.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from peers import Peer, accuracy, fp32_peers, int8_peers, latency, missing
from tables import put
from torch import nn

from engine.data import registry
from engine.data.images.base import Data
from engine.events.cancellation import StopToken
from engine.kernels.choose import kernels_for
from engine.kernels.probe import probe
from engine.lowering.graph import calibration, conversion, folding, tracing
from engine.lowering.graph.artifact import to_bytes
from engine.lowering.graph.fp32_forms import fp32_size
from engine.lowering.graph.plan import plan
from engine.lowering.graph.runtime import QuantizedModel
from engine.models.custom import build
from engine.models.registry import find
from engine.models.weights_file import load_into
from engine.recipe.recipe import Recipe
from engine.runs.pipeline import run
from engine.tasks.base import Batch
from engine.tasks.classification import Classification

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FACTORY = f"{Path(__file__).parent / 'resnet20.py'}:resnet20"
CALIBRATION = 512
THREADS = 2
MARKS = ("<!-- bench:vision -->", "<!-- /bench:vision -->")


def drain(steps: object) -> object:
    """The result of a stage, its events passed over."""
    while True:
        try:
            next(steps)  # type: ignore[call-overload]
        except StopIteration as end:
            return end.value


def ours(
    model: nn.Module, data: Data, preset: str, images: int = CALIBRATION, batch: int = 64, told: Callable[[str], None] = lambda place: None
) -> Peer:
    """Trace to converted model through the program's own stages, each timed; ``told`` hears where calibration begins and ends."""
    quantized, parts, size = staged(model, data, preset, images, batch, told)
    name = f"qtui {preset}" + (" (simulated)" if quantized.simulated else "")
    return Peer(name, f"torch {torch.__version__}", sum(parts.values()), parts, size, lambda x: quantized(torch.from_numpy(x)).numpy())


def converted(model: nn.Module, data: Data, preset: str, images: int, batch: int) -> QuantizedModel:
    return staged(model, data, preset, images, batch)[0]


def staged(
    model: nn.Module, data: Data, preset: str, images: int, batch: int, told: Callable[[str], None] = lambda place: None
) -> tuple[QuantizedModel, dict[str, float], int]:
    """The quantized model, the seconds of each stage and the size of its file in bytes."""
    machine, parts = probe(), {}
    recipe = Recipe.make(model="bench", preset=preset)
    mark = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal mark
        parts[name], mark = time.perf_counter() - mark, time.perf_counter()

    example, _ = next(data.batches("train", 8, limit=8))
    traced = drain(tracing.trace(model, example))
    lap("trace")
    pairs = drain(folding.analyze(traced.graph))
    fused, _, _ = drain(folding.fuse(traced, Batch((example,), count=len(example)), pairs))
    lap("fuse")
    made, layout = drain(plan(fused, machine, kernels_for(machine), recipe, traced.time_share, fp32_size(fused)))
    lap("plan")
    told("calibrating")
    grids = drain(calibration.calibrate(fused, layout, Classification(data), images, batch, "cpu", StopToken()))
    told("calibrated")
    lap("calibrate")
    weights = conversion.round_weights(fused, layout, made.specs())
    quantized: QuantizedModel = drain(conversion.convert(fused, layout, grids, weights, kernels_for(machine))).model  # type: ignore[attr-defined]
    lap("convert")
    return quantized, parts, len(to_bytes(quantized.program, recipe.to_yaml(), machine.isa))


def numpy_batches(data: Data, split: str, batch: int, limit: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for x, y in data.batches(split, batch, limit=limit):  # type: ignore[arg-type]
        yield x.numpy(), y.numpy()


def rows_for(title: str, model: nn.Module, data: Data, presets: tuple[str, ...], rounds: int) -> list[str]:
    """One table: accuracy on the whole test split, seconds to quantize, size, latency at batch 1 and 64."""
    example, _ = next(data.batches("train", 8, limit=8))
    calibration = [x for x, _ in numpy_batches(data, "train", 64, CALIBRATION)]
    ours(model, data, presets[0], 64)  # The first use of each kernel loads it; peers are warmed alike.
    found = [*fp32_peers(model, example, THREADS), *int8_peers(model, example, calibration, THREADS, vnni=probe().activation_bits == 8)]
    found += [ours(model, data, preset) for preset in presets]
    one, many = (next(numpy_batches(data, "test", n, n))[0] for n in (1, 64))
    b1 = latency({p.name: bind(p.run, one) for p in found}, rounds)
    b64 = latency({p.name: bind(p.run, many) for p in found}, max(rounds // 3, 10))
    lines = [f"**{title}**, {CALIBRATION} calibration images, {data.count('test'):,} test images, {THREADS} threads", ""]
    lines += ["| | top-1 | seconds to quantize | size | batch 1 p50 / p95 | batch 64 p50 / p95 |", "|---|---:|---:|---:|---:|---:|"]
    for p in found:
        top = accuracy(p.run, numpy_batches(data, "test", 250))
        seconds = f"{p.seconds:.2f}" if "fp32" not in p.name else "–"
        times = " | ".join(f"{t[p.name][0]:.2f} / {t[p.name][1]:.2f} ms" for t in (b1, b64))
        lines.append(f"| {p.name} | {100 * top:.2f} % | {seconds} | {p.size_bytes / 1e3:,.0f} kB | {times} |")
        print(lines[-1], "  ".join(f"{k} {v:.2f}" for k, v in p.parts.items()), file=sys.stderr, flush=True)
    return [*lines, ""]


def bind(call: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> Callable[[], object]:
    return lambda: call(x)


def memory(arguments: argparse.Namespace) -> list[str]:
    """Peak memory of a process that calibrates on few and on all training images."""
    sizes = (CALIBRATION, 50_000)
    command = [sys.executable, "-W", "ignore", __file__, "--weights", arguments.weights, "--data", arguments.data]
    found = []
    for size in sizes:
        done = subprocess.run([*command, "--calibrate-only", str(size)], capture_output=True, text=True, check=True)
        found.append(done.stdout.split()[-2:])
    cells = ", ".join(f"{int(peak) / 1e3:,.0f} MB with {int(used):,} images" for used, peak in found)
    return [f"Peak memory of a process that loads CIFAR-10 and calibrates ResNet-20: {cells}.", ""]


def four_bits(arguments: argparse.Namespace) -> list[str]:
    """4-bit weights in every layer: rounded to nearest on MSE-optimal steps, then trained."""
    lines = ["**ResNet-20, 4-bit weights everywhere**, 8-bit activations, first and last layer included", ""]
    lines += ["| | top-1 | error (mse) | SQNR | runs on |", "|---|---:|---:|---:|---|"]
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.make(
            model=FACTORY, weights=arguments.weights, preset="w4a8", data={"name": arguments.data, "mean": MEAN, "std": STD},
            qat={"mode": "always", "epochs": arguments.epochs},
        )  # fmt: skip
        report = drain(run(recipe, Path(folder) / "run", StopToken())).data  # type: ignore[union-attr]
    lines.append(f"| fp32 | {100 * report['baseline']['value']:.2f} % | | | {report['baseline']['kernel']} |")
    for name, what in (("ptq", "PTQ"), ("qat", f"QAT, {arguments.epochs} epochs, {report['qat']['seconds'] / 60:.0f} min")):
        e = report[name]
        lines.append(f"| {what} | {100 * e['value']:.2f} % | {e['error']['mse']:.2e} | {e['error']['sqnr_db']:.1f} dB | {e['kernel']} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="resnet20-12fca82f.th")
    parser.add_argument("--data", required=True, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--qat", action="store_true", help="also train with 4-bit weights (a quarter of an hour)")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--write", type=Path, help="put the table between the markers of this file")
    parser.add_argument("--calibrate-only", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    resnet = build(FACTORY).eval()
    load_into(resnet, Path(arguments.weights), "resnet20")
    cifar = registry.load(arguments.data, mean=MEAN, std=STD)
    if arguments.calibrate_only:
        ours(resnet, cifar, "w8a8", arguments.calibrate_only)
        print(cifar.count("train", arguments.calibrate_only), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    for line in missing():
        print(line, file=sys.stderr)
    simplecnn = find("simplecnn")
    small, packaged = simplecnn.build(10).eval(), simplecnn.weights_for("cifar10")
    assert packaged is not None
    load_into(small, packaged, "simplecnn")
    lines = rows_for("ResNet-20 on CIFAR-10", resnet, cifar, ("w8a8",), arguments.rounds)
    lines += rows_for("SimpleCNN on CIFAR-10", small, registry.load(arguments.data), ("w8a8", "default"), arguments.rounds)
    lines += memory(arguments)
    lines += four_bits(arguments) if arguments.qat else []
    machine = probe()
    vnni = "VNNI" if machine.vnni else "no VNNI"
    lines.append(f"{machine.isa}, {vnni}, torch {torch.__version__}; latencies vary between machines, read them as ratios.")
    text = "\n".join(lines)
    print(text)
    put(text, arguments.write, MARKS)


if __name__ == "__main__":
    main()
