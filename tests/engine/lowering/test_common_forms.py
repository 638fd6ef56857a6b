"""Ways of writing a forward that are common, traced whole: what is computed is exactly the model's, stored in a file, and near fp32 on
integers."""

import warnings

import einops
import pytest
import torch
import torchvision
from einops.layers.torch import Rearrange, Reduce
from given_net import Net
from torch import nn

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Notice
from engine.events.progress import quietly
from engine.kernels.simulate import Simulate
from engine.lowering.graph import conversion, tracing
from engine.lowering.graph.artifact import load_network, to_bytes
from engine.lowering.graph.calls import function, function_name
from engine.lowering.graph.fuse import find_pairs, fuse
from engine.lowering.graph.kinds import kind
from engine.lowering.graph.layout import arrange
from engine.lowering.graph.observe import Observed
from engine.numerics.sqnr import sqnr_db
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec
from engine.tasks.base import Batch

BATCHES = (1, 2, 5)


def head(function):
    """The given middle between two convolutions and a linear layer over the mean of what is left."""

    def forward(s, x):
        y = function(s, s.b(s.a(x).relu()))
        return s.f(y.mean((2, 3)) if y.dim() == 4 else y.mean(1))

    return forward


def drop_path(s, y):
    shape = (y.shape[0],) + (1,) * (y.ndim - 1)
    return y * y.new_empty(shape).fill_(1.0)


def by_name(s, y):
    top = y.topk(3, dim=1).values.mean(1, keepdim=True)
    return y * top + torch.sort(y, dim=1).values - y.median(dim=1, keepdim=True).values + y.max(1, keepdim=True).indices


def class_token(s, y):
    tokens = y.flatten(2).transpose(1, 2)
    return torch.cat((s.buffer.expand(y.shape[0], -1, -1), tokens), dim=1)


def masks(s, y):
    mask = (y > 0) & ~(y > 1) | (y < -1) ^ (y == 0)
    return torch.where(mask, y, -y).masked_fill(~mask & (y > 3), 0.5)


def rearranged(s, y):
    size = y.shape[2] // 2
    z = einops.rearrange(y, "b c (h p) (w q) -> b (h w) (p q c)", p=2, q=2)
    return einops.rearrange(z, "b (h w) (p q c) -> b c (h p) (w q)", h=size, p=2, q=2)


def repeated(s, y):
    tokens = einops.rearrange(y, "b c h w -> b (h w) c")
    return torch.cat((einops.repeat(s.token, "1 n d -> b n d", b=y.shape[0]), tokens), dim=1)


def assigned(s, y):
    z = torch.zeros_like(y)
    z[:, :4, 1:] = y[:, 4:, :-1]
    z[:, 4:] = y[:, :4]
    z[..., 0] = 0.25
    return z


def shifted_in_place(s, y):
    y[:, :2] *= 2
    y[:, 2:4] += 1
    y[:, 0].fill_(0.5)
    y[:, 1].mul_(3)
    y[:, 2, 1:3].copy_(y[:, 3, 1:3])
    return y


def by_mask(s, y):
    y = y.clone()
    y[y < 0] = 0
    y[y > 2] = y.mean()
    return y


def by_parts(s, y):
    z = torch.empty(y.shape[0], 8, y.shape[2], y.shape[3])
    z[:, ::2], z[:, 1::2] = y[:, :4], y[:, 4:]
    return z


@torch.jit.script
def scripted(x, k: float):
    if k > 0:
        return x * torch.sigmoid(x * k)
    return x


def deformable(s, y):
    return y + torchvision.ops.deform_conv2d(y, s.offset(y), s.kernel, padding=1)


def on_its_kind(s, y):
    if y.is_cuda or y.device.type == "cuda" or y.dtype != torch.float32:
        return y * 5
    assert torch.is_floating_point(y) and y.device == y.data.device
    with torch.amp.autocast(device_type=y.device.type, enabled=False):
        return y.data * 1


def recurrent(s, y):
    state = torch.zeros(y.size(0), 8)
    for i in range(3):
        state = torch.tanh(state + y[:, :, i, i])
    return state[:, None]


FORMS = {
    "new_zeros": lambda s, y: y + y.new_zeros(y.shape) + y.new_zeros((y.shape[0], 8, 1, 1)),
    "new_zeros with options": lambda s, y: y + y.new_zeros(8, 1, 1, dtype=torch.float32, device=y.device),
    "new_full, new_ones, new_tensor": lambda s, y: (
        y * y.new_ones(y.size(0), 8, 1, 1) + y.new_full((y.size(0), 8, 1, 1), 0.5) + y.new_tensor([0.5] * 8)[:, None, None]
    ),
    "stochastic depth": drop_path,
    "a buffer expanded over the batch": class_token,
    "a parameter expanded as another": lambda s, y: y + s.token.reshape(1, 8, 1, 1).expand_as(y),
    "a parameter repeated": lambda s, y: y + s.token.view(8, 1, 1).repeat(y.size(0), 1, 1, 1),
    "fields of named tuples": by_name,
    "masks": masks,
    "einops.rearrange": rearranged,
    "einops.reduce": lambda s, y: einops.reduce(y, "b c (h p) (w q) -> b c h w", "max", p=2, q=2),
    "einops.repeat": repeated,
    "einops.einsum": lambda s, y: einops.einsum(y, s.square, "b c h w, o c -> b o h w"),
    "einops layers": lambda s, y: s.layers(y)[:, None],
    "Class.forward(self, x)": lambda s, y: nn.Conv2d.forward(s.b, y),
    "assignment to slices": assigned,
    "slices changed in place": shifted_in_place,
    "assignment by a mask": by_mask,
    "assignment to an empty tensor": by_parts,
    "type_as": lambda s, y: y * (y > 0).type_as(y) + (y > 1).to(y) + (y > 2).type(torch.float32),
    "a scripted function": lambda s, y: scripted(y, 1.0),
    "deform_conv2d": deformable,
    "torch.ops": lambda s, y: torch.ops.aten.relu.default(y) + torch.ops.aten.sigmoid(y),
    "questions of type and device": on_its_kind,
    "a state of zeros": recurrent,
    "a module made in forward": lambda s, y: nn.GELU()(y) + nn.Sequential(nn.Hardswish(), nn.Sigmoid())(y),
}  # fmt: skip


