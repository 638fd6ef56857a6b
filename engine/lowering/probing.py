"""What rounding one part of a layer does to a model, to second order, from one backward pass over calibration items.

With a vector v of random signs such that E[v vᵀ] is the Hessian H of a loss in the outputs y, and g the gradient of v·y, a change d of a
value moves the loss by ½ E[(g·d)²] = ½ (J d)ᵀ H (J d): the Gauss-Newton term, without a diagonal in its place (of the Fisher
information: Martens 2020, arXiv:1412.1193, section 5; of quantization: Li et al. 2021, arXiv:2102.05426, section 3.1). One pass serves
all candidates of all layers, since g does not depend on d.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.numerics.float_activations import round_floats, simulated, static_step
from engine.numerics.qparams import affine, dequantize, quantize
from engine.planning.sensitivity import Candidate
from engine.recipe.spec import ActivationSpec

# Numbers of the gradients of single items that are held at a time.
_AT_ONCE = 2**26
_TINY = 1e-30


@dataclass
class Site:
    """One layer of a model: ``module`` at ``path``, its ``weights`` and ``activations`` candidates. ``error`` gives what rounding its
    weight (out, ...) as a candidate says adds to the weight of ``module``, as (out, inputs). ``transposed`` says that the module holds
    its matrix as (in, out). ``matrix`` is the same for layers that share one. What the layer reads is rounded for all of its readers
    where it is ``shared``."""

    path: str
    module: nn.Module
    weights: tuple[Candidate, ...]
    activations: tuple[Candidate, ...]
    error: Callable[[Candidate], Tensor]
    matrix: str = ""
    transposed: bool = False
    shared: bool = False
    low: float = math.inf
    high: float = -math.inf

    @property
    def weight(self) -> Tensor:
        """As the module holds it."""
        found: Tensor = self.module.weight  # type: ignore[assignment]
        return found

    @property
    def key(self) -> str:
        return self.matrix or self.path

    def stored(self, error: Tensor) -> Tensor:
        """``error`` as the module holds its weight."""
        held: Tensor = error.t() if self.transposed else error
        return held.reshape(self.weight.shape)

    def rounded(self, x: Tensor, spec: ActivationSpec) -> Tensor:
        """What the layer reads, on the grid that ``spec`` asks for."""
        if simulated(spec):
            return round_floats(x, spec, None if spec.dynamic else static_step(self.low, self.high, spec.format))
        if spec.dynamic:
            top = 2 ** (spec.bits - 1) - 1
            scale = x.abs().amax(-1, keepdim=True).clamp_min(_TINY) / top
            found: Tensor = (x / scale).round_().clamp_(-top, top).mul_(scale)
            return found
        grid = affine(min(self.low, 0.0), max(self.high, 0.0), spec.bits, spec.symmetric)
        return dequantize(quantize(x, grid), grid)


@dataclass
class Sums:
    """Of one site and its candidates, over items: squared g·d, and the squared norms of the output and of its noise."""

    weights: Tensor
    activations: Tensor
    signal: float = 0.0
    noise: Mapping[str, float] = field(default_factory=dict)


class Probe:
    """Hooks on the layers of a model that gather what candidates do. The model is as before once ``close`` was called.

    ``errors`` of all sites are held together: ``grouped`` splits sites so that they fit.
    """

    def __init__(self, sites: Sequence[Site], device: str | torch.device) -> None:
        self.sites, self._rows, self._busy = list(sites), 1, False
        self.mode = "off"
        self._errors = {s.path: [s.error(c).to(device) for c in s.weights] for s in sites if s.weights}
        owners = {s.key: s for s in reversed(self.sites) if s.weights}
        self._of_key = {s.path: self._errors.get(owners[s.key].path, []) if s.key in owners else [] for s in self.sites}
        self._stacked = {path: torch.stack([e.flatten() for e in errors], 1) for path, errors in self._errors.items()}
        self._owner = {s.path: owners[s.key].path if s.key in owners else s.path for s in self.sites}
        self.squares = {
            s.path: Sums(torch.zeros(len(s.weights), dtype=torch.float64), torch.zeros(len(s.activations), dtype=torch.float64))
            for s in self.sites
        }
        self._weights: dict[str, Tensor] = {}
        self._activations: dict[str, Tensor] = {}
        self._handles = [
            handle
            for site in self.sites
            for handle in (
                site.module.register_forward_pre_hook(partial(self._enters, site)),
                site.module.register_forward_hook(partial(self._leaves, site)),
            )
        ]
        self._inputs: dict[str, list[Tensor]] = {}

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def looking(self, mode: str, rows: int) -> Iterator[None]:
        """One forward, and backward, of ``rows`` items: ``ranges`` looks at what enters, ``noise`` at the outputs, ``gradients`` sums."""
        self.mode, self._rows = mode, rows
        self._weights, self._activations, self._inputs = {}, {}, {}
        try:
            yield
        finally:
            self.mode, self._inputs = "off", {}

    def settle(self) -> None:
        """Take the products of the last backward pass into the sums."""
        for found, part in ((self._weights, "weights"), (self._activations, "activations")):
            for path, products in found.items():
                total: Tensor = getattr(self.squares[path], part)
                total += products.double().square().sum(0).cpu()

    def _enters(self, site: Site, module: nn.Module, given: tuple[Any, ...]) -> Any:
        if self.mode == "off" or self._busy or not given or not isinstance(given[0], Tensor):
            return None
        x = given[0]
        if self.mode == "ranges":
            if x.is_floating_point() and x.numel():
                low, high = torch.aminmax(x.detach())
                site.low, site.high = min(site.low, float(low)), max(site.high, float(high))
            return None
        self._inputs.setdefault(site.path, []).append(x.detach())
        if self.mode != "gradients" or not x.is_floating_point():
            return None
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        elif not site.shared:
            x = x.view_as(x)
        if site.activations:
            x.register_hook(partial(self._read, site, x.detach()))  # type: ignore[no-untyped-call]
        return (x, *given[1:])

    def _leaves(self, site: Site, module: nn.Module, given: tuple[Any, ...], result: Any) -> Any:
        if self.mode not in ("noise", "gradients") or self._busy or not isinstance(result, Tensor) or not self._inputs.get(site.path):
            return None
        x = self._inputs[site.path].pop()
        if self.mode == "noise":
            self._noise(site, x, result)
            return None
        if not result.requires_grad:
            result = result.detach().requires_grad_()
        if self._of_key[site.path]:
            result.register_hook(partial(self._written, site, x))
        # What follows may change it in place.
        return result.clone()

    @torch.no_grad()
    def _noise(self, site: Site, x: Tensor, result: Tensor) -> None:
        sums = self.squares[site.path]
        sums.signal += float(result.double().square().sum())
        noise = dict(sums.noise)
        for candidate, error in zip(site.weights, self._errors.get(site.path, []), strict=True):
            change = self._linear(site, x, site.stored(error))
            noise[candidate.name] = noise.get(candidate.name, 0.0) + float(change.double().square().sum())
        for candidate in site.activations:
            assert candidate.activations is not None
            change = self._linear(site, site.rounded(x, candidate.activations) - x, site.weight)
            noise[candidate.name] = noise.get(candidate.name, 0.0) + float(change.double().square().sum())
        sums.noise = noise

    def _linear(self, site: Site, x: Tensor, weight: Tensor) -> Tensor:
        """The layer without its bias."""
        state: dict[str, Tensor] = {"weight": weight}
        bias = getattr(site.module, "bias", None)
        if isinstance(bias, Tensor):
            state["bias"] = torch.zeros_like(bias)
        self._busy = True
        try:
            found: Tensor = torch.func.functional_call(site.module, state, (x,))
            return found
        finally:
            self._busy = False

    @torch.no_grad()
    def _read(self, site: Site, x: Tensor, gradient: Tensor) -> None:
        found = [self._by_item((site.rounded(x, c.activations) - x).mul_(gradient)) for c in site.activations if c.activations]
        self._add(self._activations, site.path, torch.stack(found, 1))

    @torch.no_grad()
    def _written(self, site: Site, x: Tensor, gradient: Tensor) -> None:
        self._add(self._weights, self._owner[site.path], self._products(site, x, gradient))

    def _add(self, sums: dict[str, Tensor], path: str, products: Tensor) -> None:
        """``products`` (rows, candidates), of any number of rows an item."""
        rows = self._rows if len(products) % self._rows == 0 else 1
        folded = products.reshape(rows, -1, products.shape[1]).sum(1)
        if path in sums and len(sums[path]) != len(folded):
            sums[path], folded = sums[path].sum(0, keepdim=True), folded.sum(0, keepdim=True)
        sums[path] = sums[path] + folded if path in sums else folded

    def _by_item(self, x: Tensor) -> Tensor:
        return x.reshape(self._rows if len(x) % self._rows == 0 else 1, -1).sum(1)

    def _products(self, site: Site, x: Tensor, gradient: Tensor) -> Tensor:
        """g·d of each row for each candidate: of a layer that is a matrix, by the gradient of its weights for each row."""
        module, errors = site.module, self._of_key[site.path]
        stacked = self._stacked[self._owner[site.path]]
        if isinstance(module, nn.Embedding):
            return torch.stack([(error.reshape(module.weight.shape)[x] * gradient).reshape(len(x), -1).sum(1) for error in errors], 1)
        patches = _patches(module, x)
        if patches is None:
            direct = [(self._linear(site, x, site.stored(error)) * gradient).reshape(len(x), -1).sum(1) for error in errors]
            return torch.stack(direct, 1)
        groups = getattr(module, "groups", 1)
        given, wanted = patches, gradient
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            # (rows, groups, inputs, places) and (rows, groups, outputs, places)
            given = given.reshape(len(x), groups, -1, given.shape[-1])
            wanted = wanted.reshape(len(x), groups, -1, given.shape[-1])
        else:
            rows = self._rows if x.dim() == 2 and len(x) % self._rows == 0 else len(x)
            given = given.reshape(rows, 1, -1, x.shape[-1]).transpose(2, 3)
            wanted = wanted.reshape(rows, 1, -1, gradient.shape[-1]).transpose(2, 3)
        step = max(_AT_ONCE // len(stacked), 1)
        parts = [
            torch.matmul(w, g.transpose(2, 3)).reshape(len(w), -1) @ stacked
            for w, g in zip(torch.split(wanted, step), torch.split(given, step), strict=True)
        ]
        return torch.cat(parts)


def _patches(module: nn.Module, x: Tensor) -> Tensor | None:
    """What the rows of a layer's matrix are multiplied with: (rows, inputs, places) of a convolution, ``x`` of a linear layer; None
    where the layer's geometry is another."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            return None
        flat = isinstance(module, nn.Conv1d)
        sizes = [(module.kernel_size, 1), (module.dilation, 1), (module.padding, 0), (module.stride, 1)]
        kernel, dilation, padding, stride = ((fill, *value) if flat else value for value, fill in sizes)
        return F.unfold(x.unsqueeze(2) if flat else x, kernel, dilation, padding, stride)
    return x if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D" else None


def grouped(sites: Sequence[Site], budget: int) -> list[list[Site]]:
    """``sites`` in order, in groups whose errors take no more than ``budget`` bytes, or one site; what shares a matrix stays together."""
    kept: dict[str, list[Site]] = {}
    for site in sites:
        kept.setdefault(site.key, []).append(site)
    groups: list[list[Site]] = [[]]
    used = 0
    for members in kept.values():
        size = sum(8 * len(s.weights) * s.weight.numel() for s in members)
        if groups[-1] and used + size > budget:
            groups.append([])
            used = 0
        groups[-1] += members
        used += size
    return groups
