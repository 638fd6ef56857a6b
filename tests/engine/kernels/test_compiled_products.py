"""Compiled products, against float64 and exact integers, over bits, groups, sizes, rows, threads and instructions."""

import itertools

import pytest
import torch

from engine.kernels.jit.compiler import missing
from engine.kernels.jit.products import Product, Rounding, here
from engine.kernels.jit.products_ir import Form, Instructions, function
from engine.kernels.matrix.compiled import Int4, Int8
from engine.kernels.matrix.computed import Computed
from engine.kernels.matrix.streamed import Streamed
from engine.kernels.matrix.weight_only import ROWS
from engine.numerics.float_activations import round_floats
from engine.numerics.scheme import int_scheme
from engine.numerics.weights import minmax, quantize
from engine.recipe.spec import ActivationSpec

pytest.importorskip("llvmlite")
pytestmark = pytest.mark.skipif(missing() is not None, reason="oneDNN, whose threads the kernels use, is not installed")


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def allowed(x, weight, size):
    """What inputs of 16 bits in each group, and sums in float32, may move a result by."""
    step = x.double().abs().unflatten(-1, (-1, size)).amax(-1) / 32767
    moved = step.repeat_interleave(size, -1) @ weight.abs().T / 2
    return moved + 1e-5 * (x.double().abs() @ weight.abs().T)


@pytest.mark.parametrize(("out", "inputs"), [(1, 16), (7, 48), (33, 100), (5, 1616), (64, 2048)])
def test_int8_is_exact_to_16_bits_of_its_inputs(out, inputs, threads):
    weight = quantize(drawn(out, inputs), minmax(drawn(out, inputs), int_scheme(8, 0, True)))
    exact = weight.dequantize().double()
    for rows, bias in itertools.product((1, 2, 5, ROWS, ROWS + 3), (None, drawn(out))):
        x = drawn(rows, inputs, seed=3)
        wanted = x.double() @ exact.T + (0 if bias is None else bias.double())
        # A group is never more than a row.
        assert ((Int8(weight, bias)(x).double() - wanted).abs() <= allowed(x, exact, inputs) + 1e-5).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("out", "inputs", "size"), [(1, 32, 32), (7, 96, 32), (33, 192, 64), (5, 1024, 256), (64, 256, 0)])
def test_int4_is_exact_to_16_bits_of_its_inputs(bits, symmetric, out, inputs, size, threads):
    floats = drawn(out, inputs)
    weight = quantize(floats, minmax(floats, int_scheme(bits, size, symmetric)))
    # What the kernel holds: steps and offsets in bfloat16.
    held = Streamed().computed(weight).double()
    for rows, bias in itertools.product((1, 3, ROWS, ROWS + 3), (None, drawn(out))):
        x = drawn(rows, inputs, seed=3)
        x[:, 0] *= 100
        wanted = x.double() @ held.T + (0 if bias is None else bias.double())
        assert ((Int4(weight, bias)(x).double() - wanted).abs() <= allowed(x, held, 256 if size == 0 else size) + 1e-5).all()


def test_leading_dimensions_and_strides_are_those_of_the_inputs():
    floats = drawn(24, 64)
    weight = quantize(floats, minmax(floats, int_scheme(4, 32, False)))
    x = drawn(2, 64, 3).transpose(1, 2)
    y = Int4(weight, None)(x)
    assert y.shape == (2, 3, 24)
    assert torch.equal(y, Int4(weight, None)(x.contiguous()))


def test_what_is_not_a_number_stays_so_in_its_row_alone():
    floats = drawn(24, 64)
    weights = quantize(floats, minmax(floats, int_scheme(4, 32, False))), quantize(floats, minmax(floats, int_scheme(8, 0, True)))
    for form in (kind(weight, None, asked) for asked in (None, ASKED[0]) for weight, kind in zip(weights, (Int4, Int8), strict=True)):
        x = drawn(3, 64)
        x[1, 5] = float("nan")
        y = form(x)
        assert y[1].isnan().all()
        assert y[[0, 2]].isfinite().all()


def test_a_row_of_zeros_gives_the_bias():
    floats, bias = drawn(24, 64), drawn(24)
    weight = quantize(floats, minmax(floats, int_scheme(4, 64, False)))
    assert torch.equal(Int4(weight, bias)(torch.zeros(1, 64))[0], bias)


