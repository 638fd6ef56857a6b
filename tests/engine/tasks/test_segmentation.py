"""Classes of pixels: the metrics against public packages, forms of outputs, and the way from a model to a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from driving import untimed
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, jaccard_score
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

import engine
from engine.data.items import ItemData, Items, MemoryItems
from engine.errors import EngineError
from engine.recipe.recipe import Recipe
from engine.tasks.base import Batch
from engine.tasks.segmentation import Overlaps, Segmentation, classes_of, logits_of

IGNORED = 255


def drawn(images: int = 12, classes: int = 5, side: int = 9) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    masks = torch.randint(classes - 1, (images, side, side), generator=draw)
    logits = torch.randn(images, classes - 1, side, side, generator=draw) + 1.5 * nn.functional.one_hot(masks, classes - 1).permute(
        0, 3, 1, 2
    )
    # A class that neither answers nor masks hold, and pixels that are not measured.
    logits = torch.cat([logits, torch.full((images, 1, side, side), -9.0)], 1)
    masks[:, 0] = IGNORED
    return logits, masks


def task(masks: Tensor, classes: int, **about: object) -> Segmentation:
    split = MemoryItems(Items(torch.zeros(len(masks), 3, *masks.shape[1:]), masks))
    return Segmentation(ItemData("made", split, split, split, classes, tuple(f"c{i}" for i in range(classes)), about))


def test_metrics_are_those_of_scikit_learn_and_torchmetrics() -> None:
    logits, masks = drawn()
    found = Overlaps(5)
    for begin in range(0, 12, 5):
        found.update(logits[begin : begin + 5], masks[begin : begin + 5])
    values, measured = found.compute(), masks != IGNORED
    answers, wanted = logits.argmax(1)[measured], masks[measured]
    assert values["mIoU"].value == pytest.approx(jaccard_score(wanted, answers, average="macro"))
    assert values["mIoU"].value == pytest.approx(float(MulticlassJaccardIndex(5, ignore_index=IGNORED)(logits, masks)))
    assert values["pixel accuracy"].value == pytest.approx(accuracy_score(wanted, answers))
    assert values["Dice"].value == pytest.approx(f1_score(wanted, answers, average="macro"))
    low, high = values["mIoU"].low, values["mIoU"].high
    assert low is not None and high is not None and low < values["mIoU"].value < high < 1
    most = torch.full_like(wanted, int(wanted.mode().values))
    assert found.chance() == pytest.approx(jaccard_score(wanted, most, average="macro", zero_division=0))


def test_the_interval_is_that_of_a_bootstrap_over_images() -> None:
    logits, masks = drawn(40)
    found = Overlaps(5)
    found.update(logits, masks)
    random, values = np.random.RandomState(1), []
    for _ in range(400):
        places = random.randint(0, 40, 40)
        answers, wanted = logits.argmax(1)[places], masks[places]
        values.append(jaccard_score(wanted[wanted != IGNORED], answers[wanted != IGNORED], average="macro"))
    low, high = np.percentile(values, [2.5, 97.5])
    value = found.compute()["mIoU"]
    assert value.low == pytest.approx(low, abs=0.25 * (high - low)) and value.high == pytest.approx(high, abs=0.25 * (high - low))


def test_two_models_with_the_same_answers_differ_by_nothing() -> None:
    logits, masks = drawn()
    one, same, other = Overlaps(5), Overlaps(5), Overlaps(5)
    one.update(logits, masks)
    same.update(3 * logits, masks)
    other.update(torch.randn_like(logits), masks)
    assert same.difference_error(one) == 0.0 and (other.difference_error(one) or 0) > 0


def test_one_channel_is_a_logit_or_a_probability() -> None:
    logits = torch.tensor([-2.0, 0.2, 3.0, -0.1]).view(1, 1, 2, 2)
    assert classes_of(logits).flatten().tolist() == classes_of(logits.sigmoid()).flatten().tolist() == [0, 1, 1, 0]
    masks = torch.tensor([[[0, 1], [1, IGNORED]]])
    made = task(masks, 2)
    wanted = nn.functional.binary_cross_entropy_with_logits(logits.flatten()[:3], torch.tensor([0.0, 1.0, 1.0]))
    assert torch.allclose(made.loss(logits, masks), wanted) and torch.allclose(made.loss(logits.sigmoid(), masks), wanted)


def test_outputs_by_name_are_found_and_scaled_to_the_masks() -> None:
    logits, masks = drawn(4)
    small = nn.functional.avg_pool2d(logits, 3)
    scaled = nn.functional.interpolate(small, size=(9, 9), mode="bilinear", align_corners=False)
    found, wanted = Overlaps(5), Overlaps(5)
    found.update({"aux": torch.zeros_like(small), "out": small}, masks)
    wanted.update(scaled, masks)
    assert found.compute() == wanted.compute()
    assert logits_of((torch.ones(2, dtype=torch.long), small)) is small
    made = task(masks, 5)
    alone = made.loss({"out": logits}, masks)
    assert torch.allclose(alone, nn.functional.cross_entropy(logits, masks, ignore_index=IGNORED))
    assert made.loss({"out": logits, "aux": logits}, masks) > alone
    nothing = torch.full_like(masks, IGNORED)
    assert float(made.loss(logits, nothing)) == 0.0


def test_each_image_has_its_answer_in_words_and_its_score() -> None:
    logits, masks = drawn(3)
    made = task(masks, 5)
    answers = made.item_answers({"out": logits}, Batch((torch.zeros(3, 3, 9, 9),), targets=masks, count=3))
    wanted = [jaccard_score(m[m != IGNORED], a[m != IGNORED], average="macro") for m, a in zip(masks, logits.argmax(1), strict=True)]
    assert [answer.score for answer in answers] == pytest.approx(wanted)
    assert answers[0].mask is not None and torch.equal(answers[0].mask.long(), logits[0].argmax(0))
    assert "c1" in answers[0].words and "c1" in answers[0].label


def test_a_head_of_other_classes_is_told() -> None:
    logits, masks = drawn(2)
    batch = Batch((), targets=masks, count=2)
    with pytest.raises(EngineError, match="m knows 3 classes and made has 5"):
        task(masks, 5).check((logits[:, :3],), batch, "m")
    with pytest.raises(EngineError, match="m knows 5 classes and made has 3"):
        task(masks, 3, classes_named=True).check((logits,), batch, "m")
    task(masks, 3).check((logits,), batch, "m")
    with pytest.raises(EngineError, match=r"m returns \(2, 5\), not logits of shape"):
        task(masks, 5).check((logits[:, :, 0, 0],), batch, "m")


OWN = """
import torch
from torch import nn


