"""What computes a matrix: the choice before anything is rounded, and each kernel against float64."""

import pytest
import torch

from engine.kernels.matrix.base import Asked, asked
from engine.kernels.matrix.choose import KERNELS, choose, label, labels
from engine.kernels.matrix.on_int8 import on_int8
from engine.kernels.matrix.rows import PackedEmbedding
from engine.kernels.matrix.weight_only import ROWS, Widened, wide
from engine.kernels.probe import KERNELS as PROBED
from engine.kernels.probe import Machine, probe
from engine.numerics.qparams import QParams
from engine.numerics.quantized_matrix import QuantizedMatrix
from engine.numerics.scheme import int_scheme
from engine.numerics.weights import WeightQParams, minmax, quantize
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec

INT8, DYNAMIC, STATIC = int_scheme(8, 0, True), ActivationSpec(8, dynamic=True), ActivationSpec(8)
FULL = Machine("AVX512", True, False, dict.fromkeys(PROBED))
SATURATING = Machine("AVX2", False, True, dict.fromkeys(PROBED))
ONLY_TORCH = Machine("AVX512", True, False, {name: "not installed" if name.startswith("dnnl") else None for name in PROBED})
BARE = Machine("DEFAULT", False, None, dict.fromkeys(PROBED, "not implemented"))
W8, W4 = WeightSpec(8), WeightSpec(4, "per-group", 64, symmetric=False)
SHAPE = (96, 64)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch):
    """What libraries have is looked at here, with or without the package that compiles what they have not."""
    monkeypatch.setattr("engine.kernels.matrix.streamed.missing", lambda: "llvmlite is not installed")


def rounded(spec, shape=SHAPE):
    weight = draw(*shape, seed=1)
    return quantize(weight, minmax(weight, spec))


@pytest.mark.parametrize(
    ("spec", "kind", "machine", "expected"),
    [
        (LayerSpec(W8, DYNAMIC), "Conv1D", FULL, "dnnl dynamic"),
        (LayerSpec(W8, DYNAMIC), "Linear", ONLY_TORCH, "onednn dynamic"),
        (LayerSpec(W8, DYNAMIC), "Linear", BARE, "simulation dynamic"),
        (LayerSpec(WeightSpec(4, "per-group", 32), DYNAMIC), "Linear", FULL, "dnnl dynamic on int8"),
        (LayerSpec(WeightSpec(4), DYNAMIC), "Linear", FULL, "dnnl dynamic"),
        (LayerSpec(W8, STATIC), "Linear", FULL, "dnnl static"),
        (LayerSpec(W8, STATIC), "Linear", BARE, "simulation static"),
        (LayerSpec(W8), "Linear", FULL, "int8pack bf16"),
        (LayerSpec(W8), "Linear", BARE, "torch fp32, int8 stored"),
        (LayerSpec(WeightSpec(3, "per-group", 64)), "Conv1D", FULL, "int4pack bf16"),
        (LayerSpec(WeightSpec(4)), "Conv1D", FULL, "int4pack bf16"),
        (LayerSpec(WeightSpec(4, "per-group", 48)), "Conv1D", FULL, "torch fp32, int4 stored"),
        (LayerSpec(W4), "Conv1D", BARE, "torch fp32, int4 stored"),
        (LayerSpec(WeightSpec(8, symmetric=False)), "Linear", FULL, "torch fp32, int8 stored"),
        (LayerSpec(W8, DYNAMIC), "Embedding", FULL, "int8 rows"),
        (LayerSpec(W4), "Embedding", BARE, "int4 rows"),
        (LayerSpec(), "Linear", FULL, "torch fp32"),
    ],
)
def test_what_a_plan_says(spec, kind, machine, expected):
    assert label(spec, kind, (96, 256), machine) == labels(machine)(spec, kind, (96, 256), True) == expected


def test_what_is_only_stored_says_so_before_anything_is_rounded():
    for weights, why in ((WeightSpec(3, "per-group", 24), "groups of 24 in 64 inputs"), (WeightSpec(8, "per-group", 32), "group scales")):
        few = choose(asked(LayerSpec(weights), "Linear", SHAPE), FULL)
        assert few.storage_only and why in few.reason and "on disk only" in few.reason
    simulated = choose(asked(LayerSpec(W8, DYNAMIC), "Linear", SHAPE), BARE)
    assert simulated.storage_only and "simulated" in simulated.reason
    position = choose(Asked("Embedding", SHAPE, INT8, plain=False), FULL)
    assert position.storage_only and "more than look rows up" in position.reason
    plain = choose(asked(LayerSpec(W8, DYNAMIC), "Linear", SHAPE), FULL)
    assert not plain.storage_only and plain.reason is None


