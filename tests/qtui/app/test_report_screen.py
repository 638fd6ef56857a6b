"""The report's screen by keyboard: fresh runs, reopened ones, and reports that lack what newer ones have."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from app_driving import Driver, drive
from reports import FP32_LAYER, told, write_run
from scripted_engine import MEASURED, Gate, ScriptedEngine
from snapshots import check_svg, check_text

from engine.paths import cache_dir
from qtui.drawing.rows import cell_at, text_of
from qtui.drawing.sorting import Order
from qtui.screens.compare import CompareScreen
from qtui.screens.dialogs import Reading
from qtui.screens.report import ReportScreen
from qtui.widgets.table import Grid


async def finished(driver: Driver, threshold_met: bool = True) -> None:
    """A run from its first stage to its report."""
    driver.app.session.start({"model": "simplecnn", "data": {"name": "digits"}})
    for _ in range(3):
        await driver.until(lambda state: state.asking or state.run.report)
        driver.app.session.answer(driver.state.asking != "qat" or not threshold_met)
    await driver.until(lambda state: state.run.report is not None and state.job is None)
    await shown(driver)


async def shown(driver: Driver) -> None:
    driver.app.go("report")
    await driver.on("report")
    await driver.pilot.pause(0.05)
    driver.app.refresh_state()
    await driver.pilot.pause(0.05)


async def opened(driver: Driver, directory: Path) -> None:
    driver.app.session.open(directory)
    await shown(driver)


def sentence(driver: Driver) -> str:
    from qtui.widgets.sentence import Sentence

    return driver.app.screen.query_one(Sentence).text


def test_a_fresh_run_and_the_same_run_reopened_look_the_same(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await finished(driver)
        fresh = driver.text
        assert "PTQ is chosen" in fresh and "Layers ─ 4" in fresh and "own dB" in fresh
        await opened(driver, Path(driver.state.run.directory))
        assert driver.state.run.report and driver.text == fresh

    drive(ScriptedEngine(runs), script)


def test_keys_of_the_report(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    async def script(driver: Driver) -> None:
        directory = write_run(runs, "20260102-030405-simplecnn-digits", told(layers=[*told()["layers"], FP32_LAYER]))
        await opened(driver, directory)
        screen = driver.app.stage_screen
        assert isinstance(screen, ReportScreen)
        grid = screen.query_one("#layers", Grid)
        await driver.press("down", "down")
        assert grid.cursor == "2" and "fc1 adds the most noise" in sentence(driver)
        await driver.press("enter")
        assert isinstance(driver.app.screen, Reading) and "own SQNR" in driver.text
        await driver.press("escape", "o")
        assert [row.key for row in grid.rows] == ["2", "1", "0", "3", "4"] and "most harm first" in driver.text
        await driver.press("f")
        assert (isinstance(driver.app.screen, Reading) and "Use them" in driver.text) or "Files" in driver.text
        await driver.press("escape")
        monkeypatch.setattr(driver.app._driver, "write", written.append)
        await driver.press("y")
        assert (directory / "summary.md").read_text().startswith("## simplecnn on digits")
        assert any("\x1b]52;c;" in text for text in written) and "summary.md" in sentence(driver)
        monkeypatch.undo()
        await driver.press("e")
        assert "There is no plan yet" in sentence(driver)
        await driver.press("n")
        await driver.on("model")

    drive(ScriptedEngine(runs), script)


def test_e_edits_the_layer_under_the_cursor(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await finished(driver)
        screen = driver.app.stage_screen
        assert isinstance(screen, ReportScreen)
        await driver.press("down")
        assert screen.query_one("#layers", Grid).cursor == "1"
        name = str((driver.state.run.report or {})["layers"][1]["name"])
        await driver.press("e")
        await driver.on("strategy")
        await driver.pilot.pause()
        front = driver.app.stage_screen
        assert front is not None and [grid.cursor for grid in front.query(Grid) if grid.has_focus] == [name]

    drive(ScriptedEngine(runs), script)


def test_t_runs_again_with_training_and_asks_nothing(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await finished(driver)
        await driver.press("t")
        await driver.until(lambda state: state.job is None and len(driver.engine.calls) == 2)
        kind, recipe = driver.engine.calls[1]
        assert kind == "run" and recipe["model"] == "simplecnn" and recipe["qat"]["mode"] == "always"

    drive(ScriptedEngine(runs), script)


def test_t_takes_the_recipe_of_an_older_runs_folder(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        directory = write_run(runs, "old", told())
        await opened(driver, directory)
        await driver.press("t")
        await driver.until(lambda state: driver.engine.calls)
        assert driver.engine.calls[0][1] == {"file": str(directory / "recipe.yaml"), "qat": {"mode": "always"}}

    drive(ScriptedEngine(runs), script)


def test_t_without_a_recipe_says_so(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await opened(driver, write_run(runs, "old", told(), recipe=None))
        await driver.press("t")
        assert "recipe is not known" in sentence(driver) and not driver.engine.calls

    drive(ScriptedEngine(runs), script)


def _without(*path: str) -> dict[str, Any]:
    found = told(qat={**MEASURED["qat"]}, orders=[])
    inner: Any = found
    for key in path[:-1]:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    inner.pop(path[-1], None)
    return found


def _nulls(value: Any, keep: frozenset[str] = frozenset({"schema", "data", "graph", "environment"})) -> Any:
    if isinstance(value, dict):
        return {key: inner if key in keep else _nulls(inner, keep) for key, inner in value.items()}
    if isinstance(value, list):
        return [_nulls(inner, keep) for inner in value]
    return None if isinstance(value, int | float) and not isinstance(value, bool) else value


def _places() -> list[tuple[str, ...]]:
    found = told(qat=MEASURED["qat"])
    places = [(key, inner) for key in ("baseline", "ptq", "qat", "graph", "verdict", "environment", "data") for inner in found[key]]
    listed = [(key, "0", inner) for key in ("layers", "exports") for inner in found[key][0]]
    return [*places, *listed, ("orders",)]


@pytest.mark.slow
def test_old_reports_lack_things_and_are_shown_all_the_same(runs: Path) -> None:
    odd = [
        told(ptq={}, layers=[], exports=[]), told(baseline={}), told(graph={}), told(environment={}), told(verdict={}),
    ]  # fmt: skip
    cases = [*(_without(*place) for place in _places()), _nulls(told(qat=dict(MEASURED["qat"]))), *odd]

    async def script(driver: Driver) -> None:
        for index, found in enumerate(cases):
            directory = write_run(runs, f"{index:03d}", found)
            driver.app.session.open(directory)
            driver.app.go("report")
            driver.app.refresh_state()
            for keys in (("enter",), ("escape", "o", "o", "f"), ("escape",)):
                driver.type(*keys)
                await driver.pilot.pause()
            assert driver.app._exception is None, found
            assert driver.state.problem is None and driver.state.run.report is not None, found
        await driver.press("escape", "y", "c")
        await driver.pilot.pause()
        assert isinstance(driver.app.screen, CompareScreen)

    drive(ScriptedEngine(runs), script, (120, 40))


def test_the_export_shows_its_progress(runs: Path) -> None:
    gate = Gate("export")

    async def script(driver: Driver) -> None:
        driver.app.session.start({"model": "simplecnn", "data": {"name": "digits"}})
        for _ in range(3):
            await driver.until(lambda state: state.asking or gate.reached.is_set())
            driver.app.session.answer(driver.state.asking != "qat")
        await driver.until(lambda state: state.run.at == "report")
        await shown(driver)
        assert "No report yet: exporting" in driver.text and "As measured so far" in driver.text
        await driver.press("f")
        assert "There is no report yet" in sentence(driver)

    drive(ScriptedEngine(runs, gates=(gate,)), script)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (60, 20), (40, 12), (200, 60)])
def test_the_verdict_the_forms_and_the_layers_are_there_at_every_size(runs: Path, size: tuple[int, int]) -> None:
    async def script(driver: Driver) -> None:
        await opened(driver, write_run(runs, "one", told(qat=MEASURED["qat"])))
        assert all(text in driver.text for text in ("PTQ is chosen", "accuracy %", "▸ PTQ", "99.44", "conv1"))
        assert ("Exports ─ 1" in driver.text) == (size[0] >= 100)
        await driver.press("c")
        assert "strategy" in driver.text and "default" in driver.text
        await driver.press("escape", "?")
        assert "help" in driver.text

    drive(ScriptedEngine(runs), script, size)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_pictures(runs: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(driver: Driver) -> None:
        folder = runs.parent / "pictures"
        monkeypatch.chdir(runs.parent)
        write_run(folder, "one", told(layers=[*told()["layers"], FP32_LAYER], qat=MEASURED["qat"]))
        await opened(driver, Path("pictures/one"))
        await driver.press("down")
        check_text(driver, "report")
        if size == (80, 24):
            check_svg(driver, "report")

    drive(ScriptedEngine(runs), script, size)


def test_a_report_that_misses_its_threshold(runs: Path) -> None:
    verdict = {"chosen": "fp32", "met": False, "threshold": "drop:0.0001", "text": "fp32 stays: threshold drop:0.0001 is not met."}

    async def script(driver: Driver) -> None:
        await opened(driver, write_run(runs, "one", json.loads(json.dumps(told(verdict=verdict)))))
        assert "✗ fp32 stays: the threshold is not met." in driver.text and "▸ fp32" in driver.text
        assert "Verdict ─ threshold not met: a drop of at most 0.01 points" in driver.text and "drop:" not in driver.text

    drive(ScriptedEngine(runs), script)


def test_a_long_verdict_is_read_whole_in_a_usual_window(runs: Path) -> None:
    pace = "2.0× faster at batch 1, about as fast as fp32 at batch 64"
    facts = f"99.17% on the test split (±0.8), 0.56 points under fp32; 7.1× smaller; {pace}"
    why = "QAT is kept: equal accuracy and an SQNR of 38.9 dB against PTQ's 35.5 dB on test"
    text = f"fp32 stays: threshold drop:0.0001 is not met. The better quantized model, QAT, has {facts}; it is in model.safetensors. {why}."
    verdict = {"chosen": "fp32", "met": False, "threshold": "drop:0.0001", "text": text}

    async def script(driver: Driver) -> None:
        await opened(driver, write_run(runs, "one", json.loads(json.dumps(told(verdict=verdict)))))
        assert "35.5 dB on test." in " ".join(driver.text.replace("│", " ").split()) and "99.17 % on the test split" in driver.text
        await driver.resize(120, 40)
        assert "35.5 dB on test." in " ".join(driver.text.replace("│", " ").split())

    drive(ScriptedEngine(runs), script)


def test_what_was_said_of_one_run_is_not_said_of_the_next(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await opened(driver, write_run(runs, "20260102-030405-simplecnn-digits", told()))
        await driver.press("down", "o")
        assert "most noise come first" in sentence(driver)
        await opened(driver, write_run(runs, "20260102-030406-simplecnn-digits", told()))
        assert "come first" not in sentence(driver)
        screen = driver.app.stage_screen
        assert screen is not None and (grid := screen.query_one("#layers", Grid)).cursor == grid.rows[0].key

    drive(ScriptedEngine(runs), script)


def test_a_message_cannot_steer_the_terminal() -> None:
    from qtui.messages import Problem
    from qtui.screens.panels import problem_panel

    assert "\x1b" not in str(problem_panel(Problem("boom \x1b[31m", "", ""))._text)


@pytest.mark.parametrize("size", [(80, 24), (160, 48)])
def test_the_noise_along_the_depth_has_one_cursor_with_the_table(runs: Path, size: tuple[int, int]) -> None:
    async def script(driver: Driver) -> None:
        await opened(driver, write_run(runs, "20260102-030405-simplecnn-digits", told()))
        chart = driver.app.screen.query_one("#depth")
        if size[0] < 160:
            assert not chart.display
            await driver.press("d")
        assert chart.display and "Noise along the depth" in driver.text
        await driver.press("down", "o")
        cursor = driver.app.screen.query_one("#layers", Grid).cursor
        name = told()["layers"][int(cursor or 0)]["name"]
        assert f"▲ {name}" in driver.text or f"{name}  " in driver.text
        check_text(driver, "report-depth")
        check_svg(driver, "report-depth")
        await driver.press("v")
        assert not chart.display
        await driver.press("v", "d")
        assert chart.display is (size[0] >= 160)

    drive(ScriptedEngine(runs), script, size)


def test_a_window_that_is_too_low_for_the_depth_says_so(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await opened(driver, write_run(runs, "20260102-030405-simplecnn-digits", told()))
        await driver.press("d")
        assert not driver.app.screen.query_one("#depth").display and "needs 20 lines" in driver.text

    drive(ScriptedEngine(runs), script, (80, 18))


def test_a_table_is_ordered_by_its_columns_copied_from_and_written(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    async def script(driver: Driver) -> None:
        directory = write_run(runs, "20260102-030405-simplecnn-digits", told())
        await opened(driver, directory)
        grid = driver.app.screen.query_one("#layers", Grid)
        own = [row.key for row in grid.rows]
        params = next(place for place, column in enumerate(grid.columns) if column.key == "params")
        await driver.press(*["full_stop"] * (params + 1))
        assert "params % ▾" in driver.text and "By params %, the largest first" in driver.text
        values = [float(text_of(cell_at(row, params))) for row in grid.rows]
        assert values == sorted(values, reverse=True)
        await driver.press("comma")
        assert [float(text_of(cell_at(row, params))) for row in grid.rows] == sorted(values)
        monkeypatch.setattr(driver.app._driver, "write", written.append)
        await driver.press("Y")
        cursor = next(row for row in grid.rows if row.key == grid.cursor)
        assert any("\x1b]52;c;" in text for text in written) and "clipboard" in driver.text
        copied = (cache_dir() / "row.txt").read_text()
        assert copied.split("\t")[0] == text_of(cell_at(cursor, 0))
        await driver.press("greater_than_sign")
        lines = list(csv.reader((directory / "report-layers.csv").read_text().splitlines()))
        assert lines[0][params] == "params %" and [line[0] for line in lines[1:]] == [text_of(cell_at(row, 0)) for row in grid.rows]
        await driver.press(*["full_stop"] * (len(grid.columns) - params))
        assert [row.key for row in grid.rows] == own and "in its own order again" in driver.text

    drive(ScriptedEngine(runs), script)


def test_a_click_on_a_header_orders_by_it(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await opened(driver, write_run(runs, "20260102-030405-simplecnn-digits", told()))
        grid = driver.app.screen.query_one("#layers", Grid)
        header = driver.text.splitlines()[grid.content_region.y]
        for order in (Order("params"), Order("params", False), None):
            await driver.pilot.click("#layers", offset=(header.index("params") - grid.region.x, 1))
            assert grid.order == order

    drive(ScriptedEngine(runs), script)
