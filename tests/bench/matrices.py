"""The matrix products of one token of a decoder with integer weights, beside ONNX Runtime's MatMulNBits: microseconds, bytes a second.

usage: uv run --group bench --extra fast python tests/bench/matrices.py [--shape gpt2,tinyllama] [--tokens 1] [--threads 2]
       [--rounds 30] [--write FILE]

All matrices of the blocks, and the head on int8, are multiplied with one row each in the order of a token, so that weights come from
memory as they do while it is written. All kernels are measured in one
process, on the same threads, in turns; times are the least of the rounds. ``bandwidth`` is in parts of a plain read of memory. With
``--tokens 512`` a prompt is multiplied instead, by one layer for all and without the head, beside torch's float32 and bfloat16.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from decode import read_bandwidth
from tables import put
from torch import Tensor

from engine.kernels.matrix.compiled import Int4, Int8
from engine.kernels.matrix.nibbles import PackedNibbles
from engine.kernels.matrix.weight_only import Widened
from engine.kernels.probe import probe
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import int_scheme
from engine.numerics.weights import minmax, quantize
from engine.recipe.spec import ActivationSpec

# Out, in, how many of them a token needs, whether it is the head.
SHAPES: dict[str, tuple[tuple[int, int, int, bool], ...]] = {
    "gpt2": ((2304, 768, 12, False), (768, 768, 12, False), (3072, 768, 12, False), (768, 3072, 12, False), (50257, 768, 1, True)),
    "llama": (
        (2048, 2048, 32, False), (512, 2048, 32, False), (8192, 2048, 32, False), (2048, 8192, 16, False), (32000, 2048, 1, True),
    ),
    # TinyLlama's 1.1 B.
    "tinyllama": (
        (2048, 2048, 44, False), (256, 2048, 44, False), (5632, 2048, 44, False), (2048, 5632, 22, False), (32000, 2048, 1, True),
    ),
}  # fmt: skip
# Of larger models some of the layers, more than a cache holds, stand for all: so many of so many.
LAYERS = {"llama": (4, 16), "tinyllama": (4, 22)}
MARKS = ("<!-- bench:matrices -->", "<!-- /bench:matrices -->")
GROUP = 64
FLOAT, ROUNDED = "ORT MatMulNBits, float32", "ORT MatMulNBits, int8 inputs"
# Ours, by how inputs are rounded: to 16 bits of float activations, or to integers that a recipe asks for.
COMPILED = {
    "compiled, float activations": None,
    "compiled, int8 a token": ActivationSpec(8, dynamic=True),
    f"compiled, int8 a group of {GROUP}": ActivationSpec(8, dynamic=True, group_size=GROUP),
}
Run = Callable[[], object]


def nbits(weight: QTensor, x: Tensor, bits: int, threads: int, level: int) -> Run:
    """ONNX Runtime's product of this shape, in float32 (``level`` 0) or on inputs that it rounds to int8 (4)."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    out, inputs = weight.codes.shape
    codes = torch.randint(0, 256, (out, inputs // GROUP, GROUP * bits // 8), dtype=torch.uint8).numpy()
    scales = np.full((out * (inputs // GROUP),), 0.01, np.float32)
    zeros = np.full((out, -(-inputs // GROUP * bits // 8)), 0x88 if bits == 4 else 128, np.uint8)
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s", "z"], ["y"], domain="com.microsoft", K=inputs, N=out, bits=bits, block_size=GROUP,
        accuracy_level=level,
    )  # fmt: skip
    kept = [onnx.numpy_helper.from_array(array, name) for array, name in ((codes, "w"), (scales, "s"), (zeros.reshape(-1), "z"))]
    given, got = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [len(x), size]) for n, size in (("x", inputs), ("y", out)))
    model = helper.make_model(
        helper.make_graph([node], "g", [given], [got], kept),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)], ir_version=10,
    )  # fmt: skip
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    binding = session.io_binding()
    array = np.ascontiguousarray(x.numpy())
    binding.bind_cpu_input("x", array)
    binding.bind_output("y")
    return lambda: session.run_with_iobinding(binding)


def ours(form: Any, x: Tensor) -> Run:
    return lambda: form(x)


def forms(weight: QTensor, x: Tensor, bits: int, threads: int) -> dict[str, Run]:
    """Each kernel on a copy of the weights of its own."""
    weight = replace(weight, codes=weight.codes.clone())
    found = {FLOAT: nbits(weight, x, bits, threads, 0), ROUNDED: nbits(weight, x, bits, threads, 4)}
    if len(x) > 1:
        floats = weight.dequantize()
        for name, kind in (("torch float32", torch.float32), ("torch bfloat16", torch.bfloat16)):
            found[name] = partial(F.linear, x.to(kind), floats.to(kind))
    found["torch"] = ours(Widened(weight.codes.clone(), weight.channel_scale, None) if bits == 8 else PackedNibbles(weight, None), x)
    found |= {name: ours((Int8 if bits == 8 else Int4)(weight, None, asked), x) for name, asked in COMPILED.items()}
    return found


def token(shape: str, bits: int, threads: int, tokens: int) -> dict[str, list[Run]]:
    """All products of a token, by kernel."""
    found: dict[str, list[Run]] = {}
    for out, inputs, count, head in SHAPES[shape]:
        width = 8 if head else bits
        spec = int_scheme(8, 0, True) if width == 8 else int_scheme(4, GROUP, False)
        floats = torch.randn(out, inputs)
        weight, x = quantize(floats, minmax(floats, spec)), torch.randn(tokens, inputs)
        if head and tokens > 1:
            continue
        some, whole = _layers(shape, tokens)
        for _ in range(1 if head else count * some // whole):
            for name, run in forms(weight, x, width, threads).items():
                found.setdefault(name, []).append(run)
    return found


def _layers(shape: str, tokens: int) -> tuple[int, int]:
    """So many layers of so many are measured: arithmetic takes the time of a prompt, and is the same in each of them."""
    return (1, 12 if shape == "gpt2" else LAYERS[shape][1]) if tokens > 1 else LAYERS.get(shape, (1, 1))


def prompt(shape: str, bits: int, threads: int, rounds: int, tokens: int) -> list[str]:
    clock = time.process_time if threads == 1 else time.perf_counter
    layers = _layers(shape, tokens)[1]
    found: dict[str, float] = {}
    products = token(shape, bits, threads, tokens)
    for _ in range(rounds):
        for name, runs in products.items():
            runs[0]()
            start = clock()
            for run in runs:
                run()
            found[name] = min(found.get(name, float("inf")), clock() - start)
    macs = sum(count * out * inputs for out, inputs, count, head in SHAPES[shape] if not head) * tokens
    base = min(seconds for name, seconds in found.items() if name.startswith("ORT"))
    lines = [f"**{shape}, int{bits}**, a prompt of {tokens} tokens, {threads} threads, 1 of {layers} layers measured for all", ""]
    lines += ["| kernel | ms of the blocks | tokens a second | GMAC/s | times the better of ORT |", "|---|---:|---:|---:|---:|"]
    for name, seconds in found.items():
        whole = seconds * layers
        rate = f"{macs / whole / 1e9:.1f} | {base / seconds:.2f}"
        lines.append(f"| {name} | {1e3 * whole:,.0f} | {tokens / whole:.0f} | {rate} |")
    return [*lines, ""]


def least(products: dict[str, list[Run]], rounds: int, clock: Callable[[], float]) -> dict[str, tuple[float, float]]:
    """Seconds of the blocks of a token, and of its head, with each kernel."""
    found = {name: (float("inf"), float("inf")) for name in products}
    for _ in range(rounds):
        for name, runs in products.items():
            # The threads of the candidate before spin on for a while.
            time.sleep(0.005)
            for run in runs[:4]:
                run()
            start = clock()
            for run in runs[:-1]:
                run()
            between = clock()
            runs[-1]()
            found[name] = (min(found[name][0], between - start), min(found[name][1], clock() - between))
    return found


def table(shape: str, bits: int, threads: int, rounds: int) -> list[str]:
    # Of one thread the processor's time, which other work on the machine does not add to.
    clock = time.process_time if threads == 1 else time.perf_counter
    bandwidth = read_bandwidth("cpu", clock)
    some, whole = _layers(shape, 1)
    total = {n: (blocks * whole / some, head) for n, (blocks, head) in least(token(shape, bits, threads, 1), rounds, clock).items()}
    widths = [(count * out * inputs, 8 if head else bits) for out, inputs, count, head in SHAPES[shape]]
    moved = sum(count * (width / 8 + (4 / GROUP if width == 4 else 0)) for count, width in widths)
    base = [min(total[name][part] for name in (FLOAT, ROUNDED)) for part in (0, 1)]
    lines = [
        f"**{shape}, int{bits}**, head int8: {moved / 1e6:.0f} MB a token, plain read {bandwidth / 1e9:.1f} GB/s, {threads} threads"
        + (f", {some} of {whole} layers measured for all" if whole > 1 else ""),
        "",
    ]
    lines += ["| kernel | ms of the blocks | of the head | a token | times ORT's better of each | of read bandwidth |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for name, (blocks, head) in total.items():
        both = blocks + head
        part = f"{100 * moved / both / bandwidth:.0f} %"
        lines.append(f"| {name} | {1e3 * blocks:.2f} | {1e3 * head:.2f} | {1e3 * both:.2f} | {sum(base) / both:.2f} | {part} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="gpt2", help=f"of {', '.join(SHAPES)}, with commas between")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1, help="more than one are a prompt")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--write", type=Path, help="put the tables between the markers of this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = []
    for shape, bits in product(arguments.shape.split(","), (8, 4)):
        given = (shape, bits, arguments.threads, arguments.rounds)
        lines += table(*given) if arguments.tokens == 1 else prompt(*given, arguments.tokens)
    lines.append(f"{probe().instructions}, torch {torch.__version__}; speeds vary between machines, read them as ratios.")
    text = "\n".join(lines)
    print(text)
    put(text, arguments.write, MARKS)


if __name__ == "__main__":
    main()
