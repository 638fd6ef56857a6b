"""The plan of a decoder: what each of its matrices is to become, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from engine.events.event import LayerRow
from engine.kernels.matrix.base import is_plain
from engine.models.anatomy import Anatomy, Kind, Matrix
from engine.planning.matrix_strategy import asked, possible, proposed
from engine.planning.plan import Plan
from engine.recipe.spec import FP32, LayerSpec, Rule

# The words for what computes a matrix, from what it is to become, its kind, its shape (out, in), and whether it is ``plain``.
Label = Callable[[LayerSpec, Kind, tuple[int, int], bool], str]


def plan(model: Any, parts: Anatomy, preset: str, rules: Sequence[Rule], shares: Mapping[str, float], label: Label) -> Plan:
    """Resolve ``rules``, then ``preset``, on every matrix of ``model``; norms and other parameters follow, in fp32.

    ``shares`` maps module paths to their part (0..1) of the fp32 time. A matrix that is tied to an earlier one has that one's
    weights. Raises UsageError for a preset that decoders do not have.
    """
    used: set[int] = set()
    rows: dict[str, LayerRow] = {}
    for matrix in parts.matrices:
        rows[matrix.path] = _row(matrix, model.get_submodule(matrix.path), preset, rules, shares, label, rows, used)
    for path, count in _others(parts).items():
        module = model.get_submodule(path) if path else model
        why = "it holds no matrix"
        share = shares.get(path, 0.0)
        rows[path] = LayerRow(
            path, type(module).__name__, path, count, (), FP32, FP32, FP32, "kind", why, why, share, "torch fp32", False, why
        )
    ordered = [name for name, _ in model.named_modules() if name in rows]
    unused = [rule for i, rule in enumerate(rules) if i not in used]
    warnings = [f"{f'line {rule.line}: ' if rule.line else ''}rule {rule.match!r} matches no layer that it could change" for rule in unused]
    warnings += [f"{name} is no matrix of a layer that is known here: it stays in fp32" for name in parts.uncovered]
    return Plan(tuple(rows[name] for name in ordered), tuple(warnings))


def _row(
    matrix: Matrix, module: nn.Module, preset: str, rules: Sequence[Rule], shares: Mapping[str, float], label: Label,
    rows: Mapping[str, LayerRow], used: set[int],
) -> LayerRow:  # fmt: skip
    in_block = matrix.block is not None
    offered, offered_why = proposed(matrix.kind)
    index = next((i for i, rule in enumerate(rules) if _matches(rule, matrix)), None)
    tied = rows.get(matrix.tied) if matrix.tied else None
    if index is not None:
        used.add(index)
        spec, rule, why = rules[index].spec, f"rule {rules[index].match}", rules[index].why
    elif preset == "default":
        spec, rule, why = offered, "proposal", offered_why
    else:
        spec, rule, why = asked(preset, matrix.kind, in_block), f"preset {preset}", f"preset {preset}"
    actual, limit = possible(spec, matrix.kind, in_block)
    if tied is not None:
        # One matrix has one form: how it is multiplied is still the layer's own.
        actual = LayerSpec(tied.actual.weights, actual.activations if tied.actual.weights else None)
        limit = f"shares the matrix of {tied.path}, and its weights"
    why = "; ".join(filter(None, (why, limit)))
    return LayerRow(
        matrix.path, matrix.kind, matrix.path, matrix.params, matrix.shape, spec, actual, offered, rule, why, offered_why,
        shares.get(matrix.path, 0.0), label(actual, matrix.kind, matrix.shape, is_plain(module)), tied is None, limit if tied else None,
        decoder="block" if in_block else "outside", tied=matrix.tied,
    )  # fmt: skip


def _matches(rule: Rule, matrix: Matrix) -> bool:
    if rule.match.startswith("kind:"):
        return fnmatchcase(matrix.kind, rule.match.removeprefix("kind:"))
    return fnmatchcase(matrix.path, rule.match)


def _others(parts: Anatomy) -> dict[str, int]:
    """Parameters outside of matrices, by the module that holds them."""
    found: dict[str, int] = {}
    for name, count in parts.others.items():
        path = name.rpartition(".")[0]
        found[path] = found.get(path, 0) + count
    return found
