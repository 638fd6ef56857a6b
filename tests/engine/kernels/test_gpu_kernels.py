"""What is made of CUDA's integer kernels, with the one that torch has on the processor too; on a GPU all of them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.kernels.gpu import probe as gpu
from engine.kernels.gpu.probe import KERNELS, IntegerMatrix, seen_from
from engine.kernels.matrix.base import asked
from engine.kernels.matrix.choose import choose
from engine.kernels.matrix.dynamic import bits_of
from engine.kernels.matrix.int_mm import ScaledSums
from engine.kernels.probe import Machine
from engine.numerics.qparams import QParams
from engine.numerics.scheme import int_scheme
from engine.numerics.weights import minmax, quantize
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec

HERE = Machine("AVX512", True, False, {})


@pytest.mark.parametrize("rows", [1, 7, 16, 17, 24, 33])
@pytest.mark.parametrize(("out", "given"), [(8, 16), (50, 100), (3, 24), (257, 64)])
def test_sums_of_any_shape_are_exact(rows: int, out: int, given: int) -> None:
    draw = torch.Generator().manual_seed(rows)
    weight, codes = (torch.randint(-128, 128, shape, generator=draw, dtype=torch.int8) for shape in ((out, given), (rows, given)))
    got = IntegerMatrix(weight, "cpu")(codes)
    assert got.shape == (rows, out) and torch.equal(got.double(), codes.double() @ weight.double().T)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rounding", [8, 7, QParams(0.031, 120), QParams(0.06, 3, 127)])
def test_rounded_activations_give_what_float64_gives(rounding: int | QParams, bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    floats, added = torch.randn(40, 72, generator=draw), torch.randn(40, generator=draw) if bias else None
    weight = quantize(floats, minmax(floats, int_scheme(8, 0, True)))
    x = torch.randn(2, 3, 72, generator=draw)
    if isinstance(rounding, int):
        step = x.double().abs().amax(-1, keepdim=True) / (2 ** (rounding - 1) - 1)
        seen = (x.double() / step).round() * step
    else:
        codes = (x.double() / rounding.scale).round() + rounding.zero_point
        seen = (codes.clamp(0, rounding.qmax) - rounding.zero_point) * rounding.scale
    exact = seen @ weight.dequantize().double().T + (0 if added is None else added.double())
    got = ScaledSums(weight, added, rounding, "cpu")(x)
    assert got.dtype == torch.float32 and torch.allclose(got.double(), exact, rtol=1e-4, atol=1e-4)


def test_a_gpu_is_known_by_what_its_probe_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path))
    found = {"int_mm": None, "few_rows": "no module named triton", "int4pack": "crashed the probe (exit code -11)"}
    asked: list[str] = []

    def child(device: str) -> tuple[dict[str, str | None], bool]:
        asked.append(device)
        return dict(found), True

    monkeypatch.setattr(gpu, "_ask_child", child)
    monkeypatch.setattr(gpu, "_key", lambda device: "a-gpu-of-the-tests")
    gpu._probe.cache_clear()
    machine = seen_from(HERE, "cuda")
    gpu._probe.cache_clear()
    assert seen_from(HERE, "cuda").kernels == found and asked == ["cuda"], "the second is read from the cache"
    assert machine.device == "cuda" and not machine.integer and bits_of(8, machine) == 8
    assert seen_from(HERE, "cpu") is HERE


BOTH: dict[str, str | None] = dict.fromkeys(KERNELS)
RIGHT: dict[str, str | None] = {**BOTH, "few_rows": "no Triton"}
WRONG: dict[str, str | None] = dict.fromkeys(KERNELS, "off by 40%")
FEW = WeightSpec(4, "per-group", 64, symmetric=False)


@pytest.mark.parametrize(
    ("spec", "right", "wrong"),
    [
        (LayerSpec(WeightSpec(8), ActivationSpec(8, dynamic=True)), "int_mm dynamic", "simulation dynamic"),
        (LayerSpec(FEW, ActivationSpec(8, dynamic=True)), "int_mm dynamic on int8", "simulation dynamic on int8"),
        (LayerSpec(WeightSpec(8), ActivationSpec(8)), "int_mm static", "simulation static"),
        (LayerSpec(FEW), "int4pack bf16", "torch fp32, int4 stored"),
    ],
)
def test_a_layer_on_a_gpu_takes_the_kernel_that_is_right_there(spec: LayerSpec, right: str, wrong: str) -> None:
    matrix = asked(spec, "Linear", (128, 256))
    found, lacking = (choose(matrix, Machine("CUDA", False, False, kernels, "cuda")) for kernels in (RIGHT, WRONG))
    assert found.label == right and not found.storage_only and "simulated" not in (found.reason or "")
    assert lacking.label == wrong and lacking.storage_only and "off by 40%" in (lacking.reason or "")


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        (LayerSpec(WeightSpec(8)), "triton int8"), (LayerSpec(FEW), "triton int4"), (LayerSpec(WeightSpec(4)), "triton int4"),
        (LayerSpec(WeightSpec(3, "per-group", 32)), "triton int4"), (LayerSpec(WeightSpec(6)), "triton int8"),
        (LayerSpec(WeightSpec(8), ActivationSpec(8, dynamic=True)), "int_mm dynamic"),
        (LayerSpec(WeightSpec(6, "per-group", 64)), "torch fp32, int6 stored"),
    ],
)  # fmt: skip
def test_a_layer_on_a_gpu_with_triton(spec: LayerSpec, label: str) -> None:
    found = choose(asked(spec, "Linear", (128, 256)), Machine("CUDA", False, False, BOTH, "cuda"))
    assert found.label == label and found.storage_only == ("stored" in label)
    assert ("Triton" in (found.reason or "")) == (label == "int_mm dynamic")


def test_int8_weights_alone_need_no_kernel_of_their_own_on_a_gpu() -> None:
    found = choose(asked(LayerSpec(WeightSpec(8)), "Linear", (128, 256)), Machine("CUDA", False, False, WRONG, "cuda"))
    assert found.label == "int8 widened to bf16" and not found.storage_only


def test_a_probe_that_crashes_is_no_kernel_and_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.sys, "executable", "/bin/false")
    found, ended = gpu._ask_child("cuda")
    assert not ended and set(found) == set(KERNELS) and all("crashed the probe" in (text or "") for text in found.values())


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")
def test_the_kernels_of_triton_give_what_float64_gives() -> None:
    script = Path(__file__).with_name("interpreted_rows.py")
    done = subprocess.run([sys.executable, "-W", "ignore", str(script)], capture_output=True, text=True, timeout=300)
    # The interpreter of an older Triton cannot read a loop's bounds from today's numpy.
    if "only 0-dimensional arrays" in done.stderr:
        pytest.skip("this Triton's interpreter does not run on this numpy")
    assert done.stdout.split() == ["right"], done.stderr[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_kernels_of_this_gpu_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    from engine.kernels.gpu.probe_child import main

    main("cuda")
    told = {entry["kernel"]: entry["error"] for entry in map(json.loads, capsys.readouterr().out.splitlines())}
    assert told["int_mm"] is None and told["few_rows"] is None
