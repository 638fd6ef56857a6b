"""A decoder of GPT-2 124M's shapes, or of larger ones: tokens a second read and written, bytes on disk, memory while it runs.

usage: uv run python tests/bench/decode.py [--shape NAME] [--device cuda] [--rounds N] [--new N] [--only NAME,NAME] [--brief] [--write FILE]

Weights are drawn at random from a fixed seed: they do not change what has to be computed. All forms are timed in one process, on
the same threads, in turns. On a GPU each form writes its tokens as a recorded CUDA graph. Prints one table.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tables import put

from engine.events.cancellation import StopToken
from engine.kernels.gpu.probe import seen_from
from engine.kernels.probe import probe
from engine.lowering.modules.fused_activations import fuse_activations
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.lowering.modules.runtime import running
from engine.lowering.modules.stepping import last
from engine.models.anatomy import anatomy, weight_of
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix
from engine.numerics.scheme import WeightScheme, int_scheme
from engine.numerics.weights import minmax, quantize
from engine.recipe.spec import ActivationSpec
from engine.tasks.decode_timing import Lengths, Speed, Step, tokens_per_second
from engine.tasks.recorded_decoding import quickest

THREADS = 2
# Of a table in a file; a GPU's has a place of its own.
MARKS = ("<!-- bench:decode{} -->", "<!-- /bench:decode{} -->")
DYNAMIC, STATIC = ActivationSpec(8, dynamic=True), ActivationSpec(8)
# Where a fixed grid lies does not change the time.
GRID = QParams(0.05, 128)
INT8 = int_scheme(8, 0, True)
FP32, BF16 = "fp32", "bf16"
# Of fp16's bytes, embeddings included: what 4 bits in groups of 64 may take at most.
LIMIT = 0.35


@dataclass(frozen=True)
class Form:
    """``step`` runs it, ``bytes`` are its own on disk, ``kernels`` names what computes its blocks."""

    step: Step
    bytes: int
    kernels: str


# From the model in float32, the device to run on, and the tokens of a text that is written.
Make = Callable[[Any, str, int], Form]


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config())


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=32000))


SHAPES: dict[str, tuple[str, Callable[[], Any]]] = {"gpt2": ("GPT-2 124M", gpt2), "llama": ("a LLaMA of 1.1 B parameters", llama)}


def built(shape: str, device: str) -> Any:
    """In float32 on ``device``."""
    torch.manual_seed(0)
    with torch.device(device):
        return SHAPES[shape][1]().eval().requires_grad_(False)


def floats(kind: torch.dtype) -> Make:
    """transformers' own layers, with GELU in one operation as the other forms have it."""

    def form(model: Any, device: str, length: int) -> Form:
        model = copy.deepcopy(model).to(device, kind)
        fuse_activations(model)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        return Form(quickest(model, device, length), size, f"torch {'fp32' if kind == torch.float32 else 'bf16'}")

    return form


def integers(weights: WeightScheme, activations: ActivationSpec | None) -> Make:
    """The blocks on ``weights``; embeddings have 8 bits a row, and the tied head multiplies with the same integers."""

    def form(model: Any, device: str, length: int) -> Form:
        decoder = QuantizedDecoder(model, dict(_matrices(model, weights, activations)))
        run, places = running(decoder, seen_from(probe(), device))
        place = next(places[matrix.path] for matrix in anatomy(model).matrices if matrix.kind != "Embedding")
        return Form(quickest(run, device, length), decoder.bytes, place.label + (" (storage only)" if place.storage_only else ""))

    return form


def onnx(weights: WeightScheme, activations: ActivationSpec | None) -> Make:
    """The exported file in ONNX Runtime, with its cache."""

    def form(model: Any, device: str, length: int) -> Form:
        from engine.export.onnx.decoder_file import write_decoder as write
        from engine.export.onnx.decoder_run import OnnxDecoder

        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "model.onnx"
            write(QuantizedDecoder(model, dict(_matrices(model, weights, activations))), path, {})
            size = path.stat().st_size
            run = OnnxDecoder(path, torch.get_num_threads())
        return Form(last(run.step), size, f"{run.label} MatMulNBits")

    return form


def _matrices(model: Any, weights: WeightScheme, activations: ActivationSpec | None) -> Any:
    found: dict[str, QTensor] = {}
    for matrix in anatomy(model).matrices:
        outside = matrix.kind == "Embedding"
        if matrix.tied:
            # The head: 8 bits, whatever the blocks have.
            yield matrix.path, QuantizedMatrix(found[matrix.tied], activations, GRID if activations == STATIC else None, matrix.tied)
            continue
        weight = weight_of(model.get_submodule(matrix.path)).contiguous()
        spec = INT8 if outside else weights
        found[matrix.path] = quantize(weight, minmax(weight, spec))
        inputs = None if outside else activations
        yield matrix.path, QuantizedMatrix(found[matrix.path], inputs, GRID if inputs == STATIC else None)


