"""The strategy screen by keyboard: edits, presets, recipes, and measuring again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import snapshots
from app_driving import Driver, drive
from scripted_engine import LAYERS, Gate, ScriptedEngine
from textual.widgets import Input

from engine.recipe.decisions import Strategy
from engine.recipe.presets import PRESETS
from engine.recipe.recipe import Recipe
from engine.recipe.spec import FP32, Rule
from qtui.draft import Draft
from qtui.edits import EditName
from qtui.screens.dialogs import Choose, Confirm, Prompt, Reading
from qtui.screens.picker import Picker
from qtui.state import Job
from qtui.widgets.sentence import Sentence
from qtui.widgets.table import Grid

Script = Callable[[Driver], Awaitable[None]]


async def planned(d: Driver) -> None:
    """A run that waits at its strategy, whose screen is shown."""
    d.app.session.start({"model": "simplecnn", "data": {"name": "digits"}})
    await d.until(lambda s: s.asking == "optimize")
    d.app.session.answer(True)
    await d.until(lambda s: s.asking == "quantize")
    d.app.go("strategy")
    await d.on("strategy")
    await d.until(lambda _: "layers quantized" in d.text or d.app.size.width < 80)


async def measured(d: Driver) -> None:
    """The same run, measured, at the question of training; the strategy is shown."""
    await planned(d)
    await d.press("n")
    await d.until(lambda s: s.asking == "qat")
    d.app.go("strategy")
    await d.on("strategy")
    await d.pilot.pause()


def draft(d: Driver) -> Draft:
    found = d.state.run.draft
    assert found is not None
    return found


def said(d: Driver) -> str:
    return d.app.screen_stack[0].query_one(Sentence).text


def play(root: Path, script: Script, size: tuple[int, int] = (80, 24), **options: object) -> ScriptedEngine:
    engine = ScriptedEngine(root, **options)  # type: ignore[arg-type]
    drive(engine, script, size)
    return engine


async def write(d: Driver, text: str) -> None:
    await d.until(lambda _: isinstance(d.app.screen, Prompt))
    d.app.screen.query_one(Input).value = text
    await d.press("enter")


def test_an_empty_screen_says_what_to_do(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        d.app.go("strategy")
        await d.on("strategy")
        await d.pilot.pause()
        assert "There is no plan yet." in d.text
        await d.press("w", "f", "n", "enter", "h", "l", "down")
        assert "no plan yet" in said(d)
        run = replace(d.state.run, at="strategy", doing="Measuring fp32")
        d.app.session.state = replace(d.state, run=run, job=Job("run", "run"))
        d.app.refresh_state()
        await d.pilot.pause()
        assert "The plan stands here in a moment." in d.text and "Load a model" not in d.text
        d.app.session.state = replace(d.state, job=None)

    play(tmp_path, script)


def test_edits_change_the_layer_under_the_cursor_and_the_running_total(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        assert "Strategy ─ 4 layers quantized ─ 0 kept in fp32 ─ 0 edited" in d.text and "2.18 → 0.31 MB" in d.text
        await d.press("down")
        assert said(d).startswith("conv1: first layer")
        before = draft(d).predicted_bytes
        await d.press("w", "w", "m", "a", "s", "r", "c")
        assert str(draft(d).specs["conv1"]) == "w4 per-tensor, a7 per-tensor symmetric"
        assert draft(d).specs["conv1"].weights.method == "mse" and draft(d).specs["conv1"].activations.observer == "moving-average"  # type: ignore[union-attr]
        assert draft(d).predicted_bytes < before and "1 edited" in d.text
        await d.press("f")
        assert draft(d).specs["conv1"] == FP32 and "3 layers quantized ─ 1 kept in fp32" in d.text and "f quantize" in d.text
        await d.press("f", "z")
        assert draft(d).edited == frozenset()
        await d.press("z")
        assert "as proposed already" in said(d)
        await d.press(*"uuuuuuuuuuu")
        assert draft(d).past == () and "Nothing was edited" in said(d)
        await d.press("U", "ctrl+r")
        assert str(draft(d).specs["conv1"].weights) == "w4 per-channel"

    play(tmp_path, script)


def test_marks_and_modules_change_many(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("f")
        assert draft(d).kept == 4, "on the model all layers change"
        await d.press("u", "down", "space", "down", "down", "space")
        assert draft(d).marked == {"conv1", "fc1"} and "2 marked" in d.text
        await d.press("down", "f")
        assert {path for path, spec in draft(d).specs.items() if spec == FP32} == {"conv1", "fc1"}
        await d.press("x")
        assert draft(d).marked == frozenset()
        await d.press("space", "escape")
        assert draft(d).marked == frozenset()

    play(tmp_path, script)


def test_an_edit_that_changes_nothing_says_why(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("down", "f", "w")
        assert said(d) == "conv1 is kept in fp32: f quantizes it again"
        await d.press("down")
        assert said(d).startswith("conv2:"), "a reason goes with the next line"

    play(tmp_path, script)


def test_the_model_closes_and_opens(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("G", "h", "h")
        assert "▸ simplecnn" in d.text and "conv1" not in d.text and "mixed" in d.text and "l opens it" in said(d)
        await d.press("l")
        assert "▾ simplecnn" in d.text and "conv1" in d.text
        await d.press("enter", "enter", "right", "left")
        assert "▸ simplecnn" in d.text

    play(tmp_path, script)


def test_everything_about_a_layer(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("down", "enter")
        assert isinstance(d.app.screen, Reading) and "moving-average" in d.text and "27 inputs" in d.text
        await d.press("escape", "w", "d")
        assert isinstance(d.app.screen, Reading) and "→ w6 per-channel" in d.text

    play(tmp_path, script)


def test_a_tall_window_shows_it_beneath(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        assert "Put the cursor on a layer" in d.text
        await d.press("down", "w")
        assert "conv1 ─ Conv2d ─ 27 inputs to each of 32 outputs" in d.text and "w int4" in d.text
        await d.resize(120, 24)
        assert "27 inputs" not in d.text

    play(tmp_path, script, (120, 40))


def test_a_filter_narrows_the_layers_and_the_edits(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("slash", *"conv")
        assert "2 of 4" in d.text and "fc1" not in d.text
        await d.press("enter", "g", "f")
        assert {path for path, spec in draft(d).specs.items() if spec == FP32} == {"conv1", "conv2"}
        await d.press("h", "enter")
        assert "conv1" in d.text, "a filter shows what it finds"
        await d.press("escape")
        assert "fc1" in d.text
        await d.press("slash", *"zzz", "enter")
        assert "No layer holds “zzz”." in d.text
        await d.press("f", "space", "n")
        await d.until(lambda s: s.run.at == "calibrate")

    play(tmp_path, script)


def test_going_on_without_edits_is_a_yes(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("n")
        await d.on("calibrate")

    assert play(tmp_path, script).answers["quantize"] is True


def test_going_on_with_edits_sends_rules(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("down", "f", "n")
        await d.until(lambda s: s.asking == "qat")
        assert draft(d).as_planned and draft(d).specs["conv1"] == FP32 and draft(d).past

    assert play(tmp_path, script).answers["quantize"] == Strategy("default", (Rule("conv1", FP32),), go=True)


def test_a_preset_is_planned_by_the_engine_while_its_question_is_open(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("down", "w", "p")
        assert isinstance(d.app.screen, Choose) and "usually needs training" in d.text
        await d.press("down", "enter")
        await d.until(lambda s: s.asking == "quantize" and s.run.plan and s.run.plan.preset == "w8a8")
        assert d.engine.answers["quantize"] == Strategy("w8a8", (), go=False)
        assert draft(d).preset == "w8a8" and "Preset w8a8" in said(d)
        await d.press("u")
        assert draft(d).preset == "default" and draft(d).edited == {"conv1"}

    play(tmp_path, script)


def test_after_the_question_a_preset_is_found_here(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await measured(d)
        await d.press("p", "end", "enter")
        assert draft(d).preset == "w3" and set(draft(d).specs.values()) == {PRESETS["w3"]}
        assert "Preset w3" in said(d) and "─ w3 ─" in d.text
        await d.press("p", "enter")
        assert "so already" in said(d)
        await d.press("p", "escape")
        assert draft(d).preset == "w3"

    play(tmp_path, script)


def test_while_the_run_is_at_work_it_says_so(tmp_path: Path) -> None:
    gate = Gate("calibrate 128")

    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("n")
        await d.until(lambda _: gate.reached.is_set())
        d.app.go("strategy")
        await d.on("strategy")
        await d.press("p")
        assert "X stops it" in said(d)
        await d.press("n")
        assert "at work" in said(d)
        await d.press("down", "w")
        assert draft(d).edited == {"conv1"}, "the next run can be thought of meanwhile"

    play(tmp_path, script, gates=(gate,))


def test_figures_are_shown_where_they_are_known(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await measured(d)
        assert "SQNR dB" in d.text and "24.3" in d.text and "n measure ▸" in d.text
        await d.press("n")
        await d.on("calibrate")
        await d.press("3")
        await d.on("strategy")

    play(tmp_path, script)


def test_an_edited_strategy_is_measured_as_a_run_of_its_own(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await measured(d)
        await d.press("down", "f", "n")
        await d.until(lambda s: s.asking == "qat" and len(d.engine.calls) == 2)
        await d.on("calibrate")
        assert draft(d).specs["conv1"] == FP32 and draft(d).as_planned and draft(d).past, "undo goes back beyond the run"
        assert d.engine.asked == ["optimize", "quantize", "qat", "optimize", "quantize"]
        assert d.state.problem is None

    engine = play(tmp_path, script)
    recipe = engine.calls[1][1]
    assert recipe["preset"] == "default" and recipe["rules"] == [{"match": "conv1", "keep": "fp32"}] and recipe["model"] == "simplecnn"


def test_a_finished_run_is_measured_again(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await measured(d)
        d.app.session.answer(False)
        await d.until(lambda s: s.job is None)
        directory = d.state.runs[0].directory
        d.app.session.open(directory)
        d.app.go("strategy")
        await d.on("strategy")
        await d.press("G", "f", "n")
        await d.until(lambda s: s.asking == "qat")
        await d.on("calibrate")
        assert d.state.run.directory != str(directory)

    play(tmp_path / "runs", script)


def test_stopping_forgets_the_run_that_waits(tmp_path: Path) -> None:
    gate = Gate("export")

    async def script(d: Driver) -> None:
        await measured(d)
        await d.press("down", "f", "n")
        await d.until(lambda _: gate.reached.is_set())
        assert d.app.session.waits and "run of its own" in said(d)
        before = draft(d)
        await d.press("f", "space", "u")
        assert draft(d) is before and "about to be measured" in d.text
        d.app.session.stop()
        await d.until(lambda s: s.job is None)
        assert len(d.engine.calls) == 1 and not d.app.session.waits

    play(tmp_path, script, gates=(gate,))


def test_a_failure_before_it_is_shown_and_the_run_that_waits_is_not_begun(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await measured(d)
        await d.press("down", "f", "n")
        await d.until(lambda s: s.problem is not None)
        await d.until(lambda s: s.job is None)
        assert len(d.engine.calls) == 1 and not d.app.session.waits

    play(tmp_path, script, fail={"export": OSError("disk full")})


def test_a_recipe_is_saved_asked_about_and_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("down", "f", "S")
        await d.until(lambda _: isinstance(d.app.screen, Prompt))
        assert "simplecnn-digits.recipe.yaml" in d.text
        await d.press("enter")
        path = tmp_path / "simplecnn-digits.recipe.yaml"
        await d.until(lambda _: path.exists())
        assert "Saved as simplecnn-digits.recipe.yaml" in said(d)
        assert [(rule.match, rule.spec) for rule in Recipe.load(path).layer_rules()] == [("conv1", FP32)]
        await d.press("u", "S")
        await d.press("enter")
        await d.until(lambda _: isinstance(d.app.screen, Confirm))
        await d.press("n")
        assert len(Recipe.load(path).rules) == 1
        await d.press("S", "enter")
        await d.until(lambda _: isinstance(d.app.screen, Confirm))
        await d.press("y")
        await d.until(lambda _: not Recipe.load(path).rules)
        await d.press("S")
        await write(d, ".")
        assert "is a folder" in d.text
        await d.press("escape")

    play(tmp_path / "runs", script)


def test_a_recipe_is_opened(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("model: simplecnn\npreset: w8a8\nrules:\n  - match: fc*\n    keep: fp32\n")
    bad.write_text("model: simplecnn\npreset: w9\n")

    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("O")
        await write(d, str(bad))
        assert "w9" in d.text
        await d.press("escape")
        await d.press("O")
        await write(d, str(good))
        await d.until(lambda s: s.asking == "quantize" and s.run.plan and s.run.plan.preset == "w8a8")
        answer = d.engine.answers["quantize"]
        assert isinstance(answer, Strategy) and answer.preset == "w8a8" and not answer.go and answer.rules[0].match == "fc*"

    play(tmp_path, script)

    async def closed(d: Driver) -> None:
        await measured(d)
        await d.press("O")
        await write(d, str(good))
        await d.until(lambda s: s.run.draft and s.run.draft.preset == "w8a8")
        assert draft(d).kept == 2 and "1 rule" in said(d)

    play(tmp_path, closed)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (60, 20), (40, 12)])
def test_what_matters_is_seen_at_every_size(tmp_path: Path, size: tuple[int, int]) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("down", "down", "w")
        for needed in ("conv2", "int6", "1 edited", "→ 0.30 MB"):
            assert needed in d.text
        for other in ((40, 12), (120, 40), (80, 24), size):
            await d.resize(*other)
        assert "conv2" in d.text
        assert max(len(line) for line in d.text.splitlines()) <= size[0]

    play(tmp_path, script, size)


def test_snapshots(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("down")
        snapshots.check_text(d, "strategy")
        await d.press("down", "w", "c", "down", "space", "down", "f", "down")
        snapshots.check_text(d, "strategy-edited")
        await d.resize(120, 40)
        await d.press("up")
        snapshots.check_text(d, "strategy-edited")
        snapshots.check_svg(d, "strategy-edited")

    play(tmp_path, script)


def test_all_layers_of_the_script_are_there(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        assert all(row.path in d.text for row in LAYERS)

    play(tmp_path, script)


def test_the_sentence_and_the_border_tell_of_marked_layers_that_are_out_of_sight(runs: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("G", "space", "up", "space", "slash", *"conv1", "enter")
        await d.until(lambda s: len(draft(d).marked) == 2)
        assert "2 marked, 2 not in view" in d.text.splitlines()[2]
        assert said(d).startswith("2 marked, 2 not in view: w → int") and "a key here" not in said(d).lower()
        announced = said(d).split("w → ")[1].split(",")[0].removesuffix(" of 1")
        before = draft(d).specs
        await d.press("w")
        changed = {path: spec for path, spec in draft(d).specs.items() if spec != before[path]}
        assert changed and changed.keys() <= draft(d).marked and "conv1" not in changed
        assert {f"int{spec.weights.bits}" for spec in changed.values() if spec.weights} == {announced}
        await d.press("apostrophe")
        await d.pilot.pause()
        assert d.app.screen.query_one("#strategy", Grid).cursor in draft(d).marked
        assert "not in view" not in d.text.splitlines()[2] and "not in view" not in said(d)

    play(runs, script)


def test_a_marked_layer_that_is_scrolled_away_is_not_in_view(runs: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("G", "space", "g")
        await d.pilot.pause()
        grid = d.app.screen.query_one("#strategy", Grid)
        away = draft(d).marked - grid.in_view()
        assert (f"1 marked, {len(away)} not in view" in said(d)) is bool(away)
        grid.scroll_y = grid.scroll_target_y = grid.max_scroll_y
        await d.pilot.pause()
        assert draft(d).marked <= grid.in_view() and "not in view" not in said(d)

    play(runs, script, (80, 12))


def test_the_filter_asks_names_alone_and_the_title_counts_what_is_left(runs: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("slash", *"conv2", "enter")
        assert "1 of " in d.text.splitlines()[2]
        await d.press("slash", *" kind", "colon", *"linear", "enter")
        await d.press("escape", "slash", *"kind", "colon", *"linear", "enter")
        assert "2 of " in d.text.splitlines()[2] and "fc1" in d.text and "conv1" not in d.text

    play(runs, script)


def test_a_picker_shows_what_each_choice_makes_and_takes_the_one_under_the_cursor(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("down", "down", "W")
        assert isinstance(d.app.screen, Picker)
        listed = {option.name: option for option in d.app.screen.options}
        assert list(listed) == ["w8", "w6", "w4", "w3", "w2"]
        grid = d.app.screen.query_one(Grid)
        assert grid.cursor == next(option.name for option in listed.values() if option.current)
        snapshots.check_text(d, "strategy-picker")
        snapshots.check_svg(d, "strategy-picker")
        before = draft(d)
        await d.press("escape")
        assert draft(d) is before
        await d.press("W")
        grid = d.app.screen.query_one(Grid)
        grid.move_to("w3")
        await d.press("enter")
        path = next(path for path, spec in draft(d).specs.items() if spec != before.specs[path])
        assert draft(d).specs[path].weights.bits == 3
        # What was shown is what it is.
        assert draft(d).predicted_bytes == listed["w3"].draft.predicted_bytes
        await d.press("u")
        assert draft(d).specs == before.specs

    play(tmp_path, script)


@pytest.mark.parametrize(("key", "name", "choices"), [("A", "activations", 5), ("C", "granularity", 2), ("R", "rounding", 5)])
def test_every_picker_lists_what_the_plain_key_goes_through(tmp_path: Path, key: str, name: EditName, choices: int) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("down", "down", "space", "down", "space", key)
        assert isinstance(d.app.screen, Picker) and "2 layers" in d.text
        shown = d.app.screen.options
        assert len(shown) >= choices
        paths = draft(d).marked
        seen, now = set(), draft(d)
        for _ in range(len(shown) + 1):
            now = now.edit(name, paths).draft
            seen.add(tuple(now.specs[path] for path in paths))
        assert seen <= {tuple(option.draft.specs[path] for path in paths) for option in shown} | {
            tuple(draft(d).specs[path] for path in paths)
        }

    play(tmp_path, script)


def test_a_layer_in_fp32_has_nothing_to_pick(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("down", "down", "f", "C")
        assert not isinstance(d.app.screen, Picker) and "is kept in fp32" in said(d)

    play(tmp_path, script)
