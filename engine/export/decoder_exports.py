"""Exports of a quantized decoder: each written whole or not at all, read back in its runtime, compared, and timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import Cancelled, EngineError, one_line
from engine.events.cancellation import StopToken
from engine.export import decoder_parity as parity
from engine.export.decoder_formats import find
from engine.export.placing import placed, size_of
from engine.export.registry import Format, install
from engine.lowering.modules.loaded import rounding
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.lowering.modules.stepping import Step, last, of_model
from engine.models.transformers_load import context_of
from engine.report.mismatch import entered
from engine.tasks.decode_timing import Lengths, Speed, step_of, tokens_per_second
from engine.tasks.decode_timing import Step as Timed

Entry = dict[str, Any]


@dataclass(frozen=True)
class Given:
    """What an export is made of. ``source`` is the folder that the model came from, for its tokenizer, None without. ``windows`` of
    token ids, (T,) each, are what it is compared on, and ``fp32`` gives the original model's logits of ids (1, T) there."""

    decoder: QuantizedDecoder
    windows: Sequence[Tensor]
    source: Path | None = None
    recipe: str = ""
    isa: str = ""
    name: str = "model"
    lengths: Lengths = field(default_factory=Lengths)
    rounds: int = 3
    fp32: parity.Logits | None = None


@dataclass(frozen=True)
class Ran:
    """A file in its runtime: ``step`` gives all logits, ``timed`` the last ones, and computes no others where it can. ``note`` is
    for a person."""

    label: str
    kernel: str
    step: Step
    timed: Timed
    note: str = ""


def make(name: str, given: Given, folder: Path, stop: StopToken) -> Entry:
    """Write the format ``name`` into ``folder``, read it back, compare and time it; contract 2's entry.

    ``parity`` is of text read whole, ``parity_cached`` of text read over a cache; ``latency`` holds tokens a second as
    ``Speed``. A format that cannot be written, or that nothing here runs, has ``verified`` false and a ``reason``, and ``differs``
    true where its logits are others than the measured model's. Raises UsageError for a name that is not known, Cancelled on stop.
    """
    entry = find(name)
    try:
        said = placed(entry, folder, lambda path: _WRITERS[name](given, path))
    except EngineError as error:
        return _entry(entry, "", 0, one_line(error, 300))
    made = _entry(entry, entry.files[0], size_of(entry, folder), "it was not read back: the export was stopped before")
    made["note"] = said
    if missing := entry.missing(entry.runs):
        made["install"] = install(missing)
        made["reason"] = f"not verified, {' and '.join(missing)} is not installed: {made['install']}, then export again"
        return made
    try:
        ran = _RUNNERS[name](folder / entry.files[0])
        with rounding(given.decoder) as twin, torch.inference_mode():
            native: parity.Logits = lambda ids: twin(input_ids=ids, use_cache=False).logits  # noqa: E731
            whole, cached = parity.compare(ran.step, native, given.windows, stop, given.fp32)
        made.update(runtime=ran.label, kernel=ran.kernel, parity=whole.to_dict(), parity_cached=cached.to_dict(), value=whole.perplexity)
        if entered(made):
            return made
        speed = _timed(ran.timed, given, stop)
    except Cancelled:
        raise
    except Exception as error:
        made["reason"] = one_line(error, 300) or type(error).__name__
        return made
    made.update(verified=True, latency=asdict(speed))
    made["note"] = "; ".join(part for part in (said, ran.note) if part)
    made.pop("reason")
    return made


def _safetensors(given: Given, path: Path) -> str:
    from engine.lowering.modules.artifact import to_bytes

    path.write_bytes(to_bytes(given.decoder, given.recipe, given.isa))
    return ""


def _onnx(given: Given, path: Path) -> str:
    from engine.export.onnx.decoder_file import write as write_onnx

    return write_onnx(given.decoder, path, {"qtui": given.name, "recipe": given.recipe, "isa": given.isa})


def _compressed(given: Given, path: Path) -> str:
    from engine.export.compressed_tensors import write as write_folder

    path.mkdir()
    return write_folder(given.decoder, given.source, path)


def _run_file(path: Path) -> Ran:
    from engine.lowering.modules.loaded import load

    decoder = load(path).decoder

    def rounded(plain: Step) -> Step:
        def step(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
            with rounding(decoder):
                return plain(ids, cache)

        return step

    label = f"torch {torch.__version__.partition('+')[0]}"
    return Ran(label, "float32 on stored integers", rounded(of_model(decoder.twin)), rounded(step_of(decoder.twin)))


def _run_onnx(path: Path) -> Ran:
    from engine.export.onnx.decoder_run import OnnxDecoder

    model = OnnxDecoder(path, torch.get_num_threads(), tried=True)
    return Ran(model.label, "CPUExecutionProvider", model.step, last(model.step))


def _run_compressed(path: Path) -> Ran:
    from engine.export.compressed_tensors_run import CompressedDecoder

    model = CompressedDecoder(path)
    return Ran(model.label, "float32 on unpacked integers", model.step, step_of(model.model), model.note)


_WRITERS: Mapping[str, Callable[[Given, Path], str]] = {"safetensors": _safetensors, "onnx": _onnx, "compressed-tensors": _compressed}
_RUNNERS: Mapping[str, Callable[[Path], Ran]] = {"safetensors": _run_file, "onnx": _run_onnx, "compressed-tensors": _run_compressed}


def _timed(step: Timed, given: Given, stop: StopToken) -> Speed:
    twin = given.decoder.twin
    vocabulary = int(twin.get_input_embeddings().weight.shape[0])
    lengths = given.lengths.within(context_of(twin.config))
    steps = tokens_per_second({"": step}, vocabulary, lengths, stop, given.rounds)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: dict[str, Speed] = end.value
            return found[""]


def _entry(entry: Format, path: str, size: int, reason: str) -> Entry:
    return {
        "format": entry.name, "path": path, "size_bytes": size, "runtime": entry.title, "kernel": "", "parity": None,
        "parity_cached": None, "value": None, "verified": False, "latency": {}, "note": "", "reason": reason,
    }  # fmt: skip
