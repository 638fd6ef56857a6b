"""The main job: simplecnn on digits, quantized for real, and every figure of its report taken again by other means."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import driving
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import engine
from engine.data.images import digits
from engine.models.registry import WEIGHTS
from engine.models.simplecnn import SimpleCNN
from engine.recipe.recipe import Recipe

NUMBER = (int, float)
METRIC = {"value": NUMBER, "low": NUMBER, "high": NUMBER}
LATENCY = {"p50": NUMBER, "p95": NUMBER, "batch": int}
# Contract 2, with the type of each value; a list holds the shape of its items.
CONTRACT: dict[str, Any] = {
    "schema": int, "model": str, "task": str, "lowering": str, "data": {"name": str, "calibration": int, "test": int},
    "environment": {"torch": str, "device": str, "isa": str, "vnni": bool, "threads": int, "seed": int},
    "graph": {"nodes": int, "fused": [{"conv": str, "bn": str, "max_abs_delta": NUMBER}],
              "refused": [{"conv": str, "bn": str, "reason": str}]},
    "layers": [{"name": str, "kind": str, "requested": str, "actual": str, "kernel": str, "reason": str, "sqnr_db": NUMBER, "params": int,
                "time_share": NUMBER}],
    "baseline": {"metric": str, "value": NUMBER, "size_bytes": int, "latency_ms": LATENCY},
    "ptq": {"value": NUMBER, "error": {"mse": NUMBER, "sqnr_db": NUMBER, "agreement": NUMBER}, "size_bytes": int, "latency_ms": LATENCY,
            "kernel": str, "simulated": bool, "seconds": NUMBER},
    "qat": type(None),
    "verdict": {"chosen": str, "threshold": str, "met": bool, "text": str},
    "exports": [{"format": str, "path": str, "size_bytes": int, "runtime": str,
                 "parity": {"max_abs": NUMBER, "sqnr_db": (*NUMBER, type(None)), "agreement": NUMBER}, "latency_ms": LATENCY}],
    "metrics": {"fp32": {"accuracy": METRIC}, "ptq": {"accuracy": METRIC}},
    "workloads": [{"key": str, "phrase": str, "head": str, "short": str, "word": str}],
}  # fmt: skip


def strict(text: str) -> Any:
    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def misfits(value: Any, shape: Any, place: str = "report") -> list[str]:
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{place} is {type(value).__name__}"]
        return [
            bad
            for key, inner in shape.items()
            for bad in (misfits(value[key], inner, f"{place}.{key}") if key in value else [f"{place}.{key} is missing"])
        ]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{place} is {type(value).__name__}"]
        return [bad for i, item in enumerate(value) for bad in misfits(item, shape[0], f"{place}[{i}]")]
    fits = isinstance(value, shape) and not (isinstance(value, bool) and shape is not bool)
    return [] if fits else [f"{place} is {value!r}"]


def images_of_the_test_split() -> tuple[torch.Tensor, np.ndarray]:
    """The test split by the data set's own constants, without the engine's batches."""
    data = digits.load()
    images, labels = data.test.read(torch.arange(len(data.test)))
    x = (images.numpy().astype(np.float64) / 255 - digits.MEAN) / digits.STD
    return torch.from_numpy(x.astype(np.float32)), labels.numpy()


def logits(model: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad(), driving.one_thread():
        return torch.cat([model(part) for part in x.split(60)]).double().numpy()


@pytest.fixture(scope="module")
def both(main_run: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of the original fp32 model and of the quantized one read back, and labels."""
    reference = SimpleCNN(10).eval()
    reference.load_state_dict(load_file(WEIGHTS / "simplecnn-digits.safetensors"), strict=False)
    x, labels = images_of_the_test_split()
    return logits(reference, x), logits(engine.load_quantized(main_run.folder), x), labels


def test_the_report_has_every_key_of_the_contract_with_its_type(main_run: Any) -> None:
    data = strict((main_run.folder / "report.json").read_text())
    assert misfits(data, CONTRACT) == []
    assert [key for key in data if key in CONTRACT] == list(CONTRACT)
    assert len(data["layers"]) == 4 and len(data["graph"]["fused"]) == 2 and len(data["exports"]) == 1


