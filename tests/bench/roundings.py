"""Where the integers of ``model.onnx`` in ONNX Runtime part from the measured model's, layer by layer, and which side is right.

    uv run --group bench python tests/bench/roundings.py [MODEL …] [--side PIXELS] [--zero]

MODEL is a name of torchvision or timm, with random weights. Normalizations are fitted to random images with random gains and shifts, or
with ``--zero`` left as they are built. On 8 other images both compute the whole network; then every step of each computes alone from the
measured model's integers, and again in float64. A row: the part of integers that differ in the whole network, of the step alone, of either
side from float64, and how far from half a step the furthest of these lies. Only rows in which something differs alone are printed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "engine" / "export"))

import nets

from engine.export.base import ExportContext
from engine.export.onnx import file as form
from engine.kernels.base import ACTIVATIONS, CONVOLUTIONS
from engine.kernels.choose import kernels_for
from engine.kernels.probe import probe
from engine.lowering.graph.program import Step, grid_from
from engine.lowering.graph.runtime import QuantizedModel
from engine.numerics.sqnr import sqnr_db

MODELS = ("resnet18", "dla34", "mobilenet_v3_small")


def network(name: str, images: Tensor | None) -> nn.Module:
    """Random weights; normalizations that bring what ``images`` give to random gains and shifts."""
    import timm
    import torchvision

    torch.manual_seed(0)
    known = name in torchvision.models.list_models()
    model: nn.Module = torchvision.models.get_model(name, weights=None) if known else timm.create_model(name)

    def fit(norm: nn.BatchNorm2d, given: tuple[Tensor, ...]) -> None:
        norm.running_mean.copy_(given[0].mean((0, 2, 3)))
        norm.running_var.copy_(given[0].var((0, 2, 3)).clamp(min=1e-2))
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)

    if images is not None:
        hooks = [norm.register_forward_pre_hook(fit) for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
        model.eval()(images)
        for hook in hooks:
            hook.remove()
    return model.eval()


def in_runtime(path: Path, images: Tensor, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's rounded values and logits by the measured model's names. Those of ``given`` are computed and then read as given."""
    import onnx
    import onnxruntime

    proto = onnx.load(path)
    clips = {node.input[0]: node for node in proto.graph.node if node.op_type == "Clip"}
    names, feeds = {}, {proto.graph.input[0].name: images.numpy()}
    for node in [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]:
        name = re.sub(r"_q(_\d+)?$", ":q", node.output[0])
        last = clips.get(node.output[0], node)
        made = place = last.output[0]
        if name in given:
            made = last.output[0] = f"{place}/made"
            proto.graph.input.append(onnx.helper.make_tensor_value_info(place, onnx.TensorProto.UINT8, None))
            feeds[place] = given[name].contiguous().numpy()
        proto.graph.output.append(onnx.helper.make_tensor_value_info(made, onnx.TensorProto.UINT8, None))
        names[made] = name
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results = zip((x.name for x in session.get_outputs()), session.run(None, feeds), strict=True)
    return {names.get(name, name): torch.from_numpy(x) for name, x in results}


def exact(model: QuantizedModel, step: Step, values: Mapping[str, Tensor]) -> Tensor | None:
    """What the step rounds, in steps of its grid, in float64 from integers; None for a step that this does not know."""
    a = step.attrs
    grids = {key: found for key in ("input", "accumulate", "left", "right") if (found := grid_from(a.get(key))) is not None}
    read = [values[name].double() for name in step.inputs]
    if step.op == "layer":
        layer = model.layer(model.program, step)
        inputs, weight, shape = read[0] - layer.input.zero_point, layer.weight.double(), (-1, *[1] * layer.dims)
        if layer.kind == "linear":
            made = inputs @ weight.t()
        else:
            made = CONVOLUTIONS[layer.dims](inputs, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        made = made * (layer.weight_scale.double() * layer.input.scale).reshape(shape)
        made = made if layer.bias is None else made + layer.bias.double().reshape(shape)
        if layer.accumulate is not None:
            made = made + (read[1] - layer.accumulate.zero_point) * layer.accumulate.scale
        made = ACTIVATIONS[layer.activation](made)
    elif step.op in ("sum", "gate"):
        left, right = ((x - grids[key].zero_point) * grids[key].scale for x, key in zip(read, ("left", "right"), strict=True))
        made = left * right if step.op == "gate" else (left + right).relu() if a["relu"] else left + right
    elif step.op == "quantize":
        made = read[0]
    else:
        return None
    out = grid_from(a["grid"] if step.op == "quantize" else a["output"])
    return None if out is None else made / out.scale


def beside(wanted: Tensor, rounded: Tensor, zero_point: int, top: int) -> str:
    """The part of ``rounded`` that is not ``wanted`` to the nearest step, and how far from half a step the furthest of it lies."""
    other = (wanted.round() + zero_point).clamp(0, top) != rounded
    if not other.any():
        return f"{'0':>9} {'':>9}"
    far = (wanted - wanted.floor() - 0.5).abs()[other].max().item()
    return f"{other.double().mean().item():9.1e} {far:9.1e}"


def look(name: str, side: int, fitted: bool) -> None:
    calibration, images = (torch.randn(8, 3, side, side, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    base = nets.quantized(lambda: network(name, calibration if fitted else None), images=calibration)
    model = QuantizedModel(base.model.program, kernels_for(probe()), base.whole)
    context = ExportContext(model, base.inputs, base.whole, threads=torch.get_num_threads())
    values = model.watch(images)
    with TemporaryDirectory() as folder:
        form.write(context, path := Path(folder) / "model.onnx")
        whole = in_runtime(path, images, {})
        alone = in_runtime(path, images, {key: x for key, x in values.items() if key.endswith(":q")})
    wanted = values[model.program.result].double()
    noise = sqnr_db(wanted.square().sum().item(), (whole["logits"].double() - wanted).square().sum().item())
    print(f"\n{name}, {side} pixels: logits of the file to the measured model {noise:.1f} dB")
    print(f"{'value':<32} {'step':<22} {'whole':>9} {'alone':>9}   {'measured, float64':>19}   {'file, float64':>19}")
    for step in model.program.steps:
        key, out = step.output, grid_from(step.attrs.get("grid") if step.op == "quantize" else step.attrs.get("output"))
        if key not in alone or out is None:
            continue
        apart, further = ((found[key] != values[key]).double().mean().item() for found in (alone, whole))
        truth = exact(model, step, values)
        sides = ["", ""] if truth is None else [beside(truth, x, out.zero_point, out.qmax) for x in (values[key], alone[key])]
        if apart or (sides[0].strip() not in ("", "0")):
            about = f"{step.op} {step.attrs.get('activation', '')}{' + residual' if step.attrs.get('accumulate') else ''}"
            print(f"{key[:-2][-32:]:<32} {about:<22} {further:9.1e} {apart:9.1e}   {sides[0]}   {sides[1]}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--side", type=int, default=64, metavar="PIXELS")
    parser.add_argument("--zero", action="store_true", help="normalizations as they are built")
    args = parser.parse_args()
    with torch.no_grad():
        for name in args.models:
            look(name, args.side, not args.zero)


if __name__ == "__main__":
    main()
