"""Whether the compiled products are exact here, asked of a child process: a kernel that crashes must not take the program with it. The
answer is kept in the user's cache, by processor, torch, llvmlite and the kernels' text."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from functools import lru_cache
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import one_line
from engine.kernels.jit.compiler import missing, version
from engine.kernels.jit.products import Product, Rounding
from engine.kernels.jit.rounding_ir import LARGEST, TINY
from engine.kernels.probe import machine_key
from engine.paths import cache_dir, write_atomic
from engine.reading import MB, read_json

_SECONDS = 120
# Of the magnitudes that are added: sums are in float32.
_CLOSE = 1e-5


@lru_cache(maxsize=1)
def unfit() -> str | None:
    """Why the compiled kernels cannot be used here, or None."""
    if (why := missing()) is not None:
        return why
    kept = cache_dir() / f"jit-{_key()}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found = read_json(kept, MB)["error"]
        if found is None or isinstance(found, str):
            return found
    error, sure = _asked()
    if sure:
        with contextlib.suppress(OSError):
            write_atomic(kept, json.dumps({"error": error}).encode())
    return error


def _key() -> str:
    texts = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256("\n".join([machine_key(), version(), *texts]).encode()).hexdigest()[:16]


def _asked() -> tuple[str | None, bool]:
    """The child's answer, and whether it is to be kept."""
    command = [sys.executable, "-W", "ignore", "-c", "from engine.kernels.jit.probe import main; main()"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, start_new_session=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"the probe of compiled kernels failed: {type(error).__name__}", False
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return f"compiled kernels crashed their probe (exit code {done.returncode})", done.returncode < 0
    return json.loads(lines[-1])["error"], True


def main() -> None:
    """In the child: prints what is wrong, or null."""
    try:
        error = _wrong()
    except Exception as problem:
        error = one_line(problem) or type(problem).__name__
    print(json.dumps({"error": error}), flush=True)


def _wrong() -> str | None:
    draw = torch.Generator().manual_seed(0)
    for (out, inputs), rows, threads in product(((1, 32), (5, 96), (40, 256), (9, 2048)), (1, 3, 9), (1, 2)):
        torch.set_num_threads(threads)
        x, bias = torch.randn(rows, inputs, generator=draw), torch.randn(out, generator=draw)
        x[:, 0] *= 100
        weight = torch.randint(-128, 128, (out, inputs), generator=draw, dtype=torch.int8)
        scale = torch.rand(out, generator=draw)
        asked = [None, Rounding(8), Rounding(4, 32), *(Rounding(8, size) for size in (32, 128) if inputs % size == 0)]
        for rounding in asked:
            far = _far(Product(weight, scale, bias, asked=rounding)(x), x, weight.double() * scale.double()[:, None], bias, rounding, 512)
            if far > _CLOSE:
                return f"the compiled product with int8 is off by {far:.1e} at {(rows, inputs, out)}, {rounding or 'inputs of 16 bits'}"
        for size in (s for s in (32, 64, 128, 256) if inputs % s == 0):
            codes = torch.randint(0, 16, (out, inputs), generator=draw)
            step, added = (torch.randn(out, inputs // size, generator=draw).bfloat16() for _ in range(2))
            for offset, rounding in product((added, None), asked):
                wide = [part.double().repeat_interleave(size, 1) for part in (step, added)]
                given = (codes.double() - 8) * wide[0] + (0 if offset is None else wide[1])
                far = _far(Product(codes, step, bias, offset, size, rounding)(x), x, given, bias, rounding, size)
                if far > _CLOSE:
                    where = f"{(rows, inputs, out)} in groups of {size}, {rounding or 'inputs of 16 bits'}"
                    return f"the compiled product with int4 is off by {far:.1e} at {where}"
    return None


def _far(got: Tensor, x: Tensor, weight: Tensor, bias: Tensor, asked: Rounding | None, size: int) -> float:
    """The largest difference in parts of the sum of all magnitudes that are added; infinite for what is no number. Inputs of 16 bits may
    have moved by half of their step, that of groups of ``size`` or fewer; others are rounded here as they are asked to be."""
    rounded = x.double() if asked is None else _rounded(x, asked)
    exact, all_of_it = rounded @ weight.T + bias, rounded.abs() @ weight.abs().T + bias.abs()
    far = (got.double() - exact).abs()
    if asked is None:
        size = min(size, x.shape[1])
        step = x.double().abs().view(len(x), -1, size).amax(2) / min(LARGEST["words"], LARGEST["halves"])
        far = far - step.repeat_interleave(size, 1) @ weight.abs().T / 2
    worst = (far / all_of_it).max().item()
    return worst if worst == worst else float("inf")


def _rounded(x: Tensor, asked: Rounding) -> Tensor:
    """What inputs stand for when they are rounded; the step is one of float32."""
    parts = x.view(len(x), -1, asked.span or x.shape[1])
    step = (parts.abs().amax(2, keepdim=True) / ((1 << (asked.bits - 1)) - 1)).clamp_min(TINY)
    return ((parts / step).round().double() * step.double()).view(x.shape)
