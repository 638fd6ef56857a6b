"""torchvision's networks with the right head and stem, and their published weights through torchvision's own API."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from engine.errors import EngineError, UsageError, one_line
from engine.models.torchvision import Published
from engine.models.weights_file import AUXILIARY_HEADS

NETWORK_TIMEOUT_S = 20.0
IMAGENET_CLASSES = 1000
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)$")


def build(published: Published, classes: int, side: int, small: bool) -> nn.Module:
    """The network with random weights, for images of ``side`` pixels; ``small`` gives it the stem for small images.

    Raises UsageError for what the network does not take.
    """
    from torchvision.models import get_model_builder

    options: dict[str, Any] = {"num_classes": classes}
    if published.family in ("googlenet", "inception"):
        # The published weights of these two expect pixels in -1..1 and have the network see to it.
        options |= {"aux_logits": False, "init_weights": True, "transform_input": classes == IMAGENET_CLASSES}
    if published.family == "vit":
        options["image_size"] = side
    if published.family == "maxvit":
        options["input_size"] = (side, side)
    try:
        model: nn.Module = get_model_builder(published.name)(weights=None, **options)
    except (AssertionError, ValueError) as error:
        size, what = published.transform.size, one_line(error, 120)
        raise UsageError(
            f"{published.name} does not take images of {side}×{side} ({what}): give it images of {size}×{size}, or use another model"
        ) from error
    if small:
        if not published.has_small_stem:
            raise UsageError(f"{published.name} has no stem for small images: leave --stem out, or use a ResNet")
        _shrink_stem(model, published.family)
    return model


# The first convolution where the small stem has another one; elsewhere the two differ in their stride alone.
_FIRST = {**dict.fromkeys(("resnet", "resnext", "wide_resnet"), "conv1"), "googlenet": "conv1.conv", "densenet": "features.conv0"}


def stem_of(published: Published, state: Mapping[str, Tensor]) -> Literal["small", "imagenet"] | None:
    """The stem that weights (names to tensors) belong to, None where their shapes do not tell."""
    weight = state.get(f"{_FIRST.get(published.family)}.weight")
    return None if weight is None or weight.dim() != 4 else "small" if weight.shape[-1] == 3 else "imagenet"


def _shrink_stem(model: Any, family: str) -> None:
    """A first convolution of 3x3 and stride 1, and no pooling after it."""
    if family in ("resnet", "resnext", "wide_resnet"):
        model.conv1, model.maxpool = _first(model.conv1), nn.Identity()
    elif family == "googlenet":
        model.conv1.conv, model.maxpool1 = _first(model.conv1.conv), nn.Identity()
    elif family == "densenet":
        model.features.conv0, model.features.pool0 = _first(model.features.conv0), nn.Identity()
    elif family == "shufflenet":
        model.conv1[0].stride, model.maxpool = (1, 1), nn.Identity()
    elif family == "regnet":
        model.stem[0].stride = (1, 1)
    elif family == "mnasnet":
        model.layers[0].stride = (1, 1)
    else:
        model.features[0][0].stride = (1, 1)


def _first(before: nn.Conv2d) -> nn.Conv2d:
    made = nn.Conv2d(before.in_channels, before.out_channels, 3, 1, 1, bias=before.bias is not None)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


def adapted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights under the names that the network has: without auxiliary heads, and without the names of an old DenseNet."""
    return {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in state.items() if not name.startswith(AUXILIARY_HEADS)}


def published_state(published: Published, advice: str) -> dict[str, Tensor]:
    """torchvision's DEFAULT weights, from torch hub's cache or downloaded to it and checked against their hash.

    Raises EngineError, which ends with ``advice``, where they cannot be had.
    """
    from torchvision.models import get_model_weights

    weights = get_model_weights(published.name).DEFAULT
    kept = published.cached()
    try:
        with _impatient():
            state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # URLError, a wrong hash, a full disk, a file cut short: all end in the same advice
        what = f"in {kept} are damaged" if kept else "could not be downloaded"
        raise EngineError(f"torchvision's weights for {published.name} {what} ({_reason(error)}): {advice}") from error
    return adapted(state)


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Let a silent server fail instead of hanging."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: Exception) -> str:
    text = one_line(error, 100)
    return str(getattr(error, "reason", None) or text or type(error).__name__)
