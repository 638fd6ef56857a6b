"""Write the kept runs anew: ``uv run python tests/golden/record_artifacts.py``.

They stand for runs of earlier versions, so they are written once and then left alone; a new kind of file gets a new folder.
They are made in a folder of a neutral name, because a run writes down where its model and text are.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import golden_models as models  # noqa: E402
import torch  # noqa: E402
from golden_runs import ARTIFACTS, REPOSITORY, inside  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import engine  # noqa: E402

PLACE = Path("/tmp/qtui-golden")
OWN = "golden_models:residual"
_COMMON: dict[str, Any] = {"slower": [], "device": "cpu", "threshold": "agreement:0.5", "qat": {"mode": "never"}}
_DIGITS = {"name": "digits", "calibration": 32, "limit": 64}
_TOKENS = {"name": models.TOKENS, "calibration": 4}
_INT4_LAYERS = [
    {"match": "branch", "weights": {"bits": 4}, "activations": {"bits": 8}},
    {"match": "fc1", "weights": {"bits": 4, "granularity": "per-group", "group_size": 32, "scale": "mse"}, "activations": {"bits": 8}},
]
_INT4_MATRICES = [
    {"match": "kind:Conv1D", "weights": {"bits": 4, "granularity": "per-group", "group_size": 32, "method": "gptq", "symmetric": False}},
]

RUNS: dict[str, dict[str, Any]] = {
    "network-int4-int8": {"model": OWN, "data": _DIGITS, "preset": "w8a8", "rules": _INT4_LAYERS},
    "decoder-int4": {"model": models.TINY_GPT2, "data": _TOKENS, "rules": _INT4_MATRICES},
    "decoder-w8a8-static": {"model": models.TINY_GPT2, "data": _TOKENS, "preset": "w8a8-static"},
}
STOPPED = "network-stopped"


def given(name: str) -> torch.Tensor:
    return models.images(6, 32) if name.startswith("network") else models.tokens(3, 20, models.VOCABULARY)


def main() -> None:
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    models.write_tiny_gpt2(PLACE / models.TINY_GPT2)
    models.write_tokens(PLACE / models.TOKENS)
    with inside(PLACE):
        for name, fields in RUNS.items():
            engine.quantize(engine.Recipe.make(**{**_COMMON, **fields}), Path("runs") / name)
            x = given(name)
            with torch.no_grad():
                y = engine.load_quantized(Path("runs") / name)(x).float()
            save_file({"inputs": x, "outputs": y.contiguous()}, Path("runs") / name / "given.safetensors")
        _stop(engine.Recipe.make(**{**_COMMON, "model": OWN, "data": _DIGITS, "preset": "w4a8", "qat": {"mode": "always", "epochs": 40}}))
    shutil.rmtree(ARTIFACTS, ignore_errors=True)
    shutil.copytree(PLACE / "runs", ARTIFACTS / "runs", ignore=shutil.ignore_patterns("blocks"))
    for name in (models.TINY_GPT2, models.TOKENS):
        (shutil.copytree if (PLACE / name).is_dir() else shutil.copy)(PLACE / name, ARTIFACTS / name)
    shutil.rmtree(PLACE)


def _stop(recipe: engine.Recipe) -> None:
    """A run that is interrupted while it trains, once it has saved an epoch."""
    (PLACE / "asked.yaml").write_text(recipe.to_yaml())
    out = Path("runs") / STOPPED
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{HERE}", "OMP_NUM_THREADS": "1"}
    words = ["run", "--recipe", "asked.yaml", "--out", str(out), "--yes"]
    with subprocess.Popen([sys.executable, "-m", "qtui", *words], env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (out / "checkpoints" / "qat.pt").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130, f"{out} was not stopped but ended with {process.returncode}"


if __name__ == "__main__":
    main()
