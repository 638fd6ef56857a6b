"""The modules of a decoder as rows: shapes and times of one window of text, seen as it runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.events.event import NodeRow
from engine.machine.device import wait
from engine.machine.repeats import passes
from engine.models.anatomy import Anatomy


@dataclass(frozen=True)
class Look:
    """``rows`` in the order of the modules, ``shares`` the part (0..1) of the window's time of the modules that hold no others."""

    rows: tuple[NodeRow, ...]
    shares: Mapping[str, float]


def look(model: Any, parts: Anatomy, ids: Tensor) -> Look:
    """Run ``ids`` (1, T) through ``model`` a few times and note what each module puts out."""
    leaves = [name for name, module in model.named_modules() if name and not any(True for _ in module.children())]
    shapes: dict[str, tuple[int, ...]] = {}
    began: dict[str, float] = {}
    times: dict[str, list[float]] = {}
    hooks = []

    def before(name: str) -> Any:
        def note(module: nn.Module, given: Any) -> None:
            wait(ids.device)
            began[name] = time.perf_counter()

        return note

    def after(name: str, timed: bool) -> Any:
        def note(module: nn.Module, given: Any, put: Any) -> None:
            if timed:
                wait(ids.device)
                times.setdefault(name, []).append(time.perf_counter() - began[name])
            out = put[0] if isinstance(put, tuple) and put else put
            if isinstance(out, Tensor):
                shapes[name] = tuple(out.shape)

        return note

    for name, module in model.named_modules():
        if not name:
            continue
        timed = name in leaves
        if timed:
            hooks.append(module.register_forward_pre_hook(before(name)))
        hooks.append(module.register_forward_hook(after(name, timed)))
    whole = []
    try:
        with torch.inference_mode():
            for number in passes():
                start = time.perf_counter()
                model(input_ids=ids, use_cache=False)
                wait(ids.device)
                whole.append(time.perf_counter() - start)
                if not number:
                    times.clear()
                    whole.clear()
    finally:
        for hook in hooks:
            hook.remove()
    # One pass that was disturbed moves no median.
    middle = statistics.median_low(whole)
    shares = {name: statistics.median_low(seen) / middle for name, seen in times.items()}
    return Look(_rows(model, parts, shapes, shares), shares)


def unrun(model: Any, parts: Anatomy) -> Look:
    """The same of a model whose weights are not at hand: no shapes of outputs, and no times."""
    return Look(_rows(model, parts, {}, {}), {})


def together(cells: Sequence[tuple[str, ...]], blocks: str) -> tuple[tuple[str, ...], ...]:
    """Rows that begin with a module path, those of blocks that are alike once: ``h.0-11.attn`` for twelve of them. ``blocks``
    is the path of the sequence."""
    inside: dict[int, list[tuple[str, ...]]] = {}
    for row in cells:
        if row[0].startswith(f"{blocks}."):
            inside.setdefault(int(row[0].removeprefix(f"{blocks}.").partition(".")[0]), []).append(row)
    runs: list[list[int]] = []
    for number, rows in inside.items():
        plain = _without_number(rows, blocks, number)
        if runs and plain == _without_number(inside[runs[-1][0]], blocks, runs[-1][0]):
            runs[-1].append(number)
        else:
            runs.append([number])
    firsts = {run[0]: run for run in runs}
    found: list[tuple[str, ...]] = []
    for row in cells:
        if not row[0].startswith(f"{blocks}."):
            found.append(row)
            continue
        at, _, rest = row[0].removeprefix(f"{blocks}.").partition(".")
        if int(at) in firsts:
            run = firsts[int(at)]
            several = at if len(run) == 1 else f"{at}-{run[-1]}"
            found.append((f"{blocks}.{several}{'.' if rest else ''}{rest}", *row[1:]))
    return tuple(found)


def _without_number(rows: Sequence[tuple[str, ...]], blocks: str, number: int) -> list[tuple[str, ...]]:
    return [(row[0].removeprefix(f"{blocks}.{number}"), *row[1:]) for row in rows]


def _rows(model: Any, parts: Anatomy, shapes: Mapping[str, tuple[int, ...]], shares: Mapping[str, float]) -> tuple[NodeRow, ...]:
    matrices = {matrix.path: matrix for matrix in parts.matrices}
    rows = []
    for name, module in model.named_modules():
        if not name:
            continue
        matrix = matrices.get(name)
        own = sum(p.numel() for p in module.parameters(recurse=False)) if matrix is None else matrix.params
        about = f"{matrix.shape[1]} → {matrix.shape[0]}" if matrix and matrix.kind != "Embedding" else ""
        about = f"{matrix.shape[0]} × {matrix.shape[1]}" if matrix and matrix.kind == "Embedding" else about
        tied = f"tied to {matrix.tied}" if matrix and matrix.tied else ""
        shape = _shape(shapes[name]) if name in shapes else ""
        rows.append(NodeRow("module", name, type(module).__name__, about, tied, shape, own, shares.get(name)))
    return tuple(rows)


def _shape(sizes: tuple[int, ...]) -> str:
    """``N×T×768``: the first two of three are the batch and the tokens."""
    named = ["N", "T", *map(str, sizes[2:])] if len(sizes) == 3 else ["N", *map(str, sizes[1:])]
    return "×".join(named)
