"""Tokens a second of decoders' ONNX files in ONNX Runtime at true shapes, with random weights: fp32, int8 and 4 bits in turns.

    PYTHONPATH=. python tests/bench/onnx_decoder.py [FOLDER] [--threads 2] [--prompt 128] [--new 32] [--repeats 5]

FOLDER holds a config.json of transformers, whose weights are not read; without it the shapes are those of GPT-2 124M. Speed
depends on shapes, bits and groups, not on what the weights are. ``prefill`` is reading the prompt without a cache, ``decode`` one token
after the other behind it, at batch 1; medians over the repeats, all files in turns. MB is the file.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers

from engine.events.cancellation import StopToken
from engine.export.onnx.decoder_file import write_decoder as write
from engine.export.onnx.decoder_run import OnnxDecoder
from engine.lowering.modules.header import config_dict
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.lowering.modules.skeleton import empty
from engine.lowering.modules.stepping import Step, last
from engine.models.anatomy import anatomy
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix
from engine.numerics.scheme import WeightScheme, int_scheme
from engine.numerics.weights import minmax
from engine.recipe.spec import ActivationSpec
from engine.tasks.decode_timing import Lengths, Speed, tokens_per_second

EIGHT = int_scheme(8, 0, True)
DYNAMIC = "int8, activations int8 a token"
# What the matrices of the blocks become, and what the embedding and the head.
FORMS: Mapping[str, tuple[WeightScheme | None, WeightScheme | None]] = {
    "fp32": (None, None),
    "int8 per-channel": (EIGHT, EIGHT),
    DYNAMIC: (EIGHT, EIGHT),
    "4 bits g64 symmetric, head int8": (int_scheme(4, 64, True), EIGHT),
    "4 bits g64 affine, head int8": (int_scheme(4, 64), EIGHT),
    "4 bits g128 symmetric, head 4 bits": (int_scheme(4, 128, True), int_scheme(4, 128, True)),
}


def drawn(rows: int, inputs: int, spec: WeightScheme) -> QTensor:
    """Random integers; the grid is that of random weights of GPT-2's spread."""
    grid = minmax(torch.randn(rows, inputs) * 0.02, spec)
    kind = torch.int8 if spec.symmetric else torch.uint8
    return grid.with_codes(torch.randint(spec.low, spec.high + 1, (rows, inputs), dtype=kind))


def decoder(
    twin: transformers.PreTrainedModel, inside: WeightScheme | None, outside: WeightScheme | None, activations: ActivationSpec | None
) -> QuantizedDecoder:
    parts = anatomy(twin)
    made: dict[str, QuantizedMatrix] = {}
    for part in parts.matrices:
        spec = inside if part.block is not None else outside
        if spec is None or (part.kind == "Embedding" and part.path != parts.embedding):
            continue
        if part.tied:
            made[part.path] = QuantizedMatrix(made[part.tied].weight, tied=part.tied)
        else:
            made[part.path] = QuantizedMatrix(drawn(*part.shape, spec), activations if part.block is not None else None)
    return QuantizedDecoder(twin, made)


def timed(steps: Mapping[str, Step], vocabulary: int, lengths: Lengths, rounds: int) -> dict[str, Speed]:
    going = tokens_per_second({name: last(step) for name, step in steps.items()}, vocabulary, lengths, StopToken(), rounds)
    while True:
        try:
            next(going)
        except StopIteration as end:
            found: dict[str, Speed] = end.value
            return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    for name, value in (("threads", 2), ("prompt", 128), ("new", 32), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    config = transformers.AutoConfig.from_pretrained(given.folder) if given.folder else transformers.GPT2Config()
    torch.manual_seed(0)
    twin = empty(config_dict(config))
    for parameter in twin.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    runs, sizes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (inside, outside) in FORMS.items():
            path = Path(folder) / "model.onnx"
            activations = ActivationSpec(symmetric=True, dynamic=True) if name == DYNAMIC else None
            write(decoder(twin, inside, outside, activations), path, {})
            sizes[name] = sum(file.stat().st_size for file in Path(folder).iterdir())
            runs[name] = OnnxDecoder(path, given.threads)
            for file in Path(folder).iterdir():
                file.unlink()
        lengths = Lengths(given.prompt, 16, given.new)
        found = timed({name: run.step for name, run in runs.items()}, twin.config.vocab_size, lengths, given.repeats)
    print(f"{next(iter(runs.values())).label}, {given.threads} threads, prompt {given.prompt}, {given.new} new tokens")
    print(f"{'':36}{'MB':>8}{'prefill':>10}{'decode':>10}  x fp32")
    base = found["fp32"].decode
    for name, speed in found.items():
        print(f"{name:36}{sizes[name] / 1e6:8.1f}{speed.prefill:10.1f}{speed.decode:10.1f}{speed.decode / base:8.2f}")


if __name__ == "__main__":
    main()
