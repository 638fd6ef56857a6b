"""Random networks of the operations that exist: what runs here against simulation, fp32 and ONNX Runtime."""

from __future__ import annotations

import math
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import driving
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import engine
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Notice
from engine.export.base import ExportContext
from engine.export.onnx.file import build
from engine.export.split import split
from engine.kernels.simulate import Simulate
from engine.lowering.graph.runtime import QuantizedModel
from engine.lowering.graph.simplify import simplify
from engine.lowering.graph.trace import trace
from engine.numerics.sqnr import sqnr_db
from engine.recipe.recipe import Recipe
from engine.runs import pipeline
from engine.tasks.base import Batch

PRESETS = ("default", "w8a8", "w8a8", "w4a8", "w4a4", "w8", "w4", "w3")
METHODS = ("nearest", "mse", "gptq")
OBSERVERS = ("minmax", "moving-average", "percentile", "histogram-mse", "entropy")
CROP = 12  # Of an image's side: what a network is tried on is small.
Operation = Callable[..., Tensor]
# What a random choice makes of a value's shape: modules that the network owns, and the function of (modules, values).
Made = tuple[list[nn.Module], Operation]

ACTIVATIONS: tuple[Operation, ...] = (
    F.relu, F.relu6, F.hardswish, F.silu, F.gelu, F.hardsigmoid, F.elu, F.softplus, F.mish, torch.tanh, torch.sigmoid, torch.relu,
    lambda x: F.leaky_relu(x, 0.2), lambda x: x.clamp(-0.5, 1.5), lambda x: x.abs(), lambda x: F.gelu(x, approximate="tanh"),
)  # fmt: skip
MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Hardtanh, nn.LeakyReLU, nn.Identity, nn.Dropout,
)  # fmt: skip


