"""Quantized tensors against integer arithmetic by hand, and their files against the layout that earlier versions wrote."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from engine.errors import EngineError
from engine.numerics import formats
from engine.numerics.formats import NumberFormat, integer
from engine.numerics.packing import pack_nibbles
from engine.numerics.qtensor import QTensor, from_tensors
from engine.numerics.scheme import WeightScheme
from engine.numerics.weights import minmax, quantize


def draw(form: NumberFormat, *shape: int) -> torch.Tensor:
    return torch.randint(int(form.low), int(form.high) + 1, shape, dtype=torch.int16).to(form.storage)


def by_hand(q: QTensor) -> np.ndarray[Any, Any]:
    """(out, inputs) in float64, one weight at a time."""
    codes = q.codes.flatten(1).numpy()
    found = np.zeros(codes.shape)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            group = column // q.group_size if q.group_size else 0
            number = int(codes[row, column]) - (int(q.zero[row, group]) if q.zero is not None else 0)
            number *= int(q.multiplier[row, group]) if q.multiplier is not None else 1
            found[row, column] = number * float(q.scale[row, 0 if q.multiplier is not None else group])
    return found


def two_levels(bits: int, shape: tuple[int, ...], size: int) -> QTensor:
    form, groups = integer(bits), -(-int(np.prod(shape[1:])) // size)
    multiplier = torch.randint(1, 128 // 2 ** (bits - 1) + 1, (shape[0], groups), dtype=torch.uint8)
    return QTensor(draw(form, *shape), torch.rand(shape[0], 1), None, form, size, multiplier)


def grouped(form: NumberFormat, out: int, inputs: int, size: int) -> QTensor:
    groups = -(-inputs // size) if size else 1
    zero = draw(form, out, groups) if form.affine else None
    return QTensor(draw(form, out, inputs), torch.rand(out, groups).half(), zero, form, size)


MANY = {
    "convolution by channel": QTensor(draw(integer(8), 4, 3, 3, 3), torch.rand(4, 1), None, integer(8)),
    "convolution of 3 bits": QTensor(draw(integer(3), 5, 3, 1, 3), torch.rand(5, 1), None, integer(3)),
    "two levels": two_levels(4, (4, 10, 2, 2), 16),
    "two levels, 6 bits, a short last group": two_levels(6, (3, 37), 16),
    "affine groups": grouped(integer(4, False), 5, 50, 16),
    "affine rows of 8 bits": grouped(integer(8, False), 5, 50, 0),
    "symmetric groups of 5 bits": grouped(integer(5), 3, 33, 32),
}


@pytest.mark.parametrize("q", MANY.values(), ids=list(MANY))
def test_it_stands_for_the_integers_times_their_scales(q: QTensor) -> None:
    wanted = by_hand(q)
    found = q.dequantize()
    assert found.dtype == torch.float32 and found.shape == q.shape
    np.testing.assert_allclose(found.flatten(1).double().numpy(), wanted, rtol=2e-7, atol=0)
    numbers = q.integers()
    assert numbers.shape == q.shape and numbers.dtype == (torch.int16 if q.format.name == "uint8" else torch.int8)
    one = replace(q, scale=torch.ones_like(q.scale))
    assert np.array_equal(numbers.flatten(1).numpy(), by_hand(one))


@pytest.mark.parametrize("q", MANY.values(), ids=list(MANY))
def test_its_file_has_the_bytes_it_states_and_gives_it_back(q: QTensor) -> None:
    held = load(save(q.to_tensors()))
    assert sum(t.numel() * t.element_size() for t in held.values()) == q.bytes
    back = from_tensors(held, q.meta())
    for name in ("codes", "scale", "zero", "multiplier"):
        mine, other = getattr(q, name), getattr(back, name)
        assert (mine is None and other is None) or (torch.equal(mine, other) and mine.dtype == other.dtype), name
    assert (back.format, back.group_size) == (q.format, q.group_size)


def test_the_file_of_a_layer_is_what_earlier_versions_wrote() -> None:
    codes = torch.tensor([[-8, 7, 1], [0, -1, 3]], dtype=torch.int8)
    q = QTensor(codes, torch.tensor([[0.5], [2.0]]), None, integer(4), 2, torch.tensor([[1, 16], [3, 4]], dtype=torch.uint8))
    held = q.to_tensors()
    # Two's complement, two to a byte over the whole tensor, the first in the low half.
    assert held["values"].tolist() == [0x78, 0x01, 0x3F]
    assert held["scale"].tolist() == [0.5, 2.0] and held["multiplier"].tolist() == [[1, 16], [3, 4]]
    assert q.meta() == {"bits": 4, "shape": [2, 3], "group_size": 2}


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7])
def test_other_widths_lie_in_their_bits_and_are_read_as_earlier_versions_wrote_them(bits: int) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    codes = torch.randint(low, high + 1, (5, 3, 3, 3), generator=torch.Generator().manual_seed(bits), dtype=torch.int8)
    codes.view(-1)[:2] = torch.tensor([low, high])
    q = QTensor(codes, torch.rand(5, 1) + 0.1, None, integer(bits))
    held = q.to_tensors()
    # One little-endian bit string in two's complement.
    number = sum((int(code) % 2**bits) << (bits * place) for place, code in enumerate(codes.flatten()))
    assert bytes(held["packed_values"].tolist()) == number.to_bytes(-(-codes.numel() * bits // 8), "little")
    assert q.bytes == held["packed_values"].numel() + 4 * 5
    assert torch.equal(from_tensors(held, q.meta()).codes, codes)
    earlier = {"values": pack_nibbles(codes) if bits < 4 else codes, "scale": held["scale"]}
    assert torch.equal(from_tensors(earlier, q.meta()).codes, codes)
    with pytest.raises(EngineError, match="damaged"):
        from_tensors({**held, "packed_values": held["packed_values"][:-1]}, q.meta())


def test_the_file_of_a_matrix_is_what_earlier_versions_wrote() -> None:
    codes = torch.tensor([[-4, 3, 0]], dtype=torch.int8)
    q = QTensor(codes, torch.tensor([[0.5]]).half(), None, integer(3))
    # Moved to begin at zero: 0, 7, 4, three bits each from the lowest bit of the row.
    assert q.to_tensors()["packed"].tolist() == [[0b00_111_000, 0b1]]
    assert q.meta() == {"bits": 3, "group_size": 0, "symmetric": True, "shape": [1, 3]}
    affine = QTensor(codes.abs().to(torch.uint8), q.scale, torch.tensor([[5]], dtype=torch.uint8), integer(3, False))
    assert affine.to_tensors()["zero"].tolist() == [[5]] and affine.meta()["symmetric"] is False


def test_a_layer_whose_parts_do_not_belong_together_is_refused() -> None:
    q = two_levels(4, (4, 40), 16)
    tensors, meta = q.to_tensors(), q.meta()
    for worse in ({**meta, "shape": [4, 80]}, {**meta, "bits": 8}, {**meta, "bits": 1}, {**meta, "group_size": 0}, {"bits": 4}):
        with pytest.raises(EngineError, match="damaged"):
            from_tensors(tensors, worse)
    for name, part in (
        ("scale", tensors["scale"].double()),
        ("scale", tensors["scale"] * float("nan")),
        ("values", tensors["values"].float()),
    ):
        with pytest.raises(EngineError, match="damaged"):
            from_tensors({**tensors, name: part}, meta)


def test_the_scale_of_a_channel_is_one() -> None:
    assert torch.equal(MANY["two levels"].channel_scale, MANY["two levels"].scale[:, 0])
    with pytest.raises(ValueError, match="4 scales"):
        _ = MANY["affine groups"].channel_scale


def test_it_stays_where_it_is() -> None:
    q = MANY["two levels"]
    assert q.to("cpu") is q and q.to("meta").multiplier.device.type == "meta"  # type: ignore[union-attr]


def test_a_format_of_listed_values_is_a_line_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
    form = NumberFormat("e2m1", 4, torch.uint8, -6.0, 6.0, levels=levels)
    monkeypatch.setitem(formats.FORMATS, form.name, form)
    weight = torch.randn(6, 70)
    q = quantize(weight, minmax(weight, WeightScheme(form, 32)))
    assert q.zero is None and q.bytes == 6 * (35 + 2 * 3)
    scale = q.scale.double().repeat_interleave(32, 1)[:, :70]
    nearest = ((weight.double() / scale)[..., None] - torch.tensor(levels).double()).abs().amin(2) * scale
    assert torch.allclose((q.dequantize().double() - weight).abs(), nearest, atol=1e-7)
    back = from_tensors(load(save(q.to_tensors())), q.meta())
    assert torch.equal(back.dequantize(), q.dequantize()) and back.format == form
