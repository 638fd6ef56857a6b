"""Every classifier of torchvision from trace to verdict, with random weights on a folder of random images.

    uv run python tests/bench/torchvision_matrix.py [GLOB …] [--max-params MILLIONS] [--json FILE]

One line a name: layers on integers, modules that stayed whole, SQNR of the logits beside the one that the noise of its layers
makes in the float network (``noise_model``), what stays in fp32 and why, seconds, and the error where there is one. Exit code
1 where a name does not come to its verdict. Random networks of a hundred layers amplify any noise: a trained one keeps more.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

import noise_model
import random_weights
from driving import drive

from engine.data import registry as data_registry
from engine.models.torchvision import PUBLISHED, Published
from engine.recipe.recipe import Recipe

CLASSES = "abcdefghij"
# As small as a family takes: the patches of a ViT and the windows of a MaxViT divide the image.
SIDES = {"vit": 64, "maxvit": 224, "inception": 96, "alexnet": 64, "swin": 64, "swin_v2": 64}


def side_of(published: Published) -> int:
    return 56 if published.name.endswith("_14") else SIDES.get(published.family, 32)


def images(place: Path) -> Path:
    draw = np.random.default_rng(0)
    for name in CLASSES:
        (place / name).mkdir(parents=True)
        for index in range(8):
            picture = Image.fromarray(draw.integers(0, 255, (9, 9, 3)).astype(np.uint8))
            picture.resize((256, 256), Image.Resampling.BICUBIC).save(place / name / f"{index}.png")
    return place


def row(published: Published, folder: Path, place: Path) -> dict[str, Any]:
    """One run's figures; ``error`` is empty where it came to its verdict."""
    side, start = side_of(published), time.perf_counter()
    found: dict[str, Any] = {"name": published.name, "side": side, "error": ""}
    try:
        data = data_registry.load(str(folder), size=side, transform=published.transform)
        first, _ = next(data.batches("train", 16, limit=16))
        weights = random_weights.write(published.name, place / "weights.safetensors", len(CLASSES), first)
        asked = {"name": str(folder), "size": side, "calibration": 16, "limit": 16, "batch": 8}
        recipe = Recipe.make(
            model=published.name, weights=str(weights), data=asked, preset="w8a8", threshold="sqnr:15", qat={"mode": "never"}
        )
        outcome = drive(recipe, place / "run")
        if outcome.error is not None:
            raise outcome.error
        report = outcome.data
        layers = [layer for layer in report["layers"] if layer["actual"] != "folded"]
        kept = Counter((layer["kind"], layer["reason"]) for layer in layers if layer["kernel"] == "torch fp32")
        alone = [layer["own_sqnr_db"] for layer in layers if layer["own_sqnr_db"] is not None]
        own = {layer["name"]: layer["own_sqnr_db"] for layer in layers if layer["own_sqnr_db"] is not None}
        model = random_weights.load(published.name, place / "weights.safetensors", len(CLASSES), side)
        test, _ = next(data.batches("test", 16, limit=16))
        found |= {
            "expected_sqnr_db": noise_model.expected_sqnr(model, test, own, draws=2),
            "whole": len(report["graph"]["untraced"]), "layers": len(layers), "integer": len(alone),
            "fp32": [{"kind": kind, "count": count, "reason": reason} for (kind, reason), count in kept.most_common()],
            "operations": {o["operation"]: o["count"] for o in report["operations"]},
            "sqnr_db": report["ptq"]["error"]["sqnr_db"], "least_own_sqnr_db": min(alone, default=None),
        }  # fmt: skip
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {str(error)[:200]}"
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def line(found: dict[str, Any]) -> str:
    start = f"{found['name']:<20} {found['side']:>4} px {found['seconds']:>6} s  "
    if found["error"]:
        return f"{start}{found['error']}"
    kept = "; ".join(f"{k['count']} {k['kind']} ({k['reason']})" for k in found["fp32"])
    between = ", ".join(f"{count} {name}" for name, count in found["operations"].items())
    return (
        f"{start}{found['integer']:>4} of {found['layers']:>4} layers on integers, {found['whole']} whole, SQNR {found['sqnr_db']:.1f} dB "
        f"({found['expected_sqnr_db']:.1f} from the noise of its layers), least alone {found['least_own_sqnr_db']:.1f} dB; "
        f"fp32: {kept or 'none'}; between layers: {between or 'none'}"
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="GLOB", default=["*"])
    parser.add_argument("--max-params", type=float, default=150, metavar="MILLIONS", help="pass over networks with more parameters")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    failed, rows = 0, []
    with tempfile.TemporaryDirectory() as place:
        folder = images(Path(place) / "images")
        for published in sorted(PUBLISHED, key=lambda p: p.params):
            if not any(fnmatchcase(published.name, glob) for glob in args.names):
                continue
            if published.params > args.max_params * 1e6:
                print(f"{published.name:<20} passed over: {published.params / 1e6:.0f} million parameters", flush=True)
                continue
            with tempfile.TemporaryDirectory(dir=place) as own:
                found = row(published, folder, Path(own))
            failed += bool(found["error"])
            rows.append(found)
            print(line(found), flush=True)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
