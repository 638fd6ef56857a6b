"""CIFAR-10: 60,000 photographs of 32x32 in ten classes, from a folder, the cache or the network."""

from __future__ import annotations

import contextlib
import io
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from engine.data.images.base import Data, MemorySplit, Subset, Triple
from engine.data.images.cache import data_cache
from engine.data.images.cifar_files import read_batch, read_classes
from engine.data.images.splitting import permutation, require_images, share
from engine.errors import EngineError

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILE = "test_batch"
SPLIT_SEED = 10
VALIDATION_SHARE = 0.1
# Published values over the 50,000 training images, for pixels in 0..1.
MEAN: Triple = (0.4914, 0.4822, 0.4465)
STD: Triple = (0.2470, 0.2435, 0.2616)
NETWORK_TIMEOUT_S = 20.0


def find(folder: Path) -> Path | None:
    """``folder`` itself or its child ``cifar-10-batches-py``, whichever holds the batch files; None where neither does."""
    for place in (folder, folder / FOLDER):
        if (place / TRAIN_FILES[0]).is_file() or (place.name == FOLDER and place.is_dir()):
            return place
    return None


def load(folder: Path | None = None, size: int | None = None) -> Data:
    """CIFAR-10 as uint8 (3, 32, 32): of the 50,000 training images a fixed tenth is the validation split; test 10,000.

    Without ``folder`` it is read from the cache and downloaded to it first where need be. ``size`` has no meaning here.
    ``EngineError`` when the folder has no CIFAR-10, a file is missing, damaged or not what it should be, or a download fails.
    """
    if folder is None:
        place = data_cache() / FOLDER
        if not place.is_dir():
            _download(place)
    else:
        found = find(folder)
        if found is None:
            raise EngineError(f"{folder} does not hold {FOLDER}: unpack cifar-10-python.tar.gz there or give another --data DIR")
        place = found

    classes = read_classes(place / "batches.meta")
    parts = [read_batch(place / name, len(classes)) for name in TRAIN_FILES]
    whole = MemorySplit(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
    test = read_batch(place / TEST_FILE, len(classes))
    order = torch.from_numpy(permutation(len(whole), SPLIT_SEED))
    validation, train = order.tensor_split([share(len(whole), VALIDATION_SHARE)])
    require_images({"train": len(train), "validation": len(validation), "test": len(test)}, str(place))
    return Data(
        name="cifar10",
        classes=classes,
        shape=(3, 32, 32),
        mean=MEAN,
        std=STD,
        train=Subset(whole, train),
        validation=Subset(whole, validation),
        test=Subset(test, torch.from_numpy(permutation(len(test), SPLIT_SEED))),
        flip=True,
        pad=4,
    )


def _download(place: Path) -> None:
    """Fetch CIFAR-10 into ``place``: all of it or, with an ``EngineError``, nothing."""
    from torchvision.datasets import CIFAR10

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # A sibling is on the same file system, so the rename that ends the download is atomic.
        with tempfile.TemporaryDirectory(prefix=".download-", dir=place.parent, ignore_cleanup_errors=True) as workplace:
            with _quiet_and_impatient():
                CIFAR10(root=workplace, download=True)
            fetched = Path(workplace) / FOLDER
            try:
                fetched.rename(place)
            except OSError:
                # Another run may have finished the same download in the meantime.
                if not place.is_dir():
                    raise
    except Exception as error:  # URLError, a wrong md5, a full disk, a broken archive: all end in the same advice
        raise EngineError(
            f"CIFAR-10 could not be downloaded ({_reason(error)}): give --data DIR with a folder that holds {FOLDER}, or use --data digits"
        ) from error


@contextlib.contextmanager
def _quiet_and_impatient() -> Iterator[None]:
    """Keep torchvision's progress bar off the terminal, and let a silent server fail instead of hanging."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: Exception) -> str:
    text = str(getattr(error, "reason", None) or error).strip() or type(error).__name__
    return text.splitlines()[0][:100]
