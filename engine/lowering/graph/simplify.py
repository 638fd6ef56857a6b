"""A traced graph in the forms that folding and quantization look for, checked to compute the same."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx

from engine.lowering.graph.call import inputs_of, largest, largest_difference
from engine.lowering.graph.constants import fold_constants
from engine.lowering.graph.normalizations import fold_into_readers, linears_on_rows, remove_identities, to_modules
from engine.lowering.graph.normalize import chunks_to_slices, functional_to_modules
from engine.lowering.graph.padding import pads_as_steps
from engine.lowering.graph.subpixel import transposed_to_convolutions
from engine.tasks.base import Batch

_CLOSE = 1e-4


def simplify(gm: fx.GraphModule, example: Batch | Tensor) -> fx.GraphModule:
    """``gm`` with its constants computed, functional layers and normalizations as modules, and nothing between those that belong
    together. ``example`` is a batch, or a graph's one input, on which the result is compared with ``gm``: where it is another, only
    functional layers and chunks are rewritten."""
    with torch.no_grad():
        inputs = inputs_of(gm, example)
        expected = gm(*(x.clone() for x in inputs))
        new = copy.deepcopy(gm)
        fold_constants(new)
        _to_known_forms(new)
        to_modules(new)
        remove_identities(new)
        linears_on_rows(new)
        pads_as_steps(new)
        fold_into_readers(new)
        transposed_to_convolutions(new)
        new.graph.lint()
        change = largest_difference(new(*(x.clone() for x in inputs)), expected)
    if not change <= _CLOSE * max(1.0, largest(expected)):
        new = copy.deepcopy(gm)
        _to_known_forms(new)
    new.delete_all_unused_submodules()
    new.recompile()
    return new


def _to_known_forms(gm: fx.GraphModule) -> None:
    functional_to_modules(gm)
    chunks_to_slices(gm)
