"""A decoder's file, run or put on kernels block by block: one block at a time is in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.kernels.matrix.base import asked_of
from engine.kernels.matrix.choose import choose
from engine.kernels.matrix.kind import kind_of
from engine.kernels.probe import Machine
from engine.lowering.modules.artifact import DecoderFile, buffers
from engine.lowering.modules.capture import Batch, capture, leaving, returned_by, run_block
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.lowering.modules.rounded_inputs import rounding
from engine.lowering.modules.runtime import running
from engine.lowering.modules.skeleton import empty
from engine.models.anatomy import blocks_of
from engine.models.unread import forget, in_block, outside, parameters_on_meta, put
from engine.numerics.quantized_matrix import QuantizedMatrix


@torch.no_grad()
def unfilled(file: DecoderFile) -> Any:
    """The decoder of ``file`` with its buffers; its parameters have shapes alone."""
    with parameters_on_meta():
        model = empty(file.about["config"], file.separate).requires_grad_(False)
    for name, buffer in buffers(model).items():
        buffer.copy_(file.tensors[f"buffer/{name}"])
    return model


@torch.no_grad()
def fill(model: Any, file: DecoderFile, names: Sequence[str], machine: Machine | None = None) -> dict[str, QuantizedMatrix]:
    """Give the parameters of ``model`` named ``names`` what ``file`` has for them, in float32; the matrices among them, by module path.
    Those that a kernel of ``machine`` computes with their integers are left without."""
    found: dict[str, QuantizedMatrix] = {}
    for name in names:
        path = name.removesuffix(".weight")
        if path in file.about["matrices"] and path != name:
            found[path] = file.matrix(path)
            if machine is not None and not choose(asked_of(found[path], model.get_submodule(path)), machine).storage_only:
                continue
            weight = found[path].weight.dequantize()
            put(model, [(name, weight.T.contiguous() if kind_of(model.get_submodule(path)) == "Conv1D" else weight)])
        else:
            put(model, [(name, file.tensors[f"rest/{name}"].clone())])
    return found


def _around(model: Any, file: DecoderFile) -> dict[str, QuantizedMatrix]:
    """Fill what stands outside of the blocks; its matrices, the tied ones too."""
    found = fill(model, file, outside(model))
    for path, entry in file.about["matrices"].items():
        if entry["tied"] is not None:
            found[path] = file.matrix(path)
    return {path: found[path] for path in file.about["matrices"] if path in found}


def _decoder(model: Any, matrices: dict[str, QuantizedMatrix], number: int) -> QuantizedDecoder:
    """Block ``number`` with its matrices."""
    path, blocks = blocks_of(model)
    return QuantizedDecoder(blocks[number], {name.removeprefix(f"{path}.{number}."): matrix for name, matrix in matrices.items()})


def on_kernels(file: DecoderFile, machine: Machine) -> Any:
    """A transformers model on the integer kernels of ``machine``, as ``running`` makes it of the whole decoder."""
    model = unfilled(file)
    depth = len(blocks_of(model)[1])
    made = []
    for number in range(depth):
        matrices = fill(model, file, in_block(model, number), machine)
        made.append(running(_decoder(model, matrices, number), machine)[0])
        forget(blocks_of(model)[1][number])
    found, _ = running(QuantizedDecoder(model, _around(model, file), file.cache()), machine)
    blocks = blocks_of(found)[1]
    for number, block in enumerate(made):
        blocks[number] = block
    return found


@torch.no_grad()
def logits_by_block(file: DecoderFile, windows: Sequence[Tensor], machine: Machine | None = None) -> list[Tensor]:
    """The logits (N, T, vocabulary) of each of ``windows``, ids (N, T): on the integer kernels of ``machine``, or in float32 on what the
    integers stand for, with activations rounded as the recipe says."""
    model = unfilled(file)
    blocks = blocks_of(model)[1]
    outer = QuantizedDecoder(model, _around(model, file))
    fill(model, file, in_block(model, 0))
    (first,) = capture(lambda ids: model(input_ids=ids, use_cache=False), list(blocks), [(windows[0], None)])
    returned = returned_by(blocks[0], first, 0)
    forget(blocks[0])
    around = model
    if machine is not None:
        around = running(outer, machine)[0]
        forget(model)
        outer = QuantizedDecoder(model, {})
    batches: list[Batch] = []
    with rounding(outer):
        several = list(blocks_of(around)[1])
        for ids in windows:
            batches += capture(lambda ids: around(input_ids=ids, use_cache=False), several, [(ids, None)], returned=returned)
    for number in range(len(blocks)):
        inner = _decoder(model, fill(model, file, in_block(model, number), machine), number)
        block = inner.twin if machine is None else running(inner, machine)[0]
        with rounding(inner if machine is None else QuantizedDecoder(inner.twin, {})):
            for batch in batches:
                batch.hidden = run_block(block, batch, number)
        forget(blocks[number])
    with rounding(outer):
        return [leaving(around, ids, batch.hidden, returned).logits for ids, batch in zip(windows, batches, strict=True)]
