"""model.safetensors as a file that came from anywhere: damaged, foreign, or made to do harm."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import drive, one_thread
from safetensors import safe_open
from safetensors.torch import save_file

from engine.errors import EngineError
from engine.kernels.probe import Machine
from engine.lowering.artifact import load_quantized
from engine.recipe.recipe import Recipe

Header = dict[str, Any]
Tensors = dict[str, torch.Tensor]
Store = Callable[[Header, Tensors], Path]


@pytest.fixture(scope="module")
def run_folder(tiny_file: Path, own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with layers of 8 bits, of 4 bits in groups, and of 3 bits."""
    folder = tmp_path_factory.mktemp("artifact") / "run"
    rules = [
        {"match": "fc", "weights": {"bits": 4, "granularity": "per-group", "group_size": 16}, "activations": {}},
        {"match": "conv2", "weights": {"bits": 3}, "activations": {}},
    ]
    data = {"calibration": 32, "limit": 64}
    recipe = Recipe.make(model=f"{tiny_file}:make", data=data, rules=rules, threshold="drop:0.9", qat={"mode": "never"})
    assert drive(recipe, folder).error is None
    return folder


@pytest.fixture
def parts(run_folder: Path) -> tuple[Header, Tensors]:
    with safe_open(run_folder / "model.safetensors", "pt") as file:
        return json.loads(file.metadata()["qtui"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture
def store(tmp_path: Path) -> Store:
    def put(header: Header, tensors: Tensors) -> Path:
        save_file(tensors, tmp_path / "model.safetensors", {"qtui": json.dumps(header)})
        return tmp_path

    return put


def refusal(place: Path) -> str:
    """What ``load_quantized`` says, on a line."""
    with pytest.raises(EngineError) as caught:
        load_quantized(place)
    text = str(caught.value)
    assert "\n" not in text and 20 < len(text) < 500
    return text


def step(header: Header, op: str, which: int = 0) -> dict[str, Any]:
    return [s for s in header["program"]["steps"] if s["op"] == op][which]


def test_a_copy_that_nothing_was_done_to_loads(parts: Any, store: Store, run_folder: Path) -> None:
    """Else the refusals below would prove nothing."""
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with one_thread():
        assert torch.equal(load_quantized(store(*parts))(x), load_quantized(run_folder / "model.safetensors")(x))


def test_weights_come_back_as_they_were_stored(parts: Any, run_folder: Path) -> None:
    _, tensors = parts
    layers = load_quantized(run_folder).program.layers
    assert {name: layer.bits for name, layer in layers.items()} == {"conv1": 8, "conv2": 3, "fc": 4}
    assert tensors["layer/conv2/packed_values"].numel() == layers["conv2"].codes.numel() * 3 // 8
    assert int(layers["conv2"].codes.max()) <= 3 and int(layers["conv2"].codes.min()) >= -4
    assert layers["fc"].multiplier is not None and layers["fc"].multiplier.shape == (10, 1)


@pytest.mark.parametrize("part", [0, 4, 8, 100, 2000, -1])
def test_a_truncated_file(run_folder: Path, tmp_path: Path, part: int) -> None:
    (tmp_path / "model.safetensors").write_bytes((run_folder / "model.safetensors").read_bytes()[:part])
    text = refusal(tmp_path)
    assert "not a whole safetensors file" in text and "copy it again" in text and str(tmp_path) in text


def test_a_missing_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"qtui": "{"}, {"qtui": "[]"}, {"qtui": "null"}, {"qtui": '{"schema": 99}'}])
def test_a_foreign_file(tmp_path: Path, metadata: Any) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors", metadata)
    text = refusal(tmp_path)
    assert "give the folder of a finished run" in text or "copy it again" in text


@pytest.mark.parametrize("key", ["program", "layers"])
def test_a_header_without_a_part(parts: Any, store: Store, key: str) -> None:
    header, tensors = parts
    del header[key]
    assert "damaged" in refusal(store(header, tensors)) and key in refusal(store(header, tensors))


@pytest.mark.parametrize("key", ["op", "output", "inputs", "attrs"])
def test_a_step_without_a_part(parts: Any, store: Store, key: str) -> None:
    header, tensors = parts
    del header["program"]["steps"][1][key]
    assert "damaged" in refusal(store(header, tensors))


