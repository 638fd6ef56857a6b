"""A decoder read back from its file, for scripts: token ids to logits, and text continued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.lowering.modules.artifact import read_with_header
from engine.lowering.modules.coded_cache import attached
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.numerics.float_activations import round_floats, simulated
from engine.numerics.formats import round_to_
from engine.numerics.quantized_matrix import QuantizedMatrix


@dataclass(frozen=True)
class LoadedDecoder:
    """Computes in float32 with what the integers stand for; where the recipe rounds activations, they are rounded as it says.
    ``on_kernels`` gives what computes with the integers themselves.

    ``recipe`` is YAML, ``isa`` the instruction set of the machine that made the file."""

    decoder: QuantizedDecoder
    recipe: str
    isa: str

    @torch.inference_mode()
    def __call__(self, ids: Tensor) -> Tensor:
        """Token ids (N, T) or (T,) to float32 logits (N, T, vocabulary). Raises EngineError for ids outside of the vocabulary."""
        rows = ids if ids.dim() == 2 else ids[None]
        vocabulary = int(self.decoder.twin.get_input_embeddings().weight.shape[0])
        if rows.is_floating_point() or rows.dim() != 2 or not rows.numel() or int(rows.min()) < 0 or int(rows.max()) >= vocabulary:
            raise EngineError(f"token ids of shape {tuple(ids.shape)} are not integers (N, T) from 0 to {vocabulary - 1}")
        with rounding(self.decoder):
            found: Tensor = self.decoder.twin(input_ids=rows, use_cache=False).logits
        return found

    def on_kernels(self, device: str = "cpu") -> Any:
        """A transformers model on the integer kernels of this machine, or of its GPU for ``cuda``; for inference alone. It shares nothing
        with this one. The kernels are tried before, which takes some seconds the first time."""
        from engine.kernels.gpu.probe import seen_from
        from engine.kernels.probe import probe
        from engine.lowering.modules.runtime import running

        if device != "cpu" and not torch.cuda.is_available():
            raise EngineError(f"{device}: torch sees no GPU here: leave the device out, or look at `qtui doctor`")
        return running(self.decoder, seen_from(probe(), device))[0]


def load(path: Path) -> LoadedDecoder:
    """Raises EngineError as ``file.read`` does."""
    decoder, about = read_with_header(path)
    return LoadedDecoder(decoder, str(about.get("recipe", "")), str(about.get("isa", "")))


@contextmanager
def rounding(decoder: QuantizedDecoder) -> Iterator[Any]:
    """The twin with the inputs of its matrices, and its keys and values, rounded as the recipe says, until the end of the block."""
    hooks = [
        decoder.twin.get_submodule(path).register_forward_pre_hook(_round(matrix))
        for path, matrix in decoder.matrices.items() if matrix.activations is not None
    ]  # fmt: skip
    try:
        with attached(decoder.twin, decoder.cache):
            yield decoder.twin
    finally:
        for hook in hooks:
            hook.remove()


def rounded(x: Tensor, matrix: QuantizedMatrix) -> Tensor:
    """``x`` (..., in) on the matrix's activation grid: one symmetric step a row where it is dynamic, else the calibrated one;
    in floats of few bits where the recipe says so."""
    assert matrix.activations is not None
    if simulated(matrix.activations):
        return round_floats(x, matrix.activations, None if matrix.grid is None else matrix.grid.scale)
    if matrix.activations.dynamic:
        top = (1 << (matrix.activations.bits - 1)) - 1
        step = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / top
        return torch.round(x / step) * step
    if matrix.grid is None:
        raise EngineError("a matrix of static activations has no grid: quantize the model again")
    grid = matrix.grid
    return round_to_(x / grid.scale, 0, grid.qmax, grid.zero_point).sub_(grid.zero_point) * grid.scale


def _round(matrix: QuantizedMatrix) -> Any:
    def before(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (rounded(given[0], matrix), *given[1:])

    return before
