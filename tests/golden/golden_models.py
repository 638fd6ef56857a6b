"""Models, images and text of the golden runs: the same bits in every version of torch, from NumPy's frozen ``RandomState`` streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MOBILENET, IMAGES, TEXT, TINY_GPT2, TOKENS = "mobilenet_v2.safetensors", "images", "text.txt", "tiny-gpt2", "tokens.json"
CLASSES = ("bars", "checks", "dots", "noise")
VOCABULARY = 96

_SUBJECTS = ("the function", "this module", "a file object", "the parser", "each thread", "the iterator", "a subclass", "the caller")
_VERBS = ("returns", "raises", "accepts", "closes", "replaces", "copies", "reads", "ignores")
_OBJECTS = ("a string", "the first argument", "an exception", "the list of names", "a mapping", "the default value", "every line")
_ENDS = ("if it is not given", "when the call fails", "in the same order", "without a copy", "for each key", "and returns None")


class Residual(nn.Module):
    """Two convolutions with a shortcut around the second, average pooling and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.branch = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.pool = nn.AvgPool2d(4)
        self.fc1 = nn.Linear(256, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.stem(x)))
        x = torch.relu(self.bn2(self.branch(x)) + x)
        return self.fc2(torch.relu(self.fc1(torch.flatten(self.pool(x), 1))))


def residual() -> nn.Module:
    """The factory that recipes name."""
    return fill(Residual(), 11)


def fill(model: nn.Module, seed: int, gain: float = 2.0) -> nn.Module:
    """Normal weights of variance ``gain`` / fan-in in every matrix, and statistics near those of standard input in normalizations."""
    stream = np.random.RandomState(seed)

    def normal(shape: tuple[int, ...], mean: float, deviation: float) -> Tensor:
        return torch.from_numpy((mean + deviation * stream.standard_normal(shape)).astype(np.float32))

    with torch.no_grad():
        for name, value in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
            if value.dim() > 1:
                value.copy_(normal(tuple(value.shape), 0.0, (gain / value[0].numel()) ** 0.5))
            elif name.endswith("running_var"):
                value.copy_(normal(tuple(value.shape), 1.0, 0.1).abs())
            elif value.is_floating_point():
                value.copy_(normal(tuple(value.shape), float(name.endswith("weight")), 0.1))
    return model


def write_inputs(folder: Path) -> None:
    """Everything that the recipes of the golden runs name by a relative path."""
    write_mobilenet(folder / MOBILENET)
    write_images(folder / IMAGES)
    (folder / TEXT).write_text(text(), encoding="utf-8")


def write_mobilenet(path: Path) -> None:
    from safetensors.torch import save_file
    from torchvision.models import mobilenet_v2

    model = fill(mobilenet_v2(weights=None, num_classes=len(CLASSES)), 5)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)


def write_images(folder: Path, side: int = 64, train: int = 12, test: int = 8) -> None:
    """A folder of images by class, ``train``, ``validation`` and ``test``, in a format without loss."""
    from PIL import Image

    stream = np.random.RandomState(3)
    for split, count in (("train", train), ("validation", test), ("test", test)):
        for index, name in enumerate(CLASSES):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(_image(stream, index, side)).save(place / f"{number:02}.png")


def _image(stream: np.random.RandomState, index: int, side: int) -> Any:
    rows, columns = np.mgrid[0:side, 0:side]
    step = int(stream.randint(3, 9))
    pattern = (columns // step % 2, (rows // step + columns // step) % 2, (rows % step == 0) & (columns % step == 0), 0 * rows)[index]
    colours = stream.randint(0, 256, (2, 3))
    noise = stream.randint(-40 if index < 3 else -120, 41 if index < 3 else 121, (side, side, 3))
    return np.clip(colours[pattern.astype(np.int64)] + noise, 0, 255).astype(np.uint8)


def text(sentences: int = 1500) -> str:
    """Sentences in the manner of a manual."""
    stream = np.random.RandomState(7)

    def one(words: tuple[str, ...]) -> str:
        return words[int(stream.randint(len(words)))]

    lines = [f"{one(_SUBJECTS)} {one(_VERBS)} {one(_OBJECTS)} {one(_ENDS)}.".capitalize() for _ in range(sentences)]
    return "\n\n".join(" ".join(lines[start : start + 5]) for start in range(0, sentences, 5)) + "\n"


def write_tiny_gpt2(folder: Path) -> None:
    """A GPT-2 of two narrow blocks with a tied head, in the Hugging Face layout, without a tokenizer."""
    import transformers

    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": VOCABULARY}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=1, pad_token_id=0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    fill(model, 13, gain=1.0).save_pretrained(folder)


def write_tokens(path: Path, sequences: int = 40, length: int = 32) -> None:
    """Sequences of token ids in which each hangs on the one before it."""
    stream = np.random.RandomState(17)
    found: list[list[int]] = []
    for _ in range(sequences):
        ids = [int(stream.randint(VOCABULARY))]
        for drawn in stream.randint(0, 8, length - 1).tolist():
            ids.append((ids[-1] * 5 + drawn) % VOCABULARY)
        found.append(ids)
    path.write_text(json.dumps(found))


def images(count: int, side: int, seed: int = 1) -> Tensor:
    """Normalized images (N, 3, H, W)."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((count, 3, side, side)).astype(np.float32))


def tokens(count: int, length: int, vocabulary: int, seed: int = 1) -> Tensor:
    """Token ids (N, T)."""
    return torch.from_numpy(np.random.RandomState(seed).randint(0, vocabulary, (count, length)).astype(np.int64))
