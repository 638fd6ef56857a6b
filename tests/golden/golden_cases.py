"""The golden runs: what each is asked, and which of its integers hang on nothing but the weights file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import golden_models as models

# Which layers are slower on integers is measured, so that a busy machine would decide about a plan: here it is decided.
_SETTLED: Mapping[str, Any] = {"slower": [], "device": "cpu"}
_NEVER = {"mode": "never"}
_ONE_EPOCH = {"mode": "always", "epochs": 1}
_DIGITS = {"name": "digits", "calibration": 128}
_WINDOWS = {"name": models.TEXT, "calibration": 4, "limit": 768, "context": 128, "stride": 128}


@dataclass(frozen=True)
class Case:
    """One run. ``everywhere`` are the beginnings of the names of tensors in ``model.safetensors`` that are the same on all machines:
    those rounded by rules without sums of floats. ``command`` runs it by ``python -m qtui run`` in a process of its own."""

    name: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    everywhere: tuple[str, ...] = ()
    command: bool = False
    slow: bool = False

    @property
    def reads_text(self) -> bool:
        return self.recipe["model"] == "gpt2-mini"

    @property
    def fields(self) -> dict[str, Any]:
        return {**_SETTLED, **self.recipe}


def _simplecnn(name: str, everywhere: tuple[str, ...] = (), command: bool = False, slow: bool = False, **changes: Any) -> Case:
    return Case(name, {"model": "simplecnn", "data": _DIGITS, "qat": _NEVER, **changes}, everywhere, command, slow)


def _gpt2(name: str, everywhere: tuple[str, ...] = (), command: bool = False, slow: bool = False, **changes: Any) -> Case:
    return Case(name, {"model": "gpt2-mini", "data": _WINDOWS, "qat": _NEVER, **changes}, everywhere, command, slow)


_OWN = f"{models.__name__}:{models.residual.__name__}"
_FOLDER = {"name": models.IMAGES, "calibration": 32, "batch": 16}
_W4_RULES = [
    {"match": "conv1", "keep": "fp32"},
    {"match": "kind:Conv2d", "weights": {"bits": 4, "scale": "mse"}, "activations": {"bits": 8, "observer": "histogram-mse"}},
    {"match": "fc1", "weights": {"bits": 4, "granularity": "per-group", "group_size": 64}, "activations": {"bits": 8}},
]
# Biases take up the mean of what GPTQ's integers lack, which hangs on sums of floats: norms alone are the file's own.
_NORMS = ("rest/transformer.ln_f", *(f"rest/transformer.h.{block}.ln" for block in range(4)))

CASES = (
    _simplecnn("simplecnn-default", ("layer/conv", "layer/fc2"), command=True),
    _simplecnn("simplecnn-w4a8", ("layer/",), preset="w4a8"),
    _simplecnn("simplecnn-w8a8", ("layer/",), slow=True, preset="w8a8"),
    _simplecnn("simplecnn-rules", ("layer/fc",), slow=True, preset="w8a8", rules=_W4_RULES, threshold="sqnr:60"),
    _simplecnn("simplecnn-quantize-first", ("layer/",), slow=True, preset="w8a8", quantize_first=True),
    _simplecnn("simplecnn-qat", slow=True, preset="w4a8", qat=_ONE_EPOCH, data={**_DIGITS, "limit": 200}),
    _simplecnn("simplecnn-qat-quantize-first", slow=True, preset="w4a8", quantize_first=True, qat=_ONE_EPOCH),
    Case("residual-default", {"model": _OWN, "data": _DIGITS, "qat": _NEVER, "threshold": "agreement:0.5"}, ("layer/stem", "layer/branch")),
    Case(
        "mobilenet-w8a8",
        {"model": "mobilenet_v2", "weights": models.MOBILENET, "data": _FOLDER, "stem": "imagenet", "preset": "w8a8", "qat": _NEVER,
         "threshold": "sqnr:1"},
        ("layer/",), slow=True,
    ),
    _gpt2("gpt2-mini-default", ("matrix/", "rest/"), command=True),
    _gpt2("gpt2-mini-w4", ("matrix/transformer.w", *_NORMS), slow=True, preset="w4"),
    _gpt2("gpt2-mini-w8a8-static", ("matrix/transformer.w",), slow=True, preset="w8a8-static"),
)  # fmt: skip
