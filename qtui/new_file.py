"""``qtui new``: a file with a model and a task of one's own, which runs as it is."""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path

from engine.errors import EngineError, UsageError
from engine.plain_text import plain

TEMPLATE = '''"""A model and a task of your own. As it stands it learns digits in a few seconds; replace what is marked YOURS.

    uv run qtui run {file}:model --task {file}:task --yes
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import engine


def loaders():
    """YOURS: the data, in three parts that share nothing. Any iterable of batches will do (a DataLoader, a list, a generator
    function); a batch is (inputs, targets), and inputs are a tensor, a tuple of arguments or a dict of keyword arguments."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16 - 0.5  # (1797, 1, 8, 8)
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = order[:1200], order[1200:1500], order[1500:]
    return [DataLoader(TensorDataset(images[part], labels[part]), batch_size=64) for part in parts]


def accuracy(outputs, targets):
    """YOURS: the metric over a whole split. An object of torchmetrics does as well, or a dict of several: the first decides."""
    return (outputs.argmax(1) == targets).float().mean()


def task():
    train, validation, test = loaders()
    return engine.Task.of(
        train=train,  # calibration and training read this part alone
        validation=validation,  # choices are made on this one
        test=test,  # and what is reported was measured on this one
        metric=accuracy,
        unit="%",  # a part of one, shown in per cent; leave it out for other numbers
        loss=nn.functional.cross_entropy,  # (outputs, targets) of a batch; without it training distils from fp32
        name="digits",
        item="image",
    )


def model():
    """YOURS: the trained model, in fp32. Build it and load its weights: model.load_state_dict(torch.load("weights.pt"))."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 4 * 4, 10),
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(6):
        for inputs, targets in loaders()[0]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), targets).backward()
            optimizer.step()
    return net
'''


def new(args: Namespace) -> int:
    """Write the file. Raises UsageError where there is one already, or where it is no Python file."""
    path = Path(args.file)
    if path.suffix != ".py":
        raise UsageError(f"{args.file} is no Python file: give a name such as task.py")
    if path.exists():
        raise UsageError(f"{path} is there already: give another name")
    name = shlex.quote(str(path))
    try:
        path.write_text(TEMPLATE.replace("{file}", name), encoding="utf-8")
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror or error}") from error
    print(f"{plain(path)} is written. It runs as it is:\n  uv run qtui run {plain(name)}:model --task {plain(name)}:task --yes", flush=True)
    return 0
