"""engine/recipe/recipe.py: what it accepts, what it says where it does not, and that it reads back what it writes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UsageError
from engine.recipe.changes import rule_part, with_strategy
from engine.recipe.presets import BLOCKS
from engine.recipe.recipe import Recipe, Threshold
from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, Rule, WeightSpec

FULL = """\
model: simplecnn
weights: null
data:
  name: digits
  calibration: 256
  batch: 32
  limit: 100
  mean: [0.5, 0.5, 0.5]
  std: [0.25, 0.25, 1]
  size: 32
preset: w4a8
rules:
  - match: "fc*"
    weights: {bits: 4, granularity: per-group, group_size: 64, scale: mse}
    activations: {bits: 7, symmetric: true, observer: entropy}
  - match: conv1
    keep: fp32
  - match: kind:Linear
    weights: {bits: 3}
quantize_first: true
threshold: sqnr:30
qat: {mode: always, epochs: 3, batch: 16, lr: 1e-2, freeze_bn: 1}
export: [safetensors]
device: cuda
seed: 7
isa: AVX2
"""

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_recipe(text: str | bytes) -> Path:
        path = tmp_path / "my.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_recipe


def problem(path: Path, **overrides: Any) -> str:
    with pytest.raises(UsageError) as caught:
        Recipe.load(path, **overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_key_is_read(write: Write) -> None:
    recipe = Recipe.load(write(FULL))
    assert (recipe.model, recipe.weights, recipe.preset, recipe.device, recipe.seed, recipe.isa) == (
        "simplecnn", None, "w4a8", "cuda", 7, "AVX2",
    )  # fmt: skip
    assert (recipe.data.calibration, recipe.data.batch, recipe.data.limit, recipe.data.size) == (256, 32, 100, 32)
    assert (recipe.data.mean, recipe.data.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 1.0))
    assert (recipe.qat.mode, recipe.qat.epochs, recipe.qat.batch, recipe.qat.freeze_bn) == ("always", 3, 16, 1.0)
    assert (recipe.quantize_first, recipe.threshold, recipe.export) == (True, "sqnr:30", ("safetensors",))


def test_rules_keep_their_order_and_know_their_lines(write: Write) -> None:
    first, second, third = Recipe.load(write(FULL)).layer_rules()
    assert (first.match, first.line) == ("fc*", 13)
    assert first.spec == LayerSpec(WeightSpec(4, "per-group", 64, "mse"), ActivationSpec(7, True, "entropy"))
    assert (second.match, second.spec, second.line) == ("conv1", FP32, 16)
    assert (third.match, third.spec, third.line) == ("kind:Linear", LayerSpec(WeightSpec(bits=3)), 18)


def test_scale_mse_is_an_older_spelling_of_the_method() -> None:
    def asked(**weights: Any) -> Recipe:
        return Recipe.make(model="simplecnn", rules=[{"match": "*", "weights": {"bits": 4, **weights}}])

    def method(recipe: Recipe) -> str:
        (rule,) = recipe.layer_rules()
        assert rule.spec.weights is not None
        return rule.spec.weights.method

    older, newer, both = asked(scale="mse"), asked(method="mse"), asked(scale="mse", method="gptq")
    assert [method(recipe) for recipe in (older, newer, both, asked(scale="minmax"))] == ["mse", "mse", "gptq", "nearest"]
    # As they are in the reports and checkpoints of earlier versions.
    assert [recipe.fingerprint() for recipe in (older, newer, both)] == ["3c5c83742e251ee1", "3cd34f4ac263ec41", "c839f2777e50b332"]
    again = with_strategy(older, "w8a8", [replace(older.layer_rules()[0], line=None)])
    assert again.rules == older.rules


def test_equal_patterns_are_both_kept_in_order() -> None:
    recipe = Recipe.make(model="m", rules=[{"match": "a", "weights": {"bits": 4}}, {"match": "a", "keep": "fp32"}])
    assert [rule.spec == FP32 for rule in recipe.layer_rules()] == [False, True]


@pytest.mark.parametrize(
    "text", [FULL, "model: simplecnn\n", "model: '1e5'\nthreshold: mse:1e-7\nqat: {lr: 1.5E-9}\ndata: {name: 'yes'}\n"]
)
def test_round_trip(write: Write, text: str) -> None:
    recipe = Recipe.load(write(text))
    again = Recipe.load(write(recipe.to_yaml()))
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert again.to_yaml() == recipe.to_yaml()
    assert again.fingerprint() == recipe.fingerprint()


def test_yaml_is_in_the_order_of_the_fields_and_short() -> None:
    text = Recipe.make(model="m", rules=[{"match": "fc*", "weights": {"bits": 4}}]).to_yaml()
    keys = [line.split(":")[0] for line in text.splitlines() if not line.startswith(" ")]
    unsaid = ("graph", "task", "rotation", "cache", "targets", "equalize", "bias_correction", "bn_reestimation", "stream")
    assert keys == [name for name in Recipe.model_fields if name not in unsaid]
    assert "  - match: fc*\n    weights: {bits: 4, granularity: per-channel, group_size: 32, scale: minmax}\n" in text
    assert "keep" not in text and "activations" not in text


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe.make(model="m").seed = 1


def test_fingerprint_ignores_order_machine_and_lines(write: Write) -> None:
    one = Recipe.load(write("model: m\nseed: 1\ndata: {name: x, batch: 8}\nrules:\n  - match: a\n    keep: fp32\n"))
    two = Recipe.load(
        write("# moved\n\nrules:\n  - keep: fp32\n    match: a\ndata: {batch: 8, name: x}\nisa: NEON\ndevice: cpu\nseed: 1\nmodel: m\n")
    )
    assert one.fingerprint() == two.fingerprint()
    assert len(one.fingerprint()) == 16 and int(one.fingerprint(), 16) >= 0
    others: list[dict[str, Any]] = [{"seed": 2}, {"model": "n"}, {"rules": []}, {"threshold": "drop:0.1"}, {"data": {"batch": 9}}]
    assert len({one.fingerprint(), *(Recipe.load(write(one.to_yaml()), **other).fingerprint() for other in others)}) == 6


def test_fingerprint_is_the_same_in_another_process() -> None:
    code = "from engine.recipe.recipe import Recipe; print(Recipe.make(model='m', seed=3).fingerprint())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert other.stdout.strip() == Recipe.make(model="m", seed=3).fingerprint()


@pytest.mark.parametrize(
    ("written", "value"), [("1e-2", 0.01), ("1E3", 1000.0), ("5.e-1", 0.5), (".5e+0", 0.5), ("1", 1.0), ("0.25", 0.25)]
)
def test_numbers_in_scientific_notation(write: Write, written: str, value: float) -> None:
    assert Recipe.load(write(f"model: m\nqat:\n  lr: {written}\n")).qat.lr == value


def test_scientific_notation_stays_text_where_text_is_asked(write: Write) -> None:
    assert Recipe.load(write("model: 1e5\n")).model == "1e5"


RULE_A = "model: m\nrules:\n  - match: a\n"
VALUES = [
    ("model: m\npreset: w8a9\n", 2, "preset is 'w8a9': must be one of default, w8a8, w8a8-static, w4a8, w4a4, w8, w4, w3"),
    (RULE_A + "    weights:\n      bits: 9\n", 5, "weights.bits is 9: must be 2 to 8"),
    (RULE_A + "    weights: {bits: 1}\n", 4, "weights.bits is 1: must be 2 to 8"),
    (RULE_A + "    weights: {}\n    activations: {bits: 9}\n", 5, "activations.bits is 9: must be 2 to 8"),
    (RULE_A + "    weights: {bits: true}\n", 4, "weights.bits is true: must be a whole number, 2 to 8"),
    (RULE_A + "    weights: {granularity: per-group, group_size: 48}\n", 4, "weights.group_size is 48: must be one of 16,"),
    (RULE_A + "    weights: {group_size: 64}\n", 4, "add granularity: per-group"),
    (RULE_A + "    weights: {granularity: per-row}\n", 4, "weights.granularity is 'per-row': must be one of per-tensor,"),
    (RULE_A + "    weights: {scale: max}\n", 4, "weights.scale is 'max': must be one of minmax, mse"),
    (RULE_A + "    weights: {}\n    activations: {observer: x}\n", 5, "activations.observer is 'x': must be one of minmax,"),
    (RULE_A + "    weights: {}\n    activations: {symmetric: 1}\n", 5, "activations.symmetric is 1: must be true or false"),
    (RULE_A + "    keep: int8\n", 4, "keep is 'int8': must be fp32"),
    (RULE_A + "    keep: fp32\n    weights: {bits: 4}\n", 3, "rule 'a' has both keep and weights or activations: remove"),
    ("model: m\nrules:\n  - match: b\n    keep: fp32\n  - match: a\n", 5, "rule 'a' asks for nothing: add weights"),
    (RULE_A + "    activations: {bits: 8}\n", 3, "rule 'a' has activations without weights: add weights"),
    ("model: m\nrules:\n  - match: 'kind:'\n    keep: fp32\n", 3, "match is 'kind:': name a kind"),
    ("model: m\nrules:\n  - keep: fp32\n", 3, "match is missing: add a glob"),
    ("model: m\nrules:\n  - fc1\n", 3, "rule 1 is 'fc1': must be a mapping with match, weights, activations, keep"),
    ("model: m\nrules: fc1\n", 2, "rules is 'fc1': must be a list of mappings"),
    ("model: m\nqat:\n  epochs: '5'\n", 3, "qat.epochs is '5': must be a whole number, 1 to 1000"),
    ("model: m\nqat:\n  epochs: true\n", 3, "qat.epochs is true: must be a whole number, 1 to 1000"),
    ("model: m\nqat:\n  epochs: 1e1\n", 3, "qat.epochs is '1e1': must be a whole number, 1 to 1000"),
    ("model: m\nqat:\n  epochs: 1001\n", 3, "qat.epochs is 1001: must be 1 to 1000"),
    ("model: m\nqat:\n  lr: 0\n", 3, "qat.lr is 0: must be above 0"),
    ("model: m\nqat:\n  lr: .inf\n", 3, "qat.lr is inf: must be above 0"),
    ("model: m\nqat:\n  lr: '0.1'\n", 3, "qat.lr is '0.1': must be a number, above 0"),
    ("model: m\nqat:\n  lr: true\n", 3, "qat.lr is true: must be a number, above 0"),
    ("model: m\nqat:\n  freeze_bn: 1.5\n", 3, "qat.freeze_bn is 1.5: must be 0 to 1"),
    ("model: m\nqat:\n  mode: no\n", 3, "qat.mode is false: must be one of auto, always, never"),
    ("model: m\nqat:\n", 2, "qat is null: must be a mapping"),
    ("model: m\ndata: digits\n", 2, "data is 'digits': must be a mapping, such as {name: digits}"),
    ("model: m\ndata:\n  batch: 4097\n", 3, "data.batch is 4097: must be 1 to 4096"),
    ("model: m\ndata:\n  calibration: 0\n", 3, "data.calibration is 0: must be 1 or more"),
    ("model: m\ndata:\n  limit: 0\n", 3, "data.limit is 0: must be 1 or more, or null"),
    ("model: m\ndata:\n  mean: [1, 2]\n", 3, "data.mean is [1, 2]: must be three finite numbers, or null"),
    ("model: m\ndata:\n  mean: [1, a, b]\n", 3, "data.mean is [1, 'a', 'b']: must be three finite numbers, or null"),
    ("model: m\ndata:\n  std: [1, 0, 1]\n", 3, "data.std is [1, 0, 1]: must be three finite numbers above 0, or null"),
    ("model: m\ndata:\n  std: [1, .nan, 1]\n", 3, "data.std is [1, nan, 1]: must be three finite numbers above 0, or null"),
    ("model: m\nexport: [safetensors, tarball]\n", 2, "available in this version: safetensors, onnx, openvino, pt2, compressed-tensors"),
    ("model: m\nthreshold: drop:2\n", 2, "threshold is 'drop:2': drop must be -1 to 1"),
    ("model: m\nthreshold: 0.1\n", 2, "threshold is 0.1: must be METRIC:VALUE, such as drop:0.005"),
    ("model: m\nquantize_first: 'yes'\n", 2, "quantize_first is 'yes': must be true or false"),
    ("model: m\nseed: -1\n", 2, "seed is -1: must be 0 to 4294967295"),
    ("model: m\ndevice: gpu\n", 2, "device is 'gpu': must be one of auto, cpu, cuda"),
    ("seed: 0\nmodel: 5\n", 2, "model is 5: must be the name of a model"),
    ("seed: 0\n", 1, "model is missing: add the name of a model"),
    ("model: ''\n", 1, "model is '': must be the name of a model"),
]  # fmt: skip
KEYS = [
    ("model: m\npresett: w8\n", 2, "unknown key 'presett': did you mean preset"),
    ("modle: m\n", 1, "unknown key 'modle': did you mean model?"),
    ("model: m\ndata:\n  name: digits\n  calibraton: 5\n", 4, "unknown key 'calibraton' in data: did you mean calibration?"),
    ("model: m\nqat: {epoch: 5}\n", 2, "unknown key 'epoch' in qat: did you mean epochs?"),
    (RULE_A + "    weight: {bits: 4}\n", 4, "unknown key 'weight' in rule 1: did you mean weights?"),
    (RULE_A + "    weights:\n      bitts: 4\n", 5, "unknown key 'bitts' in weights: did you mean bits?"),
    ("model: m\nbatch: 5\n", 2, "unknown key 'batch': it belongs in data or qat"),
    ("model: m\nzzzz: 5\n", 2, "unknown key 'zzzz': known: model, task, weights, data"),
    ("model: m\n3: 5\n", 2, "key '3' is not a name"),
    ("model: m\nseed: 1\nseed: 1\n", 3, "key 'seed' is given twice (first on line 2): remove one"),
    ("model: m\ndata:\n  batch: 1\n  batch: 2\n", 4, "key 'batch' is given twice (first on line 3)"),
    (RULE_A + "    match: b\n    keep: fp32\n", 4, "key 'match' is given twice (first on line 3)"),
]
SYNTAX: list[tuple[str | bytes, int, str]] = [
    ("model: m\ndata: [1\nseed: 1\n", 3, "not valid YAML"),
    ("model: m\nthreshold: drop: 0.1\n", 2, "not valid YAML (mapping values are not allowed here): check the indentation"),
    ("model: m\nrules:\n  - match: *fc\n    keep: fp32\n", 3, "quote a pattern that starts with *"),
    ("model: m\nrules:\n  - match: *\n    keep: fp32\n", 3, "quote a pattern that starts with *"),
    ("model: m\nisa: !!python/object:os.x {}\n", 2, "not valid YAML"),
    ("model: m\nisa: 2024-13-45\n", 2, "'2024-13-45' cannot be read"),
    ("model: m\nqat: &q\n  <<: *q\n", 3, "<< is not supported"),
    ("model: m\n---\nmodel: n\n", 2, "another document"),
    ("# nothing\n- model: m\n", 2, "the top level is not a mapping: write it as KEY: VALUE"),
    ("", 1, "the file is empty: add at least model: NAME"),
    ("model: m\nisa: \x07\n", 2, "a character that YAML does not allow"),
    (b"model: m\nisa: caf\xe9\n", 2, "not UTF-8 text: save the file as UTF-8"),
    ("[" * 5000, 1, "nested too deeply"),
]


@pytest.mark.parametrize(("text", "line", "says"), [*VALUES, *KEYS, *SYNTAX])
def test_an_error_names_file_line_and_next_step(write: Write, text: str | bytes, line: int, says: str) -> None:
    path = write(text)
    message = problem(path)
    assert message.startswith(f"{path}:{line}: ")
    assert says in message


def test_the_first_of_several_is_told_and_the_rest_counted(write: Write) -> None:
    path = write("model: m\nseed: -1\nseed: x\nqat: {epochs: 0}\ndata:\n  batchh: 3\n")
    message = problem(path)
    # Line 3 has two: the key given twice, and its value, which is the one that counts.
    assert message == f"{path}:3: key 'seed' is given twice (first on line 2): remove one (and 3 more)"
    assert "more" not in problem(write("model: m\nseed: -1\n"))


def test_a_file_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    assert problem(tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'}: no such file: check the path"
    assert problem(tmp_path).startswith(f"{tmp_path}: is a folder: ")
    assert "'a\\nb'" in problem(Path("a\nb"))


def test_a_byte_order_mark_and_windows_lines_are_fine(write: Write) -> None:
    assert Recipe.load(write(b"\xef\xbb\xbfmodel: m\r\nseed: 4\r\n")).seed == 4


def test_aliases_are_read(write: Write) -> None:
    text = "model: m\nrules:\n  - match: a\n    weights: &w {bits: 4}\n  - match: b\n    weights: *w\n"
    assert [rule.spec for rule in Recipe.load(write(text)).layer_rules()] == [LayerSpec(WeightSpec(bits=4))] * 2


def test_an_alias_inside_itself_ends_in_an_error(write: Write) -> None:
    assert "rule 1 is a list" in problem(write("model: m\nrules: &r [*r]\n"))


def test_overrides_win_and_change_only_their_keys(write: Write) -> None:
    path = write("model: m\ndata: {name: x, limit: 4}\nrules:\n  - match: a\n    keep: fp32\n")
    recipe = Recipe.load(path, model="n", data={"limit": 9})
    assert (recipe.model, recipe.data.name, recipe.data.limit) == ("n", "x", 9)
    assert recipe.layer_rules()[0].line == 4
    assert Recipe.load(path, rules=[{"match": "b", "keep": "fp32"}]).layer_rules()[0].line is None
    assert Recipe.load(write("seed: 1\n"), model="n").model == "n"


def test_an_override_at_fault_has_no_line(write: Write) -> None:
    path = write("model: m\ndata: {name: 5}\nqat: 5\n")
    assert problem(path, data={"name": "x", "limit": 0}, qat={}).startswith("data.limit is 0: must be 1 or more, or null")
    assert problem(path, data={"name": "x"}) == f"{path}:3: qat is 5: must be a mapping, such as {{mode: auto}}"
    assert problem(path, qat={"epochs": 1}, data={"batch": 1}).startswith(f"{path}:2: data.name is 5")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "model is missing: add the name of a model, such as simplecnn, or package.module:factory"),
        ({"model": "m", "qat": {"epochs": 0}}, "qat.epochs is 0: must be 1 to 1000"),
        ({"model": "m", "treshold": "drop:1"}, "unknown key 'treshold': did you mean threshold?"),
        (
            {"model": "m", "rules": [{"match": "a", "keep": "fp32"}, {"match": "b", "weights": {"bits": 9}}]},
            "rule 2: weights.bits is 9: must be 2 to 8",
        ),
        (
            {"model": "m", "export": ["tar"]},
            "export is ['tar']: must be a list of formats; available in this version: safetensors, onnx, openvino, pt2, "
            "compressed-tensors, tensorrt-onnx, gguf",
        ),
        ({"model": "m\nn", "seed": True, "device": "x"}, "device is 'x': must be one of auto, cpu, cuda (and 1 more)"),
    ],
)
def test_make_names_the_option_without_a_line(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe.make(**fields)
    assert str(caught.value) == says


def test_paths_may_be_path_objects(tmp_path: Path) -> None:
    recipe = Recipe.make(model="m", weights=tmp_path, data={"name": tmp_path})
    assert (recipe.weights, recipe.data.name) == (str(tmp_path), str(tmp_path))


@pytest.mark.parametrize("text", ["mse:1e-7", "drop:0.005", "sqnr:30", "agreement:0.99", "drop:-0.5", "mse:0", "mse:1e-12", "sqnr:-3.5"])
def test_threshold_is_written_as_it_was_read(text: str) -> None:
    assert str(Threshold.parse(text)) == text
    assert Recipe.make(model="m", threshold=text).threshold == text


def test_threshold_has_one_spelling() -> None:
    assert Recipe.make(model="m", threshold="drop:5e-3").fingerprint() == Recipe.make(model="m", threshold=" drop: 0.0050").fingerprint()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("drop", "write METRIC:VALUE"),
        ("dropp:0.1", "did you mean drop?"),
        ("drop:", "drop must be -1 to 1"),
        ("drop:1.01", "drop must be -1 to 1"),
        ("mse:-1e-9", "mse must be 0 or more"),
        ("mse:inf", "mse must be 0 or more"),
        ("mse:1e999", "mse must be 0 or more"),
        ("agreement:1.1", "agreement must be 0 to 1"),
        ("sqnr:nan", "sqnr must be a finite number of dB"),
        ("sqnr:30dB", "sqnr must be a finite number of dB"),
        ("sqnr:1_0", "sqnr must be a finite number of dB"),
    ],
)
def test_threshold_out_of_range(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Threshold.parse(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_threshold_built_directly_is_checked() -> None:
    with pytest.raises(UsageError, match="agreement must be 0 to 1"):
        Threshold("agreement", math.nan)


GOOD = {"baseline": 0.98, "value": 0.975, "mse": 1e-5, "sqnr_db": 30.0, "agreement": 0.99}


@pytest.mark.parametrize(
    ("text", "key", "worse"),
    [("drop:0.005", "value", 0.9749), ("mse:1e-5", "mse", 1.01e-5), ("sqnr:30", "sqnr_db", 29.9), ("agreement:0.99", "agreement", 0.9899)],
)
def test_threshold_is_met_at_its_edge_and_not_beyond(text: str, key: str, worse: float) -> None:
    threshold = Threshold.parse(text)
    assert threshold.met(**GOOD)
    assert not threshold.met(**{**GOOD, key: worse})
    assert not threshold.met(**{**GOOD, key: math.nan})


def test_an_exact_copy_meets_every_sqnr() -> None:
    assert Threshold.parse("sqnr:300").met(**{**GOOD, "sqnr_db": math.inf})


def test_torch_is_not_imported() -> None:
    code = "import sys, engine.recipe.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("preset", ["fp8-dynamic", "fp8-static", "fp8-block", "w4a4", "w8a8", "mxfp4"])
def test_what_a_preset_of_language_models_asks_can_be_said_as_a_rule(preset: str) -> None:
    rule = Rule("transformer.h.*", BLOCKS[preset])
    part = rule_part(rule)
    assert part.rule() == rule
    again = Recipe.make(model="m", rules=[part.model_dump()])
    assert again.layer_rules() == (rule,)


@pytest.mark.parametrize(
    ("activations", "said"),
    [
        ({"format": "fp8_e5m2"}, "activations.format is 'fp8_e5m2': must be one of fp8_e4m3, mxfp8, mxfp4"),
        ({"group_size": 64}, "activations.group_size has no effect without dynamic"),
        ({"format": "mxfp8", "dynamic": True, "group_size": 64}, "activations.group_size is 64 and mxfp8 has 32"),
        ({"dynamic": True, "group_size": 48}, "activations.group_size is 48: must be one of 32, 64, 128"),
    ],
)
def test_activations_that_do_not_go_together_are_told_in_a_line(activations: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe.make(model="m", rules=[{"match": "*", "weights": {"format": "fp8_e4m3"}, "activations": activations}])
    assert said in str(caught.value) and "\n" not in str(caught.value)