def net(form):
    torch.manual_seed(0)
    model = Net(
        head(FORMS[form]), a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 8, 3, padding=1), f=nn.Linear(8, 5),
        token=nn.Parameter(torch.randn(1, 1, 8)), square=nn.Parameter(torch.randn(8, 8) / 3), offset=nn.Conv2d(8, 18, 3, padding=1),
        kernel=nn.Parameter(torch.randn(8, 8, 3, 3) / 8),
        layers=nn.Sequential(Rearrange("b c h w -> b (h w) c"), nn.Linear(8, 8), Reduce("b n c -> b c", "max")),
    )  # fmt: skip
    model.register_buffer("buffer", torch.randn(1, 1, 8))
    return model.eval()


def traced(model, images):
    found = quietly(tracing.trace(model, Batch((images,), count=len(images))), StopToken())
    assert not found.untraced
    return found.graph


@pytest.mark.parametrize("form", FORMS)
def test_the_graph_computes_what_the_model_does_at_every_batch(form):
    model = net(form)
    graph = traced(model, torch.randn(2, 3, 8, 8))
    for batch in BATCHES:
        images = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(graph(images.clone()), model(images.clone()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_stored_and_near_fp32_on_integers(form, tmp_path):
    model = net(form)
    images = torch.randn(32, 3, 8, 8)
    graph = traced(model, images[:2])
    graph, _, _ = fuse(graph, images[:2], find_pairs(graph))
    specs = {str(n.target): LayerSpec(WeightSpec(), ActivationSpec(bits=7)) for n in graph.graph.nodes if kind(n) in ("conv", "linear")}
    layout = arrange(graph, specs)
    observed = Observed(graph, layout)
    observed.batch(images.clone())
    weights = conversion.round_weights(graph, layout, specs)
    converted = quietly(conversion.convert(graph, layout, observed.grids(), weights, [Simulate()]), StopToken()).model
    with torch.no_grad():
        expected = model(images.clone())
    noise = converted(images.clone()) - expected
    assert sqnr_db(expected.square().sum().item(), noise.square().sum().item()) > 20
    (tmp_path / "model.safetensors").write_bytes(to_bytes(converted.program, "", "any"))
    with warnings.catch_warnings(action="ignore"):
        again = load_network(tmp_path)
    torch.testing.assert_close(again(images[:5]), converted(images[:5]), rtol=1e-3, atol=1e-3)


def test_autocast_inside_of_forward_is_left_out_and_said():
    def lower(s, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = s.a(x)
        return s.f(y.float().mean((2, 3)))

    torch.manual_seed(0)
    model = Net(lower, a=nn.Conv2d(3, 8, 3), f=nn.Linear(8, 5)).eval()
    images = torch.randn(4, 3, 8, 8)
    steps = tracing.trace(model, Batch((images,), count=4))
    said = []
    while True:
        try:
            said.append(next(steps))
        except StopIteration as end:
            graph = end.value.graph
            break
    assert next(event.text for event in said if isinstance(event, Notice)).startswith("autocast inside of forward is left out")
    exact = model.f(model.a(images).mean((2, 3)))
    torch.testing.assert_close(graph(images), exact, rtol=1e-6, atol=1e-6)
    assert not torch.equal(model(images), exact)


def test_nothing_of_torch_and_einops_stays_replaced():
    def names():
        backends = einops._backends._type2backend
        return torch.Tensor.expand, torch.zeros, torch.jit.ScriptFunction.__call__, torch.autocast.__enter__, dict(backends)

    before = names()
    for form in ("einops.repeat", "a scripted function", "a state of zeros"):
        traced(net(form), torch.randn(2, 3, 8, 8))
    assert names() == before
    assert "expand" not in vars(torch.Tensor)


def test_a_compiled_module_stays_whole_with_its_reason():
    torch.manual_seed(0)
    compiled = torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), compiled, nn.Conv2d(8, 2, 1)).eval()
    found = quietly(tracing.trace(model, torch.randn(2, 3, 4, 4)), StopToken())
    assert [(leaf.path, leaf.kind) for leaf in found.untraced] == [("1", "Sequential")]
    images = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(found.graph(images), model(images))


def test_a_file_names_no_operation_that_is_not_on_the_list():
    for name in ("ops.torchvision.decode_jpeg", "ops.torchvision.read_file", "ops.aten.from_file", "torch.load"):
        with pytest.raises(EngineError, match="not a tensor operation"):
            function(name)
    graph = traced(net("deform_conv2d"), torch.randn(2, 3, 8, 8))
    names = {function_name(node) for node in graph.graph.nodes if node.op in ("call_function", "call_method")}
    assert "ops.torchvision.deform_conv2d" in names
