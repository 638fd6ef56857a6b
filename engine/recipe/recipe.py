"""What a run is asked: model, data, rules, threshold, QAT, export. Torch-free; YAML in and out, validated.

``Recipe.load`` and ``Recipe.make`` end every problem in one ``UsageError`` line; the bare constructor raises pydantic's own error.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from engine.errors import UsageError
from engine.export.registry import FORMATS
from engine.models.transform import Interpolation
from engine.recipe import yaml as recipe_yaml
from engine.recipe.cache_spec import CacheFormat, CacheGranularity, CacheSpec
from engine.recipe.number_formats import ACTIVATION_FORMATS, NUMBER_FORMATS
from engine.recipe.spec import FP32, METHODS, ActivationSpec, Granularity, LayerSpec, Observer, Rule, WeightSpec
from engine.recipe.targets import parsed
from engine.recipe.threshold import Threshold as Threshold

Scale = Literal["minmax", "mse"]
Preset = Literal[
    "default", "w8a8", "w8a8-static", "w4a8", "w4a4", "w8", "w4", "w3", "fp8", "fp8-dynamic", "fp8-static", "fp8-block", "mxfp4",
    "nvfp4", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k", "tensorrt",
]  # fmt: skip
Device = Literal["auto", "cpu", "cuda"]
QatMode = Literal["auto", "always", "never"]
Stem = Literal["auto", "small", "imagenet"]

_LARGEST = 2**31 - 1


def _number(value: object) -> object:
    return float(value) if isinstance(value, recipe_yaml.Scientific) else value


def _text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _one_of(words: object) -> str:
    return "one of " + ", ".join(str(word) for word in get_args(words))


def _known_format(name: str) -> str:
    if name not in FORMATS:
        raise PydanticCustomError("export_format", "not a format")
    return name


# A format's name: one of the registry's when it is read.
ExportFormat = Annotated[str, AfterValidator(_known_format)]


def _method(name: str) -> str:
    if name not in METHODS:
        raise PydanticCustomError("method", "no method")
    return name


def _number_format(name: str) -> str:
    if name not in NUMBER_FORMATS:
        raise PydanticCustomError("number_format", "no number format")
    return name


def _activation_format(name: str) -> str:
    if name not in ACTIVATION_FORMATS:
        raise PydanticCustomError("number_format", "no number format of activations")
    return name


# A description completes the sentence "KEY is VALUE: must be …" (recipe_yaml reads it).
_Text = Annotated[str, BeforeValidator(_text), Field(min_length=1)]
_Float = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
_Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
_Bits = Annotated[int, Field(ge=2, le=8, description="2 to 8")]
_Batch = Annotated[int, Field(ge=1, le=4096, description="1 to 4096")]
_Count = Annotated[int, Field(ge=1, le=_LARGEST, description="1 or more")]
_CountOrNull = Annotated[int | None, Field(ge=1, le=_LARGEST, description="1 or more, or null")]
_Method = Annotated[str, AfterValidator(_method), Field(description=f"one of {', '.join(METHODS)}")]
_NumberFormat = Annotated[str, AfterValidator(_number_format)]
_ActivationFormat = Annotated[str, AfterValidator(_activation_format)]
_FLOATS = f"one of {', '.join(ACTIVATION_FORMATS)}, or null for integers of so many bits"
_INTEGERS = f"one of {', '.join(NUMBER_FORMATS)}, or null for integers of so many bits"
_Flag = Annotated[bool, Field(description="true or false")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataPart(_Part):
    """The data set; ``calibration``, ``batch`` and ``limit`` count images, ``size`` (of the shorter side) and
    ``crop`` (of the middle that is kept) are in pixels; ``classes`` is a file with the names of all classes, and
    ``channels`` 1 reads images of one's own as grey (null: as many as the model takes).
    Of audio ``size`` counts samples, and ``rate`` samples a second. ``calibration_from`` is a folder of images without labels, which
    calibrate in the place of training images.
    Of a text ``calibration`` counts windows of ``context`` tokens (null: what the model reads at most), ``limit``
    tokens of the test split, and ``stride`` the tokens between the windows that measure perplexity."""

    name: Annotated[_Text, Field(description="the name of a data set, or a folder")] = "digits"
    calibration: _Count = 512
    batch: _Batch = 64
    limit: _CountOrNull = None
    mean: Annotated[tuple[_Float, _Float, _Float] | None, Field(strict=False, description="three finite numbers, or null")] = None
    std: Annotated[
        tuple[_Positive, _Positive, _Positive] | None, Field(strict=False, description="three finite numbers above 0, or null")
    ] = None
    size: _CountOrNull = None
    crop: _CountOrNull = None
    interpolation: Annotated[Interpolation | None, Field(description="one of bilinear, bicubic, or null")] = None
    classes: Annotated[_Text | None, Field(description="a file with one class name a line, or null")] = None
    rate: _CountOrNull = None
    calibration_from: Annotated[_Text | None, Field(description="a folder of images without labels, or null")] = None
    channels: Annotated[Literal[1, 3] | None, Field(description="1 or 3, or null")] = None
    context: _CountOrNull = None
    stride: _Count = 512

    def of_images(self) -> dict[str, Any]:
        """What ``engine.data.registry.load`` takes of it."""
        names = ("mean", "std", "size", "crop", "interpolation", "classes", "channels", "calibration_from")
        return {name: getattr(self, name) for name in names}


class WeightsPart(_Part):
    """A rule's weights: the fields of ``WeightSpec``, and ``scale``, whose ``mse`` is an older spelling of ``method: mse``."""

    bits: _Bits = 8
    granularity: Annotated[Granularity, Field(description=_one_of(Granularity))] = "per-channel"
    group_size: Annotated[Literal[16, 32, 64, 128, 256], Field(description="one of 16, 32, 64, 128, 256")] = 32
    scale: Annotated[Scale, Field(description=_one_of(Scale))] = "minmax"
    symmetric: _Flag = True
    method: _Method = "nearest"
    format: Annotated[_NumberFormat | None, Field(description=_INTEGERS)] = None

    @model_validator(mode="before")
    @classmethod
    def _format_settles_the_rest(cls, given: Any) -> Any:
        entry = NUMBER_FORMATS.get(str(given.get("format"))) if isinstance(given, Mapping) else None
        if entry is None:
            return given
        settled: dict[str, Any] = {"bits": entry.bits, "symmetric": True}
        settled |= {"granularity": "per-group", "group_size": entry.block} if entry.block else {}
        for name, value in settled.items():
            if given.get(name, value) != value:
                raise ValueError(f"weights.{name} is {given[name]} and {entry.name} has {value}: leave {name} out")
        return {**settled, **given}

    @model_validator(mode="after")
    def _group_size_is_used(self) -> Self:
        if "group_size" in self.model_fields_set and "granularity" not in self.model_fields_set:
            raise ValueError("weights.group_size has no effect per channel: add granularity: per-group")
        return self


