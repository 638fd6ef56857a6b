"""What each kind of step of a quantized model takes of its time, on one input."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.lowering.graph.program import Step
from engine.lowering.graph.runtime import QuantizedModel

_PASSES = 20


@dataclass(frozen=True)
class KindTime:
    """``kind`` names an operation (``layer``, ``call F.gelu``); ``count`` is its number of steps, ``seconds`` their time in one pass."""

    kind: str
    count: int
    seconds: float


def step_times(model: QuantizedModel, x: Tensor, passes: int = _PASSES) -> tuple[KindTime, ...]:
    """Longest first. Times are medians of ``passes`` passes, by the plan in fixed memory where there is one for ``x``."""
    times: dict[int, list[float]] = defaultdict(list)
    with torch.inference_mode():
        model(x)
        plan = model.plan_for(x)
        for _ in range(passes):
            found: dict[int, float] = defaultdict(float)
            if plan is not None:
                for place, run in zip(plan.owners, plan.run, strict=True):
                    start = time.perf_counter()
                    run(x)
                    found[place] += time.perf_counter() - start
            else:
                values = dict.fromkeys(model.input_names, x)
                for place, (step, function) in enumerate(model.functions()):
                    start = time.perf_counter()
                    values[step.output] = function(*[values[name] for name in step.inputs])
                    found[place] += time.perf_counter() - start
            for place, seconds in found.items():
                times[place].append(seconds)
    whole: dict[str, list[float]] = defaultdict(list)
    for place, some in times.items():
        whole[kind_of(model.program.steps[place])].append(statistics.median(some))
    return tuple(sorted((KindTime(kind, len(each), sum(each)) for kind, each in whole.items()), key=lambda k: -k.seconds))


def kind_of(step: Step) -> str:
    """The operation, with the function or module that an fp32 step calls."""
    if step.op in ("call", "carry"):
        return f"{step.op} {step.attrs['function']}"
    if step.op == "module":
        return f"module {step.attrs['kind']}"
    if step.op == "layer":
        return f"{step.attrs['kind']}{' to float' if step.attrs['output'] is None else ''}"
    return step.op
