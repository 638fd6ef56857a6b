"""Executes a program: each step becomes one function, and the functions run in order."""

from __future__ import annotations

import copy
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import EngineError
from engine.kernels.base import IntegerLayer, Kernel, kernel_of_steps
from engine.lowering.graph import binding, calls
from engine.lowering.graph.fixed import Fixed, Fixing, NotFixed, Tensors, mirrored
from engine.lowering.graph.input_spec import Taking, TakingCall, wrong_size
from engine.lowering.graph.module_recipes import build_module
from engine.lowering.graph.pool import max_pool2d
from engine.lowering.graph.program import Program, Step, grid_from
from engine.models.memory import changeable, channels_last
from engine.numerics.qparams import dequantize, quantize
from engine.tasks.base import Batch

Function = Callable[..., Any]
_PLANS = 4
_PATIENT_PLANS, _REMEMBERED = 16, 256


def _same(one: Tensors, other: Tensors) -> bool:
    """Equal in every number; what is not a number in both is equal too."""
    if isinstance(one, tuple) or isinstance(other, tuple):
        return all(_same(a, b) for a, b in zip(one, other, strict=True))
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


@dataclass(frozen=True)
class _Bound:
    run: Function
    inputs: tuple[int, ...]
    output: int
    done: tuple[int, ...]


