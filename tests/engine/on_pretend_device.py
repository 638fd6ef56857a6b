"""Whole runs with the model on a device of its own, in a test's child process. The argument is a folder of recipes; each run's
folder stands beside its recipe."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import driving
import pretend_device
import torch

from engine import Recipe
from engine.kernels.gpu import probe as gpu
from engine.kernels.gpu import probe_child as gpu_child
from engine.runs import pipeline
from engine.training import precision


def probe(device: str) -> tuple[dict[str, str | None], bool]:
    """The GPU's probe in this process: a child would not know the device."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        gpu_child.main(device)
    return {entry["kernel"]: entry["error"] for entry in map(json.loads, told.getvalue().splitlines())}, True


def main(folder: str) -> None:
    torch.set_num_threads(1)
    pretend_device.register()
    # A parameter that two modules share stays one on its way to the device, as it does on its way to a GPU.
    torch.__future__.set_swap_module_params_on_conversion(True)
    pipeline.pick_device = lambda name: pretend_device.NAME  # type: ignore[assignment]
    gpu._ask_child = probe
    # Autocast is the GPU's own matter, and tensors of Python's making know no inference mode.
    precision.half_type = lambda device: None  # type: ignore[assignment]
    torch.inference_mode = torch.no_grad  # type: ignore[assignment, misc]
    for recipe in sorted(Path(folder).glob("*.yaml")):
        outcome = driving.drive(Recipe.load(recipe), recipe.with_suffix(""), {"qat": True})
        if outcome.error is not None:
            raise outcome.error


if __name__ == "__main__":
    main(*sys.argv[1:])
