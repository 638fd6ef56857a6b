"""torchvision's classifiers: the table, heads and stems, published weights and what they expect of photographs."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models as tv
from driving import Outcome, consume, drive
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import functional as pixels

from engine.data import registry as data_registry
from engine.data.images.base import Subset
from engine.data.images.image_files import fitted
from engine.errors import EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.models import torchvision_build, weights_file
from engine.models.cached import cached_weights, recorded_stem
from engine.models.registry import ENTRIES, find
from engine.models.torchvision import PUBLISHED, Published
from engine.recipe.recipe import Recipe
from engine.runs.pipeline import train
from engine.tasks import classification
from engine.tasks.subject import Subject
from engine.training.baseline import schedule_for
from engine.training.loop import precision

BY_NAME = {published.name: published for published in PUBLISHED}
# The smallest of each family that is not too large for a test.
SMALL = list({p.family: p for p in sorted(PUBLISHED, key=lambda p: -p.params) if p.params < 12e6}.values())


def subject_of(recipe: Recipe) -> Outcome:
    """What is loaded for a run; the ``Subject`` is the outcome's ``report``."""
    stop = StopToken()
    return consume(classification.load(recipe, stop, "cpu"), stop)


def state_of(name: str, classes: int = 10, stem: Any = "auto") -> dict[str, torch.Tensor]:
    entry = find(name)
    return dict(entry.build(classes, 32, entry.stem(stem, 32)).state_dict())


def test_every_classifier_is_listed() -> None:
    assert sorted(BY_NAME) == sorted(tv.list_models(module=tv))


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_the_table_says_what_torchvision_says(name: str) -> None:
    found, weights = BY_NAME[name], tv.get_model_weights(name).DEFAULT
    about, preset = weights.meta, weights.transforms()
    assert found.params == about["num_params"] and found.mib == about["_file_size"]
    assert found.top1 == pytest.approx(about["_metrics"]["ImageNet-1K"]["acc@1"] / 100)
    assert weights.url.rsplit("/", 1)[1].startswith(f"{found.file}-")
    transform = found.transform
    assert ([transform.size], [transform.resize]) == (preset.crop_size, preset.resize_size)
    assert transform.interpolation == preset.interpolation.value
    assert list(transform.mean) == list(preset.mean) and list(transform.std) == list(preset.std)


@pytest.mark.parametrize("name", [p.name for p in SMALL])
def test_the_network_is_the_published_one_and_takes_another_head(name: str) -> None:
    entry = find(name)
    assert sum(p.numel() for p in entry.build(1000).parameters()) == BY_NAME[name].params
    side = 32 if BY_NAME[name].has_small_stem else 64
    model = entry.build(7, side, entry.stem("auto", side)).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, side, side)).shape == (2, 7)


@pytest.mark.parametrize("name", [p.name for p in SMALL if p.has_small_stem])
def test_the_small_stem_keeps_more_of_the_image(name: str) -> None:
    entry = find(name)
    assert entry.stem("auto", 64) == "small" and entry.stem("auto", 65) == "imagenet" and entry.stem("imagenet", 8) == "imagenet"
    widest = {}
    for stem in ("small", "imagenet"):
        seen: list[int] = []
        model = entry.build(10, 32, stem).eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda m, i, out, seen=seen: seen.append(out.shape[-1]))
        with torch.no_grad():
            model(torch.zeros(1, 3, 32, 32))
        widest[stem] = seen[0], seen[-1]
    assert widest["small"][0] == 32 and widest["imagenet"][0] == 16 and widest["small"][1] > widest["imagenet"][1]


def test_a_stem_is_asked_of_those_that_have_one() -> None:
    assert find("vgg11").stem("auto", 32) == find("simplecnn").stem("auto", 32) == "imagenet"
    with pytest.raises(UsageError, match="no stem for small images"):
        find("vgg11").stem("small", 32)
    with pytest.raises(UsageError, match=r"vit_b_16 does not take images of 33×33 .* give it images of 224"):
        find("vit_b_16").build(10, 33)


def test_the_stem_is_part_of_what_is_asked() -> None:
    plain = Recipe.make(model="resnet18")
    assert plain.fingerprint() == Recipe.make(model="resnet18", stem="auto").fingerprint()
    assert plain.fingerprint() != Recipe.make(model="resnet18", stem="small").fingerprint()
    with pytest.raises(UsageError, match="stem is 'tiny': must be one of auto, small, imagenet"):
        Recipe.make(model="resnet18", stem="tiny")


def test_auxiliary_heads_and_old_names_are_left_behind() -> None:
    old = {"features.denseblock1.denselayer1.norm.1.weight": 1, "aux1.fc1.weight": 2, "AuxLogits.fc.weight": 3, "fc.weight": 4}
    found = torchvision_build.adapted(old)  # type: ignore[arg-type]
    assert found == {"features.denseblock1.denselayer1.norm1.weight": 1, "fc.weight": 4}
    assert set(found) - {"fc.weight"} <= set(state_of("densenet121"))