class QuantizedModel(nn.Module):
    """Images (N, C, H, W) in float32, normalized as in training, to float32 logits; or what the program's ``call`` takes and returns.

    ``kernels`` are asked in order; ``placement`` says which one computes each integer layer, ``step_kernel``
    which one the steps between them; empty where these widen integers to fp32. Images of another size than the one that the program
    was traced for, where it holds that size, raise EngineError; with ``taking`` all others that it cannot compute with do so in a
    sentence. ``unplanned`` says of which images the plan in fixed memory computed something else than the steps do: those
    are computed step by step. A ``patient`` model makes a plan for a shape when it comes again, and keeps more of them: it is called
    on many.
    """

    def __init__(self, program: Program, kernels: Sequence[Kernel], modules: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.program = program
        self.placement: dict[str, tuple[str, str | None]] = {}
        self.simulated = False
        self.taking: Taking | TakingCall | None = None
        self.unplanned: list[str] = []
        self.patient = False
        self._met: OrderedDict[Any, None] = OrderedDict()
        self._kernels = kernels
        self._whole: Mapping[str, nn.Module] = modules or {}
        made = {step.output for step in program.steps}
        call = program.call
        names = sorted(made.union(program.results if call else (), *(step.inputs for step in program.steps)))
        self._slots = {name: slot for slot, name in enumerate(names)}
        self._inputs = tuple(name for name in names if name not in made)[:1] if call is None else tuple(i.value for i in call.inputs)
        self._slots |= {name: len(names) + i for i, name in enumerate(n for n in self._inputs if n not in self._slots)}
        self._result: str | tuple[str, ...] = program.results if program.others else program.result
        self._steps = next((steps for kernel in kernels if (steps := kernel.steps()) is not None), None)
        self.step_kernel = kernel_of_steps(kernels)
        self._functions: list[Function] = []
        self._bound = self._bind()
        self._plans: OrderedDict[Any, Fixed | None] = OrderedDict()
        self._lock = threading.RLock()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = self.program.call
        if call is None:
            return self._of_images(*args, **kwargs)
        results = self._called(call.flatten(args, kwargs))
        return call.rebuild(results if isinstance(results, tuple) else (results,))

    def flat(self, *inputs: Tensor) -> Tensors:
        """The program's results, one or a tuple in order, for its inputs in order."""
        return self._of_images(*inputs) if self.program.call is None else self._called(inputs)

    def inputs_of(self, batch: Batch) -> tuple[Tensor, ...]:
        """The program's inputs in order. Raises EngineError for a batch of another structure."""
        call = self.program.call
        return tuple(batch.args) if call is None else call.flatten(batch.args, batch.kwargs)

    def rebuilt(self, results: Sequence[Any]) -> Any:
        """What the model returns, of the program's results in order."""
        return results[0] if self.program.call is None else self.program.call.rebuild(results)

    @property
    def per_item(self) -> tuple[bool, ...]:
        """For each of the program's inputs, whether its first size is the number of items."""
        call = self.program.call
        return (True,) if call is None else tuple(given.shape[:1] == (None,) for given in call.inputs)

    def _called(self, inputs: tuple[Tensor, ...]) -> Tensors:
        given: Tensors = inputs[0] if len(inputs) == 1 else inputs
        if self.taking is None:
            return self._computed(given)
        self.taking.check(inputs)
        try:
            return self._computed(given)
        except Exception as error:
            raise self.taking.failed(inputs, error) from error

    def _of_images(self, x: Tensor) -> Tensors:
        sizes = self.program.sizes
        if sizes is not None and isinstance(x, Tensor) and tuple(x.shape[2:]) != sizes:
            raise EngineError(wrong_size(x, sizes))
        if self.taking is None:
            return self._computed(x)
        self.taking.check(x)
        try:
            return self._computed(x)
        except Exception as error:
            raise self.taking.failed(x, error) from error

    def _computed(self, x: Tensors) -> Tensors:
        with torch.inference_mode(), self._lock:
            fixed = self._fixed(x) if self._steps is not None else None
            found = self._stepwise(x) if fixed is None else fixed(x)
        return changeable(found)

    def _stepwise(self, x: Tensors) -> Tensors:
        values = self._holding(x)
        for step in self._bound:
            values[step.output] = step.run(*[values[i] for i in step.inputs])
            for slot in step.done:
                values[slot] = None
        if isinstance(self._result, tuple):
            return tuple(values[self._slots[name]] for name in self._result)
        result: Tensor = values[self._slots[self._result]]
        return result

    def _fixed(self, x: Tensors) -> Fixed | None:
        """The program on inputs like ``x``, None where a value has no fixed place; the last few shapes are kept."""
        threads = torch.get_num_threads()
        key: Any = (
            (*((one.shape, one.stride(), one.dtype) for one in x), threads)
            if isinstance(x, tuple)
            else (x.shape, x.stride(), x.dtype, threads)
        )
        if self.patient and key not in self._plans and not self._meets_again(key):
            return None
        if key not in self._plans:
            self._plans[key] = self._planned(x)
            if len(self._plans) > (_PATIENT_PLANS if self.patient else _PLANS):
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def plan_for(self, x: Tensors) -> Fixed | None:
        """The plan in fixed memory that computes inputs like ``x``; None where they are computed step by step."""
        with torch.inference_mode(), self._lock:
            return self._fixed(x) if self._steps is not None else None

    def _meets_again(self, key: Any) -> bool:
        if key in self._met:
            return True
        self._met[key] = None
        if len(self._met) > _REMEMBERED:
            self._met.popitem(last=False)
        return False

    def _planned(self, x: Tensors) -> Fixed | None:
        """A plan that gives for ``x``, bit for bit, what the steps give."""
        try:
            # Made on other values: what a plan does not compute again would look right on those that it was made on.
            names = self._inputs if isinstance(x, tuple) else self.input_name
            plan = Fixing(self.program.steps, self._functions, names, self._result).build(mirrored(x))
        except NotFixed:
            return None
        except Exception:
            # Integers read backwards may be none that the model can take; what it cannot take at all shows in the steps.
            if self.program.call is None:
                raise
            return None
        if _same(plan(x), self._stepwise(x)):
            return plan
        shapes = " and ".join(str(tuple(one.shape)) for one in (x if isinstance(x, tuple) else (x,)))
        what = "images" if self.program.call is None else "inputs"
        said = f"the plan for {what} of shape {shapes} does not compute what its steps compute: they run step by step"
        if said not in self.unplanned:
            self.unplanned.append(said)
            if self.taking is not None:
                # Within a run the evaluation says it.
                warnings.warn(said, stacklevel=2)
        return None

    def _holding(self, given: Tensors) -> list[Any]:
        """A place for each value, the inputs in theirs."""
        values: list[Any] = [None] * len(self._slots)
        for name, x in zip(self._inputs, given if isinstance(given, tuple) else (given,), strict=False):
            values[self._slots[name]] = x
        return values

    def watch(self, *inputs: Tensor) -> dict[str, Tensor]:
        """All values of one pass that are tensors, by name: ``NAME`` in float, ``NAME:q`` as integers."""
        return {name: value for name, value in self.values(*inputs).items() if isinstance(value, Tensor)}

    def values(self, *inputs: Tensor) -> dict[str, Any]:
        """All values of one pass by name: tensors, and the sizes and tuples between them."""
        values = self._holding(inputs)
        with torch.inference_mode():
            for step in self._bound:
                arguments = [values[i] for i in step.inputs]
                # A residual sum may overwrite its operand, which is still to be looked at.
                values[step.output] = step.run(*[a.clone() if isinstance(a, Tensor) else a for a in arguments])
        return {name: values[slot] for name, slot in self._slots.items()}

    @property
    def input_name(self) -> str | None:
        """The value that the images, or the first input, are; None where nothing reads images."""
        return next(iter(self._inputs), None)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The values that the inputs are, in order."""
        return self._inputs

    def functions(self) -> list[tuple[Step, Function]]:
        """Each step with the function that carries it out."""
        return [(step, bound.run) for step, bound in zip(self.program.steps, self._bound, strict=True)]

    def _bind(self) -> list[_Bound]:
        last: dict[str, int] = {}
        for index, step in enumerate(self.program.steps):
            for name in step.inputs:
                last[name] = index
        last |= dict.fromkeys(self.program.results, len(self.program.steps))
        shared = binding.aliases(self.program.steps)
        bound = []
        for index, step in enumerate(self.program.steps):
            run = self._function(step)
            self._functions.append(run)
            if step.op == "layer" and len(step.inputs) == 2:
                together = shared[step.inputs[1]]
                if step.inputs[0] in together or any(last.get(name, -1) > index for name in together):
                    run = binding.sparing(run)
            done = tuple(self._slots[n] for n in dict.fromkeys(step.inputs) if last[n] == index)
            bound.append(_Bound(run, tuple(self._slots[n] for n in step.inputs), self._slots[step.output], done))
        return bound

    def _function(self, step: Step) -> Function:
        build: Callable[[Step], Function] | None = getattr(self, f"_op_{step.op}", None)
        if build is None:
            raise EngineError(
                f"the file holds a step {step.op!r} that this version does not know: it is damaged or newer than this program"
            )
        return build(step)

    def _op_quantize(self, step: Step) -> Function:
        q = grid_from(step.attrs["grid"])
        assert q is not None
        # Half a step is added and the fraction cut off: three passes where rounding would take five.
        inverse, shift, top = 1.0 / q.scale, torch.tensor(q.zero_point + 0.5), q.qmax

        def run(x: Tensor) -> Tensor:
            layout = torch.channels_last if x.dim() == 4 else torch.preserve_format
            return torch.add(shift, x, alpha=inverse).clamp_(0, top).to(torch.uint8, memory_format=layout)

        # What linear layers alone read stays as it lies; an image gets its channels side by side.
        readers = [reader for reader in self.program.steps if step.output in reader.inputs]
        flat = all(reader.op == "layer" and reader.attrs["kind"] == "linear" for reader in readers)
        # Images keep the rounding that earlier runs have, where oneDNN would multiply instead of reordering.
        own = step.inputs[0] in self._inputs and top < 255
        return (self._steps.quantize(q, flat, run) if self._steps and not own else None) or run

    def _op_dequantize(self, step: Step) -> Function:
        q = grid_from(step.attrs["grid"])
        assert q is not None
        return lambda x: dequantize(x, q)

    @staticmethod
    def layer(program: Program, step: Step) -> IntegerLayer:
        """What a kernel needs to know of a ``layer`` step."""
        a = step.attrs
        weights = program.layers[a["layer"]]
        source, target = grid_from(a["input"]), grid_from(a["output"])
        assert source is not None
        bias = program.tensors[f"{a['layer']}.bias"] if a["bias"] else None
        shape: dict[str, Any] = {k: v if k == "groups" else tuple(v) for k, v in a["geometry"].items()}
        return IntegerLayer(
            a["kind"], weights.integers(), weights.channel_scale, bias, source, target, a["activation"], grid_from(a["accumulate"]), **shape
        )

    def _op_layer(self, step: Step) -> Function:
        a, layer = step.attrs, self.layer(self.program, step)
        refusal = None
        for kernel in self._kernels:
            reason = kernel.refuses(layer)
            if reason is None:
                self.placement[a["layer"]] = (kernel.label(layer), refusal)
                self.simulated |= kernel.simulated
                return kernel.build(layer)
            refusal = f"{kernel.name}: {reason}"
        raise EngineError(f"{a['path']} cannot run here: {refusal}")

    def _op_sum(self, step: Step) -> Function:
        left, right, out = (grid_from(step.attrs[key]) for key in ("left", "right", "output"))
        assert left is not None
        assert right is not None
        assert out is not None
        relu = step.attrs["relu"]
        offset = -left.zero_point * left.scale - right.zero_point * right.scale

        def run(a: Tensor, b: Tensor) -> Tensor:
            y = a.to(torch.float32).mul_(left.scale).add(b, alpha=right.scale).add_(offset)
            return quantize(y.relu_() if relu else y, out)

        return (self._steps.add(left, right, out, relu, run) if self._steps else None) or run

    def _op_affine(self, step: Step) -> Function:
        a = step.attrs
        source, target = grid_from(a["input"]), grid_from(a["output"])
        assert source is not None
        assert target is not None
        factor, shift = (self.program.tensors[f"{a['norm']}.{part}"] for part in ("factor", "shift"))
        along = (-1, 1, 1)

        def run(x: Tensor) -> Tensor:
            y = dequantize(x, source).mul_(factor.reshape(along)).add_(shift.reshape(along))
            return quantize(y.relu_() if a["relu"] else y, target)

        return (self._steps.affine(factor, shift, source, target, a["relu"], run) if self._steps else None) or run

    def _op_gate(self, step: Step) -> Function:
        values, gates, target = (grid_from(step.attrs[key]) for key in ("left", "right", "output"))
        assert values is not None
        assert gates is not None
        assert target is not None

        def run(x: Tensor, by: Tensor) -> Tensor:
            return quantize(dequantize(x, values).mul_(dequantize(by, gates)), target)

        return (self._steps.gate(values, gates, target, run) if self._steps else None) or run

    def _op_max_pool(self, step: Step) -> Function:
        a = step.attrs
        kernel, stride, padding, dilation = (tuple(a[key]) for key in ("kernel", "stride", "padding", "dilation"))

        def run(x: Tensor) -> Tensor:
            return max_pool2d(x, kernel, stride, padding, dilation, a["ceil_mode"])

        able = self._steps is not None and not a["ceil_mode"]
        return (self._steps.max_pool(kernel, stride, padding, dilation, run) if able and self._steps else None) or run

    def _op_identity(self, step: Step) -> Function:
        return lambda x: x

    def _op_average(self, step: Step) -> Function:
        source, target = grid_from(step.attrs["input"]), grid_from(step.attrs["output"])
        assert source is not None
        assert target is not None
        call = self.call(step)
        flat = binding.whole_mean(step)

        def run(x: Tensor) -> Tensor:
            # A mean is much smaller than what it is taken of: on its own grid it keeps its precision.
            return quantize(call(dequantize(x, source)), target)

        # Half-way means are common in small images, and the two round them apart: with fewer steps than a byte has, what a classifier
        # reads stays as earlier runs have it.
        squeezed = any(reader.attrs.get("kind") == "conv" for reader in self.program.steps if step.output in reader.inputs)
        able = self._steps is not None and flat is not None and (target.qmax == 255 or squeezed)
        return (self._steps.mean(source, target, bool(flat), run) if able and self._steps else None) or run

    def _op_pad(self, step: Step) -> Function:
        pads, mode = calls.padding(step.attrs)
        zero = int(step.attrs["grid"][1]) if mode == "constant" else None

        def run(x: Tensor) -> Tensor:
            channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
            y = F.pad(x, pads, mode, zero)
            return y.contiguous(memory_format=torch.channels_last) if channels_last else y

        return run

    def _op_carry(self, step: Step) -> Function:
        return self.call(step)

    def _op_call(self, step: Step) -> Function:
        return self.call(step)

    def _op_constant(self, step: Step) -> Function:
        value = self.program.tensors[step.output]
        return lambda: value

    def _op_module(self, step: Step) -> Function:
        return self.positional(self.module(step), step)

    def module(self, step: Step) -> nn.Module:
        """The module of a ``module`` step with its weights, in eval mode. Raises EngineError where its code is missing."""
        a = step.attrs
        if a["module"] is not None:
            module = build_module(a["module"])
        elif a["path"] in self._whole:
            module = copy.deepcopy(self._whole[a["path"]])
        else:
            raise EngineError(f"{a['path']} is a {a['kind']} that stayed whole: give its code with load_quantized(DIR, model=factory())")
        prefix = f"{step.output}."
        state = {name.removeprefix(prefix): tensor for name, tensor in self.program.tensors.items() if name.startswith(prefix)}
        if a["weight_only"]:
            state["weight"] = self.program.layers[step.output].dequantize()
        module.load_state_dict(state, strict=False, assign=True)
        channels_last(module)
        return module.requires_grad_(False).eval()

    @staticmethod
    def positional(function: Function, step: Step) -> Function:
        """``function`` with the step's arguments, as a function of the step's inputs."""
        return binding.positional(function, step.attrs["args"], step.attrs["kwargs"])

    def call(self, step: Step) -> Function:
        """The tensor operation that a step names, as a function of the step's inputs."""
        return binding.positional(calls.function(step.attrs["function"]), step.attrs["args"], step.attrs["kwargs"])
