"""One layer on its kernel and in fp32: both do the same work, and both are really run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.events.cancellation import StopToken
from engine.kernels.base import Kernel
from engine.kernels.choose import kernels_for
from engine.kernels.probe import probe
from engine.kernels.simulate import Simulate
from engine.kernels.stopwatch import Race, Run, Stopwatch, race
from engine.kernels.timing import LayerShape, Timing, laid_out, tied, time_layer
from engine.kernels.x86_int8 import OneDNN
from engine.numerics.qparams import dequantize

needs_onednn = pytest.mark.skipif(not hasattr(torch.ops.onednn, "qconv_pointwise"), reason="torch without oneDNN's integer operations")
CONV: dict[str, Any] = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
SHAPES = {
    "convolution": LayerShape("conv", (8, 4, 3, 3), (1, 4, 9, 9), True, "relu", **CONV),
    "strided without bias": LayerShape("conv", (8, 4, 3, 3), (1, 4, 9, 9), False, "relu6", **{**CONV, "stride": (2, 2)}),
    "depthwise": LayerShape("conv", (8, 1, 3, 3), (1, 8, 9, 9), True, "hardswish", **CONV, groups=8),
    "residual sum": LayerShape("conv", (4, 4, 3, 3), (1, 4, 9, 9), True, "relu", accumulate=True, **CONV, top=127),
    "last linear": LayerShape("linear", (10, 64), (1, 64), True, integer_output=False),
    "linear on tokens": LayerShape("linear", (16, 64), (1, 5, 64), True, "relu"),
}


class Watch(Stopwatch):
    """Hands the functions of a race out."""

    def __init__(self) -> None:
        super().__init__(StopToken(), 10, None, self._keep)
        self.runs: list[tuple[Run, Run]] = []

    def _keep(self, *runs: Run) -> Race:
        self.runs.append(runs)  # type: ignore[arg-type]
        return 1.0, 2.0


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("batch", [1, 3])
def test_both_do_the_same_work(shape: LayerShape, batch: int) -> None:
    watch = Watch()
    simulate = Simulate()
    simulate.simulated = False  # type: ignore[misc]
    assert time_layer(shape, [simulate], watch, batch) == Timing(1.0, 2.0, batch)
    ((integers, floats),) = watch.runs
    with torch.inference_mode():
        got, expected = integers(), floats()
    assert isinstance(got, torch.Tensor) and isinstance(expected, torch.Tensor)
    assert got.shape == expected.shape and len(got) == batch
    assert got.dtype == (torch.uint8 if shape.integer_output else torch.float32)


def test_the_fp32_form_is_the_layer() -> None:
    shape = SHAPES["strided without bias"]
    x = torch.randn(2, 4, 9, 9)
    expected = torch.nn.functional.conv2d(x.double(), torch.full(shape.weight, 0.01, dtype=torch.float64), None, 2, 1).clamp(0, 6)
    torch.testing.assert_close(shape.fp32()(laid_out(x)), expected.float())
    layer = SHAPES["residual sum"].layer()
    assert layer.output is not None and layer.accumulate is not None and layer.output.qmax == 127
    assert dequantize(torch.tensor([3]), layer.input).item() == 0


class Tied:
    """A function that can be tied to memory, and counts what is called."""

    def __init__(self, can: bool = True) -> None:
        self.can, self.called, self.ran = can, 0, 0

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.called += 1
        return inputs[0] + 1

    def fix(self, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> Any:
        def run(_: torch.Tensor) -> None:
            self.ran += 1
            torch.add(inputs[0], 1, out=out)

        return run if self.can else None


def test_what_can_be_tied_to_memory_is_timed_so() -> None:
    function, x, other = Tied(), torch.zeros(3), torch.zeros(3)
    tied(function, x)()
    tied(function, x, other)()
    assert (function.called, function.ran) == (1, 2), "called once to learn the result's shape"
    assert other.tolist() == [1, 1, 1], "a residual lies where the result is written"
    free = Tied(can=False)
    tied(free, x)()
    assert (free.called, free.ran) == (2, 0)
    calls: list[int] = []
    tied(lambda *given: calls.append(len(given)), x, other)()  # type: ignore[arg-type, return-value]
    assert calls == [2]


@needs_onednn
@pytest.mark.parametrize("which", ["torch's", "the machine's"])
def test_a_real_measurement_has_two_times_and_none_is_simulated(which: str) -> None:
    kernels: list[Kernel] = [OneDNN()] if which == "torch's" else kernels_for(probe())[:1]
    if kernels[0].simulated:
        pytest.skip("no integer kernel runs here")
    watch = Stopwatch(StopToken(), 10, None, race)
    for shape in SHAPES.values():
        found = time_layer(shape, [*kernels, Simulate()], watch)
        assert found is not None and found.batch == 1
        assert 0 < found.int8_ms < 1000 and 0 < found.fp32_ms < 1000
    assert time_layer(SHAPES["convolution"], [Simulate()], watch) is None


def test_a_ratio_counts_beyond_what_measurements_differ_by() -> None:
    assert not Timing(1.1, 1.0).slower and not Timing(1.15, 1.0).slower and Timing(1.16, 1.0).slower
    assert Timing(0.1, 0.2) + Timing(0.3, 0.1) == Timing(0.4, 0.3)
