"""What else a run can be asked: the options of the command line that have no key of their own. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.export.registry import FORMATS
from engine.recipe.presets import PRESETS
from engine.recipe.targets import parsed

OUT = "out"
Options = tuple[tuple[str, str], ...]
"""What was given, as (key, text): keys are those of a recipe, with dots; ``out`` is the folder of the run."""


@dataclass(frozen=True)
class Option:
    """``kind`` is how its text is read; ``choices`` are all values where there are few."""

    key: str
    name: str
    default: str
    help: str
    kind: str = "text"
    choices: tuple[str, ...] = ()


_YES = ("yes", "no")
_TARGETS = "A plan is searched for: size:1.5MB, or size:0.2 of fp32's; latency:3ms, or 0.5 of fp32's; bpw:4.5; drop:0.003."
TABLE: tuple[Option, ...] = (
    Option("targets", "targets", "none", _TARGETS, "list"),
    Option("preset", "preset", "default", "What all layers are planned from.", choices=tuple(PRESETS)),
    Option("qat.mode", "QAT", "auto", "Training: where PTQ misses the threshold, always, or never.", choices=("auto", "always", "never")),
    Option("qat.epochs", "epochs of QAT", "by the data", "How long QAT trains.", "whole"),
    Option("data.limit", "limit", "all", "No more than so many test items, or tokens of text, are measured.", "whole"),
    Option("data.calibration", "calibration items", "512", "How many training items, or windows of text, calibrate.", "whole"),
    Option("data.calibration_from", "calibrate on", "the training split", "A folder of images without labels that calibrate.", "path"),
    Option("data.batch", "batch", "64", "Items that are measured at once.", "whole"),
    Option("data.mean", "mean", "the model's", "Normalization of pixels in 0..1: three numbers R,G,B.", "numbers"),
    Option("data.std", "std", "the model's", "Normalization of pixels in 0..1: three numbers R,G,B.", "numbers"),
    Option("data.size", "size", "the model's", "The shorter side of a folder's images is scaled to so many pixels.", "whole"),
    Option("data.crop", "crop", "as size", "So many pixels of their middle are kept.", "whole"),
    Option("data.interpolation", "interpolation", "the model's", "How images are scaled.", choices=("bilinear", "bicubic")),
    Option("data.classes", "classes", "the folders'", "A file with the names of all classes, one a line.", "path"),
    Option("data.rate", "rate", "as it is", "Audio is resampled to so many samples a second.", "whole"),
    Option("stem", "stem", "auto", "First layers of a torchvision model.", choices=("auto", "small", "imagenet")),
    Option("quantize_first", "fold late", "no", "Normalization is folded at conversion, and trains until then.", "flag", _YES),
    Option("equalize", "equalize", "no", "Channels of neighbouring layers are brought near one another before rounding.", "flag", _YES),
    Option("bias_correction", "correct biases", "no", "Biases take up the mean error after rounding.", "flag", _YES),
    Option("bn_reestimation", "re-estimate", "no", "Biases and scales take up errors of mean and range after rounding.", "flag", _YES),
    Option("cache", "cache", "floats", "Of a language model, what keys and values are kept in: int8, fp8 or int4."),
    Option("rotation", "rotation", "none", "Of a language model, weights are turned before they are rounded.", choices=("hadamard",)),
    Option("stream", "stream", "where it must be", "A language model is read block by block.", "flag", _YES),
    Option("export", "export", "safetensors", f"Formats, with commas between them: {', '.join(FORMATS)}.", "list"),
    Option("seed", "seed", "0", "Of what is drawn by chance.", "whole"),
    Option(OUT, "folder of the run", "runs/…", "Where the run is written.", "path"),
)  # fmt: skip
BY_KEY: Mapping[str, Option] = {option.key: option for option in TABLE}


def fields(given: Options) -> dict[str, Any]:
    """The recipe's fields that options ask for, with ``out`` beside them. Raises UsageError for what cannot be read."""
    found: dict[str, Any] = {}
    for key, text in given:
        part, dot, name = key.partition(".")
        value = _read(BY_KEY[key], text)
        if dot:
            found.setdefault(part, {})[name] = value
        else:
            found[part] = value
    return found


def wrong(key: str, text: str) -> str | None:
    """What is wrong with an option's text, in one line; None for one that can be had, and for an empty one, which takes it away."""
    if not text:
        return None
    from engine.recipe.recipe import Recipe

    option = BY_KEY[key]
    try:
        asked = fields(((key, text),))
        if key == "targets":
            parsed(asked["targets"])
        out = asked.pop(OUT, None)
        if asked:
            Recipe.make(**{"model": "simplecnn", **asked})
    except UsageError as error:
        return str(error)
    if option.kind == "path" and out is None and not Path(text).expanduser().exists():
        return f"there is no file or folder {text}"
    return None


def changed(given: Options, key: str, text: str) -> Options:
    """The options with another value of one; without it where the text is empty or its default."""
    rest = tuple(pair for pair in given if pair[0] != key)
    return rest if not text or text == BY_KEY[key].default else (*rest, (key, text))


def merged(asked: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Two sets of fields; mappings in them are merged, what is in ``more`` wins."""
    found = dict(asked)
    for key, value in more.items():
        found[key] = {**found[key], **value} if isinstance(value, Mapping) and isinstance(found.get(key), Mapping) else value
    return found


def _read(option: Option, text: str) -> Any:
    try:
        match option.kind:
            case "whole":
                return int(text)
            case "numbers":
                return tuple(float(part) for part in text.split(","))
            case "list":
                return tuple(filter(None, text.replace(",", " ").split()))
            case "flag":
                return {"yes": True, "no": False}[text]
            case "path":
                return str(Path(text).expanduser())
    except (ValueError, KeyError):
        words = {"whole": "a whole number", "numbers": "numbers with commas between them", "flag": "yes or no"}[option.kind]
        raise UsageError(f"{option.name} is {text!r}: it must be {words}") from None
    return text