class ActivationsPart(_Part):
    """A rule's activations: the fields of ``ActivationSpec``; ``group_size`` null is the whole token."""

    bits: _Bits = 8
    symmetric: _Flag = False
    observer: Annotated[Observer, Field(description=_one_of(Observer))] = "minmax"
    dynamic: _Flag = False
    format: Annotated[_ActivationFormat | None, Field(description=_FLOATS)] = None
    group_size: Annotated[Literal[32, 64, 128] | None, Field(description="one of 32, 64, 128, or null for the whole token")] = None

    @model_validator(mode="after")
    def _groups_are_of_floats(self) -> Self:
        if self.group_size is not None and not self.dynamic:
            raise ValueError("activations.group_size has no effect without dynamic: true: add it, or leave group_size out")
        entry = NUMBER_FORMATS.get(self.format or "")
        if entry is not None and entry.block and self.group_size not in (None, entry.block):
            raise ValueError(f"activations.group_size is {self.group_size} and {entry.name} has {entry.block}: leave group_size out")
        return self


class RulePart(_Part):
    """One rule: ``weights`` with or without ``activations``, or ``keep: fp32``. Equality ignores the line it came from."""

    match: Annotated[_Text, Field(description="a glob on the module path such as 'layer1.*', or kind:Linear")]
    weights: Annotated[WeightsPart | None, Field(description="a mapping with bits, granularity, group_size, scale")] = None
    activations: Annotated[ActivationsPart | None, Field(description="a mapping with bits, symmetric, observer")] = None
    keep: Annotated[Literal["fp32"] | None, Field(description="fp32")] = None
    _line: int | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        name = recipe_yaml.show(self.match)
        if self.match.strip() == "kind:":
            raise ValueError(f"match is {name}: name a kind, such as kind:Linear")
        if self.keep and (self.weights or self.activations):
            raise ValueError(f"rule {name} has both keep and weights or activations: remove one of them")
        if not (self.keep or self.weights or self.activations):
            raise ValueError(f"rule {name} asks for nothing: add weights, weights and activations, or keep: fp32")
        if self.activations and not self.weights:
            raise ValueError(f"rule {name} has activations without weights: add weights, such as weights: {{bits: 8}}")
        return self

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if isinstance(other, RulePart) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.match, self.weights, self.activations, self.keep))

    def rule(self) -> Rule:
        """The rule in the engine's words, with the line of the recipe it came from."""
        weights = WeightSpec.of(self.weights.model_dump(exclude_none=True)) if self.weights else None
        activations = ActivationSpec.of(self.activations.model_dump()) if self.activations else None
        return Rule(self.match, FP32 if self.keep else LayerSpec(weights, activations), self._line)


