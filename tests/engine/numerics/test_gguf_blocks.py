"""GGUF's blocks against the public ``gguf`` package: every byte that is written there stands for what is measured here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from engine.algorithms.block_grid import block_grid
from engine.algorithms.gptq import gptq
from engine.algorithms.mse import imatrix
from engine.errors import EngineError
from engine.numerics.formats import FORMATS
from engine.numerics.qtensor import QTensor, from_tensors, of_blocks
from engine.numerics.scheme import WeightScheme
from engine.numerics.weights import minmax, quantize
from engine.recipe.number_formats import NUMBER_FORMATS

BLOCKS = tuple(name for name, entry in NUMBER_FORMATS.items() if entry.layout)


def scheme(name: str) -> WeightScheme:
    return WeightScheme(FORMATS[name], FORMATS[name].block)


def matrix(rows: int = 24, inputs: int = 512, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(rows, inputs) * torch.rand(rows, 1) * 0.1 + 0.01


def library(weight: QTensor) -> np.ndarray:
    """What the package finds in the blocks."""
    gguf: Any = pytest.importorskip("gguf", reason="uv sync --group bench")
    found = gguf.dequantize(weight.to_tensors()["packed"].numpy(), gguf.GGMLQuantizationType[weight.format.name.upper()])
    return np.asarray(found)


@pytest.mark.parametrize("name", BLOCKS)
def test_what_is_stored_is_dequantized_by_the_library_to_the_bit(name: str) -> None:
    for weight in (matrix(), matrix(seed=1) * 1e-3, matrix(seed=2) * 100, -matrix(seed=3).abs(), torch.zeros(3, 256)):
        for grid in (minmax, block_grid):
            rounded = quantize(weight, grid(weight, scheme(name)))
            assert (library(rounded).view(np.uint32) == rounded.dequantize().numpy().view(np.uint32)).all()


@pytest.mark.parametrize("name", BLOCKS)
def test_any_bytes_stand_for_what_the_library_says(name: str) -> None:
    gguf: Any = pytest.importorskip("gguf", reason="uv sync --group bench")
    layout = FORMATS[name].layout
    assert layout is not None
    blocks = np.random.default_rng(0).integers(0, 256, (8, 3 * layout.size), dtype=np.uint8)
    if name == "q8_0":
        blocks[blocks == 128] = 127
    wanted = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name.upper()])
    finite = np.isfinite(wanted).all(1)
    blocks, wanted = blocks[finite], wanted[finite]
    assert len(wanted) > 3
    found = of_blocks(FORMATS[name], torch.from_numpy(blocks), len(blocks), 3 * layout.weights)
    assert (found.dequantize().numpy() == wanted).all()
    assert (found.to_tensors()["packed"].numpy() == blocks).all()


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_rounding_to_nearest_has_no_more_error_than_the_librarys(name: str) -> None:
    gguf: Any = pytest.importorskip("gguf", reason="uv sync --group bench")
    kind, weight = gguf.GGMLQuantizationType[name.upper()], matrix()
    theirs = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind))
    ours = quantize(weight, minmax(weight, scheme(name))).dequantize()
    assert (ours - weight).square().sum() <= (theirs - weight).square().sum() * 1.001


@pytest.mark.parametrize(("name", "bits"), [
    ("q8_0", 8.5), ("q4_0", 4.5), ("q4_1", 5.0), ("q5_0", 5.5), ("q5_1", 6.0), ("q6_k", 6.5625), ("q5_k", 5.5), ("q4_k", 4.5),
    ("q3_k", 3.4375), ("q2_k", 2.625),
])  # fmt: skip
def test_bits_per_weight_are_those_of_the_file_format(name: str, bits: float) -> None:
    rounded = quantize(matrix(), minmax(matrix(), scheme(name)))
    assert rounded.bytes * 8 / matrix().numel() == bits
    assert rounded.bytes == rounded.to_tensors()["packed"].numel()


@pytest.mark.parametrize("name", BLOCKS)
def test_importance_lowers_the_error_that_counts(name: str) -> None:
    weight = matrix()
    torch.manual_seed(1)
    inputs = torch.randn(1024, 512) * torch.exp(torch.randn(512))
    second = inputs.T @ inputs / len(inputs)
    counted = second.diagonal()

    def error(grid: Any) -> float:
        return float(((quantize(weight, grid).dequantize() - weight).square() * counted).sum())

    weighted, plain = error(imatrix(weight, scheme(name), second)), error(block_grid(weight, scheme(name)))
    assert weighted < plain
    assert weighted <= error(minmax(weight, scheme(name)))
    rounded, _ = gptq(weight, imatrix(weight, scheme(name), second), second)
    change = rounded.dequantize().double() - weight
    nearest = quantize(weight, minmax(weight, scheme(name))).dequantize().double() - weight
    assert ((change @ second.double()) * change).sum() < ((nearest @ second.double()) * nearest).sum()
    assert (library(rounded) == rounded.dequantize().numpy()).all()


@pytest.mark.parametrize("name", BLOCKS)
def test_damaged_blocks_are_refused(name: str) -> None:
    rounded = quantize(matrix(), minmax(matrix(), scheme(name)))
    tensors, meta = rounded.to_tensors(), rounded.meta()
    with pytest.raises(EngineError, match="damaged"):
        from_tensors({"packed": tensors["packed"][:, :-1]}, meta)
    with pytest.raises(EngineError, match="damaged"):
        from_tensors({"packed": tensors["packed"][:-1]}, meta)
    infinite = rounded.scale.clone()
    infinite[0, 0] = float("inf")
    broken = QTensor(rounded.codes, infinite, None, rounded.format, rounded.group_size, rounded.multiplier, None, rounded.offset,
                     rounded.offset_multiplier)  # fmt: skip
    with pytest.raises(EngineError, match="not finite"):
        from_tensors(broken.to_tensors(), meta)


def test_a_byte_that_no_grid_here_holds_is_refused() -> None:
    blocks = torch.zeros(1, 34, dtype=torch.uint8)
    blocks[0, 5] = 128
    with pytest.raises(EngineError, match="-128"):
        of_blocks(FORMATS["q8_0"], blocks, 1, 32)


def test_weights_beyond_float16_are_refused() -> None:
    for name in BLOCKS:
        with pytest.raises(EngineError, match=r"beyond float16|NaN or infinity"):
            minmax(matrix() * 1e9, scheme(name))