def test_the_contract_checker_sees_what_is_wrong(main_run: Any) -> None:
    data = strict((main_run.folder / "report.json").read_text())
    data["schema"], data["baseline"]["value"] = True, None
    del data["layers"][2]["kernel"]
    assert misfits(data, CONTRACT) == ["report.schema is True", "report.layers[2].kernel is missing", "report.baseline.value is None"]


def test_the_report_says_what_was_run(main_run: Any) -> None:
    data = main_run.report.data
    assert data["data"] | {"mean": 0, "std": 0} == {
        "name": "digits", "calibration": 512, "train": 1257, "validation": 180, "test": 360, "mean": 0, "std": 0,
    }  # fmt: skip
    assert data["graph"]["nodes"] == 14
    assert [(p["conv"], p["bn"]) for p in data["graph"]["fused"]] == [("conv1", "bn1"), ("conv2", "bn2")]
    assert {layer["name"]: layer["params"] for layer in data["layers"]} == {
        "conv1": 3 * 32 * 9 + 32, "conv2": 32 * 64 * 9 + 64, "fc1": 4096 * 128 + 128, "fc2": 128 * 10 + 10,
    }  # fmt: skip
    assert 0 < sum(layer["time_share"] for layer in data["layers"]) <= 1
    assert main_run.report.met is True and data["verdict"]["chosen"] == "ptq" and data["qat"] is None


def test_the_folder_holds_what_the_contract_says_and_nothing_else(main_run: Any) -> None:
    names = {path.name for path in main_run.folder.iterdir()}
    assert names == {"report.json", "report.md", "recipe.yaml", "events.jsonl", "model.safetensors", "state.json"}
    export = main_run.report.data["exports"][0]
    assert (main_run.folder / export["path"]).stat().st_size == export["size_bytes"] == main_run.report.data["ptq"]["size_bytes"]


def test_events_are_strict_json_from_the_first_stage_to_the_end(main_run: Any) -> None:
    events = [strict(line) for line in (main_run.folder / "events.jsonl").read_text().splitlines()]
    assert events[0]["event"] == "StageStarted" and events[0]["stage"] == "load"
    assert events[-1]["event"] == "Finished" and events[-1]["met"] is True
    assert [e["key"] for e in events if e["event"] == "Ask"] == ["trace", "analyze", "optimize", "quantize"]
    started = [e["stage"] for e in events if e["event"] == "StageStarted"]
    assert started == [e["stage"] for e in events if e["event"] == "StageFinished"]
    assert started == ["load", "trace", "analyze", "fuse", "plan", "calibrate", "convert", "evaluate", "export"]
    measured = [e for e in events if e["event"] == "Measured"]
    assert [(e["which"], e["figures"]["value"]) for e in measured] == [
        (which, main_run.report.data[which]["value"]) for which in ("baseline", "ptq")
    ]


def test_the_markdown_report_tells_the_verdict_and_every_layer(main_run: Any) -> None:
    text = (main_run.folder / "report.md").read_text()
    assert main_run.report.data["verdict"]["text"] in text
    for layer in main_run.report.data["layers"]:
        assert f"| {layer['name']} |" in text and layer["reason"] in text


