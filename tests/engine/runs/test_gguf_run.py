"""Whole runs in GGUF's formats: what is planned, stored, trained, exported, and read in again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driving
import pytest
import tiny_language
import torch

from engine import Recipe, load_quantized
from engine.planning.planner import plan
from engine.planning.size import packed_bytes
from engine.recipe.capabilities import of_decoder
from engine.recipe.presets import MIXTURES, Place, asked
from engine.recipe.spec import WeightSpec


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model whose rows are 64 and 256 wide, and a text beside it."""
    folder = tmp_path_factory.mktemp("gguf")
    tiny_language.write_folder(folder / "tiny", tiny_language.gpt2(n_embd=64))
    (folder / "text.txt").write_text(tiny_language.sentences(400))
    return folder


def recipe(place: Path, **changes: Any) -> Recipe:
    data = {"name": str(place / "text.txt"), "calibration": 8, "limit": 320, "stride": 16}
    return Recipe.make(**{"model": str(place / "tiny"), "data": data, "qat": {"mode": "never"}, "threshold": "drop:0.2", **changes})


def test_a_mixture_is_planned_stored_exported_and_read_in_again(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="uv sync --group bench")
    pytest.importorskip("accelerate", reason="uv sync --group bench")
    outcome = driving.drive(recipe(place, preset="q4_k_m", export=["gguf"]), tmp_path / "run")
    assert outcome.error is None
    report = outcome.data
    rows = {row["name"]: row for row in report["layers"]}
    assert rows["transformer.h.1.mlp.c_proj"]["actual"].startswith("q6_k") and rows["transformer.wte"]["actual"].startswith("q8_0")
    narrow = rows["transformer.h.0.mlp.c_fc"]
    assert narrow["actual"].startswith("q5_0") and "no multiple of q4_k's 256: q5_0 instead" in narrow["reason"]
    assert narrow["kernel"] == "torch fp32, q5_0 stored"
    assert report["ptq"]["size_bytes"] == (tmp_path / "run" / "model.safetensors").stat().st_size
    export = {entry["format"]: entry for entry in report["exports"]}
    assert export["safetensors"]["parity"]["max_abs"] < 1e-5
    assert (
        export["gguf"]["verified"] and export["gguf"]["runtime"].startswith("transformers") and export["gguf"]["parity"]["max_abs"] < 1e-4
    )
    back: Any = load_quantized(tmp_path / "run")
    assert torch.isfinite(back(torch.arange(20)[None])).all()
    again = driving.drive(recipe(place, model=str(tmp_path / "run" / "model.gguf"), preset="q8_0"), tmp_path / "again")
    assert again.error is None
    assert again.data["baseline"]["value"] == pytest.approx(report["ptq"]["value"], rel=1e-5)


def test_blocks_are_trained_and_converted_to_the_same_numbers(place: Path, tmp_path: Path) -> None:
    rules = [
        {"match": "*.c_fc", "weights": {"format": "q4_1"}}, {"match": "*mlp.c_proj", "weights": {"format": "q3_k", "method": "gptq"}},
        {"match": "*.attn.c_proj", "weights": {"format": "q4_0", "method": "imatrix"}},
    ]  # fmt: skip
    outcome = driving.drive(recipe(place, rules=rules, qat={"mode": "always", "epochs": 1}), tmp_path / "run")
    assert outcome.error is None
    rows = {row["name"]: row["actual"] for row in outcome.data["layers"]}
    assert rows["transformer.h.1.mlp.c_proj"] == "q3_k gptq, fp32 activations"
    (export,) = outcome.data["exports"]
    assert export["parity"]["max_abs"] < 1e-5


def test_a_grid_without_blocks_is_refused_before_any_work(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="uv sync --group bench")
    outcome = driving.drive(recipe(place, preset="w4", export=["gguf"]), tmp_path / "run")
    assert "export to gguf: GGUF has no blocks for w4 g64 affine" in str(outcome.error) and "q4_k_m" in str(outcome.error)


def test_mixtures_are_those_of_llama_cpp() -> None:
    def formats(preset: str, name: str, depth: int = 32) -> str:
        return "".join(asked(preset, "block", Place(f"model.layers.{n}.{name}", n, depth)).weights.format[1] for n in range(depth))  # type: ignore[union-attr]

    # llama-quant.cpp: use_more_bits names the first and last eighth, and every third block between.
    more = "".join("6" if n < 4 or n >= 28 or (n - 4) % 3 == 2 else "4" for n in range(32))
    assert formats("q4_k_m", "self_attn.v_proj") == formats("q4_k_m", "mlp.down_proj") == more
    assert formats("q4_k_m", "self_attn.q_proj") == "4" * 32 and formats("q5_k_m", "self_attn.qkv_proj") == "6" * 32
    assert formats("q3_k_m", "self_attn.v_proj") == "55" + "4" * 30 and formats("q3_k_m", "mlp.down_proj") == "55" + "4" * 30
    assert formats("q3_k_m", "self_attn.o_proj") == "4" * 32 and formats("q3_k_m", "mlp.up_proj") == "3" * 32
    assert formats("q2_k", "mlp.down_proj") == "3" * 32 and formats("q2_k", "mlp.gate_proj") == "2" * 32
    for preset in MIXTURES:
        outside = asked(preset, "outside", Place("lm_head")).weights
        assert outside is not None and outside.format == ("q8_0" if preset == "q8_0" else "q6_k")
        assert asked(preset, "embedding", Place("wpe")).weights.format == "q8_0"  # type: ignore[union-attr]


@pytest.mark.parametrize(("inputs", "wanted"), [
    (512, {"q4_k": "q4_k", "q8_0": "q8_0"}),
    (96, {"q6_k": "q8_0", "q5_k": "q5_1", "q4_k": "q5_0", "q3_k": "q4_0", "q2_k": "q4_0", "q4_0": "q4_0"}),
    (80, {"q4_k": "", "q8_0": ""}),
])  # fmt: skip
def test_rows_that_are_no_whole_blocks_get_what_llama_cpp_stores_them_in(inputs: int, wanted: dict[str, str]) -> None:
    from engine.planning.layer import Layer
    from engine.recipe.spec import LayerSpec, Rule

    layer = Layer("h.0.fc", "Linear", "h.0.fc", 16 * inputs, (16, inputs), of_decoder("Linear", True, inputs))
    for name, found in wanted.items():
        spec = WeightSpec.of({"format": name})
        (row,) = plan((layer,), "default", (Rule("*", LayerSpec(spec)),)).layers
        assert (row.actual.weights.format if row.actual.weights else "") == found
        assert (f"no multiple of {name}'s" in row.why) == (found != name)
    assert packed_bytes((16, 512), WeightSpec.of({"format": "q4_k"})) == 16 * 2 * 144
