"""The layers of a decoder that can be quantized: ``Linear`` and transformers' ``Conv1D``, the embeddings, and what is tied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from engine.errors import EngineError
from engine.kernels.matrix.kind import Kind, kind_of

# Where the families of transformers keep their blocks: GPT-2; LLaMA, Qwen, Mistral; Pythia; OPT.
BLOCKS = ("transformer.h", "model.layers", "gpt_neox.layers", "model.decoder.layers")


@dataclass(frozen=True)
class Matrix:
    """One layer that holds a matrix. ``path`` is the module's; ``shape`` is (out, in) as ``weight_of`` gives it, (rows, width) of
    an embedding; ``block`` the number of its block, None outside of them. ``tied`` names the module whose parameter it shares
    (the first of those in the model has the parameter and None). ``bias`` is whether one is added."""

    path: str
    kind: Kind
    block: int | None
    shape: tuple[int, int]
    bias: bool
    tied: str | None = None

    @property
    def params(self) -> int:
        """Parameters of its own, the bias included: a tied matrix is counted where it is first."""
        return (0 if self.tied else self.shape[0] * self.shape[1]) + (self.shape[0] if self.bias else 0)


@dataclass(frozen=True)
class Anatomy:
    """A decoder's matrices in the order of its modules. ``blocks`` is the path of the sequence of blocks, ``depth`` their number;
    ``head`` the path of the layer that gives the logits, ``embedding`` that of the tokens' embedding. ``others`` are parameters in
    no matrix, by name with their size: normalization, and ``uncovered`` those of two dimensions and more that no layer here
    holds (fused experts), which nothing quantizes. ``bypassed`` are the paths of matrices that the model multiplies by past the layers
    that hold them."""

    matrices: tuple[Matrix, ...]
    blocks: str
    depth: int
    head: str
    embedding: str
    others: dict[str, int]
    uncovered: tuple[str, ...]
    bypassed: frozenset[str] = frozenset()

    @property
    def params(self) -> int:
        return sum(matrix.params for matrix in self.matrices) + sum(self.others.values())

    def without(self, paths: Iterable[str]) -> Anatomy:
        """The same with the matrices of ``paths`` as ``bypassed``."""
        return replace(self, bypassed=frozenset(paths))

    def in_block(self, number: int) -> tuple[Matrix, ...]:
        return tuple(matrix for matrix in self.matrices if matrix.block == number)

    @property
    def tied_head(self) -> bool:
        return any(matrix.path == self.head and matrix.tied for matrix in self.matrices)


def anatomy(model: nn.Module) -> Anatomy:
    """The parts of ``model``, a ``PreTrainedModel`` that predicts the next token. Raises EngineError where it has no blocks."""
    path, blocks = blocks_of(model)
    found: list[Matrix] = []
    holders: dict[int, str] = {}
    counted: set[int] = set()
    for name, module in model.named_modules():
        kind = kind_of(module)
        if kind is None:
            continue
        weight, bias = _parameter(module, "weight"), getattr(module, "bias", None)
        first = holders.setdefault(id(weight), name)
        counted.update(id(p) for p in (weight, bias) if p is not None)
        shape = tuple(weight_of(module).shape)
        found.append(Matrix(name, kind, _block(name, path), (shape[0], shape[1]), bias is not None, first if first != name else None))
    rest = {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in counted}
    return Anatomy(
        tuple(found), path, len(blocks), _path(model, _output(model)), _path(model, _input(model)),
        {name: parameter.numel() for name, parameter in rest.items()}, tuple(name for name, p in rest.items() if p.dim() > 1),
    )  # fmt: skip


def blocks_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path of the sequence of blocks, and it. Raises EngineError where there is none."""
    for path in BLOCKS:
        try:
            found = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList) and len(found):
            return path, found
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth and any(kind_of(part) for part in module.modules()):
            return path, module
    raise EngineError(
        f"{type(model).__name__} has no sequence of blocks: give a decoder such as GPT-2, LLaMA, Qwen, Mistral, OPT or Pythia"
    )


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of each ``Linear`` and ``Conv1D``, in the model's order."""
    return ((name, module) for name, module in model.named_modules() if kind_of(module) in ("Linear", "Conv1D"))


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a ``Linear``, ``Conv1D`` or ``Embedding`` as (out, in) or (rows, width): a view, so that what is written in place
    is the module's."""
    weight = _parameter(module, "weight").detach()
    return weight.t() if kind_of(module) == "Conv1D" else weight


def _parameter(module: nn.Module, name: str) -> nn.Parameter:
    found = getattr(module, name)
    assert isinstance(found, nn.Parameter)
    return found


def _block(name: str, blocks: str) -> int | None:
    return int(name.removeprefix(f"{blocks}.").partition(".")[0]) if name.startswith(f"{blocks}.") else None


def _output(model: Any) -> nn.Module | None:
    found: nn.Module | None = model.get_output_embeddings()
    return found


def _input(model: Any) -> nn.Module | None:
    found: nn.Module | None = model.get_input_embeddings()
    return found


def _path(model: nn.Module, wanted: nn.Module | None) -> str:
    return next((name for name, module in model.named_modules() if wanted is not None and module is wanted), "")
