"""Rotations folded into a decoder's weights: the same function in floats, with what stands out spread over all channels.

QuaRot (Ashkboos et al. 2024, arXiv:2404.00456, section 4): the hidden states between blocks are turned by an orthogonal matrix, which
what writes them (embeddings, the last layers of attention and feed-forward) and what reads them (the layers behind norms, the head)
take up; and the values of each head by another, which the layer behind attention takes back. A norm's weight goes into what reads it
first, since a rotation passes an RMSNorm alone.

A LayerNorm subtracts a mean. Here what writes hidden states is centred, which changes nothing behind a LayerNorm, and the rotation keeps
means: the norm stays the layer that it is (SliceGPT, Ashkboos et al. 2024, arXiv:2401.15024, section 3, makes it an RMSNorm instead).

Which layers read and write is seen in one pass. That the model is the same is tried: where it is not, it is refused and left alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.kernels.matrix.kind import kind_of
from engine.models.anatomy import Anatomy, anatomy, blocks_of, linears, weight_of
from engine.numerics.orthogonal import mean_keeping, spreading

# How far a rotated model may be from the model, in parts of the largest logit: rounding alone. Norms and rotary positions of transformers
# compute in float32 even where weights are float64.
EXACT = 1e-5


@dataclass(frozen=True)
class Rotated:
    """What was done: ``width`` of hidden states and of values, whether by a Hadamard matrix each; ``heads`` False where the values of heads
    stay as they are. ``untied`` is whether head and embedding had to become two matrices."""

    width: int
    hadamard: bool
    heads: bool
    head_width: int
    head_hadamard: bool
    untied: bool

    @property
    def text(self) -> str:
        """A sentence for a person."""
        kind = "a Hadamard matrix" if self.hadamard else f"a random rotation, as no Hadamard matrix of {self.width} is known here,"
        said = f"hidden states are turned by {kind}"
        if self.heads:
            other = "one" if self.head_hadamard else "a random rotation"
            said += f", the {self.head_width} values of each head by {other} of their own"
        else:
            said += "; values of heads are not: no layer was found that gives them and one that takes them back"
        return said + ("; head and embedding are two matrices now" if self.untied else "")


@dataclass(frozen=True)
class _Places:
    """Layers by what they do to hidden states: ``norms`` with the layers that read them, and what writes."""

    norms: dict[nn.Module, list[nn.Module]]
    writers: list[nn.Module]
    embeddings: list[nn.Module]


@torch.no_grad()
def rotate(model: Any, ids: Tensor, seed: int = 0) -> Rotated:
    """Turn ``model``, a transformers decoder in float32, in place; ``ids`` (N, T) are tokens to try it on. All is computed in float64 and
    rounded to float32 once.

    Raises EngineError where the hidden states cannot be turned, as behind Gemma 2's norms of what is added to them; the model is as it
    was then.
    """
    wide = copy.deepcopy(model).double()
    wanted = wide(input_ids=ids, use_cache=False).logits
    parts = anatomy(wide)
    untied = _untie(wide, parts)
    places = _places(wide, parts, ids)
    width = int(wide.get_input_embeddings().weight.shape[1])
    centred = any(_is_layer_norm(norm) for norm in places.norms)
    _check(wide, places, width)
    for norm, readers in places.norms.items():
        _fold_norm(norm, readers)
    if centred:
        for module in places.writers:
            _write_centred(module)
        for module in places.embeddings:
            held = weight_of(module)
            held.sub_(held.mean(1, keepdim=True))
    turn, known = mean_keeping(width, seed) if centred else spreading(width, seed)
    _turn(places, turn)
    _try(wide, ids, wanted, model)
    heads = _turn_heads(wide, ids, wanted, seed)
    if untied:
        model.config.tie_word_embeddings = False
        model.get_output_embeddings().weight = nn.Parameter(model.get_output_embeddings().weight.detach().clone())
    turned = dict(wide.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.copy_(turned[name])
    return Rotated(width, known, heads is not None, *(heads or (0, False)), untied)


def _untie(model: Any, parts: Anatomy) -> bool:
    """Give the head a matrix of its own: it takes up the weight of the last norm, and the embedding does not."""
    if not parts.tied_head:
        return False
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return True


def _is_norm(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.shape == (width,) and not list(module.children())


def _is_layer_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or "LayerNorm" in type(module).__name__


def _places(model: Any, parts: Anatomy, ids: Tensor) -> _Places:
    width = int(model.get_input_embeddings().weight.shape[1])
    found = {module: path for path, module in model.named_modules() if _is_norm(module, width)}
    matrices = [module for _, module in linears(model)]
    came: dict[int, nn.Module] = {}
    kept: list[Tensor] = []
    read: dict[nn.Module, nn.Module] = {}

    def leaves(module: nn.Module, args: object, output: Any) -> None:
        if isinstance(output, Tensor):
            came[output.data_ptr()] = module
            kept.append(output)

    def enters(module: nn.Module, args: tuple[Any, ...]) -> None:
        # Views, as a choice of tokens for experts is none, have the place in memory of what they show.
        if args and isinstance(args[0], Tensor) and (norm := came.get(args[0].data_ptr())) is not None:
            read[module] = norm

    hooks = [norm.register_forward_hook(leaves) for norm in found]
    hooks += [module.register_forward_pre_hook(enters) for module in matrices]
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    norms: dict[nn.Module, list[nn.Module]] = {}
    for module, norm in read.items():
        norms.setdefault(norm, []).append(module)
    writers = [module for module in matrices if module not in read and weight_of(module).shape[0] == width]
    embeddings = [
        module for path, module in model.named_modules()
        if kind_of(module) == "Embedding" and weight_of(module).shape[1] == width and not path.startswith(f"{parts.blocks}.")
    ]  # fmt: skip
    return _Places(norms, writers, embeddings)


def _check(model: Any, places: _Places, width: int) -> None:
    """Raises EngineError for matrices that neither read nor write as is known, and for norms that nothing known reads."""
    name = type(model).__name__
    known = {module for readers in places.norms.values() for module in readers} | set(places.writers)
    strange = next((path for path, module in linears(model) if module not in known), None)
    if strange is not None:
        raise EngineError(f"{name} has {strange}, which neither reads a norm nor writes hidden states: leave rotation out")
    for path, module in model.named_modules():
        if _is_norm(module, width) and module not in places.norms:
            raise EngineError(f"{name} has {path}, a norm of what is added to hidden states, which no rotation passes: leave rotation out")


def _fold_norm(norm: nn.Module, readers: Sequence[nn.Module]) -> None:
    """The norm's weight goes into what reads it, and of its bias what has a place there; the rest of the bias stays before it."""
    scale, shift = _factor(norm), getattr(norm, "bias", None)
    if (scale == 0).any():
        raise EngineError("a norm has weights of zero, which cannot be folded: leave rotation out")
    if shift is not None:
        if all(getattr(reader, "bias", None) is not None for reader in readers):
            for reader in readers:
                reader.bias.add_(weight_of(reader) @ shift)  # type: ignore[operator]
            shift.zero_()
        else:
            shift.div_(scale)
    for reader in readers:
        weight_of(reader).mul_(scale)
    _set_factor(norm)


