"""torchvision's networks at their own size: latency, seconds to quantize and memory beside ONNX Runtime and OpenVINO with NNCF.

usage: uv run --group bench python tests/bench/runtimes.py [--rounds N] [--only resnet18@224] [--write FILE]

Weights are drawn at random from a fixed seed and images are smooth noise: neither changes what a runtime has to compute. All
runtimes are measured in one process, on the same threads, in turns. Prints one table a network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peers import Peer, fp32_peers, int8_peers, latency, missing
from tables import put
from torch import Tensor, nn
from vision import THREADS, bind, ours

from engine.kernels.probe import probe

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from random_weights import settle

CALIBRATION = 512
MARKS = ("<!-- bench:runtimes -->", "<!-- /bench:runtimes -->")
OPENVINO = "OpenVINO int8 (NNCF)"


@dataclass(frozen=True)
class Case:
    """A network of torchvision, the side of its images in pixels, the batch that is timed and the batch of calibration."""

    name: str
    side: int
    batch: int
    calibration: int

    def __str__(self) -> str:
        return f"{self.name}@{self.side}"


CASES = (Case("resnet18", 224, 1, 32), Case("resnet18", 32, 64, 64), Case("mobilenet_v2", 224, 1, 32))


class Noise:
    """Images of smooth noise (N, 3, side, side), the same for the same seed; the interface of the program's data sets."""

    name, classes, mean, std = "noise", tuple(map(str, range(1000))), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    transform = None

    def __init__(self, side: int, images: int = CALIBRATION) -> None:
        g = torch.Generator().manual_seed(0)
        coarse = torch.randn(images, 3, max(side // 16, 2), max(side // 16, 2), generator=g)
        self._images = nn.functional.interpolate(coarse, size=(side, side), mode="bilinear") + 0.3 * torch.randn(
            images, 3, side, side, generator=g
        )

    def count(self, split: str, limit: int | None = None) -> int:
        return min(len(self._images), limit or len(self._images))

    def batches(
        self, split: str, batch: int, *, limit: int | None = None, seed: int | None = None, augment: bool = False, device: str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for some in self._images[: self.count(split, limit)].split(batch):
            yield some, torch.zeros(len(some), dtype=torch.int64)

    def calibration_count(self, limit: int) -> int:
        return self.count("train", limit)

    def calibration_batches(self, batch: int, limit: int, device: str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches("train", batch, limit=limit, device=device)


def network(case: Case, data: Noise) -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model(case.name, weights=None)
    return settle(model, next(data.batches("train", 32))[0])


def sqnr(exact: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(exact, dtype=np.float64).sum() / np.square(exact - got, dtype=np.float64).sum()))


def table(case: Case, rounds: int) -> list[str]:
    data = Noise(case.side)
    model = network(case, data)
    example = next(data.batches("train", case.batch))[0]
    calibration = [x.numpy() for x, _ in data.batches("train", case.calibration)]
    ours(model, data, "w8a8", 64, case.calibration)  # The first use of each kernel loads it; peers are warmed alike.
    found = [
        *fp32_peers(model, example, THREADS, case.batch),
        *int8_peers(model, example, calibration, THREADS, vnni=probe().activation_bits == 8, batch=case.batch),
    ]
    found.append(ours(model, data, "w8a8", CALIBRATION, case.calibration))
    x = example.numpy()
    times = latency({p.name: bind(p.run, x) for p in found}, rounds)
    exact = found[0].run(x)
    base = times.get(OPENVINO, (float("nan"), 0.0))[0]
    title = f"**{case.name}, {case.side}×{case.side}, batch {case.batch}**, {CALIBRATION} calibration images, {THREADS} threads"
    lines = [title, "", "| | p50 / p95 | to OpenVINO int8 | seconds to quantize | size | SQNR |", "|---|---:|---:|---:|---:|---:|"]
    for p in found:
        lines.append(_row(p, times[p.name], base, None if "fp32" in p.name else sqnr(exact, p.run(x))))
        print(lines[-1], "  ".join(f"{k} {v:.2f}" for k, v in p.parts.items()), file=sys.stderr, flush=True)
    return [*lines, "", memory(case), ""]


def _row(p: Peer, times: tuple[float, float], base: float, noise: float | None) -> str:
    seconds = "–" if noise is None else f"{p.seconds:.1f}"
    quality = "" if noise is None else f"{noise:.1f} dB"
    return (
        f"| {p.name} | {times[0]:.2f} / {times[1]:.2f} ms | {times[0] / base:.2f} | {seconds} | {p.size_bytes / 1e6:.1f} MB | {quality} |"
    )


def memory(case: Case) -> str:
    """Peak memory of a process that calibrates, and of one that only infers in fp32."""
    found = {}
    for what in ("infer", "calibrate"):
        command = [sys.executable, "-W", "ignore", __file__, "--only", str(case), "--peak", what]
        found[what] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]) / 1e3
    ratio = found["calibrate"] / found["infer"]
    return (
        f"Peak memory of a process at batch {case.calibration}: {found['infer']:,.0f} MB in fp32 inference, {found['calibrate']:,.0f} MB "
        f"while calibrating ({ratio:.2f}×)."
    )


def peak(case: Case, what: str) -> int:
    """Kilobytes resident at most during the work, libraries, the network and its images included."""
    model, few = network(case, Noise(case.side, 2)).to(memory_format=torch.channels_last), Noise(case.side, 2)
    data = Noise(case.side, 2 * case.calibration)
    found: list[int] = []

    def told(place: str) -> None:
        if place == "calibrating":
            Path("/proc/self/clear_refs").write_text("5")
        else:
            found.append(_resident("VmHWM"))

    if what == "infer":
        infer(model, few, 2)  # Libraries are loaded.
        told("calibrating")
        infer(model, data, case.calibration)
        told("calibrated")
    else:
        ours(model, data, "w8a8", 2 * case.calibration, case.calibration, told)
    return found[-1]


def infer(model: nn.Module, data: Noise, batch: int) -> None:
    with torch.inference_mode():
        for x, _ in data.batches("train", batch):
            model(x.contiguous(memory_format=torch.channels_last))


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", help="one of " + ", ".join(map(str, CASES)))
    parser.add_argument("--write", type=Path, help="put the tables between the markers of this file")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    chosen = [case for case in CASES if arguments.only in (None, str(case))]
    if arguments.peak:
        print(peak(chosen[0], arguments.peak))
        return
    for line in missing():
        print(line, file=sys.stderr)
    machine = probe()
    lines = [line for case in chosen for line in table(case, arguments.rounds)]
    about = {"ISA": machine.isa, "VNNI": machine.vnni, "torch": torch.__version__}
    lines.append(f"{json.dumps(about)[1:-1].replace(chr(34), '')}; latencies vary between machines, read them as ratios.")
    text = "\n".join(lines)
    print(text)
    put(text, arguments.write, MARKS)


if __name__ == "__main__":
    main()
