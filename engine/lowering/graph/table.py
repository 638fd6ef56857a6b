"""The graph as rows to show."""

from __future__ import annotations

from torch import fx

from engine.events.event import NodeRow
from engine.lowering.graph.kinds import module_of

COLUMNS = ("opcode", "name", "target", "args", "kwargs", "shape")


def cells(row: NodeRow) -> tuple[str, ...]:
    """A row under ``COLUMNS``."""
    return (row.opcode, row.name, row.target, row.args, row.kwargs, row.shape)


def rows(gm: fx.GraphModule) -> tuple[NodeRow, ...]:
    """One row a node, in graph order; the batch dimension is shown as N."""
    return tuple(_row(node) for node in gm.graph.nodes)


def _row(node: fx.Node) -> NodeRow:
    module = module_of(node)
    return NodeRow(
        opcode=node.op,
        name=node.name,
        target=_target(node),
        args=", ".join(_argument(arg) for arg in node.args),
        kwargs=", ".join(f"{key}={_argument(value)}" for key, value in node.kwargs.items()),
        shape=shape_text(node.meta.get("shape")),
        params=sum(p.numel() for p in module.parameters()) if module is not None else 0,
    )


def shape_text(shape: tuple[int | None, ...] | None) -> str:
    return "" if shape is None else "\u00d7".join("N" if size is None else str(size) for size in shape)


def _target(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    module = (getattr(node.target, "__module__", None) or "torch").replace("torch.nn.functional", "F").removeprefix("_")
    return f"{module}.{getattr(node.target, '__name__', node.target)}"


def _argument(value: object) -> str:
    if isinstance(value, tuple | list):
        return "(" + ", ".join(_argument(item) for item in value) + ")"
    return str(value)
