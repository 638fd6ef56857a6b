"""Checks the peers on a CIFAR-10 ResNet: top-1, seconds to a ready model, size, latency at batch 1 and 64.

    python tests/bench/peers_check.py --model MODEL.py --weights FILE --cifar DIR

MODEL.py defines ``load(path, depth)``; DIR holds the standard python pickles of CIFAR-10.
"""

from __future__ import annotations

import argparse
import importlib.util
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peers import CALIBRATORS, accuracy, fp32_peers, int8_peers, latency, missing
from torch import nn

MEAN = np.array((0.485, 0.456, 0.406), np.float32).reshape(1, 3, 1, 1)
STD = np.array((0.229, 0.224, 0.225), np.float32).reshape(1, 3, 1, 1)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="python file with load(path, depth)")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--cifar", type=Path, required=True, help="folder with data_batch_1 and test_batch")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    parser.add_argument("--calibration", type=int, default=512, help="training images")
    parser.add_argument("--batch", type=int, default=64, help="calibration and test batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--methods", nargs="*", default=list(CALIBRATORS), choices=list(CALIBRATORS))
    parser.add_argument("--vnni", action=argparse.BooleanOptionalAction, default=None, help="default: ask the CPU")
    return parser.parse_args()


def load_model(file: Path, weights: Path, depth: int) -> nn.Module:
    """The network that `file` defines, with its weights."""
    spec = importlib.util.spec_from_file_location("peer_model", file)
    assert spec is not None and spec.loader is not None, f"not a python file: {file}"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net: nn.Module = module.load(weights, depth)
    return net


def read(file: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images, normalised, and their labels."""
    with file.open("rb") as stream:
        batch = pickle.load(stream, encoding="bytes")
    pixels = batch[b"data"][:count].reshape(-1, 3, 32, 32).astype(np.float32) / 255
    return (pixels - MEAN) / STD, np.array(batch[b"labels"][:count])


def chunks(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive batches; the last may be smaller."""
    return (array[start : start + size] for start in range(0, len(array), size))


def main() -> None:
    """Builds every peer and prints the table."""
    args = arguments()
    model = load_model(args.model, args.weights, args.depth)
    calibration = list(chunks(read(args.cifar / "data_batch_1", args.calibration)[0], args.batch))
    images, labels = read(args.cifar / "test_batch", args.images)
    for line in missing():
        print(line)
    example = torch.from_numpy(images[:1])
    peers = fp32_peers(model, example, args.threads)
    peers += int8_peers(model, example, calibration, args.threads, args.methods, vnni=args.vnni)

    def timed(batch: int) -> dict[str, tuple[float, float]]:
        runs: dict[str, Callable[[], object]] = {peer.name: partial(peer.run, images[:batch]) for peer in peers}
        return latency(runs, args.rounds)

    one, many = timed(1), timed(64)
    print(f"{'peer':28}{'top-1 %':>8}{'seconds':>9}{'kB':>7}{'b1 p50':>8}{'b1 p95':>8}{'b64 p50':>9}{'b64 p95':>9}  parts, s")
    for peer in peers:
        top1 = 100 * accuracy(peer.run, zip(chunks(images, args.batch), chunks(labels, args.batch), strict=True))
        parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in peer.parts.items())
        print(
            f"{peer.name:28}{top1:8.2f}{peer.seconds:9.2f}{peer.size_bytes / 1e3:7.0f}"
            f"{one[peer.name][0]:8.2f}{one[peer.name][1]:8.2f}{many[peer.name][0]:9.2f}{many[peer.name][1]:9.2f}  {parts}"
        )
    for line in sorted({peer.version for peer in peers}):
        print(line)


if __name__ == "__main__":
    main()
