"""export: the chosen model as a file, read back and compared with the model that was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engine.artifact import load_quantized
from engine.quant.numerics import sqnr_db
from engine.quant.runtime import QuantizedModel
from engine.stages.load import Loaded


def parity(path: Path, measured: QuantizedModel, loaded: Loaded, entry: dict[str, Any]) -> dict[str, Any]:
    """Contract 2's entry for ``model.safetensors``, compared on 256 test images."""
    again = load_quantized(path, loaded.model)
    signal = noise = worst = 0.0
    same = total = 0
    for x, _ in loaded.data.batches("test", 64, limit=256):
        wanted, got = measured(x), again(x)
        worst = max(worst, (wanted - got).abs().max().item())
        signal += wanted.double().square().sum().item()
        noise += (wanted - got).double().square().sum().item()
        same += int((wanted.argmax(1) == got.argmax(1)).sum())
        total += len(x)
    figures = {"max_abs": worst, "sqnr_db": sqnr_db(signal, noise), "agreement": same / total}
    runtime = f"torch {torch.__version__.split('+')[0]}"
    return {
        "format": "safetensors", "path": path.name, "size_bytes": path.stat().st_size, "runtime": runtime,
        "parity": figures, "latency_ms": entry["latency_ms"],
    }  # fmt: skip
