"""Models whose root cannot be traced: their islands are found, run on integers in their places, and the rest is the model's own Python."""

import copy
import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import engine
from engine.api import quantize
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.lowering.graph import layer_rounding
from engine.lowering.graph.call import results_of
from engine.lowering.islands.find import find
from engine.lowering.islands.union import union
from engine.lowering.islands.within import IslandForward, WithForwards
from engine.report.schema import REPORT, misfit
from engine.tasks.base import Batch


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class Branching(nn.Module):
    """Asks what a tensor holds, calls one head at two sizes, and returns a dict."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(block(3, 16), block(16, 16))
        self.head = nn.Sequential(block(16, 16), nn.Conv2d(16, 5, 1))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        y = self.stem(x)
        if y.mean().item() > 1e9:
            y = y * 2
        coarse = self.head(F.avg_pool2d(y, 2))
        return {"logits": self.head(y).mean((2, 3)) * self.scale, "coarse": coarse.mean((2, 3))}


class OfLists(nn.Module):
    """Takes a list of images of their own sizes, as detection models do."""

    def __init__(self):
        super().__init__()
        self.body = block(3, 8)
        self.out = nn.Linear(8, 4)
        self.unused = nn.Linear(3, 3)

    def forward(self, images):
        pooled = [self.body(image[None]).mean((2, 3)) for image in images]
        return [{"scores": self.out(one)[0]} for one in pooled]


class Flattened(nn.Module):
    """Computes with the size that it is traced on."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix = nn.Conv2d(4, 4, 1), nn.Conv1d(4, 4, 1)

    def forward(self, x):
        n, c, h, w = x.shape
        position = torch.arange(h * w).view(1, 1, h * w) / (h * w)
        return self.mix(self.conv(x).view(n, c, h * w) + position).view(n, c, h, w)


class TwoSizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.flat = nn.Conv2d(3, 4, 1), Flattened()

    def forward(self, x):
        y = self.stem(x)
        if not bool(torch.isfinite(y).all()):
            return y
        return self.flat(y).mean((2, 3)) + self.flat(F.avg_pool2d(y, 2)).mean((2, 3))


def images(count=4, side=16):
    return Batch((torch.randn(count, 3, side, side),), count=count)


def found(model, batch):
    torch.manual_seed(0)
    return find(model.eval(), batch, StopToken())


def test_the_largest_modules_that_trace_are_islands_with_all_their_calls():
    islands = found(Branching(), images()).islands
    assert [(island.path, island.kind, len(island.calls)) for island in islands] == [("stem", "Sequential", 1), ("head", "Sequential", 2)]
    assert [tuple(call[0].shape[2:]) for call in islands[1].calls] == [(8, 8), (16, 16)]
    names = {str(node.target) for node in islands[0].graph.graph.nodes if node.op == "call_module"}
    assert "stem.0.0" in names


def test_a_model_of_lists_has_islands_and_what_is_never_called_is_named():
    batch = Batch(([torch.randn(3, 8, 9), torch.randn(3, 6, 12)],), count=2)
    result = found(OfLists(), batch)
    assert [island.path for island in result.islands] == ["body", "out"]
    assert [(one.path, one.reason) for one in result.outside] == [("unused", "it is not called as a module")]


def test_a_module_that_computes_with_its_size_and_is_called_with_two_is_taken_apart():
    assert [island.path for island in found(TwoSizes(), images()).islands] == ["stem", "flat.conv", "flat.mix"]


def test_the_model_is_left_as_it_was():
    model, batch = Branching().eval(), images()
    attributes = {module: set(vars(module)) for module in model.modules()}
    state = copy.deepcopy(model.state_dict())
    expected = model(*batch.args)
    islands = found(model, batch).islands
    within = WithForwards(model, {island.path: lambda *_: 1 / 0 for island in islands})
    with pytest.raises(ZeroDivisionError):
        within(*batch.args)
    assert {module: set(vars(module)) for module in model.modules()} == attributes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(*batch.args)["logits"], expected["logits"])


def test_a_union_holds_every_island_and_gives_each_of_them_back():
    islands = found(Branching(), images()).islands
    joined = union(islands)
    together = results_of(joined.graph(*(x.clone() for x in joined.example.args)))
    parts = joined.parts(joined.graph)
    alone = [result for island, part in zip(islands, parts, strict=True) for result in results_of(part.graph(island.calls[0][0].clone()))]
    assert [part.path for part in parts] == ["stem", "head"]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert not parts[0].names & parts[1].names