def test_a_published_file_with_auxiliary_heads_fits(tmp_path: Path) -> None:
    torch.save(tv.googlenet(weights=None, init_weights=False).state_dict(), tmp_path / "w.pth")
    weights_file.load_into(find("googlenet").build(1000), tmp_path / "w.pth", "googlenet")


def test_weights_of_mnasnet_say_no_version(tmp_path: Path) -> None:
    torch.save(dict(state_of("mnasnet0_5")), tmp_path / "w.pth")
    weights_file.load_into(find("mnasnet0_5").build(10, 32, "small"), tmp_path / "w.pth", "mnasnet0_5")


def test_another_class_count_is_told_in_one_line(tmp_path: Path, own_cache: Path) -> None:
    torch.save(state_of("squeezenet1_1", 1000), tmp_path / "w.pth")
    outcome = drive(Recipe.make(model="squeezenet1_1", weights=str(tmp_path / "w.pth")), tmp_path / "run")
    assert isinstance(outcome.error, EngineError) and not (tmp_path / "run").exists()
    assert "w.pth is for 1000 classes and digits has 10" in str(outcome.error) and "qtui train" in str(outcome.error)


def test_without_weights_training_is_offered(tmp_path: Path, own_cache: Path) -> None:
    outcome = drive(Recipe.make(model="resnet18"), tmp_path / "run")
    assert isinstance(outcome.error, EngineError)
    assert "resnet18 has no weights for digits" in str(outcome.error) and "qtui train resnet18 --data digits" in str(outcome.error)


@pytest.fixture
def photographs(tmp_path: Path) -> Callable[[int], Path]:
    """A folder of one photograph in each of so many classes of ImageNet, for each split."""

    def make(classes: int) -> Path:
        source = tmp_path / "source.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3)).astype(np.uint8)).save(source)
        for split in ("train", "validation", "test"):
            for index in range(classes):
                place = tmp_path / "photographs" / split / f"n{index:08}"
                place.mkdir(parents=True)
                (place / "a.png").hardlink_to(source)
        return tmp_path / "photographs"

    return make


def test_imagenets_classes_are_known_by_their_names(photographs: Callable[[int], Path]) -> None:
    assert data_registry.is_imagenet([f"n{i:08}" for i in range(1000)]) and data_registry.is_imagenet([f"{i:03}" for i in range(1000)])
    assert not data_registry.is_imagenet([f"c{i:03}" for i in range(1000)]) and not data_registry.is_imagenet(["n00000001"])
    assert not data_registry.holds_imagenet("digits") and not data_registry.holds_imagenet(str(photographs(2)))


def test_published_weights_are_for_imagenets_classes(
    photographs: Callable[[int], Path], tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photographs(1000)
    assert data_registry.holds_imagenet(str(folder))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub-home"))
    asked: list[Any] = []

    def offline(*given: Any, **options: Any) -> Any:
        asked.append((given, options))
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    recipe = Recipe.make(model="squeezenet1_1", data={"name": str(folder), "calibration": 4, "limit": 4}, threshold="drop:1")
    failed = drive(recipe, tmp_path / "run").error
    assert isinstance(failed, EngineError) and "could not be downloaded (no network)" in str(failed)
    assert "--weights FILE" in str(failed) and "qtui train squeezenet1_1 --data" in str(failed) and "\n" not in str(failed)
    assert asked[0][1]["check_hash"] is True and asked[0][1]["weights_only"] is True
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state_of("squeezenet1_1", 1000))
    loaded = subject_of(recipe).report
    assert isinstance(loaded, Subject) and loaded.weights == "from torchvision"
    assert str(loaded.task.images.transform) == "shorter side to 256 pixels (bilinear), middle 224×224"


def test_a_file_in_the_cache_is_known_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert str(tmp_path) in torch.hub.get_dir()
    published = BY_NAME["squeezenet1_1"]
    assert published.cached() is None
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{published.file}-00000000.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cut short")
    assert published.cached() is None
    with path.open("r+b") as file:
        file.truncate(published.bytes)
    assert published.cached() == path


@pytest.mark.parametrize(
    "published", [BY_NAME[n] for n in ("resnet18", "resnet50", "efficientnet_b0", "efficientnet_v2_l", "swin_t")], ids=lambda p: p.name
)
@pytest.mark.parametrize("shape", [(333, 500), (500, 333), (232, 232), (90, 61)])
def test_photographs_are_prepared_as_the_weights_expect(published: Published, shape: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8))
    transform = published.transform
    got = pixels.to_tensor(fitted(image, transform))
    got = pixels.normalize(got, transform.mean, transform.std)
    assert torch.equal(got, tv.get_model_weights(published.name).DEFAULT.transforms()(image))