def test_what_a_kernel_changes_is_said():
    assert "rounded once more" in choose(asked(LayerSpec(W4, DYNAMIC), "Linear", (96, 256)), FULL).reason
    assert "stored with 4 bits" in choose(asked(LayerSpec(WeightSpec(4), DYNAMIC), "Linear", SHAPE), FULL).reason
    for activations in (DYNAMIC, STATIC):
        assert "7 bits" in choose(asked(LayerSpec(W8, activations), "Linear", SHAPE), SATURATING).reason
    assert "bfloat16" in choose(asked(LayerSpec(W8), "Linear", SHAPE), FULL).reason


@pytest.mark.parametrize("machine", [FULL, SATURATING, ONLY_TORCH, BARE])
@pytest.mark.parametrize("activations", [DYNAMIC, STATIC, None])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_matrix_has_a_kernel(machine, activations, bits):
    for symmetric in (True, False):
        for group in (0, 32):
            for kind in ("Linear", "Conv1D", "Embedding"):
                found = choose(
                    Asked(kind, SHAPE, int_scheme(bits, group, symmetric), None if kind == "Embedding" else activations), machine
                )
                assert found.kernel in KERNELS and found.label


@pytest.mark.parametrize("spec", [int_scheme(4, 0, True), int_scheme(8, 0, True), int_scheme(7, 0, False), int_scheme(3, 64, False)])
def test_one_scale_a_row_is_int8_as_it_is(spec):
    weight = rounded(spec)
    assert Asked("Linear", SHAPE, spec).int8
    assert torch.equal(on_int8(weight).dequantize(), weight.dequantize())


@pytest.mark.parametrize("spec", [int_scheme(4, 32, True), int_scheme(8, 0, False), int_scheme(3, 24, False)])
def test_other_grids_are_rounded_once_more(spec):
    weight = rounded(spec)
    found = on_int8(weight)
    assert not Asked("Linear", SHAPE, spec).int8 and found.scheme == INT8
    moved, largest = (found.dequantize() - weight.dequantize()).abs(), weight.dequantize().abs().amax(1, keepdim=True)
    # Half a step of 1/127, and a little for the scale in float16.
    assert (moved <= largest * (0.502 / 127)).all() and moved.max() > 0


def built(spec, activations, machine, bias, grid=None):
    matrix = QuantizedMatrix(rounded(spec), activations, grid)
    kernel = choose(Asked("Linear", SHAPE, spec, activations), machine).kernel
    return kernel.build(matrix, bias, machine), kernel.computed(matrix.weight).double()


def on_rows(x, bits):
    """The rows of ``x`` on their own symmetric grids, float64."""
    top = 2 ** (bits - 1) - 1
    step = (x.abs().amax(-1, keepdim=True) / top).clamp_min(1e-30)
    return (x / step).round().double() * step.double()


