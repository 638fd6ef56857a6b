"""A traced graph in the forms that folding and quantization look for, checked to compute the same."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx

from engine.lowering.graph.constants import fold_constants
from engine.lowering.graph.normalizations import fold_into_readers, linears_on_rows, remove_identities, to_modules
from engine.lowering.graph.normalize import chunks_to_slices, functional_to_modules

_CLOSE = 1e-4


def simplify(gm: fx.GraphModule, example: Tensor) -> fx.GraphModule:
    """``gm`` with its constants computed, functional layers and normalizations as modules, and nothing between those that belong
    together. ``example`` is (N, ...), on which the result is compared with ``gm``: where it is another, only functional layers and
    chunks are rewritten."""
    with torch.no_grad():
        expected = gm(example.clone())
        new = copy.deepcopy(gm)
        fold_constants(new)
        _to_known_forms(new)
        to_modules(new)
        remove_identities(new)
        linears_on_rows(new)
        fold_into_readers(new)
        new.graph.lint()
        change = float((new(example.clone()) - expected).abs().max())
    if not change <= _CLOSE * max(1.0, float(expected.abs().max())):
        new = copy.deepcopy(gm)
        _to_known_forms(new)
    new.delete_all_unused_submodules()
    new.recompile()
    return new


def _to_known_forms(gm: fx.GraphModule) -> None:
    functional_to_modules(gm)
    chunks_to_slices(gm)
