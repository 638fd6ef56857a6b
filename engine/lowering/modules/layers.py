"""The layers of a decoder, as the planner takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from engine.kernels.matrix.base import is_plain
from engine.kernels.matrix.kind import Kind
from engine.models.anatomy import Anatomy, Matrix
from engine.planning import planner
from engine.planning.layer import Layer
from engine.planning.plan import Plan
from engine.recipe.capabilities import NOTHING, of_decoder
from engine.recipe.spec import LayerSpec, Rule

# The words for what computes a matrix, from what it is to become, its kind, its shape (out, in), and whether it is ``plain``.
Label = Callable[[LayerSpec, Kind, tuple[int, int], bool], str]
NO_MATRIX = "it holds no matrix"
BYPASSED = "the model multiplies by its weight past the layer, so that what it reads cannot be seen"


def plan(model: Any, parts: Anatomy, preset: str, rules: Sequence[Rule], shares: Mapping[str, float], label: Label) -> Plan:
    """The plan of ``model``, with a warning for each parameter that looks like a matrix and is in none that is known. Raises
    UsageError for a preset that decoders do not have."""
    return planned(layers(model, parts, shares, label), parts, preset, rules)


def planned(found: Sequence[Layer], parts: Anatomy, preset: str, rules: Sequence[Rule]) -> Plan:
    """The plan of a decoder's layers, as ``plan`` gives it."""
    made = planner.plan(found, preset, rules)
    unknown = (f"{name} is no matrix of a layer that is known here: it stays in fp32" for name in parts.uncovered)
    return replace(made, warnings=(*made.warnings, *unknown))


def layers(model: Any, parts: Anatomy, shares: Mapping[str, float], label: Label) -> tuple[Layer, ...]:
    """Every module of ``model`` that holds a matrix or other parameters of its own, in the model's order.

    ``shares`` maps module paths to their part (0..1) of the fp32 time. A matrix that is tied to an earlier one has that one's weights.
    """
    matrices = {matrix.path: matrix for matrix in parts.matrices}
    others, total = _others(parts), parts.params or 1
    found = []
    for path, module in model.named_modules():
        if path in others:
            count = others[path]
            found.append(Layer(
                path, type(module).__name__, path, count, (), params_share=count / total, time_share=shares.get(path, 0.0),
                obstacle=NO_MATRIX, ruled=False, kernel=lambda spec: "torch fp32",
            ))  # fmt: skip
        elif path in matrices:
            kernel = partial(_label, label, matrices[path], is_plain(module))
            layer = _layer(matrices[path], total, shares, kernel)
            found.append(replace(layer, capabilities=NOTHING, obstacle=BYPASSED) if path in parts.bypassed else layer)
    return tuple(found)


def _layer(matrix: Matrix, total: int, shares: Mapping[str, float], kernel: Callable[[LayerSpec], str]) -> Layer:
    able = of_decoder(matrix.kind, matrix.block is not None, matrix.shape[1])
    return Layer(
        matrix.path, matrix.kind, matrix.path, matrix.params, matrix.shape, able, matrix.params / total, shares.get(matrix.path, 0.0),
        tied=matrix.tied, kernel=kernel,
    )  # fmt: skip


def _label(label: Label, matrix: Matrix, plain: bool, spec: LayerSpec) -> str:
    return label(spec, matrix.kind, matrix.shape, plain)


def _others(parts: Anatomy) -> dict[str, int]:
    """Parameters outside of matrices, by the module that holds them."""
    found: dict[str, int] = {}
    for name, count in parts.others.items():
        path = name.rpartition(".")[0]
        found[path] = found.get(path, 0) + count
    return found
