"""Whole recipes of a language model: presets, caches of keys and values, rotations, methods; perplexity, divergence, size, seconds.

usage: uv run python tests/bench/decoder_recipes.py [MODEL] [--data NAME] [--rows LIST] [--windows N] [--test N] [--steps N] [--write FILE]

A row is ``PRESET``, ``+FORMAT:GRANULARITY`` for a cache, ``~`` for rotated weights, ``@METHOD`` for the rounding of the blocks:
``w4a4~``, ``fp32+int4``, ``w3@autoround``. Each is what a run of that recipe measures: embeddings and head as the preset has them,
activations and cache rounded. Windows of a stream do not overlap; ``--steps`` are those of AutoRound for each block.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from tables import check_place, printed
from torch import Tensor

from engine.data.text.encoded import SequenceData, TextData, load_text
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.lowering.modules import block_tuning
from engine.lowering.modules.coded_cache import calibrated, size_of
from engine.lowering.modules.layers import layers as layers_of
from engine.lowering.modules.layers import planned
from engine.lowering.modules.loaded import rounding
from engine.lowering.modules.quantized import QuantizedDecoder, duplicate
from engine.lowering.modules.rotation import rotate
from engine.lowering.modules.rounding import round_decoder
from engine.models.anatomy import anatomy
from engine.models.transformers_load import LanguageModel, load_language
from engine.recipe.cache_spec import CacheSpec
from engine.recipe.spec import LayerSpec, Rule

MARKS = ("<!-- bench:recipes -->", "<!-- /bench:recipes -->")
ROWS = (
    "fp8", "fp8-dynamic", "fp8-static", "fp8-block", "fp32+int8", "fp32+int8:per-channel", "fp32+fp8", "fp32+fp8:per-tensor", "fp32+int4",
    "w4a4", "w4a4~", "w4", "w4~",
)  # fmt: skip
T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    preset: str
    cache: str
    rotated: bool
    method: str

    @classmethod
    def of(cls, text: str) -> Asked:
        rest, _, method = text.partition("@")
        rest, _, cache = rest.partition("+")
        return cls(rest.removesuffix("~"), cache, rest.endswith("~"), method)


def finished(steps: Generator[object, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def decoder_of(asked: Asked, language: LanguageModel, windows: Sequence[Tensor]) -> QuantizedDecoder:
    """``language``, which stays as it is, as the recipe has it."""
    model = duplicate(language.model)
    if asked.rotated:
        rotate(model, windows[0][None, :64])
    if asked.preset == "fp32":
        decoder = QuantizedDecoder(model, {})
    else:
        parts, stop = anatomy(model), StopToken()
        found = layers_of(model, parts, {}, lambda *_: "")
        rows = planned(found, parts, asked.preset, ()).layers
        if asked.method:
            own = [
                Rule(row.path, LayerSpec(replace(row.actual.weights, method=asked.method), row.actual.activations))
                for row in rows if row.capabilities.role == "block" and row.actual.weights is not None
            ]  # fmt: skip
            rows = planned(found, parts, asked.preset, own).layers
        decoder, _ = finished(round_decoder(model, rows, windows, 4, stop))
    if not asked.cache:
        return decoder
    return replace(decoder, cache=calibrated(decoder.twin, CacheSpec.parse(asked.cache), windows, 4, StopToken()))


@torch.no_grad()
def measured(model: Any, original: Any, windows: Sequence[Tensor]) -> tuple[float, float]:
    """Perplexity, and the mean divergence KL(original ‖ model) of the next token in nats."""
    loss, divergence, count = 0.0, 0.0, 0
    for ids in windows:
        found, wanted = (one(input_ids=ids[None], use_cache=False).logits[0, :-1].double().log_softmax(-1) for one in (model, original))
        loss -= float(found.gather(1, ids[1:, None]).sum())
        divergence += float((wanted.exp() * (wanted - found)).sum())
        count += len(ids) - 1
    return math.exp(loss / count), divergence / count


def windows_of(data: TextData | SequenceData, split: Any, count: int, length: int) -> list[Tensor]:
    if isinstance(data, SequenceData):
        return [ids for ids in data.sequences[split] if len(ids) > 1][:count]
    return [*data.windows(split, length, count)] if split == "train" else [*data.streams[split][: length * count].view(-1, length)]


def table(language: LanguageModel, data: TextData | SequenceData, rows: Sequence[str], windows: int, test: int) -> Iterator[str]:
    calibration, judged = (windows_of(data, split, count, language.window) for split, count in (("train", windows), ("test", test)))
    base, _ = measured(language.model, language.model, judged)
    tokens = sum(map(len, judged)) - len(judged)
    yield f"**{language.name}** on {Path(data.name).name}: fp32 perplexity {base:.3f} on {tokens:,} tokens of the test split."
    yield f"Calibration: {len(calibration)} windows, {sum(map(len, calibration)):,} tokens. AutoRound: {block_tuning.STEPS} steps a block."
    yield ""
    yield "| recipe | perplexity | × fp32 | KL | matrices and rest | cache, bytes a token | s |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for text in rows:
        since = time.perf_counter()
        decoder = decoder_of(Asked.of(text), language, calibration)
        seconds = time.perf_counter() - since
        with rounding(decoder) as twin:
            value, divergence = measured(twin, language.model, judged)
        held = ""
        if decoder.cache is not None:
            size = size_of(decoder.twin, decoder.cache)
            held = f"{size.bytes_per_token:,} of {size.float16_bytes_per_token:,}"
        yield f"| `{text}` | {value:.3f} | {value / base:.4f} | {divergence:.4f} | {decoder.bytes / 1e6:.2f} MB | {held} | {seconds:.0f} |"
        print(f"  {text} {value:.3f} {value / base:.4f}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="gpt2-mini")
    parser.add_argument("--data", default="python-docs")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--test", type=int, default=32, help="windows of the test split")
    parser.add_argument("--steps", type=int, default=block_tuning.STEPS)
    parser.add_argument("--write", type=Path, help="put the table between the markers of this file")
    asked = parser.parse_args()
    check_place(asked.write, MARKS)
    block_tuning.STEPS = asked.steps
    try:
        language = load_language(asked.model, text=not asked.data.lower().endswith(".json"))
        data = load_text(asked.data, language, StopToken())
        printed(table(language, data, asked.rows.split(","), asked.windows, asked.test), asked.write, MARKS)
    except EngineError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
