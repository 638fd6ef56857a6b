"""Exporting a finished run from its report, by keyboard; and what the table of runtimes says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from app_driving import Driver, drive
from reports import told, write_run
from scripted_engine import Gate, ScriptedEngine, exported
from snapshots import check_text
from test_report_screen import opened, sentence

from engine.errors import EngineError
from engine.export.registry import Format
from qtui import messages as ms
from qtui.drawing.rows import Cell
from qtui.reducer import reduce
from qtui.screens import report_exports as words
from qtui.screens.dialogs import Confirm, Reading, Several
from qtui.state import Run, State


@pytest.fixture(autouse=True)
def everything_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Format, "missing", lambda self, packages: ())


REASON = "OpenVINO is not installed: uv pip install openvino, then export again"
FASTEST = (
    "Fastest on this machine: torch.export, pt2 1.0 at batch 1 (0.23 ms); "
    "torch.export, pt2 1.0 at batch 64 (1.60 ms, with onnx 1.0 within a tenth)."
)


def run_of(found: dict[str, Any]) -> Run:
    return reduce(reduce(State(), ms.Opened(Path("runs/one"))), ms.ReportLoaded(found)).run


async def choosing(driver: Driver, runs: Path, found: dict[str, Any] | None = None) -> Path:
    directory = write_run(runs, "one", found or told())
    await opened(driver, directory)
    await driver.press("x")
    assert isinstance(driver.app.screen, Several)
    await driver.pilot.pause(0.05)
    return directory


def test_x_exports_what_is_marked_and_shows_the_runtimes(runs: Path) -> None:
    gate = Gate("compare pt2")

    async def script(driver: Driver) -> None:
        directory = await choosing(driver, runs)
        assert all(f"* {name}" in driver.text for name in ("onnx", "openvino", "pt2"))
        await driver.press("down", "space", "enter")
        await driver.until(lambda state: gate.reached.is_set() and state.run.progress is not None)
        assert driver.engine.calls == [("export", (directory, ("onnx", "pt2")))]
        assert "50 %" in driver.text and driver.state.work == "Exporting onnx, pt2"
        await driver.press("x")
        assert "Exporting onnx, pt2: X stops it" in sentence(driver)
        gate.opened.set()
        await driver.until(lambda state: state.job is None)
        text = driver.text
        assert "Latency per runtime ─ 4" in text and "● torch.export, pt2 1.0" in text and "● onnx 1.0" in text
        assert sentence(driver) == FASTEST
        await driver.press("v")
        assert "Layers ─ 4" in driver.text and "v runtimes" in driver.text
        await driver.press("v", "down", "down")
        said = "model.onnx: onnx 1.0 on CPU int8; same answer on 99.7 % of the test images; largest difference 1.5e-2; top-1 99.44 %."
        assert sentence(driver) == said
        await driver.press("enter")
        await driver.pilot.pause(0.05)
        assert isinstance(driver.app.screen, Reading) and "top-1 99.44 %" in driver.text
        await driver.press("escape", "o")
        assert "most harm first" in driver.text

    drive(ScriptedEngine(runs, gates=(gate,)), script)


def test_a_format_that_is_there_is_not_marked_and_enter_alone_takes_the_row(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        directory = await choosing(driver, runs, exported(told(), ["onnx", "openvino", "pt2"]))
        assert "there, verified; mark to write it again" in driver.text
        await driver.press("down", "enter")
        await driver.until(lambda state: state.job is None and driver.engine.calls)
        assert driver.engine.calls == [("export", (directory, ("openvino",)))]

    drive(ScriptedEngine(runs), script)


def test_esc_exports_nothing(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await choosing(driver, runs)
        await driver.press("escape")
        await driver.pilot.pause()
        assert not driver.engine.calls and driver.state.job is None

    drive(ScriptedEngine(runs), script)


@pytest.mark.parametrize("key", ["s", "X"])
def test_stopping_keeps_what_is_finished(runs: Path, key: str) -> None:
    gate = Gate("export openvino")

    async def script(driver: Driver) -> None:
        await choosing(driver, runs)
        await driver.press("enter")
        await driver.until(lambda state: gate.reached.is_set())
        await driver.press(key)
        await driver.until(lambda state: state.job is None)
        assert "● onnx 1.0" in driver.text and "openvino" not in driver.text and "The export was stopped" in sentence(driver)
        assert driver.state.problem is None and not driver.state.run.stopped and driver.state.run.status("report") == "done"
        await driver.press("s")
        assert "Nothing is being exported" in sentence(driver)

    drive(ScriptedEngine(runs, gates=(gate,)), script)


def test_leaving_while_exporting_asks_first(runs: Path) -> None:
    gate = Gate("export onnx")

    async def script(driver: Driver) -> None:
        await choosing(driver, runs)
        await driver.press("enter")
        await driver.until(lambda state: gate.reached.is_set())
        await driver.press("q")
        await driver.pilot.pause(0.05)
        assert isinstance(driver.app.screen, Confirm) and "Files that are finished stay" in driver.text
        await driver.press("n")
        await driver.press("5")
        await driver.press("p")
        assert driver.state.job is not None and not driver.state.job.paused

    drive(ScriptedEngine(runs, gates=(gate,)), script)


def test_a_failure_is_a_panel_and_what_was_exported_is_in_the_table(runs: Path) -> None:
    error = EngineError("openvino was not exported: cumsum uses cumsum, which has no ONNX form here: export as pt2")

    async def script(driver: Driver) -> None:
        await choosing(driver, runs)
        await driver.press("enter")
        await driver.until(lambda state: state.problem is not None and state.job is None)
        await driver.pilot.pause(0.05)
        assert isinstance(driver.app.screen, Reading) and "cumsum" in driver.text
        await driver.press("escape")
        await driver.pilot.pause()
        assert "● onnx 1.0" in driver.text and "openvino 1.0" not in driver.text and driver.state.run.report is not None

    drive(ScriptedEngine(runs, fail={"export openvino": error}), script)


def test_without_a_report_nothing_is_exported(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        driver.app.go("report")
        await driver.on("report")
        await driver.press("x")
        assert "There is no report yet" in sentence(driver)
        await driver.press("v")
        assert "There is no report yet" in sentence(driver)

    drive(ScriptedEngine(runs), script)


def test_a_fresh_run_is_exported_where_it_ended(runs: Path) -> None:
    from test_report_screen import finished

    async def script(driver: Driver) -> None:
        await finished(driver)
        stages = dict(driver.state.run.stages)
        await driver.press("x", "enter")
        await driver.until(lambda state: state.job is None and len(driver.engine.calls) == 2)
        assert driver.state.run.stages == stages and "● openvino 1.0" in driver.text

    drive(ScriptedEngine(runs), script)


def texts(row: words.Row) -> list[str]:
    return [cell.text if isinstance(cell, Cell) else cell for cell in row.cells]


def test_the_runtimes_stand_side_by_side() -> None:
    run = run_of(exported(told(), ["onnx", "pt2"]))
    fp32, native, onnx, pt2 = words.runtime_rows(run, 80)
    assert texts(fp32) == ["torch fp32 channels-last", "", "0.31", "6.20", "", "", ""]
    assert texts(native) == ["engine.load_quantized, torch 2.15.0", "model.safetensors", "0.33", "1.80", "0.94×", "3.44×", "100.0"]
    assert texts(onnx)[2:] == ["0.28", "1.70", "1.11×", "3.65×", "99.7"] and texts(pt2)[0] == "torch.export, pt2 1.0"
    assert [row.glyph for row in (fp32, native, onnx, pt2)] == [" ", "●", "●", "●"]
    best = [cell.text for row in (fp32, native, onnx, pt2) for cell in row.cells if isinstance(cell, Cell) and cell.role == "good"]
    assert best == ["0.23", "1.60"]
    assert words.runtimes_subtitle(run) == "fastest: torch.export"


def test_exports_without_times_come_last_with_their_reason() -> None:
    found = exported(told(), ["onnx"])
    unread = {
        **found["exports"][-1],
        "format": "openvino",
        "path": "model.xml",
        "verified": False,
        "parity": None,
        "reason": "OpenVINO is not installed: uv pip install openvino, then export again",
    }
    failed = {"format": "pt2", "path": "", "verified": False, "parity": None, "reason": "no\nroom"}
    run = run_of({**found, "exports": [*found["exports"], unread, failed]})
    rows = words.runtime_rows(run, 120)
    assert [(row.glyph, texts(row)[0]) for row in rows[-2:]] == [("○", "openvino: not verified"), ("✗", "pt2: not exported")]
    assert words.runtime_sentence(run, "model.xml") == f"model.xml: {REASON}."
    assert words.runtime_sentence(run, "pt2") == "pt2: no room."
    assert "uv pip install openvino" in str(words.runtime_panel(run, "model.xml"))


def test_an_export_that_differs_is_told_and_never_the_fastest() -> None:
    found = exported(told(), ["onnx", "openvino"])
    found["exports"][-1] = {**found["exports"][-1], "parity": {"max_abs": 3.4, "sqnr_db": 6.2, "agreement": 0.605}}
    run = run_of(found)
    last = words.runtime_rows(run, 120)[-1]
    assert last.glyph == "✗" and texts(last)[0] == "openvino: differs from what was measured: do not ship" and texts(last)[-1] == "60.5"
    assert "openvino" not in words.runtimes_subtitle(run) and "openvino" not in words.exported(run, False)
    assert words.runtime_sentence(run, "model.xml") == "model.xml: differs from what was measured: do not ship."
    assert "✗ model.xml" in str(words.runtime_panel(run, "model.xml"))
    assert next(str(row.cells[2]) for row in words.choices(run)[0] if row.key == "openvino").count("differs")


def test_an_old_report_has_its_two_rows_and_a_damaged_one_none() -> None:
    assert len(words.runtime_rows(run_of(told()), 80)) == 2 and words.runtimes_subtitle(run_of(told())) == ""
    assert words.runtime_rows(run_of(told(baseline={}, exports=None)), 80) == () and words.runtimes_title(
        run_of(told(baseline={}, exports=None))
    )
    assert words.runtime_rows(run_of(told(runtimes=[None, {"runtime": 3}, 7])), 80)


def test_what_cannot_be_written_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnx", None)
    rows, marked = words.choices(run_of(told()))
    assert marked == ("pt2",) and [row.selectable for row in rows] == [False, False, True, False]
    assert "needs uv pip install onnx" in str(rows[0].cells[2])


def test_nothing_can_be_written(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Format, "missing", lambda self, packages: ("onnx", "openvino"))

    async def script(driver: Driver) -> None:
        await opened(driver, write_run(runs, "one", told()))
        await driver.press("x")
        assert "uv pip install onnx openvino" in sentence(driver)

    drive(ScriptedEngine(runs), script)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_pictures(runs: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(driver: Driver) -> None:
        monkeypatch.chdir(runs.parent)
        failed = {"format": "pt2", "path": "", "verified": False, "parity": None, "reason": "no room"}
        found = exported(told(), ["onnx", "openvino"])
        write_run(runs.parent / "pictures", "one", {**found, "exports": [*found["exports"], failed]})
        await opened(driver, Path("pictures/one"))
        await driver.press("v")
        check_text(driver, "report-runtimes")
        await driver.press("x")
        await driver.pilot.pause()
        if size == (80, 24):
            check_text(driver, "report-export")

    drive(ScriptedEngine(runs), script, size)