class QatPart(_Part):
    """Quantization-aware training. ``batch`` counts images, of a text windows. ``freeze_bn`` is the part of training after which
    BatchNorm statistics are frozen, ``distill`` the weight of the fp32 model's answers against the labels, or the text, in the
    loss."""

    mode: Annotated[QatMode, Field(description=_one_of(QatMode))] = "auto"
    epochs: Annotated[int, Field(ge=1, le=1000, description="1 to 1000")] = 5
    batch: _Batch = 64
    lr: Annotated[_Positive, Field(description="above 0")] = 0.002
    freeze_bn: Annotated[_Float, Field(ge=0, le=1, description="0 to 1")] = 0.5
    distill: Annotated[_Float, Field(ge=0, le=1, description="0 to 1")] = 0.5


class CachePart(_Part):
    """The cache of keys and values of a language model: the fields of ``CacheSpec``, what is null being the usual; ``bits`` 8 and 4 are
    other words for ``int8`` and ``int4``."""

    bits: Annotated[Literal[4, 8] | None, Field(description="4 or 8, or null")] = None
    format: Annotated[CacheFormat | None, Field(description=f"{_one_of(CacheFormat)}, or null")] = None
    granularity: Annotated[CacheGranularity | None, Field(description=f"{_one_of(CacheGranularity)}, or null")] = None
    group_size: Annotated[Literal[16, 32, 64, 128] | None, Field(description="one of 16, 32, 64, 128, or null")] = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        spec = self.spec()
        if self.bits not in (None, spec.bits):
            raise ValueError(f"cache.bits is {self.bits} and {spec.format} has {spec.bits}: leave bits out")
        if self.group_size is not None and spec.granularity != "per-group":
            raise ValueError(f"cache.group_size has no effect {spec.granularity}: add granularity: per-group")
        return self

    def spec(self) -> CacheSpec:
        """The cache in the engine's words."""
        return CacheSpec.of(self.model_dump())


