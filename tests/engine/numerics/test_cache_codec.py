"""Keys and values as bytes, against float64."""

from __future__ import annotations

import pytest
import torch

from engine.errors import EngineError, UsageError
from engine.numerics.cache_codec import CacheCodec
from engine.recipe.cache_spec import CacheSpec


def some(width: int = 40) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 11, width, generator=draw) * torch.exp(torch.randn(1, 3, 1, width, generator=draw))


def test_int8_rows_have_a_step_for_each_token_of_a_head() -> None:
    x = some().double()
    codec = CacheCodec(CacheSpec(), 40)
    step = (x.abs().amax(-1, keepdim=True) / 127).half().double()
    wanted = (x / step).round().clamp(-127, 127) * step
    rows = codec.encode(x.float())
    assert rows.dtype == torch.uint8 and rows.shape == (2, 3, 11, 42) and codec.row_bytes == 42
    assert torch.allclose(codec.decode(rows).double(), wanted, rtol=1e-6, atol=1e-7)


def test_fp8_rows_are_those_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = some()
    codec = CacheCodec(CacheSpec("fp8_e4m3"), 40)
    step = (x.abs().amax(-1, keepdim=True) / 448).half().float()
    inside = (x / step).clamp(-448, 448).numpy().astype(ml_dtypes.float8_e4m3fn).astype("float32")
    assert torch.equal(codec.decode(codec.encode(x)), torch.from_numpy(inside) * step)


@pytest.mark.parametrize(("width", "size", "groups"), [(64, 32, 2), (40, 32, 2), (33, 16, 3), (7, 16, 1)])
def test_int4_rows_have_a_step_and_an_offset_for_each_group(width: int, size: int, groups: int) -> None:
    x = some(width)
    codec = CacheCodec(CacheSpec("int4", "per-group", size), width)
    rows = codec.encode(x)
    assert rows.shape[-1] == codec.row_bytes == -(-width // 2) + 4 * groups
    found = codec.decode(rows).double()
    for first in range(0, width, size):
        part = x[..., first : first + size].double()
        low = part.amin(-1, keepdim=True).half().double()
        step = ((part.amax(-1, keepdim=True) - low) / 15).clamp_min(2.0**-24).half().double()
        wanted = ((part - low) / step).round().clamp(0, 15) * step + low
        # A quotient near a half may round the other way in float32.
        off = (found[..., first : first + size] - wanted).abs()
        assert off.gt(1e-5 * part.abs().max()).double().mean() < 1e-3 and (off <= 1.001 * step).all()


@pytest.mark.parametrize("name", ["int8", "fp8_e4m3", "int4"])
@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_calibrated_steps_take_no_bytes_of_a_row(name: str, granularity: str) -> None:
    x, top = some(), {"int8": 127, "int4": 7, "fp8_e4m3": 448}[name]
    largest = x.abs().amax((0, 2))[:, None] if granularity == "per-channel" else x.abs().max()
    codec = CacheCodec(CacheSpec(name, granularity), 40, largest / top)  # type: ignore[arg-type]
    rows = codec.encode(x)
    assert rows.shape[-1] == codec.row_bytes == (20 if name == "int4" else 40)
    bound = (largest / top) * (0.5 if name != "fp8_e4m3" else 16) * 1.001
    assert ((codec.decode(rows) - x).abs() <= bound).all()
    beyond = codec.decode(codec.encode(10 * x))
    assert torch.isfinite(beyond).all() and (beyond.abs() <= largest * 1.001).all()


def test_rows_of_zeros_and_of_one_value_come_back() -> None:
    for spec in (CacheSpec(), CacheSpec("fp8_e4m3"), CacheSpec("int4", "per-group")):
        codec = CacheCodec(spec, 8)
        assert torch.equal(codec.decode(codec.encode(torch.zeros(1, 1, 2, 8))), torch.zeros(1, 1, 2, 8))
        assert torch.allclose(codec.decode(codec.encode(torch.full((1, 1, 2, 8), -3.0))), torch.tensor(-3.0), rtol=1e-3)


def test_what_is_not_finite_is_refused_in_a_line() -> None:
    with pytest.raises(EngineError, match="NaN or infinite"):
        CacheCodec(CacheSpec(), 4).encode(torch.tensor([[1.0, float("inf"), 0.0, 0.0]]))


def test_words_of_the_command_line_are_read() -> None:
    assert CacheSpec.parse("int8") == CacheSpec("int8", "per-token")
    assert CacheSpec.parse("int4:per-group:64") == CacheSpec("int4", "per-group", 64)
    assert CacheSpec.parse("fp8:per-tensor").calibrated
    for wrong in ("int9", "fp8:per-row", "int8:per-token:32", "int4:per-group:33", "int4:per-group:32:1"):
        with pytest.raises(UsageError) as caught:
            CacheSpec.parse(wrong)
        assert "\n" not in str(caught.value)
