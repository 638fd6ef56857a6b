"""A quantized decoder on kernels, against its float32 twin."""

import pytest
import torch
from families import FAMILIES
from small_decoders import DYNAMIC, INT8, STATIC, VOCABULARY, on_integers, small

from engine.events.cancellation import StopToken
from engine.kernels.probe import probe
from engine.lowering.modules.fused_activations import fuse_activations
from engine.lowering.modules.quantized import duplicate
from engine.lowering.modules.runtime import as_run, running
from engine.models.anatomy import weight_of
from engine.numerics.qparams import QParams
from engine.numerics.scheme import int_scheme
from engine.tasks.generation import continuation

MACHINE = probe()
IDS = torch.randint(2, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(7))
needs_integers = pytest.mark.skipif(MACHINE.activation_bits < 8 or not MACHINE.integer, reason="no exact 8-bit kernel here")


def logits(model, ids=IDS):
    with torch.inference_mode():
        return model(input_ids=ids).logits


def sqnr(exact, got):
    return float(10 * torch.log10(exact.square().sum() / (got - exact).square().sum()))


def hooked(twin, paths, rounding):
    """``twin`` with the inputs of its layers rounded by ``rounding``."""
    found = duplicate(twin)
    for path in paths:
        found.get_submodule(path).register_forward_pre_hook(lambda _, args: (rounding(args[0]), *args[1:]))
    return found


def by_token(x):
    step = (x.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
    return (x / step).round() * step


@needs_integers
@pytest.mark.parametrize("family", FAMILIES)
def test_dynamic_int8_is_its_twin_with_rounded_inputs(family):
    decoder = on_integers(small(family))
    model, places = running(decoder, MACHINE)
    linear = [path for path, place in places.items() if "dynamic" in place.label]
    assert len(linear) >= 2 * len(FAMILIES[family][3]) + 1
    expected = logits(hooked(decoder.twin, linear, by_token))
    # A value between two steps may fall either way: that is all that is left.
    assert sqnr(expected, logits(model)) > 45
    assert sqnr(logits(decoder.twin), logits(model)) > 20


@needs_integers
def test_fixed_grids():
    grid = QParams(16 / 255, 128)
    decoder = on_integers(small(), INT8, STATIC, grid)
    model, places = running(decoder, MACHINE)
    paths = [path for path, place in places.items() if "static" in place.label]
    assert "lm_head" in paths and "transformer.h.0.attn.c_attn" in paths

    def on_grid(x):
        return ((x / grid.scale).round() + 128).clamp(0, 255).sub(128) * grid.scale

    assert sqnr(logits(hooked(decoder.twin, paths, on_grid)), logits(model)) > 45


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_stored_matrices_compute_what_the_twin_does(family):
    decoder = on_integers(small(family), int_scheme(4, 4, False), None, rows=int_scheme(4, 4, False))
    model, places = running(decoder, MACHINE)
    assert all(place.storage_only == ("stored" in place.label) for place in places.values())
    assert sum(place.storage_only for place in places.values()) >= len(FAMILIES[family][3])
    torch.testing.assert_close(logits(model), logits(decoder.twin), rtol=0, atol=1e-5)


def test_what_is_measured_is_what_runs():
    """Low bits on int8 kernels are rounded once more; the twin with those weights differs by the activations alone."""
    decoder = on_integers(small(), int_scheme(3, 8, False), DYNAMIC)
    twin = duplicate(decoder.twin)
    with torch.no_grad():
        for path, weight in as_run(decoder, MACHINE).items():
            weight_of(twin.get_submodule(path)).copy_(weight)
    model, places = running(decoder, MACHINE)
    assert places["transformer.h.1.mlp.c_fc"].label.endswith("on int8")
    assert (logits(twin) - logits(decoder.twin)).abs().max() > 0
    linear = [path for path, place in places.items() if "dynamic" in place.label]
    assert sqnr(logits(hooked(twin, linear, by_token)), logits(model)) > (45 if MACHINE.activation_bits == 8 else 20)


@pytest.mark.parametrize("activations", [DYNAMIC, None])
def test_a_cache_of_keys_and_values_changes_nothing(activations):
    model, _ = running(on_integers(small(), INT8, activations), MACHINE)
    ids = IDS[0]
    told = list(continuation(model, ids[:5], 6, stop=StopToken()))
    assert len(told) == 6
    with torch.inference_mode():
        past, parts = None, []
        for piece in (ids[None, :7], ids[None, 7:8], ids[None, 8:]):
            out = model(input_ids=piece, past_key_values=past, use_cache=True)
            past = out.past_key_values
            parts.append(out.logits)
    assert sqnr(logits(model, ids[None]), torch.cat(parts, 1)) > 35


def test_the_copy_holds_no_float32_of_what_it_replaced():
    decoder = on_integers(small("llama"))
    model, _ = running(decoder, MACHINE)
    kept = {name for name, _ in model.named_parameters()}
    assert kept and all("norm" in name for name in kept)
    # The twin is left as it was.
    assert decoder.twin.lm_head.weight.numel() == 16 * VOCABULARY
    with torch.no_grad():
        model.model.norm.weight.zero_()
    assert decoder.twin.model.norm.weight.abs().min() > 0


def test_a_tied_matrix_stays_where_one_of_its_holders_needs_it():
    decoder = on_integers(small())
    only = {path: matrix for path, matrix in decoder.matrices.items() if path != "lm_head"}
    model, places = running(type(decoder)(decoder.twin, only), MACHINE)
    assert "lm_head" not in places and model.lm_head.weight.shape == (VOCABULARY, 16)
    assert torch.isfinite(logits(model)).all()


@pytest.mark.skipif(not MACHINE.runs("dnnl"), reason="onednn-cpu-gomp does not run here")
@pytest.mark.parametrize("activations", [DYNAMIC, STATIC])
def test_an_embedding_and_its_head_share_one_memory(activations):
    decoder = on_integers(small(), INT8, activations, QParams(16 / 255, 128))
    run, _ = running(decoder, MACHINE)
    ids = torch.tensor([[0, VOCABULARY - 1, 40]])
    assert torch.equal(run.transformer.wte(ids), decoder.matrices["transformer.wte"].weight.dequantize()[ids])
    with pytest.raises(IndexError):
        run.transformer.wte(torch.tensor([VOCABULARY]))
    layer, look = run.lm_head._function, run.transformer.wte._look
    if MACHINE.vnni:
        held = layer.weights.space
        assert held.data_ptr() <= look._view.data_ptr() < held.data_ptr() + held.numel()


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_fast"])
def test_activations_in_one_operation_are_the_same(activation):
    from transformers.activations import ACT2FN

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sequential(ACT2FN[activation]), ACT2FN["relu"])
    exact, x = ACT2FN[activation](torch.linspace(-9, 9, 500)), torch.linspace(-9, 9, 500)
    assert fuse_activations(model) == 1
    torch.testing.assert_close(model[1](x), exact, rtol=1e-5, atol=1e-6)
    assert fuse_activations(model) == 0
