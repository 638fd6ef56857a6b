"""CUDA kernels for integer matrices, torch's and those of ``few_rows``, and which of them give right results on the GPU that is here.

Each is asked in a child process: a kernel that fails may leave the GPU unusable for the process that called it. The answer is kept
in the user's cache, by torch version and GPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.probe import Machine
from engine.paths import cache_dir, write_atomic
from engine.reading import MB, read_json

INT_MM, FEW_ROWS, INT4PACK = KERNELS = ("int_mm", "few_rows", "int4pack")
# Rows up to which ``few_rows`` reads a weight again for each: beyond them matrix units are faster.
MOST = 4
# torch._int_mm takes more than 16 rows, and multiples of 8 of everything.
_LEAST, _MULTIPLE = 24, 8
# Inputs are packed by tiles of 16, as many together as divide them.
_TILES, _TILE = (8, 4, 2), 16


class IntegerMatrix:
    """int8 (rows, in) to the exact sums, int32 (rows, out), of products with ``weight`` int8 (out, in), on ``device``."""

    def __init__(self, weight: Tensor, device: str) -> None:
        self._out, given = weight.shape
        self._lacking = -given % _MULTIPLE
        # A transposed view: cuBLAS multiplies int8 with a right side that lies by columns.
        self._weight = F.pad(weight.to(device), (0, self._lacking, 0, -self._out % _MULTIPLE)).contiguous().t()

    @property
    def weight(self) -> Tensor:
        """int8, outputs and inputs filled up with zeros."""
        return self._weight.t()

    def __call__(self, codes: Tensor) -> Tensor:
        rows = len(codes)
        below = max(-(-rows // _MULTIPLE) * _MULTIPLE, _LEAST) - rows
        return torch._int_mm(F.pad(codes, (0, self._lacking, 0, below)), self._weight)[:rows, : self._out]


def pack_nibbles(codes: Tensor) -> Tensor:
    """Codes 0..15 (out, in) as ``nibbles_mm`` reads them; out is a multiple of 8, in of 32."""
    tiles = next(tiles for tiles in _TILES if codes.shape[1] % (tiles * _TILE) == 0)
    pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8).contiguous()
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack(pairs, tiles)
    return packed


def nibbles_mm(x: Tensor, packed: Tensor, group: int, scales: Tensor) -> Tensor:
    """bfloat16 (rows, in) times ``(codes - 8) * scale + zero``, bfloat16 (rows, out); ``scales`` (in / group, out, 2) holds both."""
    y: Tensor = torch.ops.aten._weight_int4pack_mm(x, packed, group, scales)
    return y


def seen_from(machine: Machine, device: str) -> Machine:
    """What decides about kernels on ``device``: ``machine`` itself on the processor, else what the GPU's probe found."""
    if device == "cpu":
        return machine
    return replace(_probe(device, _key(device)), device=device)


@lru_cache(maxsize=4)
def _probe(device: str, key: str) -> Machine:
    kept = cache_dir() / f"probe-gpu-{key}.json"
    try:
        found = read_json(kept, MB)
        if set(found) == set(KERNELS) and all(isinstance(error, str | None) for error in found.values()):
            return _machine(found)
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    found, ended = _ask_child(device)
    if ended:
        with contextlib.suppress(OSError):
            write_atomic(kept, json.dumps(found).encode())
    return _machine(found)


def _machine(kernels: dict[str, str | None]) -> Machine:
    # Products of int8 are summed in 32 bits on every GPU that has them: 8-bit activations do not saturate.
    return Machine("CUDA", False, False, kernels)


def _key(device: str) -> str:
    sources = (Path(__file__).with_name(name).read_text() for name in ("probe.py", "probe_child.py", "few_rows.py", "few_rows_triton.py"))
    parts = [torch.__version__, str(torch.version.cuda), device, *sources]
    if torch.cuda.is_available():
        parts += [torch.cuda.get_device_name(), str(torch.cuda.get_device_capability())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _ask_child(device: str) -> tuple[dict[str, str | None], bool]:
    """What went wrong with each kernel, None for nothing, and whether the child told of any: else it is asked again next time."""
    code = f"from engine.kernels.gpu.probe_child import main; main({device!r})"
    # In a session of its own: a Ctrl-C or hang-up that is meant for the run must not be taken for a crash, and be remembered.
    command = [sys.executable, "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, start_new_session=True)
        told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return dict.fromkeys(KERNELS, f"the probe failed: {type(error).__name__}"), False
    found = {entry["kernel"]: entry["error"] for entry in told}
    return {name: found.get(name, f"crashed the probe (exit code {done.returncode})") for name in KERNELS}, bool(found)
