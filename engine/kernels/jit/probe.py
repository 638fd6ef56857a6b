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

from engine.errors import one_line
from engine.kernels.jit.compiler import missing, version
from engine.kernels.jit.products_ir import TOP
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
    from engine.kernels.jit.products import Product, half_of, interleaved

    draw = torch.Generator().manual_seed(0)
    for out, inputs, rows, threads in product((1, 5, 64), (32, 96, 256, 2048), (1, 3), (1, 2)):
        torch.set_num_threads(threads)
        x, bias = torch.randn(rows, inputs, generator=draw), torch.randn(out, generator=draw)
        x[:, 0] *= 100
        weight = torch.randint(-128, 128, (out, inputs), generator=draw, dtype=torch.int8)
        scale = torch.rand(out, generator=draw)
        if (far := _far(Product(weight, scale, bias)(x), x, weight.double() * scale.double()[:, None], bias)) > _CLOSE:
            return f"the compiled product with int8 is off by {far:.1e} at {(rows, inputs, out)}"
        for size in (s for s in (32, 64, 128, 256) if inputs % s == 0 and half_of(s)):
            codes = torch.randint(0, 16, (out, inputs), generator=draw)
            step, added = (torch.randn(out, inputs // size, generator=draw).bfloat16() for _ in range(2))
            wide = [part.double().repeat_interleave(size, 1) for part in (step, added)]
            given = (codes.double() - 8) * wide[0] + wide[1]
            if (far := _far(Product(interleaved(codes, size), step, bias, added)(x), x, given, bias, size)) > _CLOSE:
                return f"the compiled product with int4 is off by {far:.1e} at {(rows, inputs, out)} in groups of {size}"
    return None


def _far(got: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, size: int = 0) -> float:
    """The largest difference in parts of the sum of all magnitudes that are added; infinite for what is no number. With ``size`` the
    inputs of each group may have moved by half of 1/32767 of their largest magnitude."""
    exact, all_of_it = x.double() @ weight.T + bias, x.double().abs() @ weight.abs().T + bias.abs()
    far = (got.double() - exact).abs()
    if size:
        step = x.double().abs().view(len(x), -1, size).amax(2) / TOP
        far = far - step.repeat_interleave(size, 1) @ weight.abs().T / 2
    worst = (far / all_of_it).max().item()
    return worst if worst == worst else float("inf")
