"""The graph's screen, by keyboard alone."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from app_driving import Driver, drive
from graphs import BRANCHED, BRANCHED_PAIRS, REASON, deep
from scripted_engine import Gate, ScriptedEngine
from snapshots import check_svg, check_text

from engine.events import event as ev
from engine.recipe.decisions import Fold
from qtui import reasons
from qtui.screens.graph import GraphScreen
from qtui.state import Run, State
from qtui.widgets.filter_bar import FilterBar
from qtui.widgets.table import Grid

SIZES = [(80, 24), (120, 40), (60, 20), (40, 12)]


def screen(d: Driver) -> GraphScreen:
    found = d.app.stage_screen
    assert isinstance(found, GraphScreen)
    return found


def grid(d: Driver, name: str = "nodes") -> Grid:
    return screen(d).query_one(f"#{name}", Grid)


def keys(d: Driver, name: str = "nodes") -> list[str]:
    return [row.key for row in grid(d, name).rows]


def sentence(d: Driver) -> str:
    return " ".join(line.strip() for line in d.text.splitlines()[-3:-1]).strip()


async def opened(d: Driver) -> None:
    await d.press("n")
    await d.until(lambda state: state.asking == "optimize")
    await d.on("graph")


async def folded(d: Driver) -> None:
    await opened(d)
    await d.press("f")
    await d.until(lambda state: state.asking == "quantize")


async def shown(d: Driver, nodes: tuple[ev.NodeRow, ...], pairs: ev.Pairs, **more: object) -> None:
    """A graph without a run: what a reopened run looks like."""
    run = Run(directory="runs/1", model="odd", data="digits", at="graph", stages={"graph": "waiting"}, traced=nodes, pairs=pairs)
    d.app.session.state = replace(State(), machine=d.state.machine, run=replace(run, **more))  # type: ignore[arg-type]
    d.app.go("graph")
    await d.pilot.pause()
    d.app.refresh_state()
    await d.pilot.pause()


def run(runs: Path, script: Callable[[Driver], Awaitable[None]], size: tuple[int, int] = (80, 24), *gates: Gate) -> ScriptedEngine:
    engine = ScriptedEngine(runs, gates=gates)
    drive(engine, script, size)
    return engine


def test_all_pairs_are_chosen_and_the_cursor_is_on_the_first(runs: Path) -> None:
    async def script(d: Driver) -> None:
        await opened(d)
        assert grid(d).cursor == "conv1" and grid(d).has_focus
        assert "2 of 2 pairs to fold" in d.text and "f fold 2" in d.text
        assert sentence(d).startswith("◆ conv1 + bn1 fold into one layer")
        check_text(d, "graph-open")
        await d.press("b")
        assert sentence(d).startswith("! Nothing is folded yet")
        # A key that acts takes the reason of one that could not away.
        await d.press("space")
        assert sentence(d).startswith("◇ conv1 + bn1")

    run(runs, script)


@pytest.mark.parametrize(
    ("pressed", "answer"),
    [((), True), (("x",), False), (("space",), Fold(("bn2",))), (("x", "a"), True), (("x", "G", *("up",) * 8, "space"), Fold(("bn2",)))],
)
def test_the_answer_is_what_is_marked(runs: Path, pressed: tuple[str, ...], answer: object) -> None:
    async def script(d: Driver) -> None:
        await opened(d)
        await d.press(*pressed, "f")
        await d.until(lambda state: state.asking == "quantize")

    assert run(runs, script).answers["optimize"] == answer


def test_space_marks_from_either_node_of_the_pair(runs: Path) -> None:
    async def script(d: Driver) -> None:
        await opened(d)
        await d.press("down", "space")
        assert "1 of 2 pairs to fold" in d.text and "f fold 1" in d.text and "◇ conv1" in d.text and "later" in d.text
        assert sentence(d).startswith("◇ conv1 + bn1 stay apart")
        check_text(d, "graph-one-left")
        check_svg(d, "graph-one-left")
        await d.press("up", "space")
        assert "2 of 2 pairs" in d.text

    run(runs, script)


def test_space_on_another_node_says_why_not_and_the_reason_stays(runs: Path) -> None:
    async def script(d: Driver) -> None:
        await opened(d)
        await d.press("g", "space")
        assert sentence(d).startswith("! Only pairs can be marked")
        d.app.refresh_state()
        await d.pilot.pause()
        assert sentence(d).startswith("! Only pairs can be marked")
        await d.press("down")
        assert sentence(d).startswith("◆ conv1")

    run(runs, script)


def test_folding_stays_to_show_the_effect_and_n_goes_on(runs: Path) -> None:
    async def script(d: Driver) -> None:
        await opened(d)
        await d.press("down", "f")
        await d.until(lambda state: state.asking == "quantize")
        assert screen(d).stage == "graph"
        assert "Graph after folding ─ 12 nodes" in d.text
        assert "14 → 12 nodes ─ output changed by ≤ 4.8e-7 ─ 0.36 → 0.31 ms" in d.text
        assert "2.4e-7" in d.text and "bn1" not in keys(d)
        # The normalization that the cursor was on is in its convolution now.
        assert grid(d).cursor == "conv1"
        assert sentence(d).startswith("● 2 pairs folded: 14 nodes became 12")
        check_text(d, "graph-folded")
        await d.press("down", "up")
        assert sentence(d).startswith("● conv1 + bn1 are one layer now: folding changed its output by at most 2.4e-7")
        await d.press("down")
        assert sentence(d).startswith("relu calls torch.relu on conv1")
        await d.press("up", "f")
        assert sentence(d).startswith(f"! {reasons.fold_not_open(d.state)}")
        await d.press("n")
        await d.on("strategy")

    run(runs, script)


def test_n_folds_and_goes_to_the_strategy(runs: Path) -> None:
    async def script(d: Driver) -> None:
        await opened(d)
        await d.press("n")
        await d.until(lambda state: state.asking == "quantize")
        await d.on("strategy")

    assert run(runs, script).answers["optimize"] is True


def test_n_while_folding_goes_when_the_plan_is_there(runs: Path) -> None:
    gate = Gate("fuse")

    async def script(d: Driver) -> None:
        await opened(d)
        await d.press("f")
        await d.until(lambda state: gate.reached.is_set())
        await d.pilot.pause(0.1)
        assert "folding …" in d.text and sentence(d).startswith("Folding 2 pairs")
        await d.press("f")
        assert sentence(d).startswith("! Folding goes on")
        await d.press("n")
        assert sentence(d).startswith("! Not yet")
        gate.opened.set()
        await d.on("strategy")

    run(runs, script, (80, 24), gate)


def test_leaving_by_a_digit_gives_the_hold_back(runs: Path) -> None:
    async def script(d: Driver) -> None:
        await folded(d)
        assert d.app.hold
        await d.press("enter")
        await d.pilot.pause()
        assert d.app.hold
        await d.press("escape", "1")
        await d.on("model")
        await d.pilot.pause()
        assert not d.app.hold
        await d.press("2")
        await d.on("graph")
        assert grid(d).cursor == "conv1"

    run(runs, script)


def test_declined_folding_says_that_pairs_are_left(runs: Path) -> None:
    async def script(d: Driver) -> None:
        await opened(d)
        await d.press("x", "f")
        await d.until(lambda state: state.asking == "quantize")
        # The scripted engine tells a graph after a no as well; the engine itself does not.
        d.app.session.state = replace(d.state, run=replace(d.state.run, fused=()))
        d.app.refresh_state()
        await d.pilot.pause()
        assert "2 pairs left for the conversion" in d.text and "◇ conv1" in d.text
        await d.press("b")
        assert sentence(d).startswith("! Nothing is folded yet")

    run(runs, script)


@pytest.mark.parametrize("size", SIZES)
def test_before_and_after(runs: Path, size: tuple[int, int]) -> None:
    async def script(d: Driver) -> None:
        await folded(d)
        await d.press("b")
        assert "Graph before folding ─ 14 nodes" in d.text
        assert ("Graph after folding ─ 12 nodes" in d.text) is (size[0] >= 100)
        assert "bn1" in keys(d)
        if size[0] >= 100:
            assert len(keys(d)) == len(keys(d, "after"))
            await d.press("down")
            assert (grid(d).cursor, grid(d, "after").cursor) == ("bn1", "conv1")
            await d.press("down")
            assert (grid(d).cursor, grid(d, "after").cursor) == ("relu", "relu")
            check_text(d, "graph-compare")
        await d.press("b")
        assert "Graph after folding" in d.text and "Graph before" not in d.text

    run(runs, script, size)


def test_tables_side_by_side_scroll_together_and_narrow_windows_show_one(runs: Path) -> None:
    nodes, pairs = deep(60)
    done = ev.Pairs(tuple(replace(pair, max_abs_delta=1e-7) for pair in pairs.pairs), 1e-6)
    kept = tuple(n for n in nodes if "_bn" not in n.name)

    async def script(d: Driver) -> None:
        await shown(d, nodes, done, fused=kept, stages={"graph": "done"}, at="strategy")
        await d.press("b", "G")
        await d.pilot.pause()
        first, second = grid(d), grid(d, "after")
        assert first.cursor == second.cursor == "output"
        assert first.scroll_offset.y == second.scroll_offset.y > 100
        await d.press("tab", "g")
        await d.pilot.pause()
        assert second.has_focus and first.cursor == "x" and first.scroll_offset.y == second.scroll_offset.y == 0
        await d.resize(80, 24)
        assert "Graph before folding" in d.text and "Graph after folding" not in d.text
        assert first.has_focus

    run(runs, script, (120, 30))


def test_filter(runs: Path) -> None:
    async def script(d: Driver) -> None:
        await opened(d)
        await d.press("slash", *"conv")
        assert "4 of 14" in d.text
        await d.press("enter")
        assert grid(d).has_focus and screen(d).query_one(FilterBar).text == "conv"
        assert set(keys(d)) == {"conv1", "bn1", "conv2", "bn2"} and "4 of 14 nodes" in d.text
        await d.press("j", "space")
        assert "1 of 2 pairs" in d.text
        await d.press("escape")
        assert len(keys(d)) == 14 and grid(d).cursor == "bn1"
        await d.press("slash", *"zz", "enter")
        assert "No node holds “zz”" in d.text
        d.app.action_do("detail")
        await d.pilot.pause()
        assert sentence(d).startswith("! There is no node")
        await d.press("escape")
        assert len(keys(d)) == 14

    run(runs, script)


def test_enter_tells_everything(runs: Path) -> None:
    async def script(d: Driver) -> None:
        await opened(d)
        await d.press("enter")
        await d.pilot.pause()
        assert "call_module" in d.text and "896, <1 % of the model" in d.text and "read by" in d.text
        await d.press("escape")
        assert d.app.screen is screen(d)

    run(runs, script)


def test_refused_pairs_and_warnings(runs: Path) -> None:
    async def script(d: Driver) -> None:
        await shown(d, BRANCHED, BRANCHED_PAIRS, warnings=("conv.b (Conv2d) stays whole, in fp32: a loop (model.py:3)",))
        assert "1 refused" in d.text and "! 1 warning (L)" in d.text and "✗ bn_c" in d.text
        await d.press("G", "up", "up")
        assert sentence(d) == f"✗ conv.c + bn.c cannot be folded: {REASON}. bn.c stays a layer of its own."
        await d.press("g", "down", "down")
        assert sentence(d).startswith("! conv.b (Conv2d) stays whole")
        await d.resize(132, 24)
        assert REASON in d.text
        check_text(d, "graph-refused")

    run(runs, script)


def test_space_on_a_refused_pair_says_why(runs: Path) -> None:
    async def script(d: Driver) -> None:
        await opened(d)
        d.app.session.state = replace(d.state, run=replace(d.state.run, traced=BRANCHED, pairs=BRANCHED_PAIRS))
        d.app.refresh_state()
        await d.pilot.pause()
        await d.press("G", "up", "up", "space")
        assert sentence(d) == f"! conv.c + bn.c cannot be folded: {REASON}"

    run(runs, script)


def test_nothing_to_fold_is_said(runs: Path) -> None:
    async def script(d: Driver) -> None:
        await opened(d)
        d.app.session.state = replace(d.state, run=replace(d.state.run, pairs=ev.Pairs(())))
        d.app.refresh_state()
        await d.pilot.pause()
        assert "no pair to fold" in d.text
        await d.press("f")
        assert sentence(d).startswith("! No pair can be folded here")
        await d.press("n")
        await d.on("strategy")

    assert run(runs, script).answers["optimize"] is True


def test_while_tracing_the_pane_says_so(runs: Path) -> None:
    gate = Gate("trace")

    async def script(d: Driver) -> None:
        await d.press("n")
        await d.on("graph")
        await d.until(lambda state: gate.reached.is_set())
        await d.pilot.pause(0.1)
        assert "Tracing …" in d.text and "stands here when it is traced" in d.text
        await d.press("space")
        assert sentence(d).startswith("! There is no graph yet")
        gate.opened.set()
        await d.until(lambda state: state.asking == "optimize")
        assert grid(d).cursor == "conv1"

    run(runs, script, (80, 24), gate)


def test_a_reopened_run_that_ended_before_its_plan(runs: Path) -> None:
    async def script(d: Driver) -> None:
        await shown(d, BRANCHED, BRANCHED_PAIRS, stages={"graph": "stopped"})
        assert "2 pairs left for the conversion" in d.text
        await d.press("n")
        assert sentence(d).startswith("! This run ended before there was a plan")

    run(runs, script)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_shows_what_matters(runs: Path, size: tuple[int, int]) -> None:
    async def script(d: Driver) -> None:
        await opened(d)
        assert "◆ conv1" in d.text and "Graph ─ 14 nodes" in d.text and "n strategy ▸" in d.text and "folds" in d.text
        assert len(d.text.splitlines()) == size[1] and all(len(line) <= size[0] for line in d.text.splitlines())
        await d.press("slash", "v", "enter", "f")
        await d.until(lambda state: state.asking == "quantize")
        assert "● conv1" in d.text and "14 → 12 nodes" in d.text

    run(runs, script, size)


def test_a_graph_of_1500_nodes_answers_keys_quickly(runs: Path) -> None:
    nodes, pairs = deep(500)

    async def script(d: Driver) -> None:
        await opened(d)
        d.app.session.state = replace(d.state, run=replace(d.state.run, traced=nodes, pairs=pairs))
        d.app.refresh_state()
        await d.pilot.pause()
        shown = screen(d)
        for act, limit in ((lambda: grid(d).action_edge(1), 0.2), (lambda: shown.action_do("mark"), 0.5), (d.app.refresh_state, 0.1)):
            # What else the machine does is no time of this.
            began = time.process_time()
            act()
            assert time.process_time() - began < limit
        assert "1,502 nodes" in d.text

    run(runs, script)
