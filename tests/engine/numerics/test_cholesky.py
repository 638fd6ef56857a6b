"""A factor made where its matrix lies, against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.numerics.cholesky import factor_in_place


@pytest.mark.parametrize("size", [1, 7, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_factor_is_that_of_numpy_and_lies_in_the_matrix(size: int, dtype: torch.dtype) -> None:
    drawn = torch.randn(size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    matrix = (drawn @ drawn.T + size * torch.eye(size, dtype=torch.float64)).to(dtype)
    wanted = np.linalg.cholesky(matrix.double().numpy())
    factor = factor_in_place(matrix)
    assert factor is not None and factor.data_ptr() == matrix.data_ptr()
    np.testing.assert_allclose(factor.double().numpy(), wanted, rtol=1e-3 if dtype == torch.float32 else 1e-10, atol=1e-4)
    assert not factor.triu(1).any()


def test_a_matrix_that_is_not_positive_definite_has_none() -> None:
    assert factor_in_place(torch.tensor([[1.0, 2.0], [2.0, 1.0]])) is None