# Another form, or another runtime, is a function that makes a step from the model in float32, and a line here.
FORMS: dict[str, Make] = {
    FP32: floats(torch.float32),
    BF16: floats(torch.bfloat16),
    "int8 weight-only": integers(INT8, None),
    "int8, dynamic activations": integers(INT8, DYNAMIC),
    "int8, static activations": integers(INT8, STATIC),
    "int4 g64 weight-only": integers(int_scheme(4, 64, False), None),
    "int4 g64, dynamic activations": integers(int_scheme(4, 64, False), DYNAMIC),
    "int8 as ONNX": onnx(INT8, None),
    "int4 g64 as ONNX": onnx(int_scheme(4, 64, False), None),
}


def table(shape: str, names: list[str], lengths: Lengths, rounds: int, device: str, brief: bool) -> list[str]:
    model = built(shape, device)
    half = 2 * sum(p.numel() for p in model.parameters())
    vocabulary = model.config.vocab_size
    forms, held = {}, {}
    for name in names:
        before = _on_gpu(device)
        forms[name] = FORMS[name](model, device, lengths.begin + lengths.new)
        gc.collect()
        held[name] = (_on_gpu(device) - before) / 1e6
    steps = {name: form.step for name, form in forms.items()}
    speeds = _finished(tokens_per_second(steps, vocabulary, lengths, StopToken(), rounds, device=device))
    base = speeds.get(FP32)
    where = f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name()
    lines = [
        f"**The shapes of {SHAPES[shape][0]}, random weights**, prompt of {lengths.prompt} tokens, {lengths.new} new tokens after "
        f"{lengths.begin}, {where}",
        "",
        "| | kernel of the blocks | prefill tok/s | decode tok/s | to fp32 | on disk | of fp16 | resident | of read bandwidth |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    bandwidth = read_bandwidth(device)
    for name, form in forms.items():
        speed, part = speeds[name], form.bytes / half
        times = f"{speed.prefill / base.prefill:.2f}× / {speed.decode / base.decode:.2f}×" if base else "–"
        memory = "–" if brief else f"{held[name] if device != 'cpu' else resident(shape, name):,.0f} MB"
        lines.append(
            f"| {name} | {form.kernels} | {speed.prefill:,.0f} | {speed.decode:.1f} | {times} | {form.bytes / 1e6:.1f} MB | {part:.3f} "
            f"| {memory} "
            f"| {100 * form.bytes * speed.decode / bandwidth:.0f} % |"
        )
        if name.startswith("int4") and part >= LIMIT:
            raise SystemExit(f"{name} takes {part:.3f} of fp16's bytes, {LIMIT} at most is wanted")
    return [*lines, "", f"A plain read of memory on the same threads: {bandwidth / 1e9:.1f} GB/s; a token reads what is on disk once.", ""]


def read_bandwidth(device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes a second of summing up a tensor that no cache holds."""
    x = torch.zeros(1 << 26, dtype=torch.int64, device=device)
    least = float("inf")
    for _ in range(7):
        start = clock()
        x.sum().item()
        least = min(least, clock() - start)
    return x.numel() * x.element_size() / least


def _finished(steps: Any) -> dict[str, Speed]:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: dict[str, Speed] = end.value
            return found


def _on_gpu(device: str) -> int:
    """Bytes of its memory in use; 0 for a processor."""
    return 0 if device == "cpu" else torch.cuda.memory_allocated()


def resident(shape: str, name: str) -> float:
    """Megabytes that a form adds to a process which has loaded the libraries, after some tokens."""
    command = [sys.executable, "-W", "ignore", __file__, "--shape", shape, "--resident", name]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]) / 1e3


def added(shape: str, name: str) -> int:
    """Kilobytes: what the process holds once the float32 model is let go, less what it held before."""
    import transformers.models.gpt2.modeling_gpt2
    import transformers.models.llama.modeling_llama  # noqa: F401

    probe()
    before = _resident()
    step = FORMS[name](built(shape, "cpu"), "cpu", 32).step
    with torch.inference_mode():
        logits, past = step(torch.arange(16)[None], None)
        for _ in range(4):
            logits, past = step(logits.argmax().view(1, 1), past)
    del logits, past
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _resident() - before


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="gpt2", help="some of, with commas between them: " + ", ".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--only", help="names, with commas between them: " + "; ".join(FORMS))
    parser.add_argument("--write", type=Path, help="put the table between the markers of this file")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="ONNX Runtime is left out on a GPU")
    parser.add_argument("--brief", action="store_true", help="without the memory of a process for each form")
    parser.add_argument("--resident", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.resident:
        print(added(arguments.shape, arguments.resident))
        return
    # A name may hold a comma itself.
    names = [name for name in FORMS if arguments.only is None or name in arguments.only]
    names = [name for name in names if arguments.device == "cpu" or "ONNX" not in name]
    machine = probe()
    lengths = Lengths(arguments.prompt, 16, arguments.new)
    lines = [
        line
        for shape in arguments.shape.split(",")
        for line in table(shape, names, lengths, arguments.rounds, arguments.device, arguments.brief)
    ]
    lines.append(f"{machine.instructions}, torch {torch.__version__}; speeds vary between machines, read them as ratios.")
    text = "\n".join(lines)
    print(text)
    begin, end = (mark.format("" if arguments.device == "cpu" else "-gpu") for mark in MARKS)
    put(text, arguments.write, (begin, end))


if __name__ == "__main__":
    main()
