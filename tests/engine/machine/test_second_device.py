"""Runs on a device beside the processor: nothing is left behind, and what comes out is what the processor gives. The device is a
pretended one; what CUDA's kernels compute is stood in for by their documentation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import driving
import families
import pytest
import tiny_language
import torch
from safetensors.torch import load_file

from engine import Recipe
from engine.training import precision

HERE = Path(__file__).parents[1]
_UNKNOWN = not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend")


def recipes(place: Path) -> dict[str, Recipe]:
    """By name; trained on rounded weights where that is what is looked at."""
    tiny_language.write_folder(place / "tiny", tiny_language.gpt2(n_embd=64))
    tiny_language.write_folder(place / "llama", families.build("llama", hidden_size=64, vocab_size=tiny_language.ROWS))
    (place / "text.txt").write_text(tiny_language.sentences(400))
    data = {"name": str(place / "text.txt"), "calibration": 8, "limit": 320, "stride": 16}

    def words(preset: str, model: str = "tiny", mode: str = "never", **more: Any) -> Recipe:
        return Recipe.make(model=str(place / model), data=data, preset=preset, qat={"mode": mode, "epochs": 1, "distill": 1.0}, **more)

    few = {"bits": 4, "granularity": "per-group", "group_size": 32, "symmetric": False}
    awq = {"match": "model.layers.*.self_attn.*", "weights": {**few, "method": "awq+gptq"}}
    hqq = {"match": "model.layers.*.mlp.*", "weights": {**few, "method": "hqq"}}
    return {
        "dynamic": words("w8a8"), "static": words("w8a8-static"), "nibbles": words("w4"), "trained": words("w3", mode="always"),
        "llama": words("w8", "llama", rules=[awq, hqq]),
        "vision": Recipe.make(model="simplecnn", data={"name": "digits", "calibration": 32}, qat={"mode": "always", "epochs": 1}),
    }  # fmt: skip


KERNELS = {
    "dynamic": "int8 rows, int_mm dynamic", "static": "int8 rows, int_mm dynamic, int_mm static",
    "nibbles": "int4pack bf16, int8 rows, int8 widened to bf16", "trained": "int4pack bf16, int8 rows, int8 widened to bf16",
    "llama": "int4pack bf16, int8 rows, int8 widened to bf16",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(_UNKNOWN, reason="this torch knows no device in Python")
def test_a_run_on_a_device_gives_what_the_processor_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "half_type", lambda device: None)
    asked = recipes(tmp_path)
    (tmp_path / "away").mkdir()
    for name, recipe in asked.items():
        (tmp_path / "away" / f"{name}.yaml").write_text(recipe.to_yaml())
    paths = [HERE.parent.parent, HERE]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "QTUI_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "ignore", str(HERE / "on_pretend_device.py"), str(tmp_path / "away")]
    # Attention on a device that is made in Python is now and then NaN on its very first text, whatever the run does: once more then.
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        if "is NaN or infinite on the calibration text" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-3000:]
    for name, recipe in asked.items():
        here = driving.drive(recipe, tmp_path / "here" / name, {"qat": True})
        assert here.error is None
        there = json.loads((tmp_path / "away" / name / "report.json").read_text())
        assert (there["environment"]["device"], here.data["environment"]["device"]) == ("pretend", "cpu")
        # Scales that a search ends at, and what they round, move with the last bit of an attention.
        if name != "llama":
            _same_integers(tmp_path / "here" / name, tmp_path / "away" / name)
        if name != "vision":
            assert there["ptq"]["kernel"] == KERNELS[name]
        for form in ("baseline", "ptq", "qat"):
            if here.data[form]:
                assert there[form]["value"] == pytest.approx(here.data[form]["value"], rel=0.03 if form == "qat" else 0.01), (name, form)


def _same_integers(here: Path, there: Path) -> None:
    """Of the files that the runs wrote: but for the few that lie between two."""
    first, second = (load_file(folder / "model.safetensors") for folder in (here, there))
    assert first.keys() == second.keys()
    integers = [key for key, tensor in first.items() if tensor.dtype in (torch.uint8, torch.int8)]
    assert integers
    for key in integers:
        assert (first[key] == second[key]).double().mean() > 0.9, key
