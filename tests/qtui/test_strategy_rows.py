"""The strategy as lines and sentences: pure functions, no terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.events.event import LayerRow, Planned
from engine.recipe.capabilities import of_decoder
from engine.recipe.presets import PRESETS
from engine.recipe.recipe import Recipe
from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, Rule, WeightSpec
from qtui.draft import Draft
from qtui.drawing.columns import arrange
from qtui.drawing.rows import Cell, measure
from qtui.screens import strategy_detail as detail
from qtui.screens import strategy_files as files
from qtui.screens import strategy_words as words
from qtui.screens.strategy_presets import preset_texts, presets
from qtui.screens.strategy_rows import columns, kernel_of, rows, runs_on, weights_text
from qtui.screens.strategy_tree import Entry, above, closed_at_first, tree, visible
from qtui.state import Run

W8A8 = PRESETS["w8a8"]
W4A8 = LayerSpec(WeightSpec(4, "per-group", 32, "mse"), ActivationSpec())


def row(path: str, shape: tuple[int, ...] = (16, 8, 3, 3), spec: LayerSpec = W8A8, **fields: Any) -> LayerRow:
    made = LayerRow(
        path, "Conv2d", path, 1000, shape, spec, spec, spec, "proposal", f"why {path}", "so", 0.1, "onednn.qconv_pointwise", True
    )
    return replace(made, **fields)


def plan(*layers: LayerRow, bits: int = 8) -> Planned:
    return Planned(layers, "default", bits, 1_000_000)


def resnet(blocks: int) -> tuple[LayerRow, ...]:
    inside = [f"layer{i}.{j}.conv{k}" for i in (1, 2, 3, 4) for j in range(blocks) for k in (1, 2)]
    return tuple(row(path) for path in ("conv1", *inside, "layer4.0.down.0", "fc"))


def lines(draft: Draft, width: int = 80, figures: Any = None, closed: Any = ()) -> dict[str, tuple[str, ...]]:
    entries = visible(tree(draft.plan.layers, "net"), closed)
    made = rows(draft, entries, closed, figures or {}, width, nested=False)
    return {found.key: tuple(cell.text if isinstance(cell, Cell) else cell for cell in found.cells) for found in made}


def test_layers_stand_in_their_modules() -> None:
    entries = tree([row(path) for path in ("conv1", "block.0.a", "block.0.b", "block.1.a", "deep.er.x", "deep.er.y", "head.1")], "net")
    assert [(entry.depth, entry.name, entry.module) for entry in entries] == [
        (0, "net", True), (1, "conv1", False), (1, "block", True), (2, "0", True), (3, "a", False), (3, "b", False), (2, "1.a", False),
        (1, "deep.er", True), (2, "x", False), (2, "y", False), (1, "head.1", False),
    ]  # fmt: skip
    assert above(entries, "block.0.b") == "block.0/" and above(entries, "block.0/") == "block/" and above(entries, "conv1") == "/"
    assert above(entries, "/") == "/"


def test_a_module_with_weights_of_its_own_stands_in_itself() -> None:
    assert [entry.name for entry in tree([row("a"), row("a.b")], "net")] == ["net", "a", "itself", "b"]


def test_repeated_blocks_are_closed_where_there_are_many_layers() -> None:
    few, many = tree(resnet(2), "net"), tree(resnet(6), "net")
    assert closed_at_first(few) == frozenset()
    shut = closed_at_first(many)
    assert {"layer1/", "layer4/", "layer1.0/"} <= shut and "/" not in shut
    assert [entry.name for entry in visible(many, shut)] == ["net", "conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert [entry.name for entry in visible(many, shut - {"layer4/"})][5:-1] == ["layer4", *"012345"]


def test_a_filter_opens_what_it_leaves() -> None:
    entries = tree(resnet(6), "net")
    left = visible(entries, closed_at_first(entries), ["layer2.1.conv1", "fc"])
    assert [(entry.key, len(entry.paths)) for entry in left] == [
        ("/", 2), ("layer2/", 1), ("layer2.1/", 1), ("layer2.1.conv1", 1), ("fc", 1),
    ]  # fmt: skip
    assert visible(entries, (), []) == ()


def test_a_line_says_what_is_asked_and_what_comes_of_it() -> None:
    draft = Draft.of(plan(row("a"), row("b", (64, 512), W4A8), row("bn", (), FP32, editable=False, obstacle="folded into a"), bits=7))
    found = lines(draft)
    assert found["a"] == ("a", "w8", "a8→7", "33.3", "10.0", "onednn qconv")
    assert found["b"][1] == "w4 g32 mse"
    assert found["bn"][1:3] == ("–", "–")
    assert lines(draft.edit("activations", ["a"]).draft)["a"][2] == "a7"
    assert lines(draft.edit("keep", ["a"]).draft)["a"][1:3] == ("fp32", "–")
    assert lines(draft, 40)["a"][1:3] == ("w8", "a8→7")


def test_what_cannot_be_is_told_behind_an_arrow() -> None:
    wide = LayerSpec(WeightSpec(8, "per-group", 32), ActivationSpec())
    draft = Draft.of(plan(row("a", (64, 512), wide)))
    assert weights_text(wide, draft.actual("a")[0]) == "w8 g32→channel"
    assert "6 bits or fewer" in words.sentence(draft.edit("observer", ["a"]).draft, tree(draft.plan.layers, "n")[1], 150)


def test_edited_and_marked_lines_carry_a_sign_and_a_role() -> None:
    draft = Draft.of(plan(row("a"), row("b"), row("c"), row("d"))).edit("weights", ["a", "b"]).draft.mark(["b", "c"])
    made = {found.key: found for found in rows(draft, tree(draft.plan.layers, "net"), (), {}, 80)}
    assert [(made[key].glyph, made[key].role) for key in ("/", "a", "b", "c")] == [
        ("*", "change"),
        ("*", "change"),
        ("±", "change"),
        ("+", "change"),
    ]
    assert made["d"].glyph == " " and made["d"].role == ""
    roles = [cell.role for cell in made["a"].cells if isinstance(cell, Cell)]
    assert roles[:3] == ["change", "change", "plain"], "what was not changed is not coloured"
    kept = draft.edit("keep", ["d"]).draft
    assert rows(kept, tree(draft.plan.layers, "net"), (), {}, 80)[4].cells[5].role == "dim"  # type: ignore[union-attr]


def test_a_closed_module_sums_up() -> None:
    layers = (row("x.a"), row("x.b", time_share=0.2), row("y", (64, 512), W4A8))
    draft = Draft.of(plan(*layers))
    figures = {"x.a": {"sqnr_db": 30.0, "actual": str(W8A8)}, "x.b": {"sqnr_db": 20.0, "actual": str(W8A8)}}
    found = lines(draft, 80, figures, ("x/",))
    assert found["x/"] == ("▸ x", "w8", "a8", "66.7", "30.0", "≥ 20.0", "onednn qconv")
    assert lines(draft, 80, figures)["x/"][1:3] == ("", "")
    assert lines(draft.edit("weights", ["x.a"]).draft, 80, figures, ("x/",))["x/"][1] == "mixed"


def test_figures_of_another_strategy_are_dim() -> None:
    draft = Draft.of(plan(row("a")))
    figures = {"a": {"sqnr_db": 30.0, "own_sqnr_db": 31.0, "actual": str(W8A8)}}
    entries = tree(draft.plan.layers, "net")[1:]
    assert rows(draft, entries, (), figures, 80)[0].cells[5] == Cell("30.0", "plain")
    assert rows(draft.edit("weights", ["a"]).draft, entries, (), figures, 80)[0].cells[5] == Cell("30.0", "dim")


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_there_is_a_cell_for_each_column(width: int) -> None:
    draft = Draft.of(plan(*resnet(2)))
    for figures in ({}, {"fc": {"sqnr_db": 1.0}}):
        count = len(columns(width, figures))
        assert all(len(found.cells) == count for found in rows(draft, tree(draft.plan.layers, "net"), (), figures, width))


def test_what_an_edited_layer_runs_on() -> None:
    draft = Draft.of(plan(row("a"), row("b", requested=FP32, actual=FP32, kernel="torch fp32")))
    a, b = draft.plan.layers
    assert (kernel_of(draft, a), runs_on(draft, a)) == ("onednn.qconv_pointwise", "onednn qconv")
    assert kernel_of(draft.edit("keep", ["a"]).draft, a) == "torch fp32"
    again = draft.edit("keep", ["b"]).draft
    assert kernel_of(again, b) == "onednn.qconv_pointwise", "as layers like it were planned"
    stored = replace(draft, specs={**draft.specs, "a": LayerSpec(WeightSpec(4))})
    assert kernel_of(stored, a) == "torch fp32 on weights stored in 4 bits" and runs_on(stored, a) == "torch fp32"
    lone = Draft.of(plan(b)).edit("keep", ["b"]).draft
    assert runs_on(lone, b) == "?"


def entry(draft: Draft, key: str) -> Entry:
    return next(found for found in tree(draft.plan.layers, "net") if found.key == key)


def test_the_sentence_says_why_and_what_the_next_keys_do() -> None:
    draft = Draft.of(plan(row("a"), row("b", (64, 512), W4A8), row("bn", (), FP32, editable=False, obstacle="folded into a")))
    assert words.sentence(draft, entry(draft, "a"), 150).startswith("a: why a. w int6, −0.29 kB · f fp32, +")
    assert words.sentence(draft, entry(draft, "a"), 10) == "a: why a."
    assert words.sentence(draft, entry(draft, "bn"), 150) == "bn: Conv2d, folded into a."
    assert words.sentence(draft, None, 150) == ""
    assert words.sentence(draft, entry(draft, "/"), 150).startswith("net: 2 layers to quantize. A key here changes all of them; h closes")
    assert words.sentence(draft, entry(draft, "/"), 150).endswith("one layer. P plans within a size.")
    assert words.sentence(draft, entry(draft, "/"), 100).endswith("one layer.")
    assert words.sentence(draft, entry(draft, "/"), 150, searched="at most 3 ms").endswith("n searches a plan of at most 3 ms.")
    six = draft.edit("weights", ["a"]).draft
    said = words.sentence(six, entry(six, "a"), 200)
    assert said.startswith("a: int6 weights instead of int8. z as proposed · w int4, −")
    many = six
    for edit in ("granularity", "rounding", "symmetric", "observer"):
        many = many.edit(edit, ["a"]).draft
    said = words.sentence(many, entry(many, "a"), 146)
    assert "instead of" in words.sentence(many, entry(many, "a"), 400) and len(said) <= 146
    assert said.startswith("a: w6 g32 mse · a8 sym. d lists its 5 changes to the proposal.")
    kept = six.edit("keep", ["a"]).draft
    said = words.sentence(kept, entry(kept, "a"), 200)
    assert said.startswith("a: kept in fp32 instead of int8. It computes as before and saves nothing. f w6 · a8")
    back = replace(draft, plan=replace(draft.plan, layers=tuple(replace(r, requested=FP32) for r in draft.plan.layers)))
    assert words.sentence(back, entry(back, "a"), 30) == "a: as proposed, w8 · a8. So."


@pytest.mark.parametrize(
    ("edits", "words_"),
    [
        (["activations"] * 4, "weight-only"), (["weights"] * 2, "better with m"),
        (["granularity"], "one scale for all"), (["activations"] * 3, "usually need training"),
    ],
)  # fmt: skip
def test_what_a_newcomer_should_know(edits: list[Any], words_: str) -> None:
    draft = Draft.of(plan(row("a")))
    for name in edits:
        draft = draft.edit(name, ["a"]).draft
    assert words_ in words.sentence(draft, entry(draft, "a"), 300).lower()


def test_title_and_total() -> None:
    draft = Draft.of(plan(*resnet(2))).edit("keep", ["fc"]).draft.mark(["fc"])
    assert words.title(draft, 80) == "Strategy ─ 18 layers quantized ─ 1 kept in fp32 ─ 1 edited ─ 1 marked"
    assert words.title(draft, 60, "3 of 19") == "Strategy ─ 3 of 19 ─ 18 quantized ─ 1 fp32 ─ 1 edited ─ 1 marked"
    assert words.title(draft.unmark(), 40) == "Strategy ─ 18 quantized ─ 1 edited"
    assert words.title(draft.planned_from("w4", ()), 80).startswith("Strategy ─ w4 ─ 19 layers")
    assert " → " in words.total(draft, 80) and words.total(draft, 80).endswith("smaller") and "×" not in words.total(draft, 40)
    larger = replace(draft, plan=replace(draft.plan, fp32_bytes=1000, layers=()))
    assert words.total(larger, 80).endswith("larger")


def test_every_preset_has_its_sentence_and_size() -> None:
    draft = Draft.of(plan(*resnet(2)))
    shown = presets(draft, ())
    assert {name for name, _ in shown} == {"default", *PRESETS} - {"w8a8-static"}
    assert all(len(line) <= 72 and "B  " in line for _, line in shown)


def test_detail_and_reading() -> None:
    draft = Draft.of(plan(row("a"), row("bn", (), FP32, editable=False, obstacle="folded into a"))).edit("weights", ["a"]).draft
    a, bn = draft.plan.layers
    cells = {line.key: [cell.text if isinstance(cell, Cell) else cell for cell in line.cells] for line in detail.detail(draft, a)}
    assert cells["weight bits"][1:4] == ["int6", "int8", "w int4"] and cells["granularity"][3] == "c group 32"
    assert cells["runs on"][1] == "onednn.qconv_pointwise" and cells["runs on"][3].startswith("f fp32, +")
    assert detail.detail(draft, bn)[0].cells[1] == "folded into a"
    text = detail.reading(draft, a, {"sqnr_db": 30.04, "own_sqnr_db": 33.0, "actual": "w8"})
    assert "why a" in text and "proposed int8" in text and "measured as w8: SQNR 30.0 dB, 33.0 dB of its own" in text
    assert detail.reading(draft, bn, {})
    assert detail.detail_title(draft, a) == "a ─ Conv2d ─ 72 inputs to each of 16 outputs ─ 1,000 parameters"
    fp32 = draft.edit("keep", ["a"]).draft
    assert {line.key: line.cells[3] for line in detail.detail(fp32, a)}["observer"] == "–"


def test_differences_as_text() -> None:
    draft = Draft.of(plan(row("a"), row("bb")))
    assert detail.diff_text(draft) == "Every layer is as proposed."
    text = detail.diff_text(draft.edit("keep", ["a"]).draft)
    assert text.startswith("a   +") and text.endswith("\n  w8 per-channel, a8 per-tensor\n  → fp32")


def test_a_recipe_is_saved_and_read_again(tmp_path: Path) -> None:
    draft = Draft.of(plan(row("a"), row("b"))).edit("keep", ["a"]).draft
    run = Run(model="path/to/my model.py:make", data="digits", recipe={"model": "simplecnn", "qat": {"mode": "always", "epochs": 3}})
    assert files.default_name(run) == "make-digits.recipe.yaml"
    target = tmp_path / "new" / "a.recipe.yaml"
    assert files.wrong_target(str(target)) is None and files.save(target, run, draft) is None
    assert files.load(str(target)) == ("default", Recipe.load(target).layer_rules())
    assert [rule.match for rule in Recipe.load(target).rules] == ["a"] and Recipe.load(target).qat.mode == "always"
    assert files.measured_again(run, draft)["qat"] == {"mode": "auto", "epochs": 3}
    assert files.wrong_source(str(target)) is None


def test_wrong_files_are_told_in_one_line(tmp_path: Path) -> None:
    run = Run(recipe={"model": "simplecnn", "seed": -1})
    draft = Draft.of(plan(row("a")))
    (tmp_path / "bad.yaml").write_text("model: simplecnn\nrulez: []\n")
    (tmp_path / "file").write_text("")
    for said in (
        files.wrong_target(""), files.wrong_target(str(tmp_path)), files.wrong_target(str(tmp_path / "file" / "x.yaml")),
        files.wrong_source(""), files.wrong_source(str(tmp_path / "none.yaml")), files.wrong_source(str(tmp_path / "bad.yaml")),
        files.save(tmp_path / "x.yaml", run, draft), files.save(tmp_path / "file" / "x.yaml", Run(recipe={"model": "simplecnn"}), draft),
    ):  # fmt: skip
        assert said and "\n" not in said
    assert not (tmp_path / "x.yaml").exists()


SLOWER = {"int8_ms": 0.3, "fp32_ms": 0.1}


def test_a_slower_layer_is_marked_in_any_window() -> None:
    draft = Draft.of(plan(row("a", int8_ms=0.1, fp32_ms=0.25), row("b", **SLOWER), row("c", int8_ms=0.1, fp32_ms=0.1), row("d")))
    narrow, wide = lines(draft), lines(draft, 120)
    assert [narrow[key][-1] for key in "abcd"] == ["onednn qconv", "int8 slower", "onednn qconv", "onednn qconv"]
    at = [column.key for column in columns(120, {}, True)].index("alone")
    assert [wide[key][at] for key in "abcd"] == ["2.5× faster", "3.0× slower", "as fast", ""]
    assert wide["b"][-1] == "onednn qconv"
    (marked,) = (cell for found in rows(draft, tree(draft.plan.layers, "net"), (), {}, 120) if found.key == "b" for cell in found.cells
                 if isinstance(cell, Cell) and cell.role == "harm")  # fmt: skip
    assert marked.text == "3.0× slower"
    assert lines(draft.edit("keep", ["b"]).draft)["b"][-1] == "torch fp32", "in fp32 there is nothing to warn of"


def test_without_a_measurement_there_is_no_column() -> None:
    assert "alone" not in [column.key for column in columns(120, {})]
    assert lines(Draft.of(plan(row("a"))), 120)["a"][-1] == "onednn qconv"


def test_a_closed_module_counts_its_slower_layers() -> None:
    draft = Draft.of(plan(row("m.a", **SLOWER), row("m.b", **SLOWER), row("c")))
    at = [column.key for column in columns(120, {}, True)].index("alone")
    assert lines(draft, 120, closed={"m/"})["m/"][at] == "2 slower"


def test_what_was_measured_alone_is_part_of_a_layers_details() -> None:
    told = "alone, one image: 0.300 ms on integers, 0.100 ms in fp32"
    draft = Draft.of(plan(row("a", **SLOWER)))
    made = draft.plan.layers[0]
    assert told in detail.reading(draft, made, {}) and detail.detail(draft, made)[-1].cells[-1] == Cell(told, "dim")
    edited = draft.edit("weights", ["a"]).draft
    said = words.sentence(edited, tree(draft.plan.layers, "n")[1], 300)
    assert "int6 weights instead of int8. Slower here than fp32, alone, one image: 0.300 ms" in said
    assert "lower" not in words.sentence(draft.edit("keep", ["a"]).draft, tree(draft.plan.layers, "n")[1], 300)


def decoder(path: str, kind: str = "Conv1D", **fields: Any) -> LayerRow:
    spec = LayerSpec(WeightSpec(8, "per-channel"), None if kind == "Embedding" else ActivationSpec(8, dynamic=True))
    return row(path, (512, 256), spec, kind=kind, capabilities=of_decoder(kind, True), kernel="dnnl dynamic", **fields)


def test_an_embedding_has_no_activations_to_round() -> None:
    made = decoder("wte", "Embedding")
    draft = Draft.of(plan(made, decoder("h.0.c_fc")))
    shown = lines(draft)
    assert shown["wte"][2] == "–" and shown["h.0.c_fc"][2] == "a8 dynamic"
    assert detail.detail_title(draft, made) == "wte ─ Embedding ─ 512 rows of 256 ─ 1,000 parameters"
    assert {line.key: line.cells[1] for line in detail.detail(draft, made)}["activations"] == Cell("–", "")
    block = draft.layer("h.0.c_fc")
    assert block and {line.key: line.cells[3] for line in detail.detail(draft, block)}["mapping"] == "s affine weights"


def test_a_decoders_layer_that_was_edited_names_no_kernel_that_was_not_planned() -> None:
    first, second = decoder("h.0.c_fc"), decoder("h.1.c_fc")
    draft = Draft.of(plan(first, second)).edit("activations", ["h.0.c_fc"]).draft
    assert kernel_of(draft, first) == "told when it is planned" and kernel_of(draft, second) == "dnnl dynamic"


def test_every_preset_of_a_language_model_has_words_that_fit_eighty_columns() -> None:
    draft = Draft.of(plan(decoder("h.0.c_fc")))
    assert "w8a8-static" in preset_texts(draft)
    assert max(len(shown) for _, shown in presets(draft, ())) <= 66


def test_everything_about_a_decoders_layer_stands_in_its_columns() -> None:
    draft = Draft.of(plan(decoder("h.0.c_fc")))
    for edit in ("granularity", "symmetric", "activations"):
        draft = draft.edit(edit, ["h.0.c_fc"]).draft
    lines = detail.reading(draft, draft.plan.layers[0], {}).splitlines()
    keyed = {line[55:56] for line in lines if len(line) > 55 and line[56:57] == " "}
    assert keyed >= {"w", "m", "a", "s", "r", "f"}
    assert not any("weightss" in line or "symmetric weightss" in line for line in lines)
    wide = replace(decoder("transformer.h.10.attn.c_attn"), weight_shape=(2304, 768), params=1_771_776)
    assert detail.detail_title(draft, wide) == "10.attn.c_attn ─ Conv1D ─ 768 → 2,304 ─ 1,771,776 parameters"


def test_a_deep_layer_of_forty_columns_still_shows_its_weights() -> None:
    spec = LayerSpec(WeightSpec(4, "per-group", 64, method="gptq+", symmetric=False))
    paths = [f"transformer.h.{block}.{part}.{name}" for block in (0, 1) for part in ("attn", "mlp") for name in ("c_fc", "c_proj")]
    draft = Draft.of(plan(*(replace(decoder(path), requested=spec, actual=spec) for path in paths)))
    made = rows(draft, tree(draft.plan.layers, "gpt2-mini"), (), {}, 40)
    found = columns(40, {})
    shown = [found[place.index].key for place in arrange(found, measure(found, made), 36).places]
    assert "weights" in shown
    assert words.sentence(draft, tree(draft.plan.layers, "gpt2-mini")[-1], 150).startswith("1.mlp.c_proj: ")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_decoders_weights_say_whether_they_are_affine(width: int) -> None:
    spec = LayerSpec(WeightSpec(4, "per-group", 64, symmetric=False, method="hqq"), None)
    draft = Draft.of(plan(*(replace(decoder(path), requested=spec, actual=spec, proposed=spec) for path in ("h.0.a", "h.1.a"))))
    assert lines(draft, width)["h.0.a"][1] == "w4 g64 affine hqq"
    after = draft.edit("symmetric", ["h.0.a", "h.1.a"]).draft
    assert lines(after, width)["h.0.a"][1] == "w4 g64 hqq"
    assert "w4 g64 hqq" in lines(after, width, closed={"h/"})["h/"]


@pytest.mark.parametrize("made", [row, decoder])
def test_who_wrote_no_recipe_is_told_of_the_edit(made: Any) -> None:
    first = Draft.of(plan(made("a.b"), made("a.c", rule="rule *.c", why=Rule("*.c", W8A8).why)))
    edited = made("a.b", rule="rule a.b", why=f"{Rule('a.b', W8A8).why}; slower here")
    draft = first.replanned(plan(edited, first.plan.layers[1]))
    said = [words.sentence(draft, Entry(path, path, 1, (path,), False), 300) for path in ("a.b", "a.c")]
    assert "b: your edit asks for it; slower here." in said[0] and "c: the recipe's rule '*.c' asks for it." in said[1]
    assert detail.reading(draft, edited, {}).startswith("your edit asks for it; slower here")
