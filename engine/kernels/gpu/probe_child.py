"""Runs inside the GPU probe's child process: prints one JSON object a line, each as soon as it is known."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor

from engine.errors import one_line
from engine.kernels.gpu.probe import FEW_ROWS, INT4PACK, INT_MM, IntegerMatrix, nibbles_mm, pack_nibbles

# bfloat16 has 8 bits of mantissa.
_CLOSE = 0.01


def main(device: str) -> None:
    """Each kernel on ``device`` against exact arithmetic on the processor, at one row and at several."""
    checks: dict[str, Callable[[str, int], str | None]] = {INT_MM: _int_mm, FEW_ROWS: _few_rows, INT4PACK: _int4pack}
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


def _few_rows(device: str, rows: int) -> str | None:
    from engine.kernels.gpu import few_rows

    weight, codes = _integers((50, 100), -128, 128).to(torch.int8), _integers((50, 192), 0, 16).to(torch.uint8)
    scale, bias, x = (torch.rand(shape, generator=_seeded()) for shape in (50, 50, (rows, 100)))
    zero, steps = _integers((50, 3), 0, 16).to(torch.uint8), torch.rand(50, 3, generator=_seeded()).half()
    nibbles = (codes.double() - zero.double().repeat_interleave(64, 1)) * steps.double().repeat_interleave(64, 1)
    moved, w, s, b = (part.to(device) for part in (x, weight, scale, bias))
    packed, steps, zero = (part.to(device) for part in (few_rows.in_halves(codes, 64), steps, zero))
    wide, step = torch.cat([x, x], 1)[:, :192], x.double().amax(1, keepdim=True) / 127
    whole, token, grid = x.double(), (x.double() / step).round() * step, (x.double() / 0.02).round().clamp(-9, 30) * 0.02
    given: tuple[tuple[Tensor, Tensor, Tensor], ...] = (
        (few_rows.floats(moved, w, s, b), whole, weight.double() * scale.double()[:, None]),
        (few_rows.by_token(moved, w, s, b, 127, 1e-12), token, weight.double() * scale.double()[:, None]),
        (few_rows.on_grid(moved, w, s, b, 0.02, -9, 30), grid, weight.double() * scale.double()[:, None]),
        (few_rows.nibbles(wide.to(device), packed, steps, zero, b), wide.double(), nibbles),
    )
    found = [_compare(got.cpu(), inputs @ matrix.T + bias.double()) for got, inputs, matrix in given]
    return next((wrong for wrong in (*found, _compare(few_rows.widen(packed, steps, zero).cpu(), nibbles)) if wrong), None)


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