def _factor(norm: nn.Module) -> Tensor:
    """What a norm multiplies by: its weight, or 1 + weight in Gemma's."""
    weight: Tensor = norm.weight.detach()  # type: ignore[operator]
    return weight + 1 if _adds_one(norm) else weight.clone()


def _adds_one(norm: nn.Module) -> bool:
    """Tried: Gemma's norms of a weight of zeros give something."""
    weight: Tensor = norm.weight.data  # type: ignore[assignment]
    kept = weight.clone()
    probe = torch.linspace(-1, 1, len(weight), dtype=weight.dtype, device=weight.device)[None]
    before = getattr(norm, "bias", None)
    bias = None if before is None else before.detach().clone()
    try:
        weight.zero_()
        if before is not None:
            before.data.zero_()
        return bool(norm(probe).abs().max() > 0)
    finally:
        weight.copy_(kept)
        if before is not None and bias is not None:
            before.data.copy_(bias)


def _set_factor(norm: nn.Module) -> None:
    norm.weight.data.fill_(0.0 if _adds_one(norm) else 1.0)  # type: ignore[operator]


def _write_centred(module: nn.Module) -> None:
    held = weight_of(module)
    held.sub_(held.mean(0, keepdim=True))
    bias = getattr(module, "bias", None)
    if bias is not None:
        bias.sub_(bias.mean())


