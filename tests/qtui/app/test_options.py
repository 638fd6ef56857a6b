"""What else a run can be asked, paths that are typed or dropped, what is remembered, and clicks on the bars."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from app_driving import Driver, drive
from scripted_engine import ScriptedEngine
from snapshots import check_svg, check_text
from test_strategy_screen import planned
from textual.events import Paste
from textual.widgets import Input

from engine.recipe.recipe import Recipe
from qtui import options, request
from qtui.arguments import REPAIRS, build_parser
from qtui.catalog import Choice
from qtui.paths_typed import completed, unquoted
from qtui.remembered import remember, remembered
from qtui.screens.options_panel import OptionsPanel


def test_each_option_of_the_command_line_can_be_given_in_the_app() -> None:
    """Those with keys of their own on the first screen are named here; ``yes``, ``json``, ``dry_run`` and ``against``, which quantizes
    nothing, are of the console alone."""
    by_key = {"model", "task", "data", "weights", "recipe", "device", "threshold", "graph"}
    names = {**request._TOP, **{name: f"data.{field}" for name, field in request._DATA.items()}, "qat": "qat.mode", "epochs": "qat.epochs"}
    run = build_parser().commands["run"]
    given = {action.dest for action in run._actions} - {"help", "yes", "json", "dry_run", "against"} - by_key
    given = (given - {"repair"}) | set(REPAIRS)
    assert {names.get(name, name) for name in given} <= set(options.BY_KEY)


def test_what_is_given_makes_the_recipe_that_the_command_line_makes() -> None:
    given = (
        ("data.mean", "0.5,0.5,0.25"),
        ("data.limit", "100"),
        ("targets", "size:0.2 drop:0.01"),
        ("qat.epochs", "3"),
        ("export", "onnx"),
    )
    fields = Choice(options=given).fields()
    args = Namespace(**dict.fromkeys((*request._TOP, *request._DATA, *request._QAT)), recipe=None)
    vars(args).update(
        model="simplecnn", data="digits", device="auto", mean=(0.5, 0.5, 0.25), limit=100, target=["size:0.2", "drop:0.01"], epochs=3,
        export=("onnx",),
    )  # fmt: skip
    assert Recipe.make(**fields) == request.recipe_of(args)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("data.mean", "1,2"),
        ("data.limit", "many"),
        ("data.limit", "0"),
        ("targets", "size"),
        ("export", "nothing"),
        ("data.classes", "/no/where"),
    ],
)
def test_what_cannot_be_had_is_said(key: str, text: str) -> None:
    said = options.wrong(key, text)
    assert said and "model is missing" not in said and options.wrong(key, "") is None


@pytest.mark.parametrize(
    ("key", "text"),
    [("data.mean", "0.5,0.5,0.5"), ("data.limit", "5"), ("targets", "size:0.2, drop:0.01"), ("export", "onnx,pt2"), ("out", "new")],
)
def test_what_can_be_had_is_taken(key: str, text: str) -> None:
    assert options.wrong(key, text) is None


def test_options_are_changed_shown_and_asked(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await d.press("s")
        await d.pilot.pause()
        panel = d.app.screen
        assert isinstance(panel, OptionsPanel) and "what else a run is asked" in d.text
        check_text(d, "options")
        check_svg(d, "options")
        await d.press("enter")
        await d.fill("size:0.2")
        await d.press("down", "enter")
        await d.pilot.pause()
        await d.press("down", "down", "enter")
        await d.pilot.pause()
        assert dict(panel.given)["targets"] == "size:0.2" and "preset" in dict(panel.given)
        await d.press("z", "escape")
        assert "1 given" in d.text
        await d.press("n")
        await d.until(lambda state: state.run.recipe)
        fields = next(what for name, what in d.engine.calls if name == "run")
        assert fields["targets"] == ("size:0.2",) and "preset" not in fields

    drive(ScriptedEngine(tmp_path), script)


@pytest.mark.parametrize(
    ("typed", "path"),
    [
        ("'/a b/c.pt'", "/a b/c.pt"), ('"/a b"', "/a b"), ("/a\\ b/c", "/a b/c"), ("file:///a%20b/c", "/a b/c"), ("  /a ", "/a"),
        ("'it'\\''s'", "it's"), ("C:\\x", "C:\\x"), ("'", "'"), ("drop:0.005", "drop:0.005"),
    ],
)  # fmt: skip
def test_a_path_is_taken_without_what_a_shell_puts_around_it(typed: str, path: str) -> None:
    assert unquoted(typed) == path


def test_a_path_is_completed_as_far_as_its_names_are_alike(tmp_path: Path) -> None:
    (tmp_path / "weights-a.pt").touch()
    (tmp_path / "weights-b.pt").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / ".hidden").touch()
    assert completed(f"{tmp_path}/w") == (f"{tmp_path}/weights-", ("weights-a.pt", "weights-b.pt"))
    assert completed(f"{tmp_path}/f") == (f"{tmp_path}/folder/", ())
    assert completed(f"{tmp_path}/nothing") == (f"{tmp_path}/nothing", ())
    assert ".hidden" not in completed(f"{tmp_path}/")[1]


def test_tab_completes_and_a_quoted_paste_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "my weights"
    folder.mkdir()
    (folder / "net.pt").touch()

    async def script(d: Driver) -> None:
        await d.press("w")
        await d.pilot.pause()
        line = d.app.screen.query_one(Input)
        line.value = f"{folder}/n"
        await d.press("tab")
        assert line.value == f"{folder}/net.pt"
        line.value = ""
        line.post_message(Paste(f"'{folder}/net.pt'"))
        await d.pilot.pause()
        await d.press("enter")
        assert d.app.screen.choice.weights == f"{folder}/net.pt"  # type: ignore[attr-defined]

    drive(ScriptedEngine(tmp_path), script)


def test_the_theme_is_remembered_and_a_file_that_is_damaged_is_none(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await d.press("T")

    assert drive(ScriptedEngine(tmp_path), script).theme == "qtui-light"

    async def again(d: Driver) -> None:
        assert d.app.theme == "qtui-light"

    drive(ScriptedEngine(tmp_path), again)
    remember("theme", ["odd"])
    assert drive(ScriptedEngine(tmp_path), script).theme == "qtui-light"
    (tmp_path / "cache" / "app.json").write_text("{")
    assert remembered("theme") is None


def test_a_click_on_the_stage_bar_goes_there_and_one_on_the_footer_does_what_its_key_does(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        stages, keys = d.text.splitlines()[0], d.text.splitlines()[-1]
        await d.pilot.click(offset=(stages.index("Graph") + 1, 0))
        await d.on("graph")
        await d.pilot.click(offset=(stages.index("Report") + 1, 0))
        assert d.app.stage_screen is not None and d.app.stage_screen.stage == "graph", "there is no report yet"
        await d.pilot.click(offset=(stages.index("Strategy") + 1, 0))
        await d.on("strategy")
        await d.pilot.click(offset=(keys.index("help") + 1, d.app.size.height - 1))
        assert "help ─ Strategy" in d.text

    drive(ScriptedEngine(tmp_path), script)
