"""Triton's programs behind ``few_rows``, one for some rows of a weight and one row of activations; sizes are its callers' matter."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def floats(x, w, scale, bias, y, inputs, outputs, stride, biased: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    n, m = tl.program_id(0) * N + tl.arange(0, N), tl.program_id(1)
    there = n < outputs
    total = tl.zeros((N, K), tl.float32)
    for start in range(0, inputs, K):
        k = start + tl.arange(0, K)
        row = tl.load(x + m * inputs + k, k < inputs, 0.0)
        tile = tl.load(w + n.to(tl.int64)[:, None] * stride + k[None, :], there[:, None] & (k < inputs)[None, :], 0)
        total += tile.to(tl.float32) * row[None, :]
    out = tl.sum(total, 1) * tl.load(scale + n, there, 0.0)
    if biased:
        out += tl.load(bias + n, there, 0.0)
    tl.store(y + m * outputs + n, out, there)


@triton.jit
def rounded(
    x, w, scale, bias, y, inputs, outputs, stride, step, low, high, magic,
    dynamic: tl.constexpr, biased: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    n, m = tl.program_id(0) * N + tl.arange(0, N), tl.program_id(1)
    there = n < outputs
    if dynamic:
        most = tl.zeros((K,), tl.float32)
        for start in range(0, inputs, K):
            k = start + tl.arange(0, K)
            most = tl.maximum(most, tl.abs(tl.load(x + m * inputs + k, k < inputs, 0.0)))
        # ``step`` is the least that a largest value counts as.
        step = tl.maximum(tl.max(most, 0), step) / high
    total = tl.zeros((N, K), tl.int32)
    for start in range(0, inputs, K):
        k = start + tl.arange(0, K)
        row = tl.load(x + m * inputs + k, k < inputs, 0.0) / step
        codes = (tl.minimum(tl.maximum(row, low), high) + magic) - magic
        tile = tl.load(w + n.to(tl.int64)[:, None] * stride + k[None, :], there[:, None] & (k < inputs)[None, :], 0)
        total += tile.to(tl.int32) * codes.to(tl.int32)[None, :]
    out = tl.sum(total, 1).to(tl.float32) * step * tl.load(scale + n, there, 0.0)
    if biased:
        out += tl.load(bias + n, there, 0.0)
    tl.store(y + m * outputs + n, out, there)


@triton.jit
def nibbles(
    x, w, scale, zero, bias, y, outputs, groups, biased: tl.constexpr, N: tl.constexpr, G: tl.constexpr, HALF: tl.constexpr
):  # fmt: skip
    n, m = tl.program_id(0) * N + tl.arange(0, N), tl.program_id(1)
    there, j = n < outputs, tl.arange(0, HALF)
    total = tl.zeros((N, G, HALF), tl.float32)
    for start in range(0, groups, G):
        g = start + tl.arange(0, G)
        inside = there[:, None] & (g < groups)[None, :]
        at = n.to(tl.int64)[:, None] * groups + g[None, :]
        pair = tl.load(w + at[:, :, None] * HALF + j[None, None, :], inside[:, :, None], 0).to(tl.int32)
        place = x + m * groups * 2 * HALF + g[:, None] * 2 * HALF + j[None, :]
        first, second = tl.load(place, (g < groups)[:, None], 0.0), tl.load(place + HALF, (g < groups)[:, None], 0.0)
        middle = tl.load(zero + at, inside, 0).to(tl.float32)[:, :, None]
        products = ((pair & 15).to(tl.float32) - middle) * first[None, :, :] + ((pair >> 4).to(tl.float32) - middle) * second[None, :, :]
        total += products * tl.load(scale + at, inside, 0.0).to(tl.float32)[:, :, None]
    out = tl.sum(tl.sum(total, 2), 1)
    if biased:
        out += tl.load(bias + n, there, 0.0)
    tl.store(y + m * outputs + n, out, there)


@triton.jit
def widen(w, scale, zero, y, groups, G: tl.constexpr, HALF: tl.constexpr):
    g, j = tl.program_id(0).to(tl.int64) * G + tl.arange(0, G), tl.arange(0, HALF)
    inside = g < groups
    pair = tl.load(w + g[:, None] * HALF + j[None, :], inside[:, None], 0).to(tl.int32)
    middle, step = tl.load(zero + g, inside, 0).to(tl.float32)[:, None], tl.load(scale + g, inside, 0.0).to(tl.float32)[:, None]
    place = y + g[:, None] * 2 * HALF + j[None, :]
    tl.store(place, (((pair & 15).to(tl.float32) - middle) * step).to(tl.bfloat16), inside[:, None])
    tl.store(place + HALF, (((pair >> 4).to(tl.float32) - middle) * step).to(tl.bfloat16), inside[:, None])