def _conv(r: random.Random, shape: torch.Size) -> Made:
    channels, out = shape[1], r.choice([1, 2, 3, 5, 8, 12, 16, 17, 18, 24, 33])
    groups = r.choice([g for g in (1, 1, 1, 2, 3, 4, channels) if channels % g == 0])
    out = max(out // groups, 1) * groups
    size = (r.choice([1, 1, 3, 3, 5, 2]), r.choice([1, 3, 3]))
    size = (size[0], size[0]) if r.random() < 0.8 else size
    dilation = r.choice([1, 1, 1, 2])
    stride = r.choice([1, 1, 1, 2, (2, 1)])
    mode = r.choice(["zeros"] * 20 + ["reflect", "replicate", "reflect", "circular"])
    padding: Any = r.choice([0, 0, "half", "half", "half", "same", (1, 0)])
    padding = 0 if mode != "zeros" and min(shape[2:]) < 4 else padding
    padding = tuple(d * (k - 1) // 2 for k, d in zip(size, (dilation, dilation), strict=True)) if padding == "half" else padding
    stride = 1 if padding == "same" else stride
    conv = nn.Conv2d(channels, out, size, stride, padding, dilation, groups, r.random() < 0.7, mode)  # type: ignore[arg-type]
    return [conv], lambda m, x: m[0](x)


def _deconv(r: random.Random, shape: torch.Size) -> Made:
    groups = r.choice([g for g in (1, 1, 2) if shape[1] % g == 0])
    out, stride = groups * r.choice([2, 5, 8]), r.choice([1, 2])
    layer = nn.ConvTranspose2d(shape[1], out, r.choice([2, 3]), stride, r.choice([0, 1]), stride - 1, groups, r.random() < 0.7)
    return [layer], lambda m, x: m[0](x)


def _norm(r: random.Random, shape: torch.Size) -> Made:
    channels = shape[1]
    kinds = [nn.GroupNorm(r.choice([g for g in (1, 2, 3) if channels % g == 0]), channels)]
    kinds += [nn.BatchNorm2d(channels, affine=r.random() < 0.8)] * 4 + ([nn.InstanceNorm2d(channels)] if min(shape[2:]) > 2 else [])
    return [r.choice(kinds)], lambda m, x: m[0](x)


def _act(r: random.Random, shape: torch.Size) -> Made:
    if r.random() < 0.5:
        return [r.choice(MODULES)()], lambda m, x: m[0](x)
    function = r.choice([F.relu] * 6 + list(ACTIVATIONS))
    return [], lambda m, x: function(x)


def _pool(r: random.Random, shape: torch.Size) -> Made:
    side = min(shape[2:])
    size = r.choice([k for k in (2, 3) if k <= side] or [1])
    stride, padding, ceil = r.choice([1, 2]), r.choice([0, size // 2]), r.random() < 0.2
    every: list[Operation] = [
        lambda m, x: F.max_pool2d(x, size, stride, padding, ceil_mode=ceil),
        lambda m, x: F.avg_pool2d(x, size, stride, padding, ceil_mode=ceil),
        lambda m, x: F.avg_pool2d(x, size, stride, padding, ceil_mode=ceil, count_include_pad=False),
        lambda m, x: F.adaptive_avg_pool2d(x, (max(x.shape[2] // 2, 1), 3)),
        lambda m, x: F.adaptive_max_pool2d(x, (2, 3)),
    ]
    return [], r.choice(every)


def _resize(r: random.Random, shape: torch.Size) -> Made:
    every: list[Operation] = [
        lambda m, x: F.interpolate(x, scale_factor=2),
        lambda m, x: F.interpolate(x, size=(9, 7), mode="bilinear"),
        lambda m, x: F.interpolate(x, scale_factor=1.5, mode="bilinear", align_corners=True, recompute_scale_factor=True),
    ]
    return [], r.choice(every)


def _move(r: random.Random, shape: torch.Size) -> Made:
    channels, height, width = shape[1:]
    every: list[Operation] = [
        lambda m, x: x.transpose(2, 3),
        lambda m, x: x.flip(3),
        lambda m, x: torch.roll(x, 1, 2),
        lambda m, x: F.pad(x, (1, 0, 2, 1)),
        lambda m, x: F.pad(x, (0, 1, 1, 0), value=0.7),
        lambda m, x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        lambda m, x: x.contiguous(),
        lambda m, x: x.reshape(x.shape[0], channels, -1).view(-1, channels, width, height),
        lambda m, x: x.mean(1, keepdim=True).expand(-1, 5, -1, -1),
        lambda m, x: x[:, :1].repeat(1, 3, 1, 1),
        lambda m, x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 3),
    ]
    if channels > 1:
        every += [lambda m, x: x[:, 1:], lambda m, x: x.chunk(2, 1)[0], lambda m, x: x[:, ::2]]
    if channels % 2 == 0:
        every += [lambda m, x: x.view(x.size(0), 2, channels // 2, x.size(2), x.size(3)).transpose(1, 2).flatten(1, 2)]
    if channels % 4 == 0:
        every += [lambda m, x: F.pixel_shuffle(x, 2)]
    if height % 2 == 0 and width % 2 == 0:
        every += [lambda m, x: F.pixel_unshuffle(x, 2)]
    if min(height, width) > 3:
        every += [lambda m, x: x[:, :, 1:, :-1], lambda m, x: x[..., ::2, ::2], lambda m, x: F.pad(x, (1, 2, 2, 1), mode="reflect")]
    return [], r.choice(every)


def _tokens(r: random.Random, shape: torch.Size) -> Made:
    """A map as tokens through linear layers or attention, and back."""
    channels, (height, width) = shape[1], shape[2:]
    kind = r.choice(["linear", "norm", "matmul", "1d", "attention", "rows"])
    if kind == "linear":
        up, down = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels, r.random() < 0.7)
        return [up, down], lambda m, x: m[1](F.gelu(m[0](x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2) + x
    if kind == "norm":
        norm, line = nn.LayerNorm(channels), nn.Linear(channels, channels)
        return [norm, line], lambda m, x: m[1](m[0](x.flatten(2).transpose(1, 2))).transpose(1, 2).reshape(-1, channels, height, width)
    if kind == "1d":
        conv = nn.Conv1d(channels, channels, 3, padding=1, groups=r.choice([1, channels]))
        norm = nn.BatchNorm1d(channels)
        return [conv, norm], lambda m, x: F.relu(m[1](m[0](x.flatten(2)))).unflatten(2, (height, width))
    if kind == "attention":
        heads = r.choice([h for h in (1, 2, 4) if channels % h == 0])
        attention = nn.MultiheadAttention(channels, heads, batch_first=True)

        def attend(m: Any, x: Tensor) -> Tensor:
            y = x.flatten(2).transpose(1, 2)
            return (m[0](y, y, y, need_weights=False)[0] + y).transpose(1, 2).reshape(-1, channels, height, width)

        return [attention], attend
    if kind == "rows":
        line = nn.Linear(width, width)
        return [line], lambda m, x: m[0](x)
    theta, phi, back = (nn.Conv2d(channels, channels, 1) for _ in range(3))

    def non_local(m: Any, x: Tensor) -> Tensor:
        a, b = m[0](x).flatten(2), m[1](x).flatten(2)
        weights = torch.softmax(a.transpose(1, 2) @ b / math.sqrt(channels), -1)
        return m[2]((b @ weights.transpose(1, 2)).reshape(-1, channels, height, width)) + x

    return [theta, phi, back], non_local


class _Constants(nn.Module):
    def __init__(self, value: Tensor, trained: bool) -> None:
        super().__init__()
        if trained:
            self.value = nn.Parameter(value)
        else:
            self.register_buffer("value", value)


def _constant(r: random.Random, shape: torch.Size) -> Made:
    channels, (height, width) = shape[1], shape[2:]
    trained = r.random() < 0.5
    if r.random() < 0.1:
        rows = _Constants(torch.linspace(-1, 1, height).view(1, 1, height, 1), trained)
        return [rows], lambda m, x: torch.cat([m[0].value.expand(x.size(0), -1, -1, width), x], 1)
    shapes = [(1,), (1, channels, 1, 1), (1, 1, height, width), (channels, 1, 1)]
    held = _Constants(torch.rand(r.choice(shapes)) * r.choice([0.1, 1, 4]) + 0.2, trained)
    function = r.choice([lambda m, x: x * m[0].value, lambda m, x: x + m[0].value, lambda m, x: x / m[0].value])
    return [held], function


def _excite(r: random.Random, shape: torch.Size) -> Made:
    down, up = nn.Conv2d(shape[1], 4, 1), nn.Conv2d(4, shape[1], 1)
    return [down, up], lambda m, x: x * torch.sigmoid(m[1](F.relu(m[0](F.adaptive_avg_pool2d(x, 1)))))


def _residual(r: random.Random, shape: torch.Size) -> Made:
    a, b = nn.Conv2d(shape[1], shape[1], 3, padding=1, bias=False), nn.Conv2d(shape[1], shape[1], 3, padding=1)
    norm, after = nn.BatchNorm2d(shape[1]), r.choice([F.relu, F.relu, lambda x: x, F.silu])
    return [a, norm, b], lambda m, x: after(m[2](F.relu(m[1](m[0](x)))) + x)


ONE: tuple[tuple[int, Callable[[random.Random, torch.Size], Made]], ...] = (
    (10, _conv), (2, _deconv), (4, _norm), (6, _act), (2, _pool), (1, _resize), (3, _move), (2, _tokens), (2, _constant), (1, _excite),
    (3, _residual),
)  # fmt: skip


def _two(r: random.Random, a: torch.Size, b: torch.Size) -> Operation | None:
    """A function of two maps of these shapes, where there is one."""
    found: list[Operation] = []
    if a == b:
        found += [lambda m, x, y: x + y] * 4 + [
            lambda m, x, y: x - y, lambda m, x, y: x * torch.sigmoid(y), torch_maximum, lambda m, x, y: F.relu(x + y),
            lambda m, x, y: torch.where(x > 0, x, y), lambda m, x, y: torch.stack([x, y], 1).mean(1), lambda m, x, y: x.add(y, alpha=0.5),
        ]  # fmt: skip
    if a[2:] == b[2:]:
        found += [lambda m, x, y: torch.cat([x, y], 1)] * 4 + [lambda m, x, y: torch.cat((y * 20, x), dim=1)]
    if a[1] == b[1]:
        found += [lambda m, x, y: x + F.interpolate(y, size=x.shape[2:], mode="bilinear")]
        found += [lambda m, x, y: x * torch.sigmoid(y.mean((2, 3), keepdim=True))]
    return r.choice(found) if found else None


def torch_maximum(_: Any, x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x, y)


class Network(nn.Module):
    """Steps over a list of values; each reads one or two earlier ones."""

    def __init__(self, seed: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        r = random.Random(seed)
        torch.manual_seed(seed)
        self.owned = nn.ModuleList()
        self.steps: list[tuple[Operation, tuple[int, ...]]] = []
        self.said: list[str] = []
        values = [torch.randn(8, *shape)]
        for _ in range(200):
            if len(self.steps) >= 3 + seed % 14:
                break
            self._grow(r, values)
        self.head = self._ended(r, values[-1])

    def _grow(self, r: random.Random, values: list[Tensor]) -> None:
        last = len(values) - 1 if r.random() < 0.8 else r.randrange(len(values))
        operation, made, reads, name = None, [], (last,), ""
        if len(values) > 2 and r.random() < 0.25:
            other = r.randrange(len(values))
            operation, reads, name = _two(r, values[last].shape, values[other].shape), (last, other), "two"
        else:
            make = r.choices([make for _, make in ONE], [weight for weight, _ in ONE])[0]
            made, operation = make(r, values[last].shape)
            name = make.__name__
        if operation is None:
            return
        owned = nn.ModuleList(made)
        try:
            with torch.no_grad():
                result = _settled(owned, operation, [values[i] for i in reads])
        except (RuntimeError, ValueError):
            return  # No operation of these sizes.
        if result.dim() != 4 or result.numel() > 8 * 40_000 or not result.isfinite().all() or not 0.02 < result.std() < 100:
            return
        self.owned.append(owned)
        self.steps.append((operation, reads))
        self.said.append(f"{name}{reads} -> {tuple(result.shape[1:])}")
        values.append(result)

    def _ended(self, r: random.Random, value: Tensor) -> nn.Module:
        kind = r.choice(["mean", "mean", "adaptive", "flat", "tokens", "map"])
        kind = "mean" if kind == "flat" and value[0].numel() > 2000 else kind
        # Behind an instance normalization every mean is nothing but the rounding of its sum, and no grid holds it.
        kind = "map" if kind == "mean" and value.mean((2, 3)).std() < 1e-4 * value.std() else kind
        self.kind = kind
        inputs = {"flat": value[0].numel(), "adaptive": 4 * value.shape[1]}.get(kind, value.shape[1])
        return nn.Conv2d(inputs, 5, 1) if kind == "map" else nn.Linear(inputs, 5)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for owned, (operation, reads) in zip(self.owned, self.steps, strict=True):
            values.append(operation(owned, *[values[i] for i in reads]))
        x = values[-1]
        if self.kind == "map":
            return self.head(x).amax((2, 3))
        if self.kind == "tokens":
            return self.head(x.flatten(2).transpose(1, 2)).mean(1)
        if self.kind == "adaptive":
            x = F.adaptive_avg_pool2d(x, 2)
        elif self.kind == "mean":
            return self.head(x.mean((2, 3)))
        return self.head(torch.flatten(x, 1))


def _settled(owned: nn.ModuleList, operation: Operation, values: list[Tensor]) -> Tensor:
    """The operation's result, once each batch normalization in it has the statistics of what it reads."""

    def fit(norm: Any, given: tuple[Tensor, ...]) -> None:
        x = given[0]
        over = [d for d in range(x.dim()) if d != 1]
        norm.running_mean.copy_(x.mean(over))
        norm.running_var.copy_(x.var(over).clamp(min=1e-2))
        if norm.affine:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)

    owned.eval()
    norms = [m for m in owned.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(fit) for norm in norms]
    result = operation(owned, *values)
    for hook in hooks:
        hook.remove()
    return result


def laid_out(x: Tensor, how: str) -> Tensor:
    """The same values in another layout."""
    if how == "last":
        return x.contiguous(memory_format=torch.channels_last)
    if how == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if how == "batch inside":
        return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    if how == "sliced":
        return torch.cat([x, x], 3)[..., : x.shape[3]]
    return x.contiguous()


LAYOUTS = ("first", "last", "transposed", "batch inside", "sliced")


def distance(wanted: Tensor, got: Tensor) -> float:
    wanted, got = wanted.double(), got.double()
    return sqnr_db(wanted.square().sum().item(), (wanted - got).square().sum().item())


def recipe_of(r: random.Random, exports: tuple[str, ...]) -> Recipe:
    preset, rules = r.choice(PRESETS), []
    if r.random() < 0.4:
        weights: dict[str, Any] = {"bits": r.choice([2, 3, 4, 5, 6, 8]), "method": r.choice(METHODS)}
        if r.random() < 0.4:
            weights |= {"granularity": "per-group", "group_size": r.choice([16, 32])}
        activations = {"bits": r.choice([4, 6, 8, 8, 8]), "observer": r.choice(OBSERVERS), "symmetric": r.random() < 0.2}
        match = r.choice(["kind:Linear", "kind:Conv2d", "owned.1*", "head"])
        rules.append({"match": match, "weights": weights, "activations": activations})
    if r.random() < 0.2:
        rules.append({"match": r.choice(["owned.0*", "owned.2*", "head"]), "keep": "fp32"})
    return Recipe.make(
        model=f"{pipeline.IN_MEMORY}Network", preset=preset, rules=rules, qat={"mode": "never"}, export=exports, threshold="sqnr:1",
        data={"calibration": 24, "batch": r.choice([1, 5, 24])}, quantize_first=r.random() < 0.2, seed=r.randrange(100),
    )  # fmt: skip


def look(seed: int) -> tuple[str, str]:
    """The outcome of a case, ``fine`` or what kind of find it is, and what is to be said of it."""
    r = random.Random(seed)
    shape = (r.choice([1, 3, 3, 3, 4]), *(r.choice([8, 9, 12, 14, 16, 17]) for _ in range(2)))
    network = Network(seed, shape).eval()
    images = torch.randn(44, *shape, generator=torch.Generator().manual_seed(seed)) * r.choice([0.3, 1, 5]) + r.choice([0, 0, 3, -1])
    images = laid_out(images, how := r.choice(LAYOUTS))
    with torch.no_grad():
        targets = network(images).argmax(1)
    cuts = {"train": (0, 24), "validation": (24, 30), "test": (30, 44)}
    part = r.choice([3, 7, 14, 24])
    loaders = {
        split: [(images[i : min(i + part, end)], targets[i : min(i + part, end)]) for i in range(start, end, part)]
        for split, (start, end) in cuts.items()
    }
    task = engine.Task.of(**loaders, metric=_accuracy)
    recipe = recipe_of(r, ("onnx",))
    about = f"{shape} {how} {recipe.preset} {[rule.match for rule in recipe.rules]} | {'; '.join(network.said)}; {network.kind}"
    with tempfile.TemporaryDirectory() as place:
        stop, folder = StopToken(), Path(place) / "run"
        with driving.untimed():
            outcome = driving.consume(pipeline.run(recipe, folder, stop, in_hand=(network, task)), stop)
        if outcome.error is not None:
            text = str(outcome.error)
            kept = folder / "traceback.txt"
            refused = isinstance(outcome.error, EngineError) and "the traceback is in" not in text
            return ("refused" if refused else "error"), f"{text} {kept.read_text()[-1500:] if kept.exists() else ''} {about}"
        said = [e.text for e in outcome.of(Notice) if "step by step" in e.text]
        if said:
            return "plan differs", f"{said[0]} {about}"
        kind, text = checked(network, folder, images[30:], shape)
        if kind == "fine":
            kind, text = of_exports(outcome.data["exports"])
        return kind, f"{text} {about}"


def _accuracy(outputs: Tensor, targets: Tensor) -> float:
    return (outputs.argmax(1) == targets).float().mean().item()


def of_exports(entries: list[dict[str, Any]]) -> tuple[str, str]:
    for entry in entries:
        told = str({key: entry.get(key) for key in ("format", "reason", "alarm", "parity")})
        if entry.get("parity") is None:
            return "export refused", told
        if entry.get("differs") or not entry["verified"]:
            return "export differs", told
        if entry.get("alarm"):
            return "export alarm", told
    return "fine", ""


@torch.inference_mode()
def checked(network: nn.Module, folder: Path, images: Tensor, shape: tuple[int, ...]) -> tuple[str, str]:
    """The stored model against simulation of the same integers, fp32, and itself in other layouts and batches."""
    native: Any = engine.load_quantized(folder, model=network)
    simulated = QuantizedModel(native.program, [Simulate()], dict(network.named_modules()))
    true = network(images)
    for count in (1, len(images)):
        found = steps_apart(native, simulated, images[:count])
        if found:
            return "step differs", f"{count} images: {found}"
    try:
        if found := onnx_apart(native, network, images):
            return "onnx step differs", found
    except EngineError:
        pass  # What has no form there is told by the export of the run.
    here = native(images)
    noise = distance(true, here)
    beside = distance(true, simulated(images))
    if noise < beside - 3 and noise < 40:
        return "worse than simulation", f"{noise:.1f} dB to fp32, simulation {beside:.1f} dB"
    # Rounding that moves a value to the neighbouring step makes less noise than rounding itself.
    least = min(noise, 60) - 3
    for how in LAYOUTS:
        if (other := distance(here, native(laid_out(images, how)))) < least:
            return "layout differs", f"{how}: {other:.1f} dB, fp32 {noise:.1f} dB"
    alone = torch.cat([native(one[None]) for one in images])
    if (other := distance(here, alone)) < least:
        return "batch differs", f"{other:.1f} dB, fp32 {noise:.1f} dB"
    found = other_sizes(network, native, images)
    return ("size differs", found) if found else ("fine", f"{noise:.1f} dB")


def other_sizes(network: nn.Module, native: Any, images: Tensor) -> str:
    """A graph that is said to serve images of any size computes what the network does; one that is not refuses them."""
    grown = F.interpolate(images, scale_factor=(1.5, 1.25))
    try:
        true = network(grown)
    except RuntimeError:
        return ""
    try:
        native(grown)
    except EngineError:
        return ""
    graph = simplify(trace(network, images[:2]).module, images[:2])
    apart = (graph(grown) - true).abs().max()
    return f"{apart:.1e} of {true.abs().max():.1e} at {tuple(grown.shape[2:])}" if apart > 1e-3 * true.abs().max() else ""


def onnx_apart(native: Any, network: nn.Module, images: Tensor) -> str:
    """Each step of the exported program on ONNX Runtime's values of those before it: integers within one step."""
    import onnxruntime

    whole = dict(network.named_modules())
    context = ExportContext(native, Batch((images,), count=len(images)), whole, "", "any", "net", threads=1)
    program = split(context)
    file = build(program, context, "integers")
    # The last node of a step's name is its value: what is rounded, then bounded where a grid has fewer levels than a byte.
    last = {
        re.sub(r"_q_\d+$", "_q", node.output[0]): node.output[0] for node in file.graph.node if node.op_type in ("QuantizeLinear", "Clip")
    }
    kept = {
        output: last[name] for output in (step.output for step in program.program.steps) if (name := output.replace(":q", "_q")) in last
    }
    for name in kept.values():
        file.graph.output.add().name = name
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: images.contiguous().numpy()}
    found = dict(zip(kept.values(), session.run(list(kept.values()), given) if kept else (), strict=True))
    values: dict[str, Any] = dict(zip(program.input_names, (images,), strict=True))
    for step, run in program.functions():
        mine = run(*[x.clone() if isinstance(x := values[name], Tensor) else x for name in step.inputs])
        values[step.output] = mine
        # A relu6 between floats is a Clip too: what became of floats shows where they are rounded.
        if step.output not in kept or not isinstance(mine, Tensor) or mine.is_floating_point():
            continue
        other = torch.from_numpy(found[kept[step.output]].copy())
        # A linear layer's further dimensions are rows there.
        other = other.reshape(mine.shape) if step.op == "layer" and other.numel() == mine.numel() else other
        what = f"{step.op} {step.attrs.get('path', step.output)}"
        if other.dtype != mine.dtype or other.shape != mine.shape:
            if mine.dtype == torch.uint8 or other.numel() != mine.numel():
                return f"{what}: {tuple(mine.shape)} {mine.dtype} against {tuple(other.shape)} {other.dtype}"
            continue
        # A bias in units of the products moves a coarse grid's values to the next step in many places.
        if said := _apart(what, other, mine, often=1.0):
            return said
        values[step.output] = other
    return ""


def steps_apart(native: Any, simulated: Any, images: Tensor) -> str:
    """Each step on the native values of those before it, carried out by both: integers may be one step apart, floats the last bits."""
    names = native.input_names
    values: dict[str, Any] = dict(zip(names, native.inputs_of(Batch((images,), count=len(images))), strict=True))
    for (step, here), (_, there) in zip(native.functions(), simulated.functions(), strict=True):
        inputs = [values[name] for name in step.inputs]
        mine, other = (run(*[x.clone() if isinstance(x, Tensor) else x for x in inputs]) for run in (here, there))
        values[step.output] = mine
        if not isinstance(mine, Tensor):
            continue
        what = f"{step.op} {step.attrs.get('path', step.output)}"
        if mine.shape != other.shape or mine.dtype != other.dtype:
            return f"{what}: {tuple(mine.shape)} {mine.dtype} against {tuple(other.shape)} {other.dtype}"
        if said := _apart(what, mine, other):
            return said
    return ""


def _apart(what: str, mine: Tensor, other: Tensor, often: float = 0.02) -> str:
    if not mine.numel():
        return ""
    apart = (mine.double() - other.double()).abs()
    if mine.dtype == torch.uint8:
        if apart.max() > 1:
            return f"{what}: {int((apart > 1).sum())} of {apart.numel()} integers up to {int(apart.max())} steps apart"
        if (apart > 0).double().mean() > often and apart.numel() > 100:
            return f"{what}: {(apart > 0).double().mean():.1%} of the integers are a step apart"
    elif mine.is_floating_point() and apart.max() > 1e-4 * other.abs().max().double() + 1e-6:
        return f"{what}: floats up to {apart.max():.1e} apart, of {other.abs().max():.1e}"
    return ""
