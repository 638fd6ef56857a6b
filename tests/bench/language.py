"""Method x bits x group on a language model: perplexity on text that calibration has not seen, size, and seconds to quantize.

usage: uv run python tests/bench/language.py [MODEL] [--data NAME] [--quick] [--head] [--own N] [--tune EPOCHS] [--write FILE]

MODEL and NAME are what `qtui run` takes: gpt2-mini and python-docs if not given; gpt2 needs its weights in the Hugging Face cache or a
network; a folder without tokenizer is measured on a .json file of sequences of token ids. Of text, calibration reads windows of the
train split, and the test split is scored in a sliding window of stride 512. Of sequences, calibration reads those of even
index, and those of odd index are scored, from the second token on.

All linear layers of the blocks are quantized; ``--head`` adds the embeddings and the head, int8 with a scale for each row, rounded to
nearest. Everything else stays in float32. ``KL`` is the mean divergence of the next token's distribution from fp32's on up to 6,000
tokens of the test, in nats: it varies less than perplexity does. ``a8`` computes the layers of the blocks on int8 inputs, with a scale
for each token, on the kernels of this machine. Tokens a second are written one by one with a cache on those kernels; weights that none
of them takes are float32 there.

``--own N`` adds N sequences that the fp32 model writes itself to the calibration sequences (self-calibration: Williams et al. 2024,
arXiv:2410.17170). ``--tune`` adds rows that are fine-tuned with fake-quantized weights from those of gptq+: on the train split, or on the
sequences of calibration, by the epoch that validation finds best.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from language_parts import Bench, Calibration, Row, finetuned, quantized
from tables import check_place, printed

from engine.algorithms.registry import METHODS
from engine.data.text.encoded import load_text
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.models.transformers_load import load_language
from engine.numerics.formats import FORMATS
from engine.numerics.scheme import WeightScheme, int_scheme
from engine.recipe.number_formats import NUMBER_FORMATS

MARKS = ("<!-- bench:language -->", "<!-- /bench:language -->")

MAIN = ("nearest", "mse", "hqq", "awq", "gptq", "awq+gptq", "gptq+")
FULL: dict[str, tuple[str, ...]] = {
    "w8": ("nearest", "gptq"),
    "w8a8": ("nearest", "smoothquant"),
    "w4g128": ("nearest", "gptq"),
    "w4g64": MAIN,
    "w4g64s": ("nearest", "gptq", "gptq+"),
    "w4g32": ("nearest", "gptq"),
    "w3g128": ("nearest", "gptq"),
    "w3g64": MAIN,
    "w3g64s": ("nearest", "gptq", "gptq+"),
    "w3g32": ("nearest", "gptq"),
    "fp8_e4m3": ("nearest",),
    "mxfp6_e2m3": ("nearest", "gptq+"),
    "mxfp4": ("nearest", "mse", "gptq", "gptq+"),
    "nvfp4": ("nearest", "mse", "gptq", "gptq+"),
    "nf4g64": ("nearest", "gptq", "gptq+"),
}
QUICK: dict[str, tuple[str, ...]] = {"w8": ("nearest",), "w4g64": ("nearest", "gptq"), "w3g64": ("nearest", "gptq")}
TUNED = ("w4g64s", "w3g64")


@dataclass(frozen=True)
class Width:
    """What a row computes with: the grid of the weights, and whether activations are int8."""

    spec: WeightScheme
    dynamic: bool

    def __str__(self) -> str:
        return f"{self.spec}, a8 per token" if self.dynamic else str(self.spec)


def width(text: str) -> Width:
    """``w4g64`` is 4 bits, affine, in groups of 64; an ``s`` at the end is symmetric; without ``g`` per channel and symmetric. A number
    format stands for itself, with ``g64`` behind it where it has no blocks of its own."""
    name, _, group = text.rpartition("g") if re.fullmatch(r".+g\d+", text) else (text, "", "0")
    if name in NUMBER_FORMATS:
        return Width(WeightScheme(FORMATS[name], FORMATS[name].block or int(group)), False)
    match = re.fullmatch(r"w([2-8])(a8)?(?:g(\d+)(s?))?", text)
    if match is None:
        sys.exit(f"{text} is no width: write w8, w8a8, w4g64, w4g64s, or a number format such as nvfp4")
    return Width(int_scheme(int(match[1]), int(match[3] or 0), match[3] is None or match[4] == "s"), match[2] is not None)


def chosen(asked: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Width and method of each row."""
    rows = QUICK if asked.quick else FULL
    methods = None if asked.methods is None else asked.methods.split(",")
    if wrong := [name for name in methods or () if name and name not in METHODS]:
        sys.exit(f"no method {wrong[0]!r}: give some of {', '.join(METHODS)}")
    for text in rows if asked.specs is None else asked.specs.split(","):
        for name in rows.get(text, MAIN) if methods is None else filter(None, methods):
            yield text, name


def table(bench: Bench, asked: argparse.Namespace) -> Iterator[str]:
    """The lines of the table, each as soon as it is measured."""
    yield from bench.about()
    calibration = bench.calibration(asked.windows, asked.own, asked.seed)
    yield calibration.about
    yield ""
    yield "| weights | method | perplexity | × fp32 | KL | blocks | model | s to quantize | tokens/s |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    yield bench.line(Row("fp32", "", bench.base, 0.0, bench.block_bytes(4), bench.model_bytes, None, bench.speed(bench.language.model)))
    for text, name in chosen(asked):
        yield bench.line(one(bench, calibration, text, name))
    for text in (TUNED if asked.specs is None else asked.specs.split(",")) if asked.tune else ():
        since = time.perf_counter()
        decoder = quantized(bench, calibration, width(text).spec, "gptq+", width(text).dynamic)
        decoder = finetuned(bench, decoder, calibration.lessons, asked.tune, asked.seed)
        yield bench.line(bench.judged(str(width(text)), "gptq+, fine-tuned", decoder, time.perf_counter() - since))


def one(bench: Bench, calibration: Calibration, text: str, name: str) -> Row:
    since, at = time.perf_counter(), width(text)
    decoder = quantized(bench, calibration, at.spec, name, at.dynamic)
    return bench.judged(str(at), name, decoder, time.perf_counter() - since)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="gpt2-mini")
    parser.add_argument("--data", default="python-docs")
    parser.add_argument("--quick", action="store_true", help="five rows")
    parser.add_argument("--methods", help="some of " + ",".join(METHODS) + "; empty for none")
    parser.add_argument("--specs", help="such as " + ",".join(FULL))
    parser.add_argument("--windows", type=int, default=32, help="of text to calibrate on")
    parser.add_argument("--own", type=int, default=0)
    parser.add_argument("--tune", type=int, default=0, metavar="EPOCHS")
    parser.add_argument("--head", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="put the table between the markers of this file")
    asked = parser.parse_args()
    check_place(asked.write, MARKS)
    try:
        sequences = asked.data.lower().endswith(".json")
        language = load_language(asked.model, text=not sequences)
        bench = Bench(language, load_text(asked.data, language, StopToken()), asked.head)
        printed(table(bench, asked), asked.write, MARKS)
    except EngineError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