def agreement(outputs, targets):
    return (outputs["logits"].argmax(1) == targets).float().mean()


def task(model, batches=10):
    torch.manual_seed(1)
    given = [torch.randn(8, 3, 16, 16) for _ in range(batches)]
    with torch.no_grad():
        return engine.Task.of([(x, model(x)["logits"].argmax(1)) for x in given], metric=agreement, unit="%")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    model, place = Branching().eval(), tmp_path_factory.mktemp("islands") / "run"
    report = quantize(
        model=model, task=task(model), out=place, threshold="sqnr:20", export=("onnx", "pt2"), qat={"mode": "always", "epochs": 1}
    )
    return model, place, report.data


def test_a_run_comes_to_its_verdict_with_every_layer_of_the_islands_on_integers(run):
    _, _, report = run
    assert report["lowering"] == "islands"
    assert misfit(json.loads(json.dumps(report)), REPORT) is None
    layers = {layer["name"]: layer for layer in report["layers"]}
    convolutions = [name for name, layer in layers.items() if layer["kind"] == "Conv2d"]
    assert convolutions == ["stem.0.0", "stem.1.0", "head.0.0", "head.1"]
    assert all(layers[name]["actual"].startswith("w8") and layers[name]["sqnr_db"] > 20 for name in convolutions)
    assert layers["Branching"]["actual"] == "fp32"
    assert report["ptq"]["error"]["sqnr_db"] > 30
    assert report["ptq"]["integer_layers"] == 4


def test_the_report_names_the_islands_and_what_runs_between_them(run):
    _, place, report = run
    covered = report["coverage"]
    assert [(one["path"], one["calls"]) for one in covered["islands"]] == [("stem", 1), ("head", 2)]
    # 3·16·9 and 16·16·9 for 256 places; 16·16·9 and 16·5 for 256 and for 64.
    assert [one["macs"] for one in covered["islands"]] == [256 * (3 * 16 * 9 + 16 * 16 * 9), 320 * (16 * 16 * 9 + 16 * 5)]
    assert covered["macs_integer"] == covered["macs_total"] == sum(one["macs"] for one in covered["islands"])
    assert sum(one["time_share"] for one in covered["islands"]) + covered["between"]["time_share"] == pytest.approx(1, abs=0.01)
    assert "control flow" in report["graph"]["root"]
    assert report["graph"]["islands"] == ["stem", "head"]
    told = (place / "report.md").read_text()
    assert "| head | Sequential | 2 | 2 of 2 |" in told
    assert "| between: Python |" in told


def test_a_format_of_one_graph_is_refused_in_a_line(run):
    _, place, report = run
    entries = {entry["format"]: entry for entry in report["exports"]}
    assert entries["safetensors"]["parity"]["max_abs"] == 0
    for name in ("onnx", "pt2"):
        assert not entries[name]["path"]
        assert "Python runs between its 2 islands" in entries[name]["reason"]
    assert not (place / "model.onnx").exists()


def test_the_islands_are_trained_in_their_places(run):
    _, _, report = run
    assert len(report["qat"]["loss"]) == 1
    assert report["qat"]["error"]["sqnr_db"] > 30


def test_the_file_gives_the_model_back_with_the_code_that_is_given(run):
    model, place, _ = run
    x = torch.randn(5, 3, 16, 16)
    with warnings.catch_warnings(action="ignore"):
        loaded = engine.load_quantized(place, model=Branching())
    got, wanted = loaded(x), model(x)
    for name, value in wanted.items():
        assert (got[name] - value).norm() < 0.05 * value.norm()
    with pytest.raises(EngineError, match=r"load_quantized\(DIR, model=factory\(\)\)"):
        engine.load_quantized(place)
    with pytest.raises(EngineError, match="made of another model"):
        engine.load_quantized(place, model=nn.Linear(3, 3))


