"""The first screen: what can be chosen, what was done before, and the way from there."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from app_driving import Driver, drive
from reports import told, write_run
from scripted_engine import Gate, ScriptedEngine
from snapshots import check_svg, check_text
from textual.events import Key, Paste, Resize
from textual.geometry import Size
from textual.message import Message

from engine.models import language_registry as language
from engine.models.registry import ENTRIES
from engine.models.size import file_size
from engine.runs.rundir import RunSummary
from engine.tasks.registry import TASKS
from qtui import catalog
from qtui.catalog import Choice
from qtui.drawing.columns import arrange
from qtui.drawing.rows import measure
from qtui.screens.dialogs import Confirm
from qtui.screens.models import ModelsScreen
from qtui.screens.models_rows import OWN, RUN_COLUMNS, model_rows, model_sentence, run_rows, run_sentence
from qtui.widgets.table import Grid


def summary(state: str, text: str = "", chosen: str | None = None, name: str = "a") -> RunSummary:
    return RunSummary(Path(f"runs/{name}"), "2026-01-02T03:04:05", "simplecnn", "digits", state, chosen, 0.9972, 0.99, text)  # type: ignore[arg-type]


def past_run(root: Path, name: str, state: str, started: str = "2026-01-02T03:04:05") -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    about = {
        "started": started,
        "model": "simplecnn",
        "data": "digits",
        "state": state,
        "text": "QAT epoch 2 of 5, step 310",
        "pid": os.getpid(),
    }
    (folder / "state.json").write_text(json.dumps(about))
    (folder / "events.jsonl").write_text("")
    return folder


def screen(driver: Driver) -> ModelsScreen:
    found = driver.app.stage_screen
    assert isinstance(found, ModelsScreen)
    return found


def test_the_size_in_the_list_is_the_models_own() -> None:
    found = file_size(ENTRIES["simplecnn"].weights_for("digits") or Path())
    assert found is not None and found.params == sum(p.numel() for p in ENTRIES["simplecnn"].build(10).parameters())


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x10" + b"\0" * 7 + b"not json", b"\x02" + b"\0" * 7 + b"[]"])
def test_a_file_that_is_no_safetensors_has_no_size(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert file_size(tmp_path / "x") is None


def test_weights_are_in_the_package_trained_here_or_to_train(runs: Path, tmp_path: Path) -> None:
    def where(data: str) -> str:
        return catalog.models(data=data)[0].where(data)

    assert (where("digits"), where(str(tmp_path))) == ("in the package", "to train")
    kept = catalog.cached_weights("simplecnn", str(tmp_path))
    kept.parent.mkdir(parents=True)
    kept.write_bytes((ENTRIES["simplecnn"].weights_for("digits") or Path()).read_bytes())
    assert where(str(tmp_path)) == "trained here"


def test_own_models_of_past_runs_are_listed_again() -> None:
    own = RunSummary(Path("runs/b"), "2026", "net.py:make", "digits", "failed", None, None, None, "")
    listed = catalog.models([own, own], ["pkg.mod:f"])
    # Those of other tasks stand between, in the registry's order.
    names = [m.name for m in listed if m.task in ("classification", "causal-lm")]
    assert names[:6] == ["simplecnn", "gpt2-mini", "gpt2", "pkg.mod:f", "net.py:make", "resnet18"]
    assert [m.name for m in listed].index("mlp") < [m.name for m in listed].index("gpt2-mini")
    assert [row.key for row in model_rows(listed, "digits", "swin_v2")] == [OWN, "swin_v2_t", "swin_v2_s", "swin_v2_b"]


def test_torchvisions_weights_are_for_imagenets_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for index in range(1000):
        (tmp_path / "photographs" / f"n{index:08}").mkdir(parents=True)
    folder = str(tmp_path / "photographs")
    model = next(m for m in catalog.models(data=folder) if m.name == "squeezenet1_1")
    assert (model.where(folder), model.where("digits"), model.where(str(tmp_path))) == ("to download", "to train", "to train")
    assert "downloads torchvision's weights (4.96 MB)" in model_sentence(model, Choice(model.name, folder))
    kept = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-01234567.pth"
    kept.parent.mkdir(parents=True)
    with kept.open("wb") as file:
        file.truncate(model.bytes)
    again = next(m for m in catalog.models(data=folder) if m.name == "squeezenet1_1")
    assert again.where(folder) == "cached" and model.where(folder) == "to download"


def test_rows_of_runs_tell_state_and_gain() -> None:
    text = "QAT is chosen: 99.0% on the test split (±0.8), 0.7 points under fp32; 7.1× smaller; 2.9× faster at batch 64."
    rows = run_rows([summary("finished", text, "qat"), summary("cancelled", name="b"), summary("failed", name="c")], width=120)
    assert [row.glyph for row in rows] == ["●", "◌", "✗"]
    assert rows[0].cells[4:] == ("99.72 → 99.00 %", "QAT · 7.1× smaller") and rows[1].cells[5] == "r resumes it"
    assert "r goes on" in run_sentence(summary("cancelled")) and "opens" in run_sentence(summary("finished", text))


def test_a_pattern_filters_as_on_the_command_line() -> None:
    listed = catalog.models()
    names = [row.key for row in model_rows(listed, "digits", "mobilenet*")]
    assert names == [OWN, "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"]
    assert [row.key for row in model_rows(listed, "digits", "vgg1?")] == [OWN, "vgg11", "vgg13", "vgg16", "vgg19"]
    assert {row.key for row in model_rows(listed, "digits", "depthwise SiLU")} > {"efficientnet_b0"}


def test_a_folder_of_a_thousand_classes_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(catalog, "holds_imagenet", lambda name: bool(looked.append(name)) or True)
    listed, here = catalog.models(data=str(tmp_path)), catalog.place(str(tmp_path))
    assert looked == [str(tmp_path)] and here.imagenet
    for what in ("os.listdir", "pathlib.Path.glob"):
        monkeypatch.setattr(what, lambda *_: pytest.fail("the cache is searched again"))
    rows = model_rows(listed, here)
    last = [model for model in listed if model.published][-1]
    assert "ImageNet's" not in str(rows) and "n downloads" in model_sentence(last, Choice(last.name, str(tmp_path)), here)
    assert len(rows) == len(listed) + 1 and looked == [str(tmp_path)]


def test_the_filter_goes_to_the_first_model_that_is_left(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("slash", *"net_v3", "enter")
        models = screen(driver).query_one("#models", Grid)
        assert models.cursor == "mobilenet_v3_small" and screen(driver).choice.model == "mobilenet_v3_small"
        await driver.press("down", "slash", "_", "enter")
        assert models.cursor == "mobilenet_v3_large", "what is still there keeps the cursor"

    drive(ScriptedEngine(runs), script)


def test_filtering_keeps_the_way_to_ones_own() -> None:
    assert [row.key for row in model_rows(catalog.models(), "digits", "zzz")] == [OWN]


@pytest.mark.parametrize(
    ("value", "wrong"),
    [("net.py", True), ("nowhere.py:make", True), ("pkg.mod:make", False), (":make", True), ("pkg:1x", True), ("", True)],
)
def test_an_own_model_is_checked_before_it_is_run(value: str, wrong: bool) -> None:
    assert (catalog.wrong_own_model(value) is not None) == wrong


def test_enter_starts_the_model_under_the_cursor_and_goes_to_its_graph(runs: Path) -> None:
    engine = ScriptedEngine(runs)

    async def script(driver: Driver) -> None:
        await driver.press("enter")
        await driver.until(lambda state: state.asking == "optimize")
        await driver.on("graph")

    drive(engine, script)
    kind, recipe = engine.calls[0]
    assert kind == "run" and recipe["model"] == "simplecnn" and recipe["data"] == {"name": "digits"}


def test_choices_go_into_the_recipe(runs: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine(runs)
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"")

    async def script(driver: Driver) -> None:
        await driver.press("d", "down", "enter")
        await driver.press("v", "down", "enter")
        await driver.press("e")
        await driver.pilot.pause()
        await driver.press(*["backspace"] * 12, *"sqnr:30", "enter")
        await driver.press("w")
        await driver.fill(str(weights))
        assert screen(driver).choice.data == "cifar10"
        await driver.press("n")
        await driver.until(lambda state: state.asking == "optimize")

    drive(engine, script)
    recipe = engine.calls[0][1]
    assert recipe == {"model": "simplecnn", "data": {"name": "cifar10"}, "device": "cpu", "threshold": "sqnr:30", "weights": str(weights)}


def test_a_wrong_threshold_stays_in_its_panel_with_the_reason(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("e")
        await driver.pilot.pause()
        await driver.press(*"xx", "enter")
        await driver.pilot.pause()
        assert "threshold is" in driver.text
        await driver.press("escape")
        assert screen(driver).choice.threshold == catalog.DEFAULT_THRESHOLD

    drive(ScriptedEngine(runs), script)


def test_data_without_weights_offers_to_train_and_shows_the_training(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    gate = Gate("baseline 2")
    engine = ScriptedEngine(runs, gates=(gate,))

    async def script(driver: Driver) -> None:
        await driver.press("d", "end", "enter")
        await driver.fill(str(tmp_path / "images"))
        assert "to train" in driver.text and "t trains a baseline" in driver.text
        await driver.press("enter")
        await driver.pilot.pause()
        assert "train a baseline" in driver.text
        await driver.press("y")
        await driver.until(lambda state: gate.reached.is_set() and state.baseline.epochs)
        assert driver.state.busy and driver.state.job is not None and driver.state.job.kind == "train"
        assert "epoch" in driver.text
        await driver.press("d")
        assert "X stops it" in driver.text
        gate.opened.set()
        await driver.until(lambda state: state.job is None)
        assert driver.state.trained.endswith("weights.safetensors")

    drive(engine, script)
    assert engine.calls[0] == ("train", ("simplecnn", str(tmp_path / "images")))


def test_r_resumes_the_latest_stopped_run(runs: Path) -> None:
    past_run(runs, "20260101-simplecnn-digits", "cancelled")
    past_run(runs, "20251231-simplecnn-digits", "failed", "2025-12-31T00:00:00")
    engine = ScriptedEngine(runs)

    async def script(driver: Driver) -> None:
        await driver.press("r")
        await driver.until(lambda state: state.run.report)
        await driver.on("report")

    drive(engine, script)
    assert engine.calls == [("resume", runs / "20260101-simplecnn-digits")]


def test_the_last_key_says_that_it_opens_a_run_where_the_cursor_is_on_one(runs: Path) -> None:
    write_run(runs, "20260101-030405-simplecnn-digits", told())

    async def script(driver: Driver) -> None:
        await driver.pilot.pause()
        assert "n load ▸" in driver.text
        await driver.press("tab")
        await driver.pilot.pause()
        assert "n open ▸" in driver.text and "n load" not in driver.text
        await driver.press("tab")
        await driver.pilot.pause()
        assert "n load ▸" in driver.text

    drive(ScriptedEngine(runs), script)


def test_a_finished_run_is_opened_and_not_resumed(runs: Path) -> None:
    engine = ScriptedEngine(runs)

    async def first(driver: Driver) -> None:
        await driver.press("enter")
        for key in ("optimize", "quantize", "qat"):
            await driver.until(lambda state, key=key: state.asking == key)
            driver.app.session.answer(key != "qat")
        await driver.until(lambda state: state.run.report and state.job is None)

    async def second(driver: Driver) -> None:
        await driver.press("r")
        assert "nothing to resume" in driver.text
        await driver.press("tab", "r")
        assert "nothing to resume" in driver.text
        await driver.press("enter")
        await driver.on("report")
        assert driver.state.run.report is not None and driver.state.job is None
        assert driver.state.run.status("report") == "done"

    drive(engine, first)
    again = ScriptedEngine(runs)
    drive(again, second)
    assert again.calls == []


def test_a_run_of_another_process_is_not_resumed(runs: Path) -> None:
    past_run(runs, "20260101-simplecnn-digits", "running")

    async def script(driver: Driver) -> None:
        await driver.press("tab", "r")
        assert "nothing to resume" in driver.text.lower()

    drive(ScriptedEngine(runs), script)


def test_your_own_model_by_keyboard(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def make(): ...")
    engine = ScriptedEngine(runs)

    async def script(driver: Driver) -> None:
        screen(driver).query_one("#models", Grid).move_to(OWN)
        await driver.pilot.pause()
        await driver.press("enter")
        await driver.fill(f"{tmp_path}/net.py:make")
        await driver.fill("")  # no task of one's own
        assert screen(driver).query_one("#models", Grid).cursor == f"{tmp_path}/net.py:make"
        await driver.press("enter")
        await driver.until(lambda state: state.asking)

    drive(engine, script)
    assert engine.calls[0][1]["model"] == f"{tmp_path}/net.py:make"


def test_a_model_of_ones_own_with_a_task_of_the_list_and_a_folder_by_keys_alone(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "unet.py").write_text("def make(): ...")
    (tmp_path / "scans" / "images").mkdir(parents=True)
    engine = ScriptedEngine(runs)

    async def script(driver: Driver) -> None:
        await driver.press("o")
        await driver.fill(f"{tmp_path}/unet.py:make")
        await driver.pilot.pause()
        assert all(f"{name} " in driver.text for name in TASKS), "every task is in the list"
        await driver.fill("segm")
        await driver.press("end", "enter")
        await driver.fill(str(tmp_path / "scans"))
        assert screen(driver).choice.task == "segmentation" and "a task segmentation" in driver.text and "mIoU" in driver.text
        # The cursor passes over others: each task keeps its data.
        await driver.press("up", "down")
        await driver.pilot.pause()
        assert screen(driver).choice.data == str(tmp_path / "scans")
        await driver.press("n")
        await driver.until(lambda state: state.asking)

    drive(engine, script)
    asked = engine.calls[0][1]
    assert (asked["task"], asked["data"]) == ("segmentation", {"name": str(tmp_path / "scans")})


def test_a_model_of_another_task_has_the_data_and_the_metric_of_that_task(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        models = screen(driver).query_one("#models", Grid)
        models.move_to("mlp")
        await driver.pilot.pause()
        assert screen(driver).choice.data == "diabetes" and "MAE" in driver.text and "MAE at most 0.5 % higher" in driver.text
        await driver.press("d")
        await driver.pilot.pause()
        assert "diabetes" in driver.text and "a CSV of numbers" in driver.text and "cifar10" not in driver.text
        await driver.press("escape")
        models.move_to("simplecnn")
        await driver.pilot.pause()
        assert screen(driver).choice.data == "digits"

    drive(ScriptedEngine(runs), script)


def test_a_recipe_file_fills_the_choices(runs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: simplecnn\ndata: {name: cifar10}\nthreshold: sqnr:20\npreset: w8a8\n")
    engine = ScriptedEngine(runs)

    async def script(driver: Driver) -> None:
        await driver.press("O")
        await driver.fill(str(recipe))
        assert screen(driver).choice.threshold == "sqnr:20" and screen(driver).choice.data == "cifar10"
        await driver.press("n")
        await driver.until(lambda state: state.asking)

    drive(engine, script)
    assert engine.calls[0][1]["file"] == str(recipe)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (60, 20), (40, 12)])
def test_it_is_readable_at_every_size(runs: Path, size: tuple[int, int]) -> None:
    past_run(runs, "20260101-simplecnn-digits", "cancelled")

    async def script(driver: Driver) -> None:
        assert "simplecnn" in driver.text and "? help" in driver.text.replace("  ", " ")
        assert driver.text.splitlines()[-1].rstrip().endswith("▸")
        if size[0] >= 80:
            assert "stopped" in driver.text
            check_text(driver, "models")

    drive(ScriptedEngine(runs), script, size)


def test_its_picture(runs: Path) -> None:
    past_run(runs, "20260101-simplecnn-digits", "cancelled")

    async def script(driver: Driver) -> None:
        check_svg(driver, "models")

    drive(ScriptedEngine(runs), script)


def test_too_small_a_window_says_so_and_comes_back(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await driver.resize(39, 24)
        assert "too small" in driver.text
        await driver.resize(80, 24)
        assert "too small" not in driver.text and "simplecnn" in driver.text

    drive(ScriptedEngine(runs), script)


@pytest.mark.parametrize(("now", "late"), [((39, 24), (80, 24)), ((80, 24), (39, 24)), ((20, 5), (40, 12))])
def test_a_size_that_comes_late_is_not_kept(runs: Path, now: tuple[int, int], late: tuple[int, int]) -> None:
    async def script(driver: Driver) -> None:
        for key in ("", "question_mark"):
            await driver.resize(*now)
            if key:
                await driver.press(key)
                await driver.pilot.pause()
            shown = driver.text
            told: list[Message] = []
            driver.app.screen.message_signal.subscribe(driver.app, told.append, immediate=True)
            for size in (late, now, late):
                driver.app.screen.post_message(Resize(Size(*size), Size(*size)))
                driver.app.screen.call_later(lambda: None)
            await driver.pilot.pause(0.1)
            driver.app.screen.message_signal.unsubscribe(driver.app)
            assert driver.text == shown
            assert sum(isinstance(message, Resize) for message in told) <= 6, "sizes that call each other without end"

    drive(ScriptedEngine(runs), script)


def test_the_first_frame_does_not_wait_for_the_engine(runs: Path) -> None:
    class Slow(ScriptedEngine):
        def examine(self) -> dict[str, object]:
            time.sleep(0.5)
            return super().examine()

    seen: list[str] = []

    async def script(driver: Driver) -> None:
        seen.append(driver.text)

    drive(Slow(runs), script)
    assert "simplecnn" in seen[0]


def test_a_folder_that_holds_cifar10_takes_the_weights_for_it(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"")
    (model,) = [model for model in catalog.models(data=str(tmp_path)) if model.name == "simplecnn"]
    assert model.where(str(tmp_path)) == "in the package" and model.where(str(tmp_path / "other")) == "to train"


def test_weights_stay_with_their_model_while_the_cursor_passes_others(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("")
    (tmp_path / "w.safetensors").write_bytes(b"")

    async def script(driver: Driver) -> None:
        await driver.press("o")
        await driver.fill(f"{tmp_path / 'net.py'}:make")
        await driver.fill("")  # no task of one's own
        await driver.press("w")
        await driver.fill(str(tmp_path / "w.safetensors"))
        assert "w weights w.safetensors" in driver.text
        await driver.press("up")
        await driver.pilot.pause()
        assert screen(driver).choice.weights == ""
        await driver.press("down")
        await driver.pilot.pause()
        assert screen(driver).choice.weights == str(tmp_path / "w.safetensors")

    drive(ScriptedEngine(runs), script)


def test_a_run_that_waits_for_an_answer_is_stopped_and_resumed_from_here(runs: Path) -> None:
    engine = ScriptedEngine(runs)

    async def script(driver: Driver) -> None:
        await driver.press("X")
        assert "Nothing is at work" in driver.text
        await driver.press("enter")
        await driver.until(lambda state: state.asking == "optimize")
        await driver.press("1")
        await driver.on("model")
        await driver.press("n")
        assert "waits for an answer" in driver.text
        await driver.press("X")
        await driver.until(lambda state: state.job is None)
        assert driver.state.runs[0].state == "cancelled"
        await driver.press("r")
        await driver.until(lambda state: state.run.report)

    drive(engine, script)
    assert [kind for kind, _ in engine.calls] == ["run", "resume"]


def test_keys_typed_ahead_of_a_panel_do_nothing_behind_it(runs: Path) -> None:
    engine = ScriptedEngine(runs)

    async def script(driver: Driver) -> None:
        driver.type("o", "n", "n", "enter", "r", "T")
        await driver.pilot.pause(0.1)
        assert driver.state.job is None and driver.app.theme == "qtui-dark"

    drive(engine, script)
    assert engine.calls == []


def test_what_is_typed_while_the_app_ends_is_for_nobody(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("down")

    app = drive(ScriptedEngine(runs), script)
    for event in (Key("enter", "\r"), Paste("q")):
        asyncio.run(app.on_event(event))


def test_a_language_model_tells_its_perplexity_and_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(language, "WEIGHTS", tmp_path)
    (tmp_path / "gpt2-mini").mkdir()
    (tmp_path / "gpt2-mini" / "model.safetensors").touch()
    (tmp_path / "gpt2-mini" / "record.json").write_text('{"data": "python-docs", "test_perplexity": 61.238}')
    listed = catalog.models()
    rows = {row.key: [str(getattr(cell, "text", cell)) for cell in row.cells] for row in model_rows(listed, "digits")}
    assert rows["gpt2-mini"] == ["gpt2-mini", "3.8 M", "15.26 MB", "in the package", "perplexity 61.24", "512 tokens", "causal-lm"]
    assert rows["gpt2"] == ["gpt2", "124.4 M", "497.76 MB", "to download", "", "1,024 tokens", "causal-lm"]
    sentences = {model.name: model_sentence(model, Choice(model=model.name)) for model in listed}
    assert "Perplexity 61.24 on the test part of python-docs." in sentences["gpt2-mini"]
    assert "n downloads 548.11 MB from the Hugging Face hub: its weights, and masks that are no parameters." in sentences["gpt2"]


def test_weights_that_are_given_are_not_those_of_the_package() -> None:
    model = catalog.models()[0]
    given = model_sentence(model, Choice(model.name, "digits", weights="/x/mine.safetensors"))
    assert "n loads it with mine.safetensors and digits" in given and "package" not in given


def test_a_run_of_a_language_model_shows_perplexities() -> None:
    def shown(baseline: float, value: float) -> str:
        run = RunSummary(Path("r"), "2026-01-02T03:04:05", "m", "d", "finished", "ptq", baseline, value, "")
        return " ".join(str(getattr(cell, "text", cell)) for cell in run_rows((run,))[0].cells)

    assert "65.13 → 65.23" in shown(65.129, 65.226) and "%" not in shown(65.129, 65.226)
    assert "99.72 → 99.50 %" in shown(0.9972, 0.995)


def test_the_graph_of_a_language_model_is_chosen_where_it_is_loaded(runs: Path) -> None:
    engine = ScriptedEngine(runs)
    said: list[str] = []

    async def script(driver: Driver) -> None:
        await driver.press("m")
        said.append(" ".join(driver.text.split()))
        screen(driver).query_one("#models", Grid).move_to("gpt2-mini")
        await driver.pilot.pause()
        await driver.press("m")
        said.append(" ".join(driver.text.split()))
        assert "graph export" in driver.text
        await driver.press("w")
        said.append(" ".join(driver.text.split()))
        await driver.press("n")
        await driver.until(lambda state: state.asking)

    drive(engine, script)
    assert "have one graph" in said[0] and "every operation that torch.export sees" in said[1] and "brings its weights" in said[2]
    asked = engine.calls[0][1]
    assert (asked["model"], asked["graph"]) == ("gpt2-mini", "export")


def test_a_recipe_of_a_language_model_keeps_its_graph_and_takes_no_gpu(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: gpt2-mini\ndata: {name: python-docs}\ngraph: export\ndevice: cuda\n")
    asked = catalog.from_recipe(str(recipe)).fields()
    assert (asked["graph"], asked["device"]) == ("export", "auto")
    assert "graph" not in Choice().fields()


def test_ones_own_language_model_has_no_factory() -> None:
    model = next(found for found in catalog.models(given=["OWNER/MODEL"]) if found.own)
    said = model_sentence(model, Choice(model="OWNER/MODEL"))
    assert "python-docs" in said and "factory" not in said


def test_a_folder_given_for_images_is_not_for_a_language_model_nor_lost(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()

    async def script(driver: Driver) -> None:
        grid = screen(driver).query_one("#models", Grid)
        await driver.press("d", "g", *["down"] * 3, "enter")
        await driver.fill(str(folder))
        assert screen(driver).choice.data == str(folder)
        grid.move_to("gpt2-mini")
        await driver.pilot.pause()
        assert screen(driver).choice.fields()["data"] == {"name": "python-docs"} and "photos" not in driver.text
        grid.move_to("simplecnn")
        await driver.pilot.pause()
        assert screen(driver).choice.data == str(folder) and "photos" in driver.text

    drive(ScriptedEngine(runs), script)


def test_a_verdict_is_whole_at_eighty_columns() -> None:
    text = "QAT is chosen: 99.0% on the test split (±0.8), 0.7 points under fp32; 7.1× smaller; 2.9× faster at batch 64."
    kept = "fp32 stays: threshold drop:0.005 is not met. The better quantized model, PTQ, has 3.7× smaller"
    past = [summary("finished", text, "qat"), summary("finished", kept, "fp32", "b"), summary("cancelled", name="c")]
    rows = run_rows(past, width=80)
    assert [row.cells[5] for row in rows] == ["QAT 7.1×", "fp32 stays", "r resumes"]
    places = arrange(RUN_COLUMNS, measure(RUN_COLUMNS, rows), 76, glyph=2).places
    (last,) = (place for place in places if RUN_COLUMNS[place.index].key == "what")
    assert last.width >= max(len(str(row.cells[5])) for row in rows)
    assert run_rows(past, width=100)[0].cells[5] == "QAT · 7.1× smaller"


def test_models_of_one_factory_name_are_told_apart() -> None:
    paths = ["one/net.py:make", "two/net.py:make", "two/net.py:other", "elsewhere/tiny"]
    past = [RunSummary(Path(f"runs/{at}"), "2026", name, "digits", "failed", None, None, None, "") for at, name in enumerate(paths)]
    short = ["one/net.py:make", "two/net.py:make", "other", "tiny"]
    assert [row.cells[2] for row in run_rows(past)] == short
    listed = catalog.models(given=paths)
    assert [row.cells[0] for row in model_rows(listed, "digits") if row.key in paths] == short


def test_a_reason_goes_when_it_holds_no_longer(runs: Path) -> None:
    gate = Gate("trace")
    engine = ScriptedEngine(runs, gates=(gate,))

    async def script(driver: Driver) -> None:
        await driver.press("n")
        await driver.until(lambda _: gate.reached.is_set())
        await driver.press("1", "d")
        assert "X stops it" in driver.text
        gate.opened.set()
        await driver.until(lambda state: state.asking)
        assert "X stops it" in driver.text, "the run waits: it is at work still"
        await driver.press("X")
        await driver.until(lambda state: state.job is None)
        assert "X stops it" not in driver.text

    drive(engine, script)


def test_a_filter_without_a_run_does_not_say_that_there_are_none(runs: Path) -> None:
    past_run(runs, "20260101-simplecnn-digits", "cancelled")

    async def script(driver: Driver) -> None:
        await driver.press("slash", *"squeeze", "enter")
        assert "Runs ─ 0 of 1" in driver.text and "No runs yet" not in driver.text
        assert "None of 1 runs holds “squeeze”: Esc shows all." in driver.text

    drive(ScriptedEngine(runs), script)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_the_training_of_a_baseline_is_seen(runs: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "images").mkdir()
    gate = Gate("baseline 2")

    async def script(driver: Driver) -> None:
        # Another run is open: its figures are not those of what is trained.
        driver.app.session.start({"model": "resnet20", "data": {"name": "digits"}})
        await driver.until(lambda state: state.asking == "optimize")
        driver.app.session.stop()
        await driver.until(lambda state: state.job is None)
        driver.app.go("model")
        await driver.on("model")
        await driver.press("g", "d", "end", "enter")
        await driver.fill(str(tmp_path / "images"))
        await driver.press("t")
        await driver.pilot.pause()
        await driver.press("y")
        await driver.until(lambda state: gate.reached.is_set() and state.baseline.epochs)
        await driver.pilot.pause()
        lines = driver.text.splitlines()
        assert lines[1].startswith(" simplecnn · images · training a baseline") and "resnet20" not in lines[1]
        assert "█" in driver.text and " %" in driver.text and "/s" in driver.text and "left" in driver.text
        assert "X stops it" in " ".join(driver.text.split()) and "t trains" not in driver.text and " X " in lines[-1]
        chart = next(i for i, line in enumerate(lines) if "╭─ loss" in line)
        assert sum(line.startswith("│") for line in lines[chart + 1 : -3]) >= 6
        if size == (80, 24):
            check_svg(driver, "models-training")
            check_text(driver, "models-training")
        gate.opened.set()
        await driver.until(lambda state: state.job is None)

    drive(ScriptedEngine(runs, gates=(gate,)), script, size)


def test_the_list_of_runs_follows_what_other_processes_do(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        assert "No runs yet" in driver.text
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
            try:
                folder = past_run(runs, "20260101-simplecnn-digits", "running")
                about = json.loads((folder / "state.json").read_text())
                (folder / "state.json").write_text(json.dumps({**about, "state": "running", "pid": other.pid}))
                await driver.until(lambda state: [run.state for run in state.runs] == ["running"])
                assert "running" in driver.text
            finally:
                other.kill()
        await driver.until(lambda state: [run.state for run in state.runs] == ["failed"])
        assert "QAT 2/5 step 310" in driver.text

    drive(ScriptedEngine(runs), script)


def test_runs_are_renamed_and_deleted_when_it_is_agreed_to(runs: Path) -> None:
    for name in ("one", "two"):
        write_run(runs, name, told())

    async def script(driver: Driver) -> None:
        await driver.until(lambda state: len(state.runs) == 2)
        await driver.press("D")
        assert "tab changes to the runs" in driver.text
        await driver.press("tab", "N")
        await driver.fill("best")
        await driver.until(lambda state: sorted(run.directory.name for run in state.runs) in (["best", "one"], ["best", "two"]))
        await driver.press("D")
        assert isinstance(driver.app.screen, Confirm) and "is deleted with all that is in it" in driver.text
        await driver.press("n")
        assert len(list(runs.iterdir())) == 2
        await driver.press("D", "y")
        await driver.until(lambda state: len(state.runs) == 1)
        assert len(list(runs.iterdir())) == 1

    drive(ScriptedEngine(runs), script)
