"""One's own models: where they come from, their weights, and what of them stays whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import driving
import pytest
import torch
from driving import TINY, Outcome, drive
from safetensors.torch import save_file

import engine
from engine.data import registry
from engine.errors import EngineError, UsageError
from engine.events.event import Notice
from engine.models.custom import build
from engine.models.weights_file import load_into
from engine.recipe.recipe import Recipe

HEAD = "import torch\nfrom torch import nn\n"

STUBBORN = (
    HEAD
    + """
class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        if x.sum() > 0:
            return x * self.scale
        return x - self.scale


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.gate = Stubborn()
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.gate(torch.relu(self.conv(x))).mean((2, 3)))


def make():
    torch.manual_seed(1)
    return Net()
"""
)

RESIDUAL = (
    HEAD
    + """
class Block(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
        self.conv2, self.bn2 = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=4, padding=1)
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.blocks(torch.relu(self.stem(x)))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def make():
    torch.manual_seed(2)
    return Net()
"""
)

MIXED = (
    HEAD
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 10).double()
        self.register_buffer("steps", torch.tensor(7))

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)).double()).float()


def make():
    torch.manual_seed(4)
    return Net()
"""
)

NOTHING = (
    HEAD
    + """
class Net(nn.Module):
    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)[:, :10] * 3


def make():
    return Net()
"""
)


def recipe(model: str, **changes: Any) -> Recipe:
    return Recipe.make(**{"model": model, "data": {"calibration": 32, "limit": 64}, "threshold": "drop:0.5", **changes})


