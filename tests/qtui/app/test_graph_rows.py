"""What the graph's tables and sentences say, without a screen."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
from graphs import BRANCHED, BRANCHED_PAIRS, REASON, deep, node
from scripted_engine import NODES, PAIRS, REFUSED

from engine.events import event as ev
from engine.recipe.decisions import Fold
from qtui import messages as ms
from qtui import reasons
from qtui.drawing.columns import arrange
from qtui.drawing.rows import Cell, Row, measure, text_of
from qtui.drawing.spans import plain
from qtui.drawing.table_lines import header, row_line
from qtui.reducer import reduce
from qtui.screens.graph_look import Look, brackets, reads
from qtui.screens.graph_modules import by_path, module_table
from qtui.screens.graph_rows import Table, aligned, chosen, delta, share, table
from qtui.screens.graph_text import details, effect, empty, fitting, sentence, subtitle, title
from qtui.state import Run, State

LOOK = Look(NODES, pairs=ev.Pairs(PAIRS))
BRANCHES = Look(BRANCHED, pairs=BRANCHED_PAIRS)
DONE = ev.Pairs(tuple(replace(pair, max_abs_delta=2.4e-7) for pair in PAIRS), 4.8e-7, 0.36, 0.31)
AFTER = tuple(replace(n, args=n.args.replace("bn", "conv")) for n in NODES if n.name not in ("bn1", "bn2"))
FOLDED = Look(NODES, AFTER, DONE, phase="closed")


def lines(found: Table, width: int = 76) -> list[str]:
    plan = arrange(found.columns, measure(found.columns, found.rows), width)
    return [plain(line).rstrip() for line in (header(plan, found.columns), *(row_line(plan, found.columns, row) for row in found.rows))]


def cell(row: Row, found: Table, key: str) -> str | Cell:
    return row.cells[[column.key for column in found.columns].index(key)]


def row(found: Table, name: str) -> Row:
    return next(r for r in found.rows if r.key == name)


def test_brackets_of_pairs_that_overlap_stand_in_lanes_of_their_own() -> None:
    drawn = brackets(BRANCHED, BRANCHED_PAIRS.pairs)
    assert [drawn[n.name] for n in BRANCHED] == ["  ", "┌ ", "│┌", "└│", " └", "  ", "┌ ", "└ ", "  ", "  "]


def test_brackets_are_bounded_and_absent_nodes_have_none() -> None:
    count = 8
    nodes = [node(f"conv_{i}") for i in range(count)] + [node(f"bn_{i}") for i in range(count)]
    pairs = [ev.PairRow(f"conv.{i}", f"bn.{i}", f"conv_{i}", f"bn_{i}") for i in range(count)]
    assert {len(text) for text in brackets(nodes, pairs).values()} == {3}
    assert set(brackets(NODES, (REFUSED,)).values()) == {""}


def test_a_row_shows_fate_by_glyph_word_and_role() -> None:
    found = table(replace(BRANCHES, left=frozenset({"bn.b"})), BRANCHED, "wide", 110)
    names = {n: cell(row(found, n), found, "name") for n in ("conv_a", "conv_b", "conv_c", "add")}
    assert names == {
        "conv_a": Cell("┌  ◆ conv_a", "change"), "conv_b": Cell("│┌ ◇ conv_b", ""), "conv_c": Cell("┌  ✗ conv_c", "harm"),
        "add": "     add",
    }  # fmt: skip
    words = {n: text_of(cell(row(found, n), found, "fold")) for n in ("conv_a", "bn_b", "conv_c", "bn_c", "add")}
    assert words == {"conv_a": "folds", "bn_b": "later", "conv_c": "refused", "bn_c": REASON, "add": ""}


def test_columns_that_have_no_room_go_least_important_first() -> None:
    wide, narrow = table(LOOK, NODES, "wide", 116), table(LOOK, NODES, "narrow", 76)
    assert lines(wide, 116)[0].split() == ["name", "opcode", "target", "args", "kwargs", "shape", "params", "time", "%", "fold"]
    assert lines(narrow, 76)[0].split() == ["name", "opcode", "target", "args", "shape", "time", "%", "fold"]
    assert lines(narrow, 56)[0].split() == ["name", "target", "shape", "time", "%", "fold"]
    assert lines(narrow, 36)[0].split() == ["name", "time", "%", "fold"]


def test_without_pairs_there_is_no_column_for_folding_and_no_room_for_brackets() -> None:
    found = table(Look(NODES, pairs=ev.Pairs(())), NODES, "narrow", 76)
    assert "fold" not in [column.key for column in found.columns]
    assert row(found, "fc1").cells[0] == "fc1"


def test_where_names_are_long_what_repeats_them_goes_before_they_are_cut() -> None:
    names = [f"features_{i}_conv_0_{j}" for i in range(14) for j in range(2)]
    nodes = [node(name, reads) for name, reads in zip(names, ["x", *names], strict=False)]
    look = Look(tuple(nodes), pairs=ev.Pairs((ev.PairRow("a", "b", names[0], names[1]),)))
    narrow = lines(table(look, nodes, "narrow", 74), 76)
    assert narrow[0].split() == ["name", "opcode", "args", "shape", "time", "%", "fold"]
    assert "features_13_conv_0_1" in narrow[-1] and " 10.0" in narrow[-1]
    wide = lines(table(look, nodes, "wide", 114), 116)
    assert "  module  ·" in wide[-1] and "features_13_conv_0_1" in wide[-1] and "features_13_conv_0_0" in wide[-1]
    assert lines(table(look, nodes, "narrow", 34), 36)[-1].endswith(" 10.0")


def test_bars_are_parts_of_the_largest_share() -> None:
    found = table(LOOK, NODES, "narrow", 110)
    bar = cell(row(found, "conv1"), found, "time")
    assert isinstance(bar, Cell) and bar.bar == 1.0 and bar.text == "31"
    assert text_of(cell(row(table(BRANCHES, BRANCHED, "narrow", 110), "add_1"), table(BRANCHES, BRANCHED, "narrow", 110), "time")) == ""


def test_a_filter_keeps_the_columns_where_they_are() -> None:
    found = table(LOOK, NODES, "narrow", 110)
    kept = chosen(LOOK, found.rows, "conv call_module")
    assert [r.key for r in kept] == ["conv1", "bn1", "conv2", "bn2"]
    assert lines(Table(found.columns, kept))[0] == lines(found)[0]
    assert chosen(LOOK, found.rows, "nothing like this") == ()


def test_side_by_side_rows_stand_at_the_same_height() -> None:
    before, after = aligned(FOLDED, 50)
    assert len(before.rows) == len(after.rows) == 14
    gap = after.rows[2]
    assert not gap.selectable and "in conv1" in gap.cells and before.rows[2].key == "bn1"
    assert [a.key for a, b in zip(before.rows, after.rows, strict=True) if a.key != b.key] == ["bn1", "bn2"]
    assert text_of(cell(after.rows[1], after, "fold")) == "2.4e-7"
    assert [r.key for r in chosen(FOLDED, after.rows, "bn1")] == [" bn1", "relu"]
    assert [r.key for r in chosen(FOLDED, table(FOLDED, AFTER, "narrow", 110).rows, "bn1", before=False)] == []


def test_reads_takes_names_and_not_parameters() -> None:
    known = {"x": 0, "dim": 0, "pool_1": 0}
    assert reads(ev.NodeRow("call_function", "cat", "torch.cat", "[x, pool_1]", "dim=1", "", 0), known) == ("x", "pool_1")
    assert reads(ev.NodeRow("call_function", "f", "f", "x, x", "weight=dim, pool_1=None", "", 0), known) == ("x", "dim")
    assert reads(ev.NodeRow("placeholder", "y", "x", "x", "", "", 0), known) == ()


@pytest.mark.parametrize(
    ("left", "later", "answer"),
    [
        ((), (), True),
        (("bn1", "bn2"), (), False),
        (("bn1",), (), Fold(("bn2",))),
        # A yes would leave what the recipe leaves.
        ((), ("bn1",), Fold(("bn1", "bn2"))),
    ],
)
def test_answer(left: tuple[str, ...], later: tuple[str, ...], answer: object) -> None:
    assert replace(LOOK, left=frozenset(left), asked_later=later).answer() == answer


def test_answer_where_nothing_can_be_folded_is_yes() -> None:
    assert Look(NODES, pairs=ev.Pairs((REFUSED,))).answer() is True


def test_phase_follows_the_run() -> None:
    state = reduce(State(), ms.JobStarted("run", "loading", "m", "d"))
    for event, phase in (
        (ev.StageStarted("trace", "Tracing"), "open"), (ev.Graph("traced", NODES), "open"), (ev.Pairs(PAIRS), "working"),
        (ms.Asking("optimize", True), "open"), (ms.Answered("optimize"), "working"), (ev.StageStarted("fuse", "Folding"), "working"),
        (ev.Graph("fused", AFTER), "working"),
    ):  # fmt: skip
        state = reduce(state, event)
        assert Look.of(state).phase == phase, event
        assert not Look.of(state).folded
    state = reduce(state, DONE)
    assert Look.of(state).folded
    state = reduce(state, ev.StageStarted("plan", "Planning"))
    assert Look.of(state).phase == "closed"
    # The same run from its journal, and one that declined.
    assert Look.of(replace(state, job=None)).folded
    declined = replace(state, run=replace(state.run, fused=(), pairs=ev.Pairs(PAIRS)))
    assert [Look.of(declined).fate(pair) for pair in PAIRS] == ["later", "later"]


def test_titles_say_what_is_shown_and_what_is_to_decide() -> None:
    assert title(BRANCHES, "10", 76) == "Graph ─ 10 nodes ─ 2 of 2 pairs to fold ─ 1 refused"
    assert title(BRANCHES, "3 of 10", 30) == "Graph ─ 3 of 10 nodes"
    assert title(replace(LOOK, left=frozenset({"bn1"})), "14", 76).endswith("1 of 2 pairs to fold")
    assert title(replace(LOOK, phase="working"), "14", 76).endswith("folding …")
    assert title(replace(LOOK, phase="closed"), "14", 76).endswith("2 pairs left for the conversion")
    assert title(replace(LOOK, pairs=ev.Pairs(())), "14", 76).endswith("no pair to fold")
    assert title(replace(LOOK, pairs=None), "14", 76) == "Graph ─ 14 nodes"
    assert title(FOLDED, "12", 76) == "Graph after folding ─ 12 nodes"
    assert title(FOLDED, "14", 76, before=True) == "Graph before folding ─ 14 nodes"
    assert fitting(("a", "", "b"), 1) == "a"


def test_effect_is_told_in_the_border_and_as_a_sentence() -> None:
    assert subtitle(LOOK, 76) == "" and effect(LOOK) == ""
    assert subtitle(FOLDED, 76) == "14 → 12 nodes ─ output changed by ≤ 4.8e-7 ─ 0.36 → 0.31 ms ─ 2 pairs folded"
    assert subtitle(replace(FOLDED, warnings=("a", "b")), 40) == "14 → 12 nodes ─ ! 2 warnings (L)"
    assert subtitle(replace(LOOK, warnings=("a",)), 40) == "! 1 warning (L)"
    assert effect(FOLDED).startswith("● 2 pairs folded: 14 nodes became 12, the output changed by at most 4.8e-7, 0.36 → 0.31 ms an image.")
    one = replace(FOLDED, pairs=replace(DONE, pairs=(DONE.pairs[0], PAIRS[1]), ms_before=None, change=None))
    assert effect(one).startswith("● 1 pair folded: 14 nodes became 12. 1 pair left for the conversion.")


def test_sentences_say_what_a_node_is_and_what_folding_does() -> None:
    by_name = {n.name: n for n in NODES}
    assert sentence(LOOK, by_name["bn1"]).startswith("◆ conv1 + bn1 fold into one layer: nothing else reads conv1. space leaves it")
    assert sentence(replace(LOOK, left=frozenset({"bn1"})), by_name["conv1"]).endswith("space folds it now.")
    assert sentence(FOLDED, by_name["conv1"]).endswith("at most 2.4e-7.")
    assert sentence(BRANCHES, BRANCHED[7]) == f"✗ conv.c + bn.c cannot be folded: {REASON}. bn.c stays a layer of its own."
    assert (
        sentence(LOOK, by_name["fc1"])
        == "fc1 is a module on flatten: 524,416 parameters (96 %), 7 % of the fp32 time. ⏎ tells everything about it."
    )
    assert sentence(LOOK, by_name["pool_1"]).startswith("pool_1 is the module pool on relu_1")
    assert sentence(LOOK, by_name["relu"]).startswith("relu calls torch.relu on bn1: 6 %")
    assert "N stands for the batch. ◆" in sentence(LOOK, by_name["x"])
    assert sentence(LOOK, by_name["output"]) == "The model gives back fc2."
    assert sentence(replace(LOOK, phase="working"), by_name["fc1"]).startswith("Folding 2 pairs")
    assert sentence(LOOK, None) == ""
    warned = replace(LOOK, warnings=("fc1 (Odd) stays whole, in fp32: a loop (model.py:3)",))
    assert sentence(warned, by_name["fc1"]) == "! fc1 (Odd) stays whole, in fp32: a loop (model.py:3)"


def test_sentences_fit_two_lines_of_80_cells() -> None:
    nodes, pairs = deep(3)
    for look in (Look(nodes, pairs=pairs), Look(nodes, pairs=pairs, left=frozenset(p.bn for p in pairs.pairs)), FOLDED):
        assert all(len(sentence(look, n)) <= 152 for n in look.traced)
    assert len(effect(FOLDED)) <= 152


def test_long_paths_leave_room_for_the_keys() -> None:
    pair = ev.PairRow("features.denseblock1.denselayer12.conv1", "features.denseblock1.denselayer12.norm2", "c", "b")
    nodes = (node("c", target=pair.conv), node("b", "c", target=pair.bn))
    look = Look(nodes, pairs=ev.Pairs((pair,)))
    said = sentence(look, nodes[0])
    assert len(said) <= 152 and "nothing else reads conv1." in said and said.endswith("folds all ◆.")
    numbered = ev.PairRow("features.1.conv.0.0", "features.1.conv.0.1", "c", "b", "it is odd")
    assert sentence(replace(look, pairs=ev.Pairs((numbered,))), nodes[0]).endswith("it is odd. features.1…0.1 stays a layer of its own.")


def test_details_hold_every_field_in_full() -> None:
    text = details(BRANCHES, BRANCHED[6]).plain
    for part in (
        "call_module",
        "conv_c",
        "conv.c",
        "N×8×4×4",
        "300, 46 % of the model",
        "10 % of the fp32 time",
        "reads       add",
        "bn_c, add_1",
        REASON,
    ):
        assert part in text
    assert re.search(r"read by +relu\n", details(FOLDED, AFTER[1], before=False).plain)


def test_names_from_a_model_do_not_steer_the_terminal() -> None:
    odd = node("x\x1b[2J", target="evil\x1b]0;title\x07")
    look = Look((odd,), pairs=ev.Pairs((ev.PairRow("a\x1b[1m", "b", odd.name, "b"),)))
    assert "\x1b" not in details(look, odd).plain
    assert "\x1b" not in "".join(lines(table(look, (odd,), "wide", 110), 100))


def test_empty_states_say_what_to_do() -> None:
    state = State()
    assert "Choose a model (1)" in empty(state, "")
    running = reduce(reduce(state, ms.JobStarted("run", "loading resnet18", "resnet18", "d")), ev.StageStarted("trace", "Tracing"))
    assert empty(running, "").startswith("Tracing …\nThe graph of resnet18")
    failed = reduce(running, ms.JobEnded("run", "failed"))
    assert "failed before there was a graph" in empty(failed, "")
    assert "kept no graph" in empty(replace(state, run=replace(state.run, directory="runs/1")), "")
    traced = reduce(running, ev.Graph("traced", NODES))
    assert empty(traced, "zzz") == "No node holds “zzz”.\nEsc shows all."


@pytest.mark.parametrize(("value", "text"), [(2.4e-7, "2.4e-7"), (0.0, "0"), (1.0, "1.0e0"), (3.81e-06, "3.8e-6")])
def test_delta(value: float, text: str) -> None:
    assert delta(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, ""), (0.0, "0"), (0.004, "<1"), (0.314, "31"), (1.0, "100")])
def test_share(value: float | None, text: str) -> None:
    assert share(value) == text


def test_a_graph_of_1500_nodes_is_laid_out_quickly() -> None:
    nodes, pairs = deep(500)
    look = Look(nodes, pairs=pairs)
    took = []
    for _ in range(3):
        # What else the machine does is no time of this.
        began = time.process_time()
        found = table(look, nodes, "narrow", 110)
        took.append(time.process_time() - began)
        assert len(found.rows) == 1502
    assert min(took) < 0.5


MODULES = (
    ev.NodeRow("module", "transformer", "GPT2Model", "", "", "", 0),
    ev.NodeRow("module", "transformer.wte", "Embedding", "2048 × 256", "", "N×T×256", 524288, 0.001),
    ev.NodeRow("module", "transformer.h.0.c_fc", "Conv1D", "256 → 1024", "", "N×T×1024", 263168, 0.05),
    ev.NodeRow("module", "lm_head", "Linear", "256 → 2048", "tied to transformer.wte", "N×T×2048", 0, 0.1),
)


def test_a_language_model_shows_its_modules_as_a_tree() -> None:
    look = Look(MODULES)
    found = module_table(MODULES)
    assert [(r.indent, r.cells[0]) for r in found.rows] == [(0, "transformer"), (1, "wte"), (3, "c_fc"), (0, "lm_head")]
    assert [column.title for column in found.columns] == ["module", "kind", "matrix", "output", "params", "time %"]
    assert [r.cells[0] for r in by_path(found.rows)] == ["transformer", "wte", "0.c_fc", "lm_head"]
    assert title(look, "4", 80) == "Graph ─ 4 modules ─ nothing to fold"


def test_a_module_is_told_by_its_matrix_and_what_it_costs() -> None:
    look = Look(MODULES)
    said = [sentence(look, found) for found in MODULES]
    assert said[0].startswith("transformer: GPT2Model; 2 modules are in it.")
    assert "Embedding of 2048 rows of 256" in said[1] and "0.1 % of the fp32 time" in said[1]
    assert "Conv1D, 256 inputs to 1024 outputs; 263,168 parameters" in said[2]
    assert "tied to transformer.wte" in said[3] and "reads" not in " ".join(said)
    assert "opcode" not in details(look, MODULES[2]).plain and "N texts of T tokens" in details(look, MODULES[2]).plain


def test_what_torch_export_sees_has_no_times_and_no_batch_of_n() -> None:
    nodes = (
        ev.NodeRow("placeholder", "ids", "ids", "", "", "1×512", 0),
        ev.NodeRow("call_function", "view", "aten.view", "ids", "", "1×512", 0),
    )  # fmt: skip
    look = Look(nodes)
    assert "time" not in [column.key for column in table(look, nodes, "wide", 110).columns]
    assert title(look, "2", 80) == "Graph ─ 2 nodes ─ of torch.export"
    assert sentence(look, nodes[0]) == "ids is what goes into the model (1×512)."


def test_a_language_model_has_nothing_to_fold() -> None:
    state = State(run=Run(traced=MODULES))
    assert "nothing to fold" in (reasons.fold_not_open(state) or "") and "nothing to fold" in (reasons.not_folded(state) or "")


def test_operations_of_torch_export_are_told_apart_in_a_narrow_window() -> None:
    names = ("aten.view.default", "aten.add.Tensor", "aten._assert_tensor_metadata.default")
    nodes = [ev.NodeRow("call_function", f"n{at}", name, "x", "", "1×512", 0, None) for at, name in enumerate(names)]
    found = table(Look(tuple(nodes)), nodes, "narrow", 76)
    assert [text_of(cell(row, found, "target")) for row in found.rows] == ["view", "add.Tensor", "_assert_tensor_metadata"]
