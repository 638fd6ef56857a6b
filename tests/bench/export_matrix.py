"""Each family of torchvision's classifiers in every export format, with random weights on a folder of random images.

    uv run python tests/bench/export_matrix.py [NAME …] [--formats LIST] [--side PIXELS] [--timed] [--json FILE]

One line a network and format: megabytes, SQNR and largest difference against the model that was measured, the part of equal
answers, with ``--timed`` milliseconds at batch 1 and 64, and the reason where there is no export. Exit code 1 where one is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

import driving
import random_weights
from torchvision_matrix import images, side_of

from engine.data import registry as data_registry
from engine.events.cancellation import StopToken
from engine.export.registry import formats_of
from engine.models.torchvision import PUBLISHED
from engine.recipe.recipe import Recipe
from engine.runs import pipeline

# The smallest member of each family.
FAMILIES = (
    "resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_1",
    "densenet121", "vgg11", "convnext_tiny", "vit_b_16", "swin_t",
)  # fmt: skip


def exported(name: str, formats: tuple[str, ...], side: int, folder: Path, place: Path, timed: bool) -> list[dict[str, Any]]:
    """The run's entries, one a format; ``reason`` says why there is none."""
    published = next(p for p in PUBLISHED if p.name == name)
    side = side or side_of(published)
    start = time.perf_counter()
    data = data_registry.load(str(folder), size=side, transform=published.transform)
    first, _ = next(data.batches("train", 16, limit=16))
    weights = random_weights.write(name, place / "weights.safetensors", len(data.classes), first)
    asked = {"name": str(folder), "size": side, "calibration": 16, "limit": 16, "batch": 8}
    recipe = Recipe.make(
        model=name, weights=str(weights), data=asked, preset="w8a8", threshold="sqnr:15", qat={"mode": "never"}, export=formats
    )
    stop = StopToken()
    with nullcontext() if timed else driving.untimed():
        outcome = driving.consume(pipeline.run(recipe, place / "run", stop), stop)
    took = round(time.perf_counter() - start, 1)
    shared = {"name": name, "side": side, "seconds": took}
    if outcome.error is not None:
        reason = f"{type(outcome.error).__name__}: {str(outcome.error)[:300]}"
        return [{**shared, "format": one, "verified": False, "reason": reason} for one in formats]
    base = outcome.data["baseline"]
    native = {"format": "fp32", "verified": True, "latency_ms": base["latency_ms"], "latency_batched_ms": base["latency_batched_ms"]}
    return [{**shared, **entry} for entry in ([native] if timed else []) + outcome.data["exports"]]


def line(found: dict[str, Any], timed: bool) -> str:
    start = f"{found['name']:<20} {found['side']:>4} px  {found['format']:<12}"
    if not found["verified"]:
        return f"{start}{found['reason']}"
    same = found.get("parity")
    text = ""
    if same:
        text = (
            f"{found['size_bytes'] / 1e6:>7.2f} MB  SQNR {same['sqnr_db']:>6.1f} dB  largest difference {same['max_abs']:.1e}  "
            f"same answer {same['agreement']:>7.2%}  "
        )
    if timed:
        text += "  ".join(f"{found[key]['p50']:>8.2f} ms ×{found[key]['batch']}" for key in ("latency_ms", "latency_batched_ms"))
    return start + text


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(FAMILIES))
    parser.add_argument("--formats", default=",".join(formats_of("graph")))
    parser.add_argument("--side", type=int, default=0, metavar="PIXELS", help="0: as small as the family takes")
    parser.add_argument("--timed", action="store_true", help="measure latencies too")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = images(Path(place) / "images")
        for name in args.names:
            with tempfile.TemporaryDirectory(dir=place) as own:
                found = exported(name, tuple(args.formats.split(",")), args.side, folder, Path(own), args.timed)
            rows += found
            print("\n".join(line(one, args.timed) for one in found), flush=True)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1))
    return 0 if all(one["verified"] for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
