"""Height and width left open in a file whose graph is the same for images of other sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from engine.export.base import ExportContext

HEIGHT, WIDTH = "height", "width"
_IMAGES = 4
# By how much the other image is larger: multiples of the strides that networks have, unlike each other.
_LARGER = (64, 96)


def with_open_sizes(model: Any, context: ExportContext, build: Callable[[ExportContext], Any]) -> Any:
    """``model``, the ``ModelProto`` that ``build`` gives for ``context``, with names in the place of height and width where ``build``
    gives the same nodes and constants for larger images; as it is where it does not, and where images are not all that is read. The
    sizes of ``context`` stay in the file, as ``height`` and ``width`` of its properties."""
    images = context.tensors
    if len(images) != 1 or images[0].dim() != _IMAGES or context.model.program.sizes is not None:
        return model
    try:
        larger = build(replace(context, inputs=_larger(context)))
    except Exception:
        # The network does not compute on other sizes: nothing is open.
        return model
    if _computed(model) != _computed(larger):
        return model
    _open(model.graph.input[0], larger.graph.input[0], "")
    for small, large in zip(model.graph.output, larger.graph.output, strict=True):
        _open(small, large, f"{small.name}_")
    for name, size in zip((HEIGHT, WIDTH), images[0].shape[2:], strict=True):
        model.metadata_props.add(key=name, value=str(size))
    return model


def _larger(context: ExportContext) -> Any:
    """The items with larger images, the same pixels over and over."""
    assert context.inputs is not None

    def grown(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() != _IMAGES:
            return value
        rows, columns = (torch.arange(size + more) % size for size, more in zip(value.shape[2:], _LARGER, strict=True))
        return value[:, :, rows][:, :, :, columns]

    given = context.inputs
    return replace(
        given, args=torch.utils._pytree.tree_map(grown, given.args), kwargs=torch.utils._pytree.tree_map(grown, dict(given.kwargs))
    )


def _computed(model: Any) -> list[bytes]:
    return [part.SerializeToString(deterministic=True) for part in (*model.graph.node, *model.graph.initializer)]


def _open(small: Any, large: Any, prefix: str) -> None:
    """Give names to the dimensions of ``small`` that are others in ``large``."""
    sizes, others = small.type.tensor_type.shape.dim, large.type.tensor_type.shape.dim
    for place, (size, other) in enumerate(zip(sizes, others, strict=True)):
        if size.dim_value != other.dim_value:
            size.dim_param = f"{prefix}{HEIGHT if place == len(sizes) - 2 else WIDTH if place == len(sizes) - 1 else place}"
