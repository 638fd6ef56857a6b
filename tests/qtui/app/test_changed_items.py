"""The items that changed most: read from a run's folder, listed, and drawn in cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from app_driving import Driver, drive
from reports import told, write_run
from scripted_engine import ScriptedEngine
from snapshots import check_svg, check_text

from engine.events.pictures import NAME, SIDE, Box, Look, Picture, read, to_json
from qtui.pixels import CLASSES, Pixels, cells, fitted, pixels, shades
from qtui.screens.changed import Changed
from qtui.widgets.table import Grid
from qtui.widgets.thumbnails import Thumbnails


def picture(place: int, width: int = 24, height: int = 16, **looks: Look) -> Picture:
    """A slope of red from left to right, of green from top to bottom."""
    rgb = bytes(part for y in range(height) for x in range(width) for part in (x * 255 // (width - 1), y * 255 // (height - 1), 90))
    return Picture(place, width, height, rgb, looks)


def scene(place: int) -> Picture:
    """A mask and boxes, of which the quantized model has less."""
    mask = bytes(1 if 4 <= x < 14 and 3 <= y < 12 else 2 if x >= 17 else 0 for y in range(16) for x in range(24))
    less = bytes(kind if i % 24 < 10 else 0 for i, kind in enumerate(mask))
    return picture(place, fp32=Look(mask, (Box(2, 2, 15, 13, 3),)), quantized=Look(less, (Box(2, 2, 9, 13, 3),)))


def changed(rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"which": "ptq", "items": 360, "changed": len(rows), "worse": 2, "better": 1, "rows": rows, **more}


ROWS = [
    {"place": 17, "label": "cat", "fp32": "cat", "quantized": "dog", "before": 1.0, "after": 0.0, "file": ""},
    {"place": 40, "label": "dog", "fp32": "dog", "quantized": "cat", "before": 1.0, "after": 0.0, "file": ""},
    {"place": 8, "label": "cat", "fp32": "dog", "quantized": "cat", "before": 0.0, "after": 1.0, "file": ""},
]


def run_folder(root: Path, pictures: list[Picture], rows: list[dict[str, Any]] | None = None) -> Path:
    directory = write_run(root, "20260101-simplecnn-digits", told(changed=changed(ROWS if rows is None else rows)))
    if pictures:
        (directory / NAME).write_text(to_json(pictures))
    return directory


def test_pictures_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(to_json([picture(3), scene(5)]))
    assert read(tmp_path) == (picture(3), scene(5))


@pytest.mark.parametrize(
    "row",
    [
        None, [], {}, {"place": "x"}, {"width": 100000, "height": 100000}, {"width": 0}, {"width": True}, {"rgb": "AAAA"}, {"rgb": "é"},
        {"rgb": 7}, {"looks": 5}, {"looks": {"fp32": {"mask": "AAAA"}}}, {"looks": {"fp32": {"boxes": [[0, 0, 1, 1, "a"]]}}},
    ],
)  # fmt: skip
def test_a_picture_that_does_not_fit_is_passed_over(tmp_path: Path, row: Any) -> None:
    good = json.loads(to_json([picture(1)]))["pictures"][0]
    rows = [{**good, **row} if isinstance(row, dict) and row else row, good]
    (tmp_path / NAME).write_text(json.dumps({"pictures": rows}))
    assert [found.place for found in read(tmp_path)] == [1]


def test_a_file_that_is_damaged_too_large_or_no_file_gives_no_pictures(tmp_path: Path) -> None:
    assert read(tmp_path) == ()
    (tmp_path / NAME).write_text("{")
    assert read(tmp_path) == ()
    (tmp_path / NAME).write_text('{"pictures": 3}')
    assert read(tmp_path) == ()
    with (tmp_path / NAME).open("wb") as file:
        file.truncate(3_000_000)
    assert read(tmp_path) == ()


def test_boxes_outside_of_the_picture_are_not_drawn(tmp_path: Path) -> None:
    whole = json.loads(to_json([picture(1, fp32=Look(b"", (Box(0, 0, 5, 5), Box(0, 0, 24, 5), Box(-1, 0, 5, 5))))]))
    (tmp_path / NAME).write_text(json.dumps(whole))
    assert read(tmp_path)[0].looks["fp32"].boxes == (Box(0, 0, 5, 5),)


def test_a_cell_holds_two_pixels_one_above_the_other() -> None:
    found = Pixels((((1, 0, 0), (2, 0, 0)), ((3, 0, 0), (4, 0, 0)), ((5, 0, 0), (6, 0, 0))))
    assert cells(found) == [[((1, 0, 0), (3, 0, 0)), ((2, 0, 0), (4, 0, 0))], [((5, 0, 0), (5, 0, 0)), ((6, 0, 0), (6, 0, 0))]]
    assert shades(Pixels((((0, 0, 0), (255, 255, 255)),))) == [" █"]


@pytest.mark.parametrize(("width", "height"), [(24, 8), (48, 40), (10, 10), (3, 2), (1, 1)])
def test_a_picture_keeps_its_proportions_and_stays_inside(width: int, height: int) -> None:
    found = fitted(pixels(picture(0)), width, height)
    assert 0 < found.width <= width and 0 < found.height <= 2 * height
    if width >= 10:
        assert abs(found.width / found.height - 24 / 16) < 0.2


def test_a_mask_colours_its_classes_alone_and_a_box_is_an_outline() -> None:
    plain, drawn = pixels(picture(0)), fitted(pixels(scene(0), scene(0).looks["fp32"]), 24, 8)
    assert drawn.rows[0][0] == plain.rows[0][0] and drawn.rows[5][6] != plain.rows[5][6]
    smaller = fitted(pixels(scene(0), scene(0).looks["fp32"]), 12, 4)
    assert sum(colour == CLASSES[3] for row in smaller.rows for colour in row) == 22, "no line of a box is lost"
    assert drawn.rows[2][2] == CLASSES[3] == drawn.rows[13][15] and drawn.rows[5][6] != CLASSES[3]


def test_the_panel_lists_what_was_lost_first_and_shows_the_picture(runs: Path) -> None:
    directory = run_folder(runs, [picture(17), picture(40), picture(8)])

    async def script(driver: Driver) -> None:
        driver.app.session.open(directory)
        driver.app.go("report")
        await driver.on("report")
        await driver.press("i")
        await driver.pilot.pause()
        panel = driver.app.screen
        assert isinstance(panel, Changed) and panel.query_one(Thumbnails).display
        said = " ".join(driver.text.split())
        assert "3 of 360 test images are answered otherwise by PTQ: 2 worse, 1 better." in said and "▀" in said
        assert "image 17 is cat: fp32 says cat, the quantized model dog, which is worse." in said
        check_text(driver, "changed")
        check_svg(driver, "changed")
        await driver.press("end")
        await driver.pilot.pause()
        assert panel.query_one(Grid).cursor == "2" and "which is better" in driver.text
        await driver.press("escape")
        assert not isinstance(driver.app.screen, Changed)

    drive(ScriptedEngine(runs), script)


def test_masks_and_boxes_of_both_forms_stand_side_by_side(runs: Path) -> None:
    directory = run_folder(runs, [scene(17), scene(40), scene(8)])

    async def script(driver: Driver) -> None:
        driver.app.session.open(directory)
        driver.app.go("report")
        await driver.on("report")
        await driver.press("i")
        await driver.pilot.pause()
        heads = next(line for line in driver.text.splitlines() if line.count("PTQ") == 2)
        assert heads.count("fp32") == 2 and heads.rindex("fp32") < heads.rindex("PTQ")
        check_svg(driver, "changed-masks")
        await driver.resize(50, 20)
        assert "▀" not in driver.text and "cat" in driver.text, "a narrow window has the list alone"

    drive(ScriptedEngine(runs), script)


def test_a_run_without_pictures_and_one_without_changes_say_so(runs: Path) -> None:
    directory = run_folder(runs, [], ROWS)
    other = write_run(runs, "20260102-simplecnn-digits", told())

    async def script(driver: Driver) -> None:
        driver.app.session.open(directory)
        driver.app.go("report")
        await driver.on("report")
        await driver.press("i")
        await driver.pilot.pause()
        assert "cat" in driver.text and "▀" not in driver.text
        await driver.press("escape")
        driver.app.session.open(other)
        driver.app.refresh_state()
        await driver.press("i")
        assert not isinstance(driver.app.screen, Changed) and "earlier version" in " ".join(driver.text.split())

    drive(ScriptedEngine(runs), script)


@pytest.mark.parametrize("damage", [{"rows": [{"place": "x"}]}, {"rows": 3}, {"items": "many"}, 7])
def test_a_report_with_odd_changes_is_told_in_one_line(runs: Path, damage: Any) -> None:
    found = told(changed={**changed(ROWS), **damage} if isinstance(damage, dict) else damage)
    directory = write_run(runs, "20260103-simplecnn-digits", found)

    async def script(driver: Driver) -> None:
        driver.app.session.open(directory)
        driver.app.refresh_state()
        assert driver.state.run.changed is None and driver.state.problem is not None

    drive(ScriptedEngine(runs), script)


def test_a_picture_is_at_most_of_the_side_that_is_kept() -> None:
    assert SIDE == 48
