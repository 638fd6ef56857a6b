"""The fp32 graph in the memory formats that it may be fastest in."""

from __future__ import annotations

import copy

from torch import fx, nn

from engine.lowering.graph.structured import structured
from engine.lowering.graph.subpixel import with_transposed
from engine.models.memory import channels_last


def fp32_size(gm: fx.GraphModule) -> int:
    """Bytes of the fused fp32 model as a safetensors file."""
    from safetensors.torch import save

    gm = with_transposed(copy.deepcopy(gm))
    return len(save({name: tensor.contiguous().clone() for name, tensor in gm.state_dict().items()}))


def fp32_forms(gm: fx.GraphModule) -> dict[str, nn.Module]:
    """The fused fp32 graph, with the model's own transposed convolutions, in both memory formats: which is faster depends on the
    machine and the batch."""
    gm = with_transposed(copy.deepcopy(gm))
    last = channels_last(copy.deepcopy(gm))
    return {"torch fp32, channels-last": structured(last), "torch fp32, contiguous": structured(copy.deepcopy(gm), contiguous=True)}