ASKED = [ActivationSpec(8, dynamic=True), ActivationSpec(8, dynamic=True, group_size=32), ActivationSpec(4, dynamic=True, group_size=64),
         ActivationSpec(5, dynamic=True)]  # fmt: skip


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize(("out", "inputs", "size"), [(7, 192, 64), (33, 128, 32), (64, 1024, 256), (5, 256, 0)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_integer_activations_are_what_the_recipe_asks_for(asked, out, inputs, size, symmetric, threads):
    floats = drawn(out, inputs)
    weights = quantize(floats, minmax(floats, int_scheme(4, size, symmetric))), quantize(floats, minmax(floats, int_scheme(8, 0, True)))
    for weight, form in zip(weights, (Int4, Int8), strict=True):
        held = Streamed().computed(weight).double()
        for rows, bias in itertools.product((1, 3, 8, ROWS + 3, 131), (None, drawn(out))):
            x = drawn(rows, inputs, seed=3)
            x[:, 0] *= 20
            rounded = round_floats(x, asked).double()
            wanted = rounded @ held.T + (0 if bias is None else bias.double())
            far = (form(weight, bias, asked)(x).double() - wanted).abs()
            assert (far <= 1e-5 * (rounded.abs() @ held.abs().T + 1)).all()


def test_rows_that_are_no_multiple_of_the_vectors_are_filled():
    weight = quantize(drawn(9, 100), minmax(drawn(9, 100), int_scheme(8, 0, True)))
    x, asked = drawn(2, 100, seed=3), ActivationSpec(8, dynamic=True)
    wanted = round_floats(x, asked).double() @ weight.dequantize().double().T
    assert torch.allclose(Int8(weight, None, asked)(x).double(), wanted, rtol=0, atol=1e-5)


# What this processor has, and what others have, VPDPBUSD written out.
INSTRUCTIONS = [None, Instructions(8, False), Instructions(8, True), Instructions(16, True)]


@pytest.mark.parametrize("instructions", INSTRUCTIONS, ids=lambda found: found.name if found else "here")
def test_the_largest_integers_do_not_saturate(instructions):
    """Inputs whose step is one are integers themselves, and so are the products: nothing may be lost."""
    x = torch.tensor([127.0, -127.0]).repeat(3, 32)
    x[1] = -x[1]
    x[2] = torch.randint(-126, 127, (64,), generator=torch.Generator().manual_seed(0)).float()
    x[2, 0] = 127
    signs = torch.tensor([1, -1]).repeat(32)
    whole = torch.stack([torch.full((64,), -128), 127 * signs, -128 * (signs < 0).int() + 127 * (signs > 0).int()]).to(torch.int8)
    got = Product(whole, torch.ones(3), None, asked=Rounding(8), instructions=instructions)(x)
    assert torch.equal(got.long(), x.long() @ whole.long().T)
    nibbles = torch.stack([torch.full((64,), 15), torch.zeros(64), 15 * (signs > 0)]).long()
    got = Product(nibbles, torch.ones(3, 2, dtype=torch.bfloat16), None, None, 32, Rounding(8), instructions)(x)
    assert torch.equal(got.long(), x.long() @ (nibbles - 8).T)


@pytest.mark.parametrize("instructions", INSTRUCTIONS[1:], ids=lambda found: found.name)
@pytest.mark.parametrize("asked", [None, Rounding(8), Rounding(8, 32)], ids=["16 bits", "a token", "a group"])
def test_layouts_of_other_processors_give_the_same_sums(instructions, asked):
    x, scale, bias = drawn(3, 160), drawn(35).abs(), drawn(35)
    codes = torch.randint(-128, 128, (35, 160), generator=torch.Generator().manual_seed(0))
    step, added = (drawn(35, 5, seed=seed).bfloat16() for seed in (1, 2))
    for arguments in ((codes.to(torch.int8), scale, bias), (codes & 15, step, bias, added, 32)):
        forms = [Product(*arguments, asked=asked, instructions=found) for found in (None, instructions)]
        there, here_ = (form(x) for form in forms)
        assert torch.allclose(there, here_, rtol=0, atol=1e-5 * here_.abs().max().item())
        assert torch.equal(forms[1].codes().long(), arguments[0].long())


@pytest.mark.parametrize(("processor", "instructions"), [("icelake-server", INSTRUCTIONS[3]), ("alderlake", INSTRUCTIONS[2])])
@pytest.mark.parametrize("form", [Form(4, "bytes", True, 1), Form(4, "halves", False, 1), Form(8, "bytes", False, 8)])
def test_processors_that_add_four_products_at_once_do(processor, instructions, form):
    import llvmlite.binding as llvm

    here()
    module = llvm.parse_assembly(function("product", form, instructions))
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=processor, opt=3)
    assert "vpdpbusd" in machine.emit_assembly(module)


def test_rows_are_looked_up_in_the_weights_memory():
    codes = torch.randint(-128, 128, (21, 48), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    ids = torch.tensor([20, 0, 7, 8, 20])
    for instructions, asked in itertools.product(INSTRUCTIONS, (None, Rounding(8))):
        product = Product(codes, torch.ones(21), None, asked=asked, instructions=instructions)
        assert torch.equal(product.rows(ids), codes[ids])
        with pytest.raises(IndexError, match="row 21 of 21"):
            product.rows(torch.tensor([21]))


def test_an_embedding_reads_its_rows_from_the_head_it_is_tied_to():
    weight, ids = quantize(drawn(21, 100), minmax(drawn(21, 100), int_scheme(8, 0, True))), torch.tensor([20, 3])
    for asked in (None, ASKED[0]):
        look = Computed(Int8(weight, None, asked), (21, 100), "").rows(weight.codes)
        assert look is not None and torch.equal(look(ids), weight.codes[ids])
    assert Computed(lambda x: x, (21, 100), "").rows(weight.codes) is None


@pytest.mark.parametrize("bits", [4, 8])
def test_a_prompt_on_weights_in_bfloat16_is_exact_to_its_mantissa(bits, monkeypatch):
    """As on processors that multiply bfloat16, which this one need not be."""
    monkeypatch.setattr("engine.kernels.matrix.compiled.widens", lambda: True)
    weight = quantize(drawn(40, 128), minmax(drawn(40, 128), int_scheme(bits, 32 if bits == 4 else 0, bits == 8)))
    held, x, bias = Streamed().computed(weight).double(), drawn(ROWS + 3, 128, seed=3), drawn(40)
    got = (Int4 if bits == 4 else Int8)(weight, bias)(x).double()
    assert ((got - (x.double() @ held.T + bias)).abs() <= 0.01 * (x.double().abs() @ held.abs().T + bias.abs())).all()


def test_groups_that_the_kernel_does_not_have_are_refused():
    codes, scale = torch.zeros(4, 96, dtype=torch.uint8), torch.ones(4, 2, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="48"):
        Product(codes, scale, None, None, 48)
    with pytest.raises(ValueError, match="64"):
        Product(codes, scale, None, None, 32, Rounding(8, 64))
