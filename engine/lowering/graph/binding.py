"""How a step's arguments meet values: functions with their arguments, and which values share memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engine.lowering.graph import calls
from engine.lowering.graph.program import Step

Function = Callable[..., Any]


def positional(function: Function, args: Any, kwargs: Any) -> Function:
    """``function`` with its encoded arguments, as a function of the values that they name, in order."""
    simple = calls.names_in(args) + calls.names_in(kwargs)
    first = args.get("tuple", [None])[:1]
    if simple and len(simple) == 1 and first == [{"$": simple[0]}]:
        rest = calls.decode(args, lambda _: None)[1:]
        named = calls.decode(kwargs, lambda _: None)
        return lambda x: function(x, *rest, **named)

    def run(*values: Any) -> Any:
        left = iter(values)
        given = calls.decode(args, lambda _: next(left))
        return function(*given, **calls.decode(kwargs, lambda _: next(left)))

    return run


def whole_mean(step: Step) -> bool | None:
    """Whether a mean over all of height and width drops these axes; None for any other mean."""
    given = calls.decode(step.attrs["args"], lambda _: None)[1:]
    named = calls.decode(step.attrs["kwargs"], lambda _: None)
    if step.attrs["function"] == "F.adaptive_avg_pool2d":
        size = given[0] if given else named.get("output_size")
        return False if size in (1, (1, 1), [1, 1]) else None
    if step.attrs["function"] in ("torch.mean", "Tensor.mean"):
        axes = given[0] if given else named.get("dim")
        axes = sorted(axis % 4 for axis in axes) if isinstance(axes, tuple | list) else None
        keep = given[1] if len(given) > 1 else named.get("keepdim", False)
        return not keep if axes == [2, 3] else None
    return None


def aliases(steps: Sequence[Step]) -> dict[str, set[str]]:
    """For each value, the names that may share its memory."""
    groups: dict[str, set[str]] = {}
    for step in steps:
        for name in (*step.inputs, step.output):
            groups.setdefault(name, {name})
        if step.op in ("identity", "carry", "call", "module", "pad", "max_pool"):
            for name in step.inputs:
                merged = groups[name] | groups[step.output]
                for member in merged:
                    groups[member] = merged
    return groups


def sparing(run: Function) -> Function:
    """A residual sum whose operand is the layer's input too, or is read again later, works on a copy of it."""
    return lambda x, other: run(x, other.clone())