def written(folder: Path, text: str, name: str = "model.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def images(count: int = 64) -> torch.Tensor:
    return next(registry.load("digits").batches("test", count, limit=count))[0]


def stored_error(folder: Path, model: torch.nn.Module, whole: torch.nn.Module | None = None) -> float:
    """Mean squared error of the file's model against the original on the test images of the run."""
    with torch.no_grad():
        exact = model.eval()(images())
        return (engine.load_quantized(folder, whole)(images()) - exact).double().square().mean().item()


def test_a_module_of_a_package(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    written(tmp_path / "mine", "", "__init__.py")
    written(tmp_path / "mine", TINY, "nets.py")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    data = drive(recipe("mine.nets:make"), tmp_path / "run").data
    assert sys.path == before
    assert data["model"] == "mine.nets:make" and data["environment"]["weights"] == "as its factory gives them"
    assert data["ptq"]["error"]["mse"] == pytest.approx(stored_error(tmp_path / "run", build("mine.nets:make")), rel=1e-3)


def test_a_file_that_imports_its_neighbour(own_cache: Path, tmp_path: Path) -> None:
    written(tmp_path, TINY, "neighbour_of_it.py")
    path = written(tmp_path, "from neighbour_of_it import make as inner\n\ndef make():\n    return inner()\n")
    assert drive(recipe(f"{path}:make"), tmp_path / "run").data["graph"]["fused"][1]["conv"] == "conv2"


@pytest.mark.parametrize("form", ["safetensors", "plain", "wrapped", "module.", "_orig_mod.module.", "module._orig_mod."])
def test_every_form_of_weights_gives_the_same_model(own_cache: Path, tiny_file: Path, tmp_path: Path, form: str) -> None:
    torch.manual_seed(11)
    name = f"{tiny_file}:make"
    model = build(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    state = model.state_dict()
    file = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, file)
    elif form in ("plain", "wrapped"):
        torch.save(state if form == "plain" else {"epoch": 3, "state_dict": state, "best": 0.5}, file)
    else:
        torch.save({"model": {form + key: value for key, value in state.items()}}, file)
    again = build(name)
    assert not torch.equal(again.fc.weight, model.fc.weight)
    load_into(again, file, name)
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.state_dict().items())


def test_a_run_is_of_the_given_weights(own_cache: Path, tiny_file: Path, tmp_path: Path) -> None:
    name, file = f"{tiny_file}:make", tmp_path / "w.safetensors"
    model = build(name)
    with torch.no_grad():
        model.fc.weight.neg_()
    save_file(model.state_dict(), file)
    data = drive(recipe(name, weights=str(file)), tmp_path / "run").data
    assert data["ptq"]["error"]["mse"] == pytest.approx(stored_error(tmp_path / "run", model), rel=1e-3)
    assert stored_error(tmp_path / "run", build(name)) > 10 * data["ptq"]["error"]["mse"]
    assert str(file) in data["environment"]["weights"]


def test_a_prefix_that_the_model_itself_has_is_kept(own_cache: Path, tmp_path: Path) -> None:
    path = written(
        tmp_path,
        TINY
        + """

class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = make()

    def forward(self, x):
        return self.module(x)
""",
    )
    torch.save(build(f"{path}:Wrapper").state_dict(), tmp_path / "w.pt")
    assert drive(recipe(f"{path}:Wrapper", weights=str(tmp_path / "w.pt")), tmp_path / "run").error is None


def test_weights_without_the_counters_of_batch_normalization_fit(own_cache: Path, tiny_file: Path, tmp_path: Path) -> None:
    state = {k: v for k, v in build(f"{tiny_file}:make").state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pt")
    assert drive(recipe(f"{tiny_file}:make", weights=str(tmp_path / "w.pt")), tmp_path / "run").error is None


def test_a_submodule_that_cannot_be_traced_stays_whole(own_cache: Path, tmp_path: Path) -> None:
    path = written(tmp_path, STUBBORN)
    line = STUBBORN.splitlines().index("        if x.sum() > 0:") + 1
    run = tmp_path / "run"
    outcome = drive(recipe(f"{path}:make"), run)
    (leaf,) = outcome.data["graph"]["untraced"]
    assert (leaf["path"], leaf["kind"], leaf["where"]) == ("gate", "Stubborn", f"{path}:{line}")
    assert "control flow" in leaf["reason"]
    assert any(notice.level == "warning" and "gate" in notice.text and f":{line}" in notice.text for notice in outcome.of(Notice))
    assert f"model.py:{line}" in (run / "report.md").read_text()
    actual = {layer["name"]: layer["actual"] for layer in outcome.data["layers"]}
    assert actual["gate"] == "fp32" and actual["conv"].startswith("w8") and actual["fc"].startswith("w8")
    assert outcome.data["exports"][0]["parity"]["max_abs"] == 0

    model = build(f"{path}:make")
    assert stored_error(run, model, model) == pytest.approx(outcome.data["ptq"]["error"]["mse"], rel=1e-3)
    with pytest.raises(EngineError) as refusal:
        engine.load_quantized(run)
    assert "gate" in str(refusal.value) and "model=" in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_weights_of_what_stayed_whole_come_from_the_file(own_cache: Path, tmp_path: Path) -> None:
    path = written(tmp_path, STUBBORN)
    drive(recipe(f"{path}:make"), tmp_path / "run")
    model = build(f"{path}:make")
    right = engine.load_quantized(tmp_path / "run", model)(images(8))
    with torch.no_grad():
        model.gate.scale.fill_(99.0)
    assert torch.equal(engine.load_quantized(tmp_path / "run", model)(images(8)), right)
    assert model.gate.scale.item() == 99.0


def test_a_residual_net_stays_in_integers(own_cache: Path, tmp_path: Path) -> None:
    path = written(tmp_path, RESIDUAL)
    data = drive(recipe(f"{path}:make"), tmp_path / "run").data
    assert len(data["graph"]["fused"]) == 4 and data["graph"]["refused"] == []
    layers = {layer["name"]: layer for layer in data["layers"]}
    assert len(layers) == 6 and all(layer["actual"].startswith("w8") for layer in layers.values())
    assert data["ptq"]["error"]["sqnr_db"] > 25
    assert data["ptq"]["error"]["mse"] == pytest.approx(stored_error(tmp_path / "run", build(f"{path}:make")), rel=1e-3)


def test_a_residual_net_is_trained(own_cache: Path, tmp_path: Path) -> None:
    path = written(tmp_path, RESIDUAL)
    asked = {"preset": "w4a4", "threshold": "sqnr:90", "qat": {"mode": "always", "epochs": 1, "lr": 0.01}}
    data = drive(recipe(f"{path}:make", **asked), tmp_path / "run").data
    assert data["qat"]["error"]["sqnr_db"] > data["ptq"]["error"]["sqnr_db"]
    assert data["exports"][0]["parity"]["max_abs"] == 0 and data["verdict"]["chosen"] == "fp32"


def test_a_parameter_of_another_type_is_left_alone(own_cache: Path, tmp_path: Path) -> None:
    path = written(tmp_path, MIXED)
    data = drive(recipe(f"{path}:make", preset="w8a8"), tmp_path / "run").data
    layers = {layer["name"]: layer for layer in data["layers"]}
    assert layers["conv"]["actual"].startswith("w8") and layers["fc"]["actual"] == "fp32"
    assert layers["fc"]["requested"].startswith("w8") and "float64" in layers["fc"]["reason"]
    assert data["ptq"]["error"]["mse"] == pytest.approx(stored_error(tmp_path / "run", build(f"{path}:make")), rel=1e-3)


def test_a_model_without_anything_to_quantize_says_so(own_cache: Path, tmp_path: Path) -> None:
    path = written(tmp_path, NOTHING)
    outcome = drive(recipe(f"{path}:make", threshold="sqnr:90", qat={"mode": "always"}), tmp_path / "run")
    data = outcome.data
    assert data["layers"] == [] and data["qat"] is None and data["ptq"]["error"]["mse"] == 0
    assert "fp32" in data["ptq"]["kernel"] and data["ptq"]["simulated"] is False
    assert "Infinity" not in (tmp_path / "run" / "events.jsonl").read_text()
    assert "Infinity" not in (tmp_path / "run" / "report.json").read_text()
    assert stored_error(tmp_path / "run", build(f"{path}:make")) == 0


@pytest.mark.parametrize(
    ("text", "factory", "kind", "says"),
    [
        ("def makes():\n    pass\n", "make", UsageError, "makes"),
        ("x = 1\n", "make", UsageError, "defines none"),
        ("def make(n):\n    pass\n", "make", EngineError, "without arguments"),
        ("def make():\n    return 3\n", "make", EngineError, "int"),
        ("def make():\n    raise OSError('one\\ntwo')\n", "make", EngineError, "one two"),
        ("import sys\nsys.exit(3)\n", "make", EngineError, "line 2"),
        ("def make(:\n", "make", EngineError, "SyntaxError"),
        ("\n\n1 / 0\n", "make", EngineError, "line 3"),
        ("import no_such_package_at_all\n", "make", EngineError, "no_such_package_at_all"),
        (HEAD + "def make():\n    return nn.Flatten(0)\n", "make", EngineError, "logits"),
        (HEAD + "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))\n", "make", EngineError, "4 classes"),
        (HEAD + "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 1000))\n", "make", EngineError, "1000 classes"),
        (HEAD + "def make():\n    return torch.jit.script(nn.Linear(2, 2))\n", "make", EngineError, "TorchScript"),
        (HEAD + "def make():\n    return nn.Linear(7, 10)\n", "make", EngineError, "3×32×32"),
    ],
)
def test_a_file_that_does_not_serve(own_cache: Path, tmp_path: Path, text: str, factory: str, kind: type, says: str) -> None:
    path = written(tmp_path, text)
    before = driving.tree(tmp_path)
    outcome = drive(recipe(f"{path}:{factory}"), tmp_path / "run")
    message = str(outcome.error)
    assert type(outcome.error) is kind and says in message and "\n" not in message
    assert {name: content for name, content in driving.tree(tmp_path).items() if "__pycache__" not in name} == before


def test_a_relative_file_names_the_line_at_fault(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EngineError, match="line 2"):
        build("model.py:make")


@pytest.mark.parametrize("name", ["no/such/file.py:make", "no_such_package.at_all:make"])
def test_a_place_that_is_not_there(own_cache: Path, tmp_path: Path, name: str) -> None:
    outcome = drive(recipe(name), tmp_path / "run")
    assert type(outcome.error) is UsageError and name.split(":")[0] in str(outcome.error)
    assert not (tmp_path / "run").exists()


def test_a_compiled_model_is_the_one_it_was_made_from(tmp_path: Path) -> None:
    path = written(tmp_path, HEAD + "def make():\n    return torch.compile(nn.Flatten())\n")
    model = build(f"{path}:make")
    assert type(model) is torch.nn.Flatten


PARAMETRIZED = (
    HEAD
    + """
from torch.nn.utils.parametrizations import spectral_norm, weight_norm


def make():
    torch.manual_seed(0)
    return nn.Sequential(
        weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), spectral_norm(nn.Linear(32, 10))
    )
"""
)


def test_a_parametrized_weight_is_quantized_as_the_value_that_it_has(own_cache: Path, tmp_path: Path) -> None:
    path = written(tmp_path, PARAMETRIZED)
    given = build(f"{path}:make")
    save_file({name: tensor.contiguous().clone() for name, tensor in given.state_dict().items()}, tmp_path / "w.safetensors")
    report = drive(recipe(f"{path}:make", weights=str(tmp_path / "w.safetensors")), tmp_path / "run").report.data
    assert [(layer["name"], layer["kind"]) for layer in report["layers"]] == [("0", "Conv2d"), ("4", "Linear")]
    assert all("torch" not in layer["kernel"] for layer in report["layers"])
    assert report["ptq"]["error"]["sqnr_db"] > 20


WIDTHS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.LAYER(10)

    def forward(self, x):
        y = torch.relu(self.conv(x))
        ASSIGN
        return self.fc(y.mean((2, 3)))


def make():
    return Net()TYPE
"""


def ended(tmp_path: Path, layer: str = "Linear(8, 10)", assign: str = "pass", to: str = "") -> Outcome:
    source = HEAD + WIDTHS.replace("LAYER(10)", layer).replace("ASSIGN", assign).replace("TYPE", to)
    (tmp_path / "mine.py").write_text(source)
    return drive(Recipe.make(model=f"{tmp_path / 'mine.py'}:make", data={"limit": 32}, qat={"mode": "never"}), tmp_path / "run")


def one_sentence(tmp_path: Path, **parts: str) -> str:
    outcome = ended(tmp_path, **parts)
    said = str(outcome.error)
    assert isinstance(outcome.error, EngineError) and "\n" not in said
    return said


@pytest.mark.parametrize(("to", "kind"), [(".half()", "float16"), (".double()", "float64"), (".bfloat16()", "bfloat16")])
def test_a_model_in_another_precision_is_taken_as_float32_and_that_is_said(tmp_path: Path, to: str, kind: str) -> None:
    outcome = ended(tmp_path, to=to)
    assert outcome.error is None and outcome.report is not None
    assert any(kind in event.text and "float32" in event.text for event in outcome.events if isinstance(event, Notice))


def test_a_lazy_layer_is_told_in_a_sentence(tmp_path: Path) -> None:
    said = one_sentence(tmp_path, layer="LazyLinear(10)")
    assert "fc.weight has no shape yet (LazyLinear is a lazy layer): give the layer its sizes, or call the model" in said


def test_an_assignment_to_a_part_of_a_tensor_is_traced(tmp_path: Path) -> None:
    outcome = ended(tmp_path, assign="y[:, :4] = y[:, :4] * 2")
    assert outcome.error is None and outcome.data["lowering"] == "graph"


def test_what_draws_into_a_part_of_a_tensor_is_told_without_names_of_this_program(tmp_path: Path) -> None:
    said = one_sentence(tmp_path, assign="y[:, :4].uniform_()")
    assert "its forward draws random numbers" in said and "Proxy" not in said


@pytest.mark.parametrize("ending", ["os._exit(0)", "os.abort()", "sys.exit(0)"])
def test_a_factory_that_ends_the_program_is_an_error_of_the_run(tmp_path: Path, ending: str) -> None:
    (tmp_path / "m.py").write_text(f"import os, sys\ndef make():\n    {ending}\n")
    with pytest.raises(EngineError, match=r"failed: line 3: SystemExit"):
        build(f"{tmp_path / 'm.py'}:make")
    assert all(function.__module__ in ("posix", "nt") for function in (os._exit, os.abort))


def test_what_a_factory_prints_goes_to_stderr_and_steers_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.py").write_text(
        "from torch import nn\nprint('a\\x1b[2Jb')\ndef make():\n    print('c\\u202ed')\n    return nn.Linear(1, 1)\n"
    )
    build(f"{tmp_path / 'm.py'}:make")
    told = capsys.readouterr()
    assert told.out == "" and told.err == "a?[2Jb\nc?d\n"


def test_what_a_factory_writes_to_the_terminal_itself_is_told_as_plain_text_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "import os\nfrom torch import nn\ndef make():\n    os.write(1, b'a\\x1b[2Jb')\n    os.system('printf \"c\\033[1md\" >&2')\n"
        "    return nn.Linear(1, 1)\n"
    )
    code = f"from engine.models.custom import build\nbuild({f'{tmp_path}/m.py:make'!r})\nprint('after')\n"
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("after\n", "a?[2Jbc?[1md")


def test_a_factory_that_crashes_tells_where(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("import ctypes\ndef make():\n    ctypes.CDLL(None).abort()\n")
    code = f"from engine.models.custom import build\nbuild({f'{tmp_path}/m.py:make'!r})\n"
    done = subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True, text=True)
    assert done.returncode < 0 and "m.py" in done.stderr and "line 3 in make" in done.stderr


def test_a_process_that_a_factory_forked_does_not_come_back(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "m.py").write_text("import os\nfrom torch import nn\ndef make():\n    os.fork()\n    return nn.Linear(1, 1)\n")
    code = f"import os\nfrom engine.models.custom import build\nbuild({f'{tmp_path}/m.py:make'!r})\nopen({str(mark)!r}, 'a').write('x')\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert mark.read_text() == "x"
