"""A plan's noise before it is carried out: the quantized graph in float arithmetic on a few calibration items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from engine.events.cancellation import StopToken
from engine.lowering.graph import conversion
from engine.lowering.graph.layout import Layout
from engine.lowering.graph.observe import Observed
from engine.lowering.graph.reconstruction import Reconstruction, Start
from engine.numerics.sqnr import sqnr_db
from engine.recipe.spec import LayerSpec


def nearest_sqnr(
    gm: fx.GraphModule, layout: Layout, specs: Mapping[str, LayerSpec], chunks: Sequence[tuple[Tensor, ...]],
    held: Sequence[tuple[Tensor, ...]], stop: StopToken,
) -> float:  # fmt: skip
    """SQNR in dB of the results on ``held``, the graph's inputs, with weights rounded to nearest and grids calibrated on ``chunks``."""
    observed = Observed(gm, layout)
    for chunk in chunks:
        stop.check()
        observed.batch(*chunk)
    weights = conversion.round_weights(gm, layout, specs)
    return output_sqnr(Reconstruction(Start(gm, gm, layout, specs, observed.grids(), weights), held, stop), range(len(held)))


def output_sqnr(work: Reconstruction, chunks: Sequence[int]) -> float:
    """SQNR in dB of all floating-point results of ``work`` on some of its chunks, its streams being run where they were not."""
    nodes = [node for node in work.gm.graph.nodes if node.op not in ("placeholder", "output")]
    results = list(next(n for n in work.gm.graph.nodes if n.op == "output").all_input_nodes)
    for stream in (work.exact, work.rounded):
        if any(node not in stream.values for node in results):
            stream.run(nodes, results)
    signal = noise = 0.0
    for node in results:
        for chunk in chunks:
            work.stop.check()
            wanted, got = work.exact.values[node][chunk], work.rounded.values[node][chunk]
            if isinstance(wanted, Tensor) and wanted.is_floating_point():
                signal += float(wanted.square().sum(dtype=torch.float64))
                noise += float((wanted - got).square().sum(dtype=torch.float64))
    return sqnr_db(signal, noise)
