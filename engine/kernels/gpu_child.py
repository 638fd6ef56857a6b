"""Runs inside the GPU probe's child process: prints one JSON object a line, each as soon as it is known."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor

from engine.errors import one_line
from engine.kernels.gpu import INT4PACK, INT_MM, IntegerMatrix, nibbles_mm, pack_nibbles

# bfloat16 has 8 bits of mantissa.
_CLOSE = 0.01


def main(device: str) -> None:
    """Each kernel on ``device`` against exact arithmetic on the processor, at one row and at several."""
    checks: dict[str, Callable[[str, int], str | None]] = {INT_MM: _int_mm, INT4PACK: _int4pack}
    for name, check in checks.items():
        try:
            error = next((wrong for rows in (1, 7, 40) if (wrong := check(device, rows))), None)
        except Exception as problem:
            error = one_line(problem) or type(problem).__name__
        print(json.dumps({"kernel": name, "error": error}), flush=True)


def _int_mm(device: str, rows: int) -> str | None:
    weight, codes = _integers((50, 100), -128, 128).to(torch.int8), _integers((rows, 100), -128, 128).to(torch.int8)
    got = IntegerMatrix(weight, device)(codes.to(device)).cpu()
    return None if torch.equal(got.double(), codes.double() @ weight.double().T) else "wrong sums"


def _int4pack(device: str, rows: int) -> str | None:
    codes, x = _integers((48, 192), 0, 16), _floats(rows, 192)
    scales = torch.rand(3, 48, 2, generator=_seeded()).to(torch.bfloat16)
    step, zero = (scales[..., i].double().t().repeat_interleave(64, 1) for i in (0, 1))
    got = nibbles_mm(x.to(device), pack_nibbles(codes.to(device)), 64, scales.to(device)).cpu()
    return _compare(got, x.double() @ ((codes.double() - 8) * step + zero).T)


def _compare(got: Tensor, exact: Tensor) -> str | None:
    error = ((got.double() - exact).abs().max() / exact.abs().max()).item()
    return None if error < _CLOSE else f"off by {error:.0%}"


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _integers(shape: tuple[int, ...], low: int, high: int) -> Tensor:
    return torch.randint(low, high, shape, generator=_seeded(), dtype=torch.int32)


def _floats(rows: int, inputs: int) -> Tensor:
    return torch.randn(rows, inputs, generator=_seeded()).to(torch.bfloat16)