def test_what_is_given_wins_over_what_the_weights_expect(photographs: Callable[[int], Path]) -> None:
    folder, transform = str(photographs(2)), BY_NAME["efficientnet_v2_l"].transform
    plain = data_registry.load(folder)
    assert plain.shape == (3, 50, 70) and plain.transform is None and plain.mean[0] == 0.485
    full = data_registry.load(folder, transform=transform)
    assert full.shape == (3, 480, 480) and full.mean == (0.5, 0.5, 0.5)
    given = data_registry.load(folder, transform=transform, size=32, mean=(0.1, 0.1, 0.1))
    assert given.shape == (3, 32, 32) and given.mean[0] == 0.1 and given.std[0] == 0.5
    assert data_registry.load("digits", transform=transform).shape == (3, 32, 32)


def loaded(name: str, weights: Path, stem: Any = "auto") -> Any:
    outcome = subject_of(Recipe.make(model=name, weights=str(weights), stem=stem))
    return outcome.error or outcome.report


# What is built, by the stem of the weights, whether the file says it, and the stem that is asked for; None for a refusal.
@pytest.mark.parametrize(
    ("name", "trained", "says", "asked", "built"),
    [
        ("shufflenet_v2_x0_5", "small", True, "auto", "small"),
        ("shufflenet_v2_x0_5", "imagenet", True, "auto", "imagenet"),
        ("shufflenet_v2_x0_5", "imagenet", True, "small", None),
        ("shufflenet_v2_x0_5", "small", False, "auto", "imagenet"),
        ("shufflenet_v2_x0_5", "small", False, "small", "small"),
        ("resnet18", "small", False, "auto", "small"),
        ("resnet18", "imagenet", False, "auto", "imagenet"),
        ("resnet18", "imagenet", False, "small", None),
        ("densenet121", "small", False, "auto", "small"),
        ("googlenet", "small", False, "auto", "small"),
    ],
)
def test_the_weights_decide_the_stem(name: str, trained: Any, says: bool, asked: Any, built: Any, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    state = {key: tensor.contiguous() for key, tensor in state_of(name, stem=trained).items()}
    save_file(state, weights, {"stem": trained} if says else None)
    assert recorded_stem(weights) == (trained if says else None) and recorded_stem(tmp_path / "none") is None
    found = loaded(name, weights, asked)
    if built is None:
        assert isinstance(found, EngineError) and f"was trained with the stem '{trained}', not '{asked}'" in str(found)
    else:
        assert found.environment["stem"] == built


def test_what_is_trained_is_what_a_run_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path))
    digits_data = data_registry.load("digits")
    few = replace(digits_data, train=Subset(digits_data.train, torch.arange(64)), test=Subset(digits_data.test, torch.arange(8)))
    monkeypatch.setattr("engine.data.images.digits.load", lambda *_: few)
    for stem, told in (("auto", "imagenet"), ("small", "small")):
        outcome = consume(train("shufflenet_v2_x0_5", "digits", epochs=1, stem=stem), StopToken())
        assert outcome.report == cached_weights("shufflenet_v2_x0_5", "digits") and outcome.error is None
        taken = subject_of(Recipe.make(model="shufflenet_v2_x0_5")).report
        assert isinstance(taken, Subject) and (taken.weights, taken.environment["stem"]) == ("from the cache", told)


def test_a_folder_takes_no_weights_of_a_data_set_of_its_name(photographs: Callable[[int], Path], own_cache: Path) -> None:
    folder = photographs(10)
    named = folder.rename(folder.parent / "digits")
    recipe = Recipe.make(model="simplecnn", data={"name": str(named), "size": 32})
    outcome = subject_of(recipe)
    assert isinstance(outcome.error, EngineError) and "simplecnn has no weights for digits" in str(outcome.error)


def test_a_thousand_classes_of_other_names_are_not_imagenets(photographs: Callable[[int], Path], own_cache: Path) -> None:
    folder = photographs(1000)
    for split in folder.iterdir():
        for index, place in enumerate(sorted(split.iterdir())):
            place.rename(split / str(index))
    failed = subject_of(Recipe.make(model="squeezenet1_1", data={"name": str(folder)})).error
    assert isinstance(failed, EngineError) and "its folders (0, 1 …) are not named by WordNet id (n01440764 …) or 000 to 999" in str(failed)
    assert "--weights FILE" in str(failed) and "\n" not in str(failed)


def test_deep_networks_train_in_16_bits_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = schedule_for("digits", ENTRIES["resnet18"])
    assert schedule.mixed and not schedule_for("digits", ENTRIES["simplecnn"]).mixed and not schedule_for("digits").mixed
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert precision(schedule, "cpu") == "bfloat16"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert precision(schedule, "cpu") is None
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert precision(schedule, "cuda") == "float16"