def test_what_an_island_does_not_serve_is_computed_by_its_own_forward_and_counted():
    model = Branching().eval()
    islands = found(model, images()).islands
    forwards = {
        part.path: IslandForward(part.call, part.taken, model.get_submodule(part.path).forward, lambda inputs: 1 / 0)
        for part in union(islands).parts(union(islands).graph)
    }
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = model.double()(x)
    assert torch.equal(WithForwards(model, forwards)(x)["logits"], expected["logits"])
    assert [(forward.calls, forward.plain_calls) for forward in forwards.values()] == [(1, 1), (2, 2)]


def test_a_loaded_model_never_computes_with_weights_that_came_with_the_code(run):
    _, place, _ = run
    with warnings.catch_warnings(action="ignore"):
        loaded = engine.load_quantized(place, model=Branching())
    with pytest.raises(EngineError, match=r"stem takes input: float32 .*, not float64 \(2, 3, 16, 16\)"):
        loaded(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    assert loaded.root.stem[0][0].weight.isnan().all()
    assert loaded(torch.randn(2, 3, 24, 20))["logits"].isfinite().all()


class NoGradient(Branching):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


def test_without_a_gradient_through_the_root_each_island_learns_by_itself(tmp_path):
    torch.manual_seed(0)
    model = NoGradient().eval()
    events = tmp_path / "run" / "events.jsonl"
    report = quantize(
        model=model, task=task(model, 5), out=tmp_path / "run", preset="w4a8", threshold="sqnr:60", qat={"mode": "always", "epochs": 3}
    ).data
    assert "each island is trained by itself" in events.read_text()
    assert report["qat"]["error"]["sqnr_db"] > report["ptq"]["error"]["sqnr_db"]


def test_a_detection_model_runs_from_lists_of_images_to_boxes(tmp_path):
    torch.manual_seed(0)
    backbone = nn.Sequential(block(3, 16), nn.MaxPool2d(4), block(16, 16), nn.MaxPool2d(4))
    backbone.out_channels = 16
    model = FasterRCNN(
        backbone, None, 32, 64, rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)), box_score_thresh=0.0,
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2), box_head=nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ReLU()),
        box_predictor=Predictor(), rpn_post_nms_top_n_test=8, box_detections_per_img=4,
    ).eval()  # fmt: skip
    batches = [([torch.rand(3, 48, 64), torch.rand(3, 64, 48)], [{"boxes": 1}, {"boxes": 2}]) for _ in range(5)]
    found_boxes = engine.Task.of(batches, metric=lambda outputs, targets: sum(len(one["boxes"]) for one in outputs) / len(targets))
    report = quantize(model=model, task=found_boxes, out=tmp_path / "run", threshold="drop:0.5", qat={"mode": "never"}).data
    covered = report["coverage"]
    assert {one["path"] for one in covered["islands"]} == {"backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"}
    assert covered["macs_integer"] > 0.95 * covered["macs_total"]
    assert report["ptq"]["value"] == report["baseline"]["value"] > 0


class Predictor(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores, self.boxes = nn.Linear(32, 3), nn.Linear(32, 12)

    def forward(self, x):
        return self.scores(x), self.boxes(x)


def test_a_model_without_a_part_that_traces_is_refused_with_the_first_reason(tmp_path):
    class Nothing(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 5))

        def forward(self, x):
            return x @ self.weight if x.sum() > 1e9 else (x @ self.weight) * 2

    given = [(torch.randn(4, 3), torch.zeros(4)) for _ in range(5)]
    own = engine.Task.of(given, metric=lambda outputs, targets: float(outputs.mean()))
    with pytest.raises(EngineError, match="nothing in Nothing can be quantized: control flow"):
        quantize(model=Nothing().eval(), task=own, out=tmp_path / "run")


def test_rounding_is_learned_in_each_island_and_the_rest_of_the_model_is_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(layer_rounding, "STEPS", 100)
    torch.manual_seed(0)
    model = Branching().eval()
    rules = [{"match": "*", "weights": {"bits": 3, "method": "adaround"}, "activations": {"bits": 8}}]
    report = quantize(
        model=model, task=task(model, 6), out=tmp_path / "run", threshold="sqnr:5", rules=rules, export=(), qat={"mode": "never"}
    ).data
    reasons = {row["name"]: row["reason"] for row in report["layers"] if row["actual"].startswith("w3")}
    assert len(reasons) == 4 and all("held back" in reason and "AdaRound" in reason for reason in reasons.values())
