"""What was made on one machine and goes on on another; and a run whose device is not the processor."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driving import Outcome, drive, resumed

from engine.data.images.base import Data
from engine.events import event as ev
from engine.events.cancellation import StopToken
from engine.kernels.probe import KERNELS, Machine, probe
from engine.lowering.artifact import load_quantized
from engine.lowering.graph.artifact import read, to_bytes
from engine.recipe.recipe import Recipe
from engine.runs import pipeline

pytestmark = pytest.mark.filterwarnings("ignore:.*was made on")
Make = Callable[..., Recipe]
EXACT = dict.fromkeys(KERNELS)
VNNI, NONE = Machine("AVX512", True, False, EXACT), Machine("AVX2", False, True, EXACT)


@pytest.mark.parametrize(
    ("made_on", "here", "told"),
    [
        (None, VNNI, None),
        ("AVX512, VNNI", VNNI, None),
        ("AVX512", VNNI, None),
        ("AVX2, no VNNI", VNNI, "there they used 7 bits, here they can use 8"),
        ("AVX512, no VNNI", VNNI, "there they used 7 bits, here they can use 8"),
        ("AVX2", VNNI, "other kernels round otherwise"),
        ("AVX512, VNNI", NONE, "saturate here, so activations use 7 bits"),
        ("AVX2, no VNNI", NONE, None),
        ("AVX2", NONE, None),
    ],
)
def test_other_instructions_are_told(made_on: str | None, here: Machine, told: str | None) -> None:
    found = here.moved_from(made_on)
    assert found is None if told is None else (found is not None and told in found and str(made_on) in found and here.instructions in found)


def warned(outcome: Outcome) -> list[str]:
    return [notice.text for notice in outcome.of(ev.Notice) if notice.level == "warning" and "was made on" in notice.text]


def other() -> str:
    return "AVX2, VNNI" if probe().isa != "AVX2" else "AVX512, VNNI"


def test_a_recipe_from_another_machine_is_told_of_and_belongs_to_this_one_afterwards(tiny: Make, tmp_path: Path) -> None:
    (text,) = warned(drive(tiny(isa=other()), tmp_path / "run"))
    assert text.startswith(f"the recipe was made on {other()}") and probe().instructions in text
    kept = Recipe.load(tmp_path / "run" / "recipe.yaml")
    assert kept.isa == probe().instructions
    assert warned(drive(kept, tmp_path / "again")) == []


def test_a_run_that_is_resumed_on_another_machine_is_told_of(tiny: Make, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def stop_at_calibration(event: ev.Event, stop: StopToken) -> None:
        if isinstance(event, ev.StageStarted) and event.stage == "calibrate":
            stop.set()

    drive(tiny(), folder, on_event=stop_at_calibration)
    kept = (folder / "recipe.yaml").read_text()
    assert f"isa: {probe().instructions}" in kept
    (folder / "recipe.yaml").write_text(kept.replace(f"isa: {probe().instructions}", f"isa: {other()}"))
    (text,) = warned(resumed(folder))
    assert text.startswith(f"the run was made on {other()}")
    assert "was made on" in (folder / "events.jsonl").read_text()


@pytest.mark.parametrize(("here", "told"), [(VNNI, "with 7-bit activations, where this processor multiplies 8"), (NONE, "")])
def test_a_file_from_another_machine_is_told_of(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Machine, told: str
) -> None:
    monkeypatch.setattr("engine.runs.pipeline.probe", lambda: NONE)
    drive(tiny(), tmp_path / "run")
    program, header = read(tmp_path / "run" / "model.safetensors")
    assert header["isa"] == "AVX2, no VNNI"
    monkeypatch.setattr("engine.lowering.graph.artifact.probe", lambda: here)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load_quantized(tmp_path / "run")
    texts = [str(warning.message) for warning in seen]
    assert [told in text and "AVX2, no VNNI" in text for text in texts] == ([True] if told else [])
    # Files of earlier versions name the set alone.
    (tmp_path / "old.safetensors").write_bytes(to_bytes(program, "", here.isa))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_quantized(tmp_path / "old.safetensors")


def test_training_is_not_continued_on_other_grids(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if probe().activation_bits != 8:
        pytest.skip("activations have 7 bits here")
    folder = tmp_path / "run"

    def stop_after_two(event: ev.Event, stop: StopToken) -> None:
        if isinstance(event, ev.EpochFinished) and event.epoch == 2:
            stop.set()

    recipe = tiny(preset="w4a8", threshold="mse:1e-12", qat={"mode": "always", "epochs": 3})
    drive(recipe, folder, on_event=stop_after_two)
    before = (folder / "checkpoints" / "qat.pt").read_bytes()
    monkeypatch.setattr("engine.runs.pipeline.probe", lambda: Machine(probe().isa, False, True, EXACT))
    moved = resumed(folder, on_event=stop_after_two)
    assert [epoch.epoch for epoch in moved.of(ev.EpochFinished)] == [1, 2], "from the start: the checkpoint's grids have 8 bits"
    (folder / "checkpoints" / "qat.pt").write_bytes(before)
    monkeypatch.undo()
    assert [epoch.epoch for epoch in resumed(folder).of(ev.EpochFinished)] == [3]


# A device that is not the processor: torch takes "cpu:0" as one, and computes there.


@pytest.fixture(scope="module")
def elsewhere(tiny_file: Path, own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, list[tuple[str, str]]]:
    """A run with training on that device, and where each split was read to."""
    read_to: list[tuple[str, str]] = []
    original = Data.batches

    def batches(self: Data, split: Any, *args: Any, **more: Any) -> Any:
        read_to.append((split, str(more.get("device", "cpu"))))
        return original(self, split, *args, **more)

    recipe = Recipe.make(
        model=f"{tiny_file}:make", data={"calibration": 32, "limit": 64}, threshold="drop:0.5", qat={"mode": "always", "epochs": 1}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "pick_device", lambda name: "cpu:0")
        patch.setattr(Data, "batches", batches)
        return drive(recipe, tmp_path_factory.mktemp("elsewhere") / "run"), read_to


def test_calibration_and_training_are_on_the_device_and_the_test_is_not(elsewhere: tuple[Outcome, list[tuple[str, str]]]) -> None:
    outcome, read_to = elsewhere
    assert outcome.error is None
    assert {device for split, device in read_to if split == "test"} == {"cpu"}
    by_device = [split for split, device in read_to if device == "cpu:0"]
    assert by_device.count("train") == 3, "one pass calibrates, one tells the harm of the layers, one trains"
    assert "validation" in by_device, "epochs are judged there"


def test_a_gpus_part_is_told_before_anything_is_asked(elsewhere: tuple[Outcome, list[tuple[str, str]]]) -> None:
    outcome, _ = elsewhere
    asked = next(i for i, event in enumerate(outcome.events) if isinstance(event, ev.Ask))
    (text,) = [e.text for e in outcome.events[:asked] if isinstance(e, ev.Notice) and "calibrates and trains" in e.text]
    where = "measured on the processor's integer kernels" if probe().integer else "simulated on the processor"
    assert text.startswith("cpu:0 calibrates") and where in text and "no integer convolution for a GPU" in text
    assert outcome.data["environment"]["device"] == "cpu:0" and outcome.data["environment"]["measured_on"] == "cpu"
    if probe().integer:
        assert "on the processor" in outcome.data["verdict"]["text"]


def test_on_the_processor_there_is_nothing_to_tell(tiny: Make, tmp_path: Path) -> None:
    outcome = drive(tiny(), tmp_path / "run")
    assert not [e for e in outcome.of(ev.Notice) if "calibrates and trains" in e.text]
    assert "measured_on" not in outcome.data["environment"] and "on the processor" not in outcome.data["verdict"]["text"]


def test_without_kernels_a_gpus_run_is_called_simulation(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "pick_device", lambda name: "cpu:0")
    monkeypatch.setattr("engine.runs.pipeline.probe", lambda: Machine("unknown", False, None, dict.fromkeys(KERNELS, "missing")))
    outcome = drive(tiny(), tmp_path / "run")
    assert any("simulated on the processor" in e.text for e in outcome.of(ev.Notice))
    assert outcome.data["ptq"]["simulated"] and "simulated, so no speed is claimed" in outcome.data["verdict"]["text"]
    assert all(layer["speedup"] is None for layer in outcome.data["layers"]), "the speed of a simulation is not measured"