needs_dnnl = pytest.mark.skipif(not probe().runs("dnnl"), reason="onednn-cpu-gomp does not run here")
needs_onednn = pytest.mark.skipif(not probe().runs("onednn"), reason="torch's oneDNN kernels do not run here")
MACHINES = [
    pytest.param(FULL, marks=needs_dnnl),
    pytest.param(ONLY_TORCH, marks=needs_onednn),
    BARE,
    pytest.param(SATURATING, marks=needs_dnnl),
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("spec", [INT8, int_scheme(4, 32, False)])
@pytest.mark.parametrize("bias", [True, False])
def test_dynamic_activations(machine, spec, bias):
    if machine is not SATURATING and machine.integer and probe().activation_bits < 8:
        pytest.skip("8-bit products saturate here")
    added = draw(SHAPE[0], seed=2) if bias else None
    module, weight = built(spec, DYNAMIC, machine, added)
    for shape in ((1, 1, 64), (2, 5, 64), (3, 64)):
        x = draw(*shape, seed=3)
        expected = on_rows(x, machine.activation_bits) @ weight.T + (0 if added is None else added.double())
        assert (module(x).double() - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_activations_on_a_grid(machine, symmetric):
    if machine is not SATURATING and machine.integer and probe().activation_bits < 8:
        pytest.skip("8-bit products saturate here")
    grid, added = QParams(0.03, 128 if symmetric else 90), draw(SHAPE[0], seed=2)
    module, weight = built(INT8, STATIC, machine, added, grid)
    x = draw(2, 3, 64, seed=3) * 2
    step, zero, top = (grid.scale, grid.zero_point, 255)
    if machine is SATURATING:
        step, top = step * 255 / 127, 127
        zero = round(zero * 127 / 255)
    on_grid = ((x / step).round() + zero).clamp(0, top).sub(zero).double() * step
    expected = on_grid @ weight.T + added.double()
    assert module(x).shape == (2, 3, 96)
    assert (module(x).double() - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.skipif("AVX" not in probe().isa, reason="no vectorized kernel here")
def test_float_activations():
    added = draw(SHAPE[0], seed=2)
    module, weight = built(INT8, None, FULL, added)
    for rows in (1, ROWS, ROWS + 1):
        x = draw(rows, 64, seed=3)
        few = rows <= ROWS or wide("cpu") == torch.bfloat16
        product = (x.to(torch.bfloat16) if few else x).double() @ weight.T
        error = (module(x).double() - (product + added.double())).abs()
        # The result has bfloat16's 8 bits of mantissa; longer inputs stay in float32.
        assert (error <= (2**-8 if few else 1e-5) * product.abs() + 1e-5).all()


@pytest.mark.skipif("AVX" not in probe().isa, reason="no vectorized kernel here")
@pytest.mark.parametrize("shape", [(96, 64), (23, 96)])
@pytest.mark.parametrize("spec", [int_scheme(4, 32, False), int_scheme(4, 64, True), int_scheme(3, 64, False), int_scheme(4, 0, False)])
def test_nibbles(spec, shape):
    weight, added = rounded(spec, shape), draw(shape[0], seed=2)
    wanted = Asked("Linear", shape, spec)
    kernel = choose(wanted, FULL).kernel
    assert kernel.label(wanted, FULL) == "int4pack bf16"
    module, held = kernel.build(QuantizedMatrix(weight), added, FULL), kernel.computed(weight)
    # Scales in bfloat16 move a weight by a part in 256 of its distance from the middle of its grid, and of what is added.
    moved = (held - weight.dequantize()).abs()
    assert (moved <= WeightQParams.of(weight).columns(shape[1])[0] * 15 * 2**-8).all()
    x = draw(2, 5, shape[1], seed=3)
    for some in (x, x[:1, :1]):
        product = some.to(torch.bfloat16).double() @ held.double().T
        error = (module(some).double() - (product + added.double())).abs()
        assert module(some).shape == (*some.shape[:-1], shape[0])
        # The kernel widens weights to bfloat16: each product is rounded, and the result.
        bound = some.abs().double() @ held.abs().double().T * 2**-8 + 2**-8 * product.abs()
        assert (error <= bound).all() and error.mean() <= bound.mean() / 4


@pytest.mark.parametrize("spec", [INT8, int_scheme(4, 32, False), int_scheme(3, 24, True), int_scheme(8, 0, False)])
def test_rows_that_are_looked_up(spec):
    weight = rounded(spec)
    module = PackedEmbedding(weight)
    ids = torch.tensor([[0, 95, 3], [3, 3, 17]])
    assert torch.equal(module(ids), weight.dequantize()[ids])
    if spec.bits < 8:
        assert module._look.packed.numel() == weight.to_tensors()["packed"].numel() < weight.codes.numel()
    with pytest.raises(IndexError):
        module(torch.tensor([96]))


@pytest.mark.parametrize("given", [24, 40, 63, 72])
def test_inputs_that_no_vector_divides_are_multiplied_right(given: int) -> None:
    draw = torch.Generator().manual_seed(given)
    weight = torch.randint(-127, 128, (48, given), generator=draw, dtype=torch.int8)
    x = torch.randn(3, given, generator=draw)
    exact = x.to(torch.bfloat16).double() @ weight.double().T
    for _ in range(20):
        got = Widened(weight, torch.ones(48), None)(x)
        assert (got.double() - exact).abs().max() < 0.01 * exact.abs().max()


LAYOUTS = {
    "turned": lambda x: x.mT.contiguous().mT,
    "batch inside": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "a part of longer rows": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "every other row": lambda x: torch.stack([x, x], 2).flatten(1, 2)[:, ::2],
    "every other value": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
    "one row for all": lambda x: x[:1, :1].expand_as(x),
}
FORMS = [(INT8, DYNAMIC), (INT8, STATIC), (INT8, None), (int_scheme(4, 32, False), None), (int_scheme(4, 32, False), DYNAMIC)]


@pytest.mark.parametrize("machine", [probe(), BARE], ids=["this machine", "no kernels"])
@pytest.mark.parametrize(("spec", "activations"), FORMS)
@pytest.mark.parametrize("rows", [1, 5, ROWS + 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_product_is_the_same_in_whatever_layout_its_inputs_are(machine, spec, activations, rows, layout):
    module, _ = built(spec, activations, machine, draw(SHAPE[0], seed=2), QParams(0.03, 90) if activations is STATIC else None)
    module = module or torch.nn.Linear(64, 96)
    x = LAYOUTS[layout](draw(2, rows, 64, seed=3))
    before = x.clone()
    with torch.inference_mode():
        torch.testing.assert_close(module(x), module(x.contiguous()), rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)
