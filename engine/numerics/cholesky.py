"""The Cholesky factor of a large matrix without a second one beside it."""

from __future__ import annotations

import torch
from torch import Tensor


def factor_in_place(matrix: Tensor) -> Tensor | None:
    """The lower factor L of ``matrix`` = L @ L.T, a symmetric one (n, n) that lies row by row; None where it is not positive definite.

    The factor is made where the matrix lies, which holds L.T in its upper half then, and anything where there is no factor.

    >>> matrix = torch.tensor([[4.0, 2.0], [2.0, 5.0]])
    >>> factor_in_place(matrix)
    tensor([[2., 0.],
            [1., 2.]])
    """
    # By columns, as LAPACK has matrices, so that nothing is copied.
    lower, failed = matrix.mT, torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    return None if int(failed) else lower