def test_four_bit_weights_are_stored_as_nibbles(main_run: Any) -> None:
    actual = {layer["name"]: layer["actual"] for layer in main_run.report.data["layers"]}
    assert actual["fc1"].startswith("w4 ") and actual["conv1"].startswith("w8 ")
    with safe_open(main_run.folder / "model.safetensors", "np") as file:
        values = {name: file.get_tensor(f"layer/{name}/values") for name in actual}
    assert (values["fc1"].dtype, values["fc1"].nbytes) == (np.uint8, 4096 * 128 // 2)
    assert (values["conv2"].dtype, values["conv2"].nbytes) == (np.int8, 32 * 64 * 9)
    total = (main_run.folder / "model.safetensors").stat().st_size
    assert 262_144 + 18_432 < total < 330_000


def test_stored_nibbles_are_the_weights_to_within_half_a_step(main_run: Any) -> None:
    with safe_open(main_run.folder / "model.safetensors", "np") as file:
        packed, scale, spread = (file.get_tensor(f"layer/fc1/{name}") for name in ("values", "scale", "multiplier"))
    both = np.stack([packed & 15, packed >> 4], 1).reshape(-1).astype(np.int64)
    integers = np.where(both > 7, both - 16, both).reshape(128, 4096)
    step = np.repeat(scale[:, None].astype(np.float64) * spread, 4096 // spread.shape[1], 1)
    weight = load_file(WEIGHTS / "simplecnn-digits.safetensors")["fc1.weight"].double().numpy()
    inside = np.abs(weight) < 7 * step
    assert inside.mean() > 0.9
    assert np.all(np.abs(integers * step - weight)[inside] <= step[inside] * 0.5001)


def test_a_fresh_process_gives_the_same_bits_from_any_folder_without_the_models_code(main_run: Any, tmp_path: Path) -> None:
    """Both for the package's model and for one from a file that is gone since."""
    own = tmp_path / "soon_gone.py"
    own.write_text(driving.TINY)
    asked = {"data": {"calibration": 32, "limit": 64}, "preset": "w4a8", "threshold": "drop:0.9"}
    assert driving.drive(Recipe.make(model=f"{own}:make", **asked), tmp_path / "own").error is None
    own.unlink()
    x, _ = images_of_the_test_split()
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import sys, numpy as np, torch, engine\n"
        "x = torch.from_numpy(np.load('x.npy'))\n"
        f"for name, folder in (('main', {str(main_run.folder)!r}), ('own', 'own')):\n"
        "    model = engine.load_quantized(folder)\n"
        "    np.save(name + '.npy', torch.cat([model(part) for part in x.split(60)]).numpy())\n"
        "kept = ('engine.models', 'engine.models.memory', 'engine.models.transform')\n"
        "found = [name for name in sys.modules if name.startswith('engine.models') and name not in kept or 'soon_gone' in name]\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=driving.child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, here in (("main", main_run.measured), ("own", engine.load_quantized(tmp_path / "own"))):
        with driving.one_thread():
            wanted = torch.cat([here(part) for part in x.split(60)]).numpy()
        fresh = np.load(tmp_path / f"{name}.npy")
        assert fresh.dtype == np.float32
        assert np.array_equal(fresh.view(np.uint32), wanted.view(np.uint32))


def test_accuracy_is_what_the_logits_say(main_run: Any, both: Any) -> None:
    exact, got, labels = both
    data = main_run.report.data
    assert data["baseline"]["value"] == np.mean(exact.argmax(1) == labels)
    assert data["ptq"]["value"] == np.mean(got.argmax(1) == labels)
    assert data["ptq"]["value"] > 0.98
    assert data["ptq"]["error"]["agreement"] == np.mean(got.argmax(1) == exact.argmax(1))


def test_error_is_what_the_logits_say(main_run: Any, both: Any) -> None:
    exact, got, _ = both
    error = main_run.report.data["ptq"]["error"]
    noise = np.mean((got - exact) ** 2)
    assert error["mse"] == pytest.approx(noise, rel=1e-3)
    assert error["sqnr_db"] == pytest.approx(10 * np.log10(np.mean(exact**2) / noise), abs=0.01)
    assert 20 < error["sqnr_db"] < 60


def test_the_verdict_follows_from_the_figures(main_run: Any) -> None:
    data = main_run.report.data
    assert data["verdict"]["met"] == (data["baseline"]["value"] - data["ptq"]["value"] <= 0.005)
    assert f"{100 * data['ptq']['value']:.2f}%" in data["verdict"]["text"]
    times = data["baseline"]["latency_ms"]["p50"] / data["ptq"]["latency_ms"]["p50"]
    assert data["ptq"]["speedup"]["batch_1"] == pytest.approx(times, abs=0.006)


def test_latencies_are_in_order_and_of_the_batch_they_name(main_run: Any) -> None:
    for which in ("baseline", "ptq"):
        for key, batch in (("latency_ms", 1), ("latency_batched_ms", 64)):
            times = main_run.report.data[which][key]
            assert 0 < times["p50"] <= times["p95"] and times["batch"] == batch


def test_the_recipe_of_a_run_runs_again_and_gives_the_same_numbers(main_run: Any, tmp_path: Path) -> None:
    recipe = Recipe.load(main_run.folder / "recipe.yaml")
    again = driving.drive(recipe, tmp_path / "again")
    assert driving.figures(again.data) == driving.figures(main_run.report.data)
    assert again.data["environment"]["recipe"] == main_run.report.data["environment"]["recipe"]
    first, second = (load_file(place / "model.safetensors") for place in (main_run.folder, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