def block(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1), nn.ReLU())


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.bottom, self.up = block(CHANNELS, 8), block(8, 16), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.pool, self.last, self.head = nn.MaxPool2d(2), block(16, 8), nn.Conv2d(8, OUTPUTS, 1)

    def forward(self, x):
        first = self.down(x)
        x = self.up(self.bottom(self.pool(first)))
        return self.head(self.last(torch.cat([x, first], 1)))


def make():
    torch.manual_seed(0)
    return UNet()
"""


@pytest.mark.parametrize(("channels", "outputs"), [(3, 3), (1, 1)])
def test_a_model_of_ones_own_and_a_folder_of_masks_are_enough(tmp_path: Path, channels: int, outputs: int) -> None:
    (tmp_path / "unet.py").write_text(OWN.replace("CHANNELS", str(channels)).replace("OUTPUTS", str(outputs)))
    random = np.random.RandomState(0)
    for number in range(16):
        for kind in ("images", "masks"):
            (tmp_path / "scans" / kind).mkdir(parents=True, exist_ok=True)
        bright = random.randint(0, 256, (32, 40)).astype(np.uint8)
        Image.fromarray(bright).save(tmp_path / "scans" / "images" / f"{number}.png")
        classes = (bright > 127) * 255 if outputs == 1 else bright // 86
        Image.fromarray(classes.astype(np.uint8)).save(tmp_path / "scans" / "masks" / f"{number}.png")
    recipe = Recipe.make(model=f"{tmp_path / 'unet.py'}:make", task="segmentation", data={"name": str(tmp_path / "scans")})
    with untimed():
        report = engine.quantize(recipe, tmp_path / "run").data
    assert report["metrics"]["fp32"]["mIoU"]["value"] > 0
    assert len(report["layers"]) == 8 and not [layer["name"] for layer in report["layers"] if "fp32" in layer["kernel"]]
    written = Recipe.load(tmp_path / "run" / "recipe.yaml")
    assert written.data.channels == (1 if channels == 1 else None)
