"""Rounding learned on calibration items, segment by segment in the order of the graph: layers (AdaRound) or residual blocks (BRECQ)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, fx

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.lowering.graph import block_rounding, layer_rounding
from engine.lowering.graph.reconstruction import Layer, Reconstruction
from engine.lowering.graph.reconstruction import Start as Start
from engine.lowering.graph.segments import Segment, last_reads, segments
from engine.lowering.graph.streams import reads_of
from engine.numerics.memory import content
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor
from engine.paths import save as save_file
from engine.reading import regular

# Bytes of values that are alive in both forms of the graph.
BUDGET = 4 * 2**30
LEAST = 16


@dataclass(frozen=True)
class Reconstructed:
    """``weights`` and ``shifts``, what the bias of the fp32 layer takes up, are by layer node, of the layers that were learned alone;
    ``notes`` are of all that were to be. ``grids`` are of all value classes."""

    weights: Mapping[str, QTensor]
    shifts: Mapping[str, Tensor]
    notes: Mapping[str, str]
    grids: Mapping[str, QParams]


def reconstruct(
    start: Start, chunks: Sequence[tuple[Tensor, ...]], stop: StopToken, seed: int = 0, notes: Mapping[str, str] | None = None,
    checkpoints: Path | None = None,
) -> Generator[Event, None, Reconstructed]:  # fmt: skip
    """``start`` with the rounding learned of the layers whose method asks for it. ``chunks`` are the graph's inputs for a few calibration
    items each, in order; every eighth is held back, and judges each layer or block: what does not better it is not taken, and the notes
    say so. ``notes`` say how each layer node was rounded before.

    With ``checkpoints`` each finished segment is kept there, and a later call with the same start, items and seed goes on from it bit for
    bit. Yields Progress in steps; raises Cancelled on stop, at the next step, and EngineError for a checkpoint that is damaged.
    """
    work = Reconstruction(start, chunks, stop)
    work.notes.update(notes or {})
    asked = {name: how for name in start.weights if (how := work.how(name)) and how.reconstruction and work.alone(name)}
    found = segments(start.gm, start.layout, start.weights, [name for name, how in asked.items() if how.reconstruction == "block"])
    wanted = [{name: asked[name].title for name in segment.layers if name in asked} for segment in found]
    ticker = Ticker("convert", sum(_steps(s) for s, w in zip(found, wanted, strict=True) if w), "steps", clock=stop.clock)
    mark = _fingerprint(start, chunks, seed) if checkpoints is not None else ""
    for index, (segment, titles, keep) in enumerate(zip(found, wanted, kept_after(start.gm, found), strict=True)):
        stop.check()
        work.exact.run(segment.nodes, {*keep, *reads_of(segment.nodes), segment.output})
        if titles:
            path = None if checkpoints is None else checkpoints / f"segment-{index:04d}.safetensors"
            if path is not None and _read(path, mark, work, segment, titles):
                ticker.skip(_steps(segment))
            else:
                generator = torch.Generator().manual_seed((seed << 16) + index)
                if len(segment.layers) == 1:
                    yield from layer_rounding.learn_layer(work, segment, generator, ticker)
                else:
                    yield from block_rounding.learn_block(work, segment, titles, generator, ticker)
                if path is not None:
                    _write(path, mark, work, segment, titles)
        work.rounded.run(segment.nodes, keep)
        work.exact.values = {node: values for node, values in work.exact.values.items() if node in keep}
    learned = {name: work.layers[name] for name in sorted(work.learned)}
    shifts = {}
    for name, layer in learned.items():
        bias = work.parameters(name)[1]
        if layer.bias is not None and bias is not None:
            shifts[name] = layer.bias - bias
    weights = {name: layer.weight for name, layer in learned.items()}
    grids = {name: grid.grid() for name, grid in work.activations.items()}
    return Reconstructed(weights, shifts, {name: work.notes[name] for name in asked if name in work.notes}, grids)


def items_within(gm: fx.GraphModule, sizes: Mapping[str, tuple[int, ...]], items: int) -> int:
    """How many of ``items`` have room in ``BUDGET``: ``sizes`` are those of each node's value for one item."""
    last, order = last_reads(gm), {node: place for place, node in enumerate(gm.graph.nodes)}
    alive: set[fx.Node] = set()
    most = 1
    for node in gm.graph.nodes:
        alive = {value for value in alive if order[last[value]] >= order[node]} | ({node} if node in last else set())
        most = max(most, sum(torch.Size(sizes.get(value.name, ())).numel() for value in alive))
    return min(items, max(BUDGET // (2 * 4 * most), LEAST))


def _steps(segment: Segment) -> int:
    return layer_rounding.STEPS if len(segment.layers) == 1 else block_rounding.STEPS


def kept_after(gm: fx.GraphModule, found: Sequence[Segment]) -> list[set[fx.Node]]:
    """What is read after each segment."""
    output = next(node for node in gm.graph.nodes if node.op == "output")
    later = set(output.all_input_nodes)
    kept: list[set[fx.Node]] = []
    for segment in reversed(found):
        kept.append(set(later))
        later = (later - set(segment.nodes)) | set(reads_of(segment.nodes))
    return kept[::-1]


def _fingerprint(start: Start, chunks: Sequence[tuple[Tensor, ...]], seed: int) -> str:
    digest = hashlib.sha256(f"{seed} {sorted(start.grids.items())} {sorted((p, str(s)) for p, s in start.specs.items())}".encode())
    for name, weight in start.weights.items():
        digest.update(name.encode())
        for part in (weight.codes, weight.scale):
            digest.update(content(part))
    for graph in (start.gm, start.rounded):
        for tensor in graph.state_dict().values():
            digest.update(content(tensor))
    for chunk in chunks:
        for tensor in chunk:
            digest.update(content(tensor))
    return digest.hexdigest()


def _write(path: Path, mark: str, work: Reconstruction, segment: Segment, titles: Mapping[str, str]) -> None:
    tensors: dict[str, Tensor] = {}
    for name in (name for name in titles if name in work.learned):
        layer = work.layers[name]
        tensors |= {f"{name}/codes": layer.weight.codes.contiguous(), f"{name}/scale": layer.weight.scale.contiguous()}
        tensors |= {} if layer.bias is None else {f"{name}/bias": layer.bias.contiguous()}
    for c in work.classes_in(segment.nodes):
        tensors[f"{c.name}/step"] = work.activations[c.name].step.detach().clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = json.dumps({name: work.notes[name] for name in titles})
    save_file(path, save(tensors, {"fingerprint": mark, "notes": notes}))


def _read(path: Path, mark: str, work: Reconstruction, segment: Segment, titles: Mapping[str, str]) -> bool:
    """Whether ``path`` holds what was learned of ``segment``, which ``work`` takes over."""
    if not path.exists():
        return False
    try:
        regular(path)
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("fingerprint") != mark:
                return False
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name in titles:
            if f"{name}/codes" in tensors:
                before = work.layers[name]
                codes = tensors[f"{name}/codes"].reshape(before.weight.shape)
                weight = replace(before.weight, codes=codes, scale=tensors[f"{name}/scale"])
                work.take({name: Layer.of(before.module, weight, tensors.get(f"{name}/bias"))})
        with torch.no_grad():
            for c in work.classes_in(segment.nodes):
                work.activations[c.name].step.copy_(tensors[f"{c.name}/step"])
        work.notes.update({name: str(note) for name, note in json.loads(about["notes"]).items() if name in titles})
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise EngineError(f"{path} is damaged: delete it, and its layers are rounded again") from error
    return True