class Recipe(_Part):
    """Everything a run is asked. Frozen; build one with ``load`` (YAML file) or ``make`` (keywords).

    ``task`` is what is measured: a name, one's own as ``path/task.py:factory``, or None for what belongs to the model.

    ``fold_later`` names normalizations that are folded only at conversion; with ``quantize_first`` all of them are. ``stem``
    is that of a model of the list: for small images, or as published; ``auto`` goes by the size of the images. ``slower`` are
    the layers (module paths) that the preset ``default`` computes in fp32 because they are slower on integers: None measures,
    and a run writes down what came of it. ``targets`` are what a run searches a plan for (``engine.recipe.targets``). ``equalize``
    brings the ranges of channels of neighbouring layers near one another before they are rounded, and ``bias_correction`` lets biases
    take up the mean error after it, ``bn_reestimation`` biases and scales that of mean and range; each is undone where it makes the
    outputs no better. ``graph`` is what is shown of a language model: its modules, or the operations that ``torch.export`` finds;
    ``cache`` is what its keys and values are kept in, None for floats, and ``rotation`` what its weights are turned by before they are
    rounded. ``stream`` reads a language model block by block, so that it may be larger than memory; None does where it would not fit
    otherwise."""

    model: Annotated[_Text, Field(description="the name of a model, such as simplecnn, or package.module:factory")]
    task: Annotated[_Text | None, Field(description="the name of a task, or path/task.py:factory, or null")] = None
    weights: Annotated[_Text | None, Field(description="a path, or null")] = None
    data: Annotated[DataPart, Field(description="a mapping, such as {name: digits}")] = DataPart()
    stem: Annotated[Stem, Field(description=_one_of(Stem))] = "auto"
    preset: Annotated[Preset, Field(description=_one_of(Preset))] = "default"
    rotation: Annotated[Literal["hadamard"] | None, Field(description="hadamard, or null for none")] = None
    cache: Annotated[CachePart | None, Field(description="a mapping, such as {format: int8}, or null for a cache in floats")] = None
    rules: Annotated[
        tuple[RulePart, ...],
        Field(strict=False, description="a list of mappings with match and weights, activations or keep; [] for none"),
    ] = ()
    quantize_first: _Flag = False
    graph: Annotated[Literal["modules", "export"], Field(description="one of modules, export")] = "modules"
    slower: Annotated[
        tuple[_Text, ...] | None,
        Field(strict=False, description="a list of layers, such as [fc2]; [] for none, null to measure"),
    ] = None
    equalize: _Flag = False
    bias_correction: _Flag = False
    bn_reestimation: _Flag = False
    fold_later: Annotated[tuple[_Text, ...], Field(strict=False, description="a list of normalizations, such as [bn1]; [] for none")] = ()
    threshold: Annotated[str, Field(description="METRIC:VALUE, such as drop:0.005")] = "drop:0.005"
    targets: Annotated[
        tuple[str, ...], Field(strict=False, description="a list of targets, such as [drop:0.003, size:0.2]; [] for none")
    ] = ()
    qat: Annotated[QatPart, Field(description="a mapping, such as {mode: auto}")] = QatPart()
    stream: Annotated[bool | None, Field(description="true or false, or null to go by the memory")] = None
    export: Annotated[
        tuple[ExportFormat, ...],
        Field(strict=False, description=f"a list of formats; available in this version: {', '.join(FORMATS)}"),
    ] = ("safetensors",)
    device: Annotated[Device, Field(description=_one_of(Device))] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**32, description="0 to 4294967295")] = 0
    isa: Annotated[str | None, Field(description="text, or null")] = None

    @field_validator("cache", mode="before")
    @classmethod
    def _cache_by_name(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        try:
            spec = CacheSpec.parse(given)
        except UsageError as error:
            raise ValueError(str(error)) from None
        group = {"group_size": spec.group_size} if spec.granularity == "per-group" else {}
        return {"format": spec.format, "granularity": spec.granularity, **group}

    @model_validator(mode="before")
    @classmethod
    def _target_is_the_threshold(cls, given: Any) -> Any:
        targets = given.get("targets") if isinstance(given, Mapping) else None
        if not isinstance(targets, list | tuple) or given.get("threshold") is not None:
            return given
        try:
            drop = next((target for target in parsed(targets) if target.kind == "drop"), None)
        except UsageError:
            return given
        return {**given, "threshold": str(drop)} if drop else given

    @field_validator("targets")
    @classmethod
    def _canonical_targets(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(str(target) for target in parsed(texts))
        except UsageError as error:
            raise ValueError(str(error)) from None

    @field_validator("threshold")
    @classmethod
    def _canonical_threshold(cls, text: str) -> str:
        try:
            return str(Threshold.parse(text))
        except UsageError as error:
            raise ValueError(str(error)) from None

    @field_validator("export")
    @classmethod
    def _each_format_once(cls, formats: tuple[ExportFormat, ...]) -> tuple[ExportFormat, ...]:
        return tuple(dict.fromkeys(formats))

    @classmethod
    def make(cls, **fields: Any) -> Recipe:
        """A recipe from keywords; ``data``, ``qat`` and each of ``rules`` may be mappings. Raises ``UsageError``, without a line."""
        data = fields.get("data")
        if hasattr(data, "__iter__") and not isinstance(data, str | list | tuple | Mapping | BaseModel):
            raise UsageError(f"data is a {type(data).__name__}: a loader goes into a task, engine.Task.of(train=loader, metric=…)")
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise recipe_yaml.usage_error(recipe_yaml.problems(error, cls, fields)) from None

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> Recipe:
        """The recipe in a YAML file. Overrides win over the file; a mapping for ``data`` or ``qat`` changes only the keys it has.

        Raises ``UsageError``: one line ``FILE:LINE: what: next step`` (no place where an override is at fault).
        """
        document = recipe_yaml.read(path)
        fields = _merged(document.fields, overrides)
        found = list(document.problems)
        try:
            recipe = cls.model_validate(fields)
        except ValidationError as error:
            for problem in recipe_yaml.problems(error, cls, fields):
                found.append(replace(problem, place=document.place(problem.loc, overrides)))
        if found:
            raise recipe_yaml.usage_error(found)
        if "rules" not in overrides:
            for index, rule in enumerate(recipe.rules):
                rule._line = document.line(("rules", index))
        return recipe

    def layer_rules(self) -> tuple[Rule, ...]:
        """The rules in order; the first that matches a layer wins."""
        return tuple(rule.rule() for rule in self.rules)

    def fingerprint(self) -> str:
        """16 hex digits that are equal for recipes that ask for the same; the machine (``device``, ``isa``, ``stream``) plays no part."""
        # A key that came later asks, while it has its default, for what a recipe without it asks for.
        later = {name for name in ("fold_later", "stem", "graph", "task") if getattr(self, name) == type(self).model_fields[name].default}
        # Measured or decided, no layer in fp32 is what a recipe without the key gives.
        later |= set() if self.slower else {"slower"}
        asked = _without_decoders(self.model_dump(mode="json", exclude={"device", "isa", "stream"} | later))
        return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """YAML text in the order of the fields; a file with it loads as an equal recipe."""
        fields = _without_decoders(self.model_dump(mode="json"))
        for rule in fields["rules"]:
            for key in ("weights", "activations", "keep"):
                if rule[key] is None:
                    del rule[key]
        return recipe_yaml.dump(fields)


def _without_decoders(fields: dict[str, Any]) -> dict[str, Any]:
    """Without what only decoders know, where it has its default: other recipes read, and are told apart, as without it."""
    for part, keys in _DECODERS.items():
        for place in (rule.get(part) or {} for rule in fields["rules"]) if part in ("weights", "activations") else (fields[part],):
            for key, default in keys.items():
                if key in place and place[key] == default:
                    del place[key]
    if fields.get("graph") == "modules":
        del fields["graph"]
    if fields.get("task") is None:
        fields.pop("task", None)
    if fields.get("cache") is not None:
        fields["cache"] = {key: value for key, value in fields["cache"].items() if value is not None}
    for unsaid in ("cache", "rotation", "targets", "equalize", "bias_correction", "bn_reestimation"):
        if not fields.get(unsaid):
            fields.pop(unsaid, None)
    if fields.get("stream") is None:
        fields.pop("stream", None)
    return fields


_DECODERS: dict[str, dict[str, Any]] = {
    "weights": {"symmetric": True, "method": "nearest", "format": None},
    "activations": {"dynamic": False, "format": None, "group_size": None},
    "data": {
        "context": None, "stride": 512, "crop": None, "interpolation": None, "classes": None, "rate": None, "calibration_from": None,
        "channels": None,
    },
}  # fmt: skip


def _merged(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(fields)
    for key, value in overrides.items():
        current = merged.get(key, {})
        if isinstance(value, Mapping) and isinstance(current, Mapping):
            merged[key] = {**current, **value}
        elif not isinstance(value, Mapping):
            merged[key] = value
        # else the file has no mapping where one belongs: it stays, so that the error names its line
    return merged