def _turn(places: _Places, turn: Tensor) -> None:
    """x becomes x Q: rows of embeddings and outputs of writers are turned, and the columns of what reads them."""
    for module in places.embeddings:
        held = weight_of(module)
        held.copy_(held @ turn)
    for module in places.writers:
        held, bias = weight_of(module), getattr(module, "bias", None)
        held.copy_(turn.T @ held)
        if bias is not None:
            bias.copy_(bias @ turn)
    for norm, readers in places.norms.items():
        bias = getattr(norm, "bias", None)
        if bias is not None:
            bias.copy_(bias @ turn)
        for reader in readers:
            held = weight_of(reader)
            held.copy_(held @ turn)


def _difference(model: Any, ids: Tensor, wanted: Tensor) -> float:
    found = model(input_ids=ids, use_cache=False).logits
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))


def _try(wide: Any, ids: Tensor, wanted: Tensor, model: Any) -> None:
    off = _difference(wide, ids, wanted)
    if not off < EXACT:
        raise EngineError(
            f"{type(model).__name__} is another function with rotated weights (off by {off:.1g} of the largest logit): it does more with "
            "hidden states than norms and layers show; leave rotation out"
        )


def _turn_heads(wide: Any, ids: Tensor, wanted: Tensor, seed: int) -> tuple[int, bool] | None:
    """Turn the values of every head, block by block; the width of a head, and whether by a Hadamard matrix. None where that changes the
    model, which is put back."""
    found: tuple[int, bool] | None = None
    for block in blocks_of(wide)[1]:
        pair = _values(block, wide.config)
        if pair is None:
            return None
        first, last, width = pair
        turn, known = spreading(width, seed)
        kept = [parameter.clone() for parameter in block.parameters()]
        _turn_rows(first, turn)
        held = weight_of(last)
        held.copy_((held.reshape(len(held), -1, width) @ turn).flatten(1))
        if not _difference(wide, ids, wanted) < EXACT:
            for parameter, before in zip(block.parameters(), kept, strict=True):
                parameter.copy_(before)
            return None
        found = (width, known)
    return found


@dataclass(frozen=True)
class _ValueRows:
    """The rows of ``module`` that give values."""

    module: nn.Module
    first: int
    count: int


def _values(block: nn.Module, config: Any) -> tuple[_ValueRows, nn.Module, int] | None:
    """What gives the values of a block's heads, the layer behind attention, and the width of a head; None where they are not known."""
    settings = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    heads = int(settings.num_attention_heads)
    named = dict(linears(block))
    last = next((module for path, module in named.items() if path.rpartition(".")[2] in _OUTPUTS and "mlp" not in path), None)
    if last is None or weight_of(last).shape[1] % heads:
        return None
    width = weight_of(last).shape[1] // heads
    own = next((module for path, module in named.items() if path.rpartition(".")[2] == "v_proj"), None)
    if own is not None:
        return (_ValueRows(own, 0, len(weight_of(own))), last, width) if len(weight_of(own)) % width == 0 else None
    fused = next((module for path, module in named.items() if path.rpartition(".")[2] in ("c_attn", "qkv_proj")), None)
    if fused is None:
        return None
    rows = len(weight_of(fused))
    count = (rows - heads * width) // 2
    return (_ValueRows(fused, rows - count, count), last, width) if count > 0 and count % width == 0 else None


# The layer behind attention, by the last part of its path.
_OUTPUTS = ("o_proj", "out_proj", "c_proj", "dense")


def _turn_rows(values: _ValueRows, turn: Tensor) -> None:
    at, width = slice(values.first, values.first + values.count), len(turn)
    held = weight_of(values.module)
    held[at] = (turn.T @ held[at].reshape(-1, width, held.shape[1])).flatten(0, 1)
    bias = getattr(values.module, "bias", None)
    if bias is not None:
        bias[at] = (bias[at].reshape(-1, width) @ turn).flatten()
