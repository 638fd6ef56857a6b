"""Orthogonal matrices that spread what stands out: Hadamard's where one is known, random ones elsewhere.

A Hadamard matrix has entries of ±1 and orthogonal rows; divided by the root of its size it is orthogonal, and no entry is larger than
another. Sylvester's construction doubles one; Paley's first and second give those of q + 1 and 2 (q + 1) for primes q (Paley 1933,
"On orthogonal matrices"). All are float64, with signs drawn from a seed.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=16)
def hadamard(size: int) -> Tensor | None:
    """±1 (size, size), float64, with orthogonal rows, the first of which is all ones; None where no construction here has that size."""
    if size in (1, 2):
        return torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)[:size, :size].clone()
    if size % 4:
        return None
    if _prime(size - 1) and (size - 1) % 4 == 3:
        return _normal(_paley_first(size - 1))
    if size % 2 == 0 and _prime(size // 2 - 1) and (size // 2 - 1) % 4 == 1:
        return _normal(_paley_second(size // 2 - 1))
    half = hadamard(size // 2)
    return None if half is None else torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), half)


def spreading(size: int, seed: int = 0) -> tuple[Tensor, bool]:
    """An orthogonal matrix (size, size), float64: a Hadamard matrix with random signs, or a random one where there is none; and whether it
    is Hadamard's."""
    draw = torch.Generator().manual_seed(seed)
    known = hadamard(size)
    if known is not None:
        signs = torch.randint(2, (size,), generator=draw).double() * 2 - 1
        return signs[:, None] * known / math.sqrt(size), True
    return _random(size, draw), False


def mean_keeping(size: int, seed: int = 0) -> tuple[Tensor, bool]:
    """An orthogonal matrix Q (size, size), float64, with Q 1 = 1, so that rows x of mean zero keep that mean in x Q; and whether it is made
    of a Hadamard matrix. A LayerNorm of such rows is an RMSNorm before and after.

    With a normalized Hadamard matrix H, whose first column is 1 / √n, it is H diag(1, S P) Hᵀ for random signs S and a random
    permutation P; entries have a variance of 1 / n.
    """
    draw = torch.Generator().manual_seed(seed)
    known = hadamard(size)
    if known is None:
        basis = torch.eye(size, dtype=torch.float64)
        basis[:, 0] = 1.0
        basis = torch.linalg.qr(basis)[0]
    else:
        basis = known.T / math.sqrt(size)
    turned = torch.zeros(size, size, dtype=torch.float64)
    turned[0, 0] = 1.0
    if size > 1:
        inner = _random(size - 1, draw)
        if known is not None:
            signs = torch.randint(2, (size - 1,), generator=draw).double() * 2 - 1
            inner = signs[:, None] * torch.eye(size - 1, dtype=torch.float64)[torch.randperm(size - 1, generator=draw)]
        turned[1:, 1:] = inner
    return basis @ turned @ basis.T, known is not None


def _random(size: int, draw: torch.Generator) -> Tensor:
    """Uniform over the orthogonal matrices (Mezzadri 2007, arXiv:math-ph/0609050)."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))
    found: Tensor = q * r.diagonal().sign()
    return found


def _prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, math.isqrt(number) + 1))


def _jacobsthal(prime: int) -> Tensor:
    """χ(i - j), χ being the quadratic character modulo ``prime``."""
    character = -torch.ones(prime, dtype=torch.float64)
    character[[number * number % prime for number in range(1, prime)]] = 1
    character[0] = 0
    at = torch.arange(prime)
    return character[(at[:, None] - at[None]) % prime]


def _bordered(prime: int, corner: float) -> Tensor:
    found = torch.ones(prime + 1, prime + 1, dtype=torch.float64)
    found[0, 0], found[1:, 0], found[1:, 1:] = 0, corner, _jacobsthal(prime)
    return found


def _paley_first(prime: int) -> Tensor:
    return torch.eye(prime + 1, dtype=torch.float64) + _bordered(prime, -1.0)


def _paley_second(prime: int) -> Tensor:
    conference = _bordered(prime, 1.0)
    one = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    other = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(conference, one) + torch.kron(torch.eye(prime + 1, dtype=torch.float64), other)


def _normal(found: Tensor) -> Tensor:
    """With a first row and column of ones: signs of rows and columns leave the rows orthogonal."""
    found = found * found[:, :1].sign()
    return found * found[:1].sign()
