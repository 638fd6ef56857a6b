"""Graphs for tests of the graph screen: bigger and odder than the scripted engine's."""

from __future__ import annotations

from engine.events import event as ev


def node(
    name: str, reads: str = "", target: str = "", opcode: str = "call_module", params: int = 0, share: float | None = 0.1
) -> ev.NodeRow:
    return ev.NodeRow(opcode, name, target or name.replace("_", "."), reads, "", "N×8×4×4", params, share)


# Two branches beside each other: their pairs overlap, and conv_c is read by more than its normalization.
BRANCHED = (
    node("x", opcode="placeholder", target="x", share=0.0),
    node("conv_a", "x", params=100),
    node("conv_b", "x", params=200),
    node("bn_a", "conv_a", params=16),
    node("bn_b", "conv_b", params=16),
    node("add", "bn_a, bn_b", "operator.add", "call_function", share=0.001),
    node("conv_c", "add", params=300),
    node("bn_c", "conv_c", params=16),
    node("add_1", "bn_c, conv_c", "operator.add", "call_function", share=None),
    node("output", "add_1", "output", "output", share=0.0),
)
REASON = "conv.c is also read by add_1"
BRANCHED_PAIRS = ev.Pairs(
    (
        ev.PairRow("conv.a", "bn.a", "conv_a", "bn_a"),
        ev.PairRow("conv.b", "bn.b", "conv_b", "bn_b"),
        ev.PairRow("conv.c", "bn.c", "conv_c", "bn_c", REASON),
    )
)


def deep(blocks: int) -> tuple[tuple[ev.NodeRow, ...], ev.Pairs]:
    """A chain of that many blocks of convolution, normalization and relu: three nodes each."""
    nodes, pairs, before = [node("x", opcode="placeholder", target="x")], [], "x"
    for i in range(blocks):
        conv, bn, relu = f"layer{i}_conv", f"layer{i}_bn", f"relu_{i}"
        nodes += [node(conv, before, params=64), node(bn, conv, params=8), node(relu, bn, "torch.relu", "call_function")]
        pairs.append(ev.PairRow(conv.replace("_", "."), bn.replace("_", "."), conv, bn))
        before = relu
    return (*nodes, node("output", before, "output", "output")), ev.Pairs(tuple(pairs))