@pytest.mark.parametrize("key", ["layer", "kind", "bias", "activation", "geometry", "input", "path", "output", "accumulate"])
@pytest.mark.parametrize("saturates", [False, True])
@pytest.mark.filterwarnings("ignore:.*was made on")
def test_a_layer_without_a_part(parts: Any, store: Store, key: str, saturates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine("AVX2", False, saturates, {})
    monkeypatch.setattr("engine.lowering.graph.artifact.probe", lambda: machine)
    header, tensors = parts
    del step(header, "layer")["attrs"][key]
    if key == "path":  # It only serves messages.
        load_quantized(store(header, tensors))
    else:
        assert "damaged" in refusal(store(header, tensors))


@pytest.mark.parametrize("name", ["layer/conv1/values", "layer/conv1/scale", "layer/fc/values", "tensor/conv1.bias", "tensor/fc.bias"])
@pytest.mark.parametrize("change", ["gone", "short", "empty", "double"])
def test_a_tensor_that_does_not_fit(parts: Any, store: Store, name: str, change: str) -> None:
    """A kernel that believed these sizes would read past the end of memory."""
    header, tensors = parts
    if change == "gone":
        del tensors[name]
    else:
        old = tensors[name]
        tensors[name] = {"short": old.flatten()[:1].clone(), "empty": old.flatten()[:0].clone(), "double": old.double()}[change]
    assert "damaged" in refusal(store(header, tensors))


def _set(place: str, value: Any) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        inner: Any = header
        *path, last = place.split(".")
        for key in path:
            inner = inner[int(key)] if isinstance(inner, list) else inner[key]
        inner[int(last) if isinstance(inner, list) else last] = value

    return change


_LAYER = "program.steps.1.attrs"
_HARMS: dict[str, Any] = {
    "an unknown step": _set("program.steps.1.op", "shell"),
    "a private method as a step": _set("program.steps.1.op", "_init__"),
    "a result nothing computes": _set("program.result", "elsewhere"),
    "an input nothing computes": _set("program.steps.1.inputs.0", "elsewhere"),
    "an input that is a list": _set("program.steps.1.inputs", [["x"]]),
    "no input": _set("program.steps.1.inputs", []),
    "the same value twice": _set("program.steps.1.output", "x:q"),
    "a linear layer with a convolution's weights": _set(f"{_LAYER}.kind", "linear"),
    "an unknown kind": _set(f"{_LAYER}.kind", "x"),
    "an unknown activation": _set(f"{_LAYER}.activation", "shell"),
    "a stride of zero": _set(f"{_LAYER}.geometry.stride", [0, 0]),
    "a huge padding": _set(f"{_LAYER}.geometry.padding", [2**40, 1]),
    "one dilation": _set(f"{_LAYER}.geometry.dilation", [1]),
    "a text as dilation": _set(f"{_LAYER}.geometry.dilation", "11"),
    "no groups": _set(f"{_LAYER}.geometry.groups", 0),
    "groups that do not divide": _set(f"{_LAYER}.geometry.groups", 3),
    "a step of zero": _set(f"{_LAYER}.input", [0.0, 3, 255]),
    "a negative step": _set(f"{_LAYER}.output", [-0.1, 3, 255]),
    "a step that is not a number": _set(f"{_LAYER}.input", [float("nan"), 3, 255]),
    "a zero point off the grid": _set(f"{_LAYER}.input", [0.1, 300, 255]),
    "more levels than a byte": _set(f"{_LAYER}.input", [0.1, 3, 65535]),
    "two numbers for a grid": _set(f"{_LAYER}.input", [0.1, 3]),
    "weights of zero bits": _set("layers.conv1.bits", 0),
    "weights of 64 bits": _set("layers.conv1.bits", 64),
    "nibbles that are bytes": _set("layers.conv1.bits", 4),
    "another shape": _set("layers.conv1.shape", [8, 3, 3, 2]),
    "a shape of another order": _set("layers.conv1.shape", [3, 8, 3, 3]),
    "a negative shape": _set("layers.conv1.shape", [-8, 3, 3, 3]),
    "layers as a list": _set("layers", []),
    "groups of another size": _set("layers.fc.group_size", 4),
    "groups of no size": _set("layers.fc.group_size", 0),
}


@pytest.mark.parametrize("harm", _HARMS)
def test_a_header_that_contradicts_itself(parts: Any, store: Store, harm: str) -> None:
    header, tensors = parts
    before = copy.deepcopy(header)
    _HARMS[harm](header)
    assert header != before
    text = refusal(store(header, tensors))
    assert "damaged" in text


FORBIDDEN = [
    "torch.load", "torch.save", "torch.hub.load", "torch.ops.load_library", "torch.os.system", "torch.compile", "torch.serialization",
    "os.system", "builtins.eval", "eval", "subprocess.run", "operator.attrgetter", "operator.methodcaller", "operator.call",
    "Tensor.__reduce__", "Tensor.__reduce_ex__", "Tensor.__class__", "Tensor.__setstate__", "Tensor.__init_subclass__", "Tensor.__dict__",
    "attribute.__class__", "attribute.data", "F.__builtins__", "F.torch", "", ".", "Tensor.", "torch",
]  # fmt: skip


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_forbidden_function_is_refused_and_never_called(
    parts: Any, store: Store, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call would be the first thing that the model does; it must not come to a model."""
    called: list[Any] = []
    monkeypatch.setattr(torch, "load", called.append)
    monkeypatch.setattr("os.system", called.append)
    header, tensors = parts
    arguments = {"tuple": [{"$": "x"}, f"touch {tmp_path / 'executed'}"]}
    evil = {"op": "call", "output": "evil", "inputs": ["x"], "attrs": {"function": name, "args": arguments, "kwargs": {"dict": {}}}}
    header["program"]["steps"].insert(0, evil)
    text = refusal(store(header, tensors))
    assert repr(name) in text and not called and not (tmp_path / "executed").exists()


def test_a_permitted_function_in_the_same_place_is_not_refused(parts: Any, store: Store) -> None:
    header, tensors = parts
    attrs = {"function": "torch.relu", "args": {"tuple": [{"$": "x"}]}, "kwargs": {"dict": {}}}
    header["program"]["steps"].insert(0, {"op": "call", "output": "fine", "inputs": ["x"], "attrs": attrs})
    assert load_quantized(store(header, tensors))(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("kind", ["os", "Module_", "__builtins__", "functional", "init", "Parameter", "utils"])
def test_a_module_that_torch_does_not_have_is_refused(parts: Any, store: Store, kind: str) -> None:
    header, tensors = parts
    attrs = {
        "module": {"class": kind, "arguments": {}}, "path": "evil", "kind": kind, "weight_only": False,
        "args": {"tuple": [{"$": "x"}]}, "kwargs": {"dict": {}},
    }  # fmt: skip
    header["program"]["steps"].insert(0, {"op": "module", "output": "evil", "inputs": ["x"], "attrs": attrs})
    assert repr(kind) in refusal(store(header, tensors))


@pytest.mark.parametrize("argument", [{"torch": "load"}, {"torch": "os"}, {"import": "os"}, {"eval": "1"}])
def test_an_argument_of_another_kind_is_refused(parts: Any, store: Store, argument: Any) -> None:
    header, tensors = parts
    attrs = {"function": "torch.relu", "args": {"tuple": [{"$": "x"}, argument]}, "kwargs": {"dict": {}}}
    header["program"]["steps"].insert(0, {"op": "call", "output": "evil", "inputs": ["x"], "attrs": attrs})
    assert "argument of kind" in refusal(store(header, tensors))


@pytest.mark.parametrize(("top", "saturates", "warned"), [(255, True, True), (127, True, False), (255, False, False), (255, None, False)])
def test_a_machine_that_saturates_is_warned(
    parts: Any, store: Store, monkeypatch: pytest.MonkeyPatch, top: int, saturates: bool | None, warned: bool
) -> None:
    monkeypatch.setattr("engine.lowering.graph.artifact.probe", lambda: Machine("AVX2", False, saturates, {}))
    header, tensors = parts
    for each in header["program"]["steps"]:
        if each["op"] == "layer":
            each["attrs"]["input"] = [0.1, 0, top]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load_quantized(store(header, tensors))
    texts = [str(warning.message) for warning in seen]
    assert any("sums saturate" in text and "(AVX2, no VNNI)" in text for text in texts) is warned


WRONG = [
    (torch.zeros(1, 1, 32, 32), r"not float32 of shape \(1, 1, 32, 32\): give another shape"),
    (torch.zeros(3, 32, 32), r"not float32 of shape \(3, 32, 32\): add the batch with \[None\]"),
    (torch.zeros(1, 3, 32, 32, dtype=torch.float64), r"not float64 of shape \(1, 3, 32, 32\): convert it with \.float\(\)"),
    (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"not uint8 of shape .*\.float\(\)"),
    ([1.0, 2.0], "not a value of list: give a tensor"),
]


@pytest.mark.parametrize(("images", "said"), WRONG)
def test_other_inputs_are_refused_in_a_sentence(run_folder: Path, images: Any, said: str) -> None:
    model = load_quantized(run_folder)
    with pytest.raises(EngineError, match=rf"^the model takes float32 images \(N, 3, H, W\), {said}[^\n]*$"):
        model(images)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_images_of_a_size_that_does_not_go_through_are_told_in_a_sentence(run_folder: Path) -> None:
    model = load_quantized(run_folder)
    with pytest.raises(EngineError, match=r"^the model cannot compute with float32 of shape \(1, 3, 0, 0\) [^\n]* as large as the run's"):
        model(torch.zeros(1, 3, 0, 0))


@pytest.mark.filterwarnings("ignore:.*was made on")
def test_without_integer_kernels_the_model_is_simulated_and_near(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    here = load_quantized(run_folder)(x)
    monkeypatch.setattr("engine.lowering.graph.artifact.probe", lambda: Machine("unknown", False, None, {}))
    simulated = load_quantized(run_folder)
    assert simulated.simulated and {kernel for kernel, _ in simulated.placement.values()} == {"simulation"}
    noise = (simulated(x) - here).square().mean() / here.square().mean()
    assert noise < 1e-3
