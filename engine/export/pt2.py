"""A ``.pt2`` of torch.export: plain torch operations on stored integers, to be loaded where there is torch and nothing else.

It computes the program's integers in float32, where products of 8 bits are exact, so that its outputs are those of the integer
kernels on any machine and device. Its convolutions are torch's in fp32, so it is no faster than the fp32 model.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import EngineError, one_line
from engine.export.base import ExportContext, Runner, of_one_item, program_runner
from engine.kernels.base import IntegerLayer
from engine.kernels.simulate import Simulate
from engine.lowering.graph.call import results_of
from engine.lowering.graph.program import Step
from engine.lowering.graph.runtime import Function, QuantizedModel
from engine.models.memory import laid_out
from engine.numerics.packing import pack_nibbles
from engine.numerics.qtensor import QTensor, per_channel

_ABOUT = "qtui.json"


class _Stored(nn.Module):
    """Weights as they are stored: integers, two to a byte up to 4 bits, scales and multipliers."""

    values: Tensor
    scale: Tensor
    multiplier: Tensor | None

    def __init__(self, weight: QTensor) -> None:
        super().__init__()
        self.bits, self.shape, self.group_size = weight.bits, tuple(weight.codes.shape), weight.group_size
        values = pack_nibbles(weight.codes) if weight.bits <= 4 else _last(weight.codes)
        self.register_buffer("values", values)
        self.register_buffer("scale", weight.channel_scale)
        self.register_buffer("multiplier", weight.multiplier)

    def numbers(self) -> Tensor:
        """The integers of ``QTensor.integers`` as float32, in few passes: they are unpacked in every call."""
        values: Tensor = self.values
        if self.bits <= 4:
            # Shifted up and down again a nibble keeps its sign.
            pairs = values.view(torch.int8)
            both = torch.stack([(pairs << 4) >> 4, pairs >> 4], 1)
            values = both.flatten()[: math.prod(self.shape)].reshape(self.shape)
        numbers = values.to(torch.float32)
        if self.multiplier is None:
            return numbers
        flat, groups = numbers.flatten(1), self.multiplier.shape[1]
        rest = groups * self.group_size - flat.shape[1]
        whole = (F.pad(flat, (0, rest)) if rest else flat).reshape(len(flat), groups, self.group_size)
        spread = (whole * self.multiplier.to(torch.float32)[:, :, None]).flatten(1)
        return spread[:, : flat.shape[1]].reshape(self.shape)

    def weight(self) -> Tensor:
        """The weights as numbers in float32."""
        return self.numbers() * per_channel(self.scale, len(self.shape))


def _last(x: Tensor) -> Tensor:
    """In the order that convolutions on the processor take without copying."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()


class _Portable(QuantizedModel):
    """The program without kernels, in a form that torch.export can follow."""

    def forward(self, *inputs: Tensor) -> Any:
        values = self._holding(inputs)
        for step in self._bound:
            values[step.output] = step.run(*[values[i] for i in step.inputs])
        results = tuple(values[self._slots[name]] for name in self.program.results)
        return results if len(results) > 1 else results[0]

    def _stored(self, layer: str) -> _Stored:
        name = f"stored_{layer}"
        if not hasattr(self, name):
            self.add_module(name, _Stored(self.program.layers[layer]))
        return getattr(self, name)  # type: ignore[no-any-return]

    def _op_layer(self, step: Step) -> Function:
        layer, stored, kernel = self.layer(self.program, step), self._stored(step.attrs["layer"]), Simulate()
        fixed = {name: value for name, value in vars(layer).items() if name not in ("weight", "weight_scale")}

        def run(*inputs: Tensor) -> Tensor:
            return kernel.build(IntegerLayer(weight=stored.numbers(), weight_scale=stored.scale, **fixed))(*inputs)

        return run

    def _op_module(self, step: Step) -> Function:
        if not step.attrs["weight_only"]:
            return super()._op_module(step)
        module, stored = self.module(step), self._stored(step.output)

        def called(*inputs: Any, **named: Any) -> Any:
            return torch.func.functional_call(module, {"weight": stored.weight()}, inputs, named)

        return self.positional(called, step)


def write(context: ExportContext, path: Path) -> str:
    model = _Portable(context.model.program, [Simulate()], context.whole).eval()
    inputs = tuple(x.clone() for x in context.items(0, 3))
    batch = torch.export.Dim("batch", min=1)
    free = tuple({0: batch} if a.shape != b.shape else {} for a, b in zip(inputs, context.items(0, 2), strict=True))
    about = {"model": context.name, "recipe": context.recipe, "isa": context.isa}
    # torch's archive writer ends the process where it cannot write, so that it is given memory.
    content = io.BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(model, inputs, dynamic_shapes=(free,), strict=False)
            # The inputs would be stored with the program.
            exported.example_inputs = None
            torch.export.save(exported, content, extra_files={_ABOUT: json.dumps(about)})
    except Exception as error:
        raise EngineError(f"torch.export does not take {context.name} ({type(error).__name__}: {one_line(error, 160)})") from error
    path.write_bytes(content.getbuffer())
    return of_one_item(context)


def load(path: Path, context: ExportContext) -> Runner:
    """In this process, on torch's own threads."""
    found = {_ABOUT: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.export.load(path, extra_files=found).module()
    except Exception as error:
        raise EngineError(f"{path} cannot be loaded by torch.export ({one_line(error, 160)}): export it again") from error
    if not found[_ABOUT]:
        raise EngineError(f"{path} was not written by this program: export it again")
    label = f"torch {torch.__version__.partition('+')[0]}"
    return program_runner(context, label, laid_out, lambda inputs: results_of(module(*inputs)), "torch fp32 on stored integers")
