"""A folder in the Hugging Face layout whose ``config.json`` says compressed-tensors: what transformers and vLLM read.

Matrices of ``Linear`` layers in the blocks are stored as their integers: ``pack-quantized`` (weights alone, in 4 or 8 bits, int32
words of consecutive values), ``int-quantized`` (8 bits, with activations rounded to 8 bits a token), or in the floats of few bits that
the format knows (``FLOATS``). What is outside of the blocks is stored in float16, dequantized: vLLM reads embeddings and heads so. The
format is that of the library compressed-tensors 0.20, ``compressors/*``; nothing of it is needed to write.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.events.event import LayerRow
from engine.export.base import ExportContext, Runner, decoder_runner
from engine.kernels.matrix.kind import kind_of
from engine.lowering.modules.coded_cache import QuantizedCache
from engine.lowering.modules.header import config_dict
from engine.lowering.modules.layers import plan as plan_of
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.models.anatomy import anatomy, linears
from engine.models.experts import holds_experts
from engine.numerics.packing import pack
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import WeightScheme, scheme_of
from engine.numerics.weights import LARGEST
from engine.planning.plan import Plan
from engine.recipe.recipe import Recipe
from engine.recipe.spec import ActivationSpec
from engine.tasks.decode_timing import step_of

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
             "tokenizer.model", "spiece.model", "chat_template.jinja")  # fmt: skip
Tensors = dict[str, Tensor]


# The format's names of floats of few bits, and of the type of their scales where it is not the model's own.
FLOATS = {
    "fp8_e4m3": ("float-quantized", None), "mxfp8": ("mxfp8-quantized", "torch.uint8"), "mxfp4": ("mxfp4-pack-quantized", "torch.uint8"),
    "nvfp4": ("nvfp4-pack-quantized", "torch.float8_e4m3fn"),
}  # fmt: skip


@dataclass(frozen=True)
class Scheme:
    """How one matrix is stored; those with equal schemes are a group of the config. ``group`` 0 is the whole row, ``floats`` a key of
    ``FLOATS``, empty for integers; of those ``activations`` is what the format calls the way in which inputs are rounded to the same
    floats (``token``, ``group`` of ``inputs_group`` channels, ``tensor`` with a scale from calibration), empty where they are not, and
    ``rows`` how many outputs share a scale, 0 being all."""

    bits: int
    group: int
    symmetric: bool
    dynamic: bool
    floats: str = ""
    activations: str = ""
    inputs_group: int = 0
    rows: int = 1

    @property
    def format(self) -> str:
        if self.floats:
            return FLOATS[self.floats][0]
        return "int-quantized" if self.dynamic else "pack-quantized"

    def entry(self, targets: list[str]) -> dict[str, Any]:
        """The group's JSON, whole: readers differ in what they take as default."""
        if self.floats:
            return {
                "targets": targets, "weights": self._float_weights(), "input_activations": self._float_inputs(), "output_activations": None,
                "format": self.format,
            }  # fmt: skip
        weights = {
            "num_bits": self.bits, "type": "int", "symmetric": self.symmetric, "strategy": "group" if self.group else "channel",
            "group_size": self.group or None, "dynamic": False,
        }  # fmt: skip
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "group_size": None, "dynamic": True}
        return {
            "targets": targets, "weights": weights, "input_activations": inputs if self.dynamic else None, "output_activations": None,
            "format": self.format,
        }  # fmt: skip

    def _float_weights(self) -> dict[str, Any]:
        strategy = "tensor_group" if self.floats == "nvfp4" else "group" if self.group else "channel"
        size: dict[str, Any] = {"group_size": self.group or None}
        if self.rows != 1:
            strategy = "block" if self.rows else "tensor"
            size = {"group_size": None, **({"block_structure": [self.rows, self.group]} if self.rows else {})}
        scale = FLOATS[self.floats][1]
        return {
            "num_bits": self.bits, "type": "float", "symmetric": True, "strategy": strategy, **size,
            "dynamic": False, **({"scale_dtype": scale, "zp_dtype": scale} if scale else {}),
        }  # fmt: skip

    def _float_inputs(self) -> dict[str, Any] | None:
        if not self.activations:
            return None
        scale = FLOATS[self.floats][1]
        return {
            "num_bits": self.bits, "type": "float", "symmetric": True, "strategy": self.activations,
            "group_size": self.inputs_group or None, "dynamic": self.activations != "tensor",
            **({"scale_dtype": scale, "zp_dtype": scale} if scale else {}),
        }  # fmt: skip


def refuses(model: Any, recipe: Recipe, plan: Plan | None) -> str | None:
    """Layers and grids that the format's readers have no form for; without a plan those of the plan that the recipe gives by itself."""
    if holds_experts(model):
        return "its readers have experts in one tensor for each block, which it does not hold as integers: give safetensors instead"
    if plan is None:
        other = next((path for path, module in linears(model) if kind_of(module) == "Conv1D"), None)
        if other is not None:
            return f"its readers pass over transformers' Conv1D, which {other} is: give onnx instead"
        plan = plan_of(model, anatomy(model), recipe.preset, recipe.layer_rules(), {}, lambda spec, kind, shape, plain: "")
    try:
        refuse(plan.layers)
    except EngineError as error:
        return str(error)
    return None


def write(context: ExportContext, path: Path) -> str:
    path.mkdir()
    return write_folder(context.model, context.source, path)


def load(path: Path, context: ExportContext) -> Runner:
    """In transformers and compressed-tensors."""
    from engine.export.compressed_tensors_run import CompressedDecoder

    model = CompressedDecoder(path)
    return decoder_runner(model.label, "float32 on unpacked integers", model.step, step_of(model.model), model.note)


def write_folder(decoder: QuantizedDecoder, source: Path | None, folder: Path) -> str:
    """Fill ``folder``, which is there and empty; tokenizer files come from ``source``. A note for a person of what differs from the
    decoder, empty where nothing does.

    Raises EngineError for layers that are no ``Linear``, for groups that do not divide a row, and for numbers beyond float16.
    """
    from safetensors.torch import save_file

    schemes = schemes_of(decoder)
    tensors = _tensors(decoder, schemes) | _cache_scales(decoder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_beside(decoder.twin, schemes, source, folder, decoder.cache)
    return note(decoder, schemes)


def write_beside(model: Any, schemes: Mapping[str, Scheme], source: Path | None, folder: Path, cache: QuantizedCache | None = None) -> None:
    """What stands beside the weights of ``model``, of which no weights are read: its configuration, and the tokenizer of ``source``."""
    config = {**config_dict(model.config), "dtype": "float16", "architectures": [type(model).__name__]}
    config["quantization_config"] = quantization_config(model, schemes, cache)
    _json(folder / "config.json", config)
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        _json(folder / "generation_config.json", json.loads(generation.to_json_string()))
    for name in TOKENIZER:
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def schemes_of(decoder: QuantizedDecoder) -> dict[str, Scheme]:
    """Those of the matrices in the blocks, by module path; none for those that the format's readers have no form for, which are stored
    in float16. Raises EngineError as ``write`` does."""
    return schemes_by_form(decoder.twin, forms_of(decoder))


def forms_of(decoder: QuantizedDecoder) -> dict[str, Form]:
    """What its matrices are, by module path."""
    return {path: (matrix.weight.scheme, matrix.activations) for path, matrix in decoder.matrices.items()}


def schemes_by_form(model: Any, forms: Mapping[str, Form]) -> dict[str, Scheme]:
    """The same of ``model``, of which no weights are read, and of what its matrices are."""
    asked: list[_Asked] = []
    for part in anatomy(model).matrices:
        form = forms.get(part.path)
        if form is None or part.block is None or part.tied or part.kind == "Embedding":
            continue
        if part.kind != "Linear":
            raise EngineError(
                f"compressed-tensors passes over transformers' Conv1D, which {part.path} is, and transformers would draw its weights at "
                "random: export this model to onnx or safetensors"
            )
        asked.append((part.path, form[0], part.shape, form[1]))
    return _schemes(asked)


def refuse(layers: Sequence[LayerRow]) -> None:
    """Raises EngineError as ``write`` would for what these rows of a plan become."""
    found = (row for row in layers if row.capabilities.role == "block" and row.tied is None and row.kind == "Linear")
    _schemes([
        (row.path, scheme_of(row.actual.weights), row.weight_shape, row.actual.activations) for row in found if row.actual.weights
    ])  # fmt: skip


# A matrix's weights and activations.
Form = tuple[WeightScheme, ActivationSpec | None]
_Asked = tuple[str, WeightScheme, tuple[int, ...], ActivationSpec | None]


def _schemes(asked: Sequence[_Asked]) -> dict[str, Scheme]:
    found: dict[str, Scheme] = {}
    for path, spec, (outputs, inputs), activations in asked:
        scheme = _scheme(path, spec, inputs, activations)
        # compressed-tensors 0.20 cannot view zero points of 4 bits that fit into one word.
        if scheme.symmetric or scheme.bits != 4 or outputs > 8:
            found[path] = scheme
    if not found:
        raise EngineError(
            "no Linear layer of a block is quantized, and the format has no others: quantize some, or export to onnx or safetensors"
        )
    return found


def _scheme(path: str, spec: WeightScheme, inputs: int, activations: ActivationSpec | None) -> Scheme:
    whole = spec.size(inputs) == inputs
    if not whole and inputs % spec.group_size and spec.rows == 1:
        raise EngineError(
            f"its groups are of equal size, and {path} has {inputs} inputs in groups of {spec.group_size}: "
            "give a group size that divides them, or export to onnx or safetensors"
        )
    if spec.format.levels:
        if spec.format.name not in FLOATS:
            raise EngineError(f"it has no form for {spec.format.name}, which {path} is: give {', '.join(FLOATS)}, or export to safetensors")
        if spec.format.block and inputs % spec.format.block:
            raise EngineError(f"its blocks of {spec.format.block} do not divide the {inputs} inputs of {path}: export to safetensors")
        # Blocks keep their size where a matrix is smaller: what its readers pad is the matrix.
        group = spec.group_size if spec.group_size <= inputs or spec.rows != 1 else 0
        return Scheme(spec.bits, group, True, False, spec.format.name, *_rounded_inputs(spec, inputs, activations), spec.rows)
    bits = 4 if spec.bits <= 4 else 8
    dynamic = activations is not None and activations.dynamic and activations.bits == 8 and not activations.group_size
    if whole and dynamic and bits == 8 and spec.symmetric:
        return Scheme(bits, 0, True, True)
    # A row of one group is like the rows of more: layers that are alike have one scheme.
    return Scheme(bits, 0 if spec.group_size > inputs else spec.group_size, spec.symmetric, False)


def _rounded_inputs(spec: WeightScheme, inputs: int, activations: ActivationSpec | None) -> tuple[str, int]:
    """How the inputs are rounded to the weights' own floats, and channels that share a scale; nothing where they stay floats of 16 bits,
    or where groups do not divide them, as the format asks."""
    if activations is None or activations.format != spec.format.name:
        return "", 0
    if not activations.dynamic:
        return "tensor", 0
    size = activations.group_size
    return ("", 0) if size and inputs % size else ("group", size) if size else ("token", 0)


def quantization_config(model: Any, schemes: Mapping[str, Scheme], cache: QuantizedCache | None = None) -> dict[str, Any]:
    """The config's JSON. Where all layers of the blocks are alike the target is the class, which every reader knows; else paths.

    ``dequantize`` is a word to transformers alone: its places for packed weights have zero points of another shape, while what it
    unpacks as it loads is read whole. It unpacks all layers by one scheme, so that layers of several have no such way.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    ignored = [name for name in linears if name not in schemes]
    kinds = list(dict.fromkeys(schemes.values()))
    groups = {}
    for i, kind in enumerate(kinds):
        targets = ["Linear"] if len(kinds) == 1 else [path for path, scheme in schemes.items() if scheme == kind]
        groups[f"group_{i}"] = kind.entry(targets)
    formats = {kind.format for kind in kinds}
    return {
        "quant_method": "compressed-tensors", "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed", "global_compression_ratio": None, "kv_cache_scheme": _cache_scheme(cache),
        "config_groups": groups, "ignore": ignored, **({} if len(kinds) > 1 or kinds[0].symmetric else {"dequantize": True}),
    }  # fmt: skip


def holds_cache(form: QuantizedCache | None) -> bool:
    """Whether the format has a place for a cache: 8 bits, one step from calibration for a layer's keys and one for its values."""
    return form is not None and form.spec.granularity == "per-tensor" and form.spec.bits == 8


def _cache_scheme(form: QuantizedCache | None) -> dict[str, Any] | None:
    if form is None or not holds_cache(form):
        return None
    kind = "int" if form.spec.format == "int8" else "float"
    return {"num_bits": 8, "type": kind, "strategy": "tensor", "dynamic": False, "symmetric": True, "group_size": None}


def _cache_scales(decoder: QuantizedDecoder) -> Tensors:
    """``k_scale`` and ``v_scale`` of each attention, which is the module that holds the projection of values."""
    if decoder.cache is None or not holds_cache(decoder.cache):
        return {}
    blocks = anatomy(decoder.twin).blocks
    made: Tensors = {}
    for number, steps in decoder.cache.steps.items():
        prefix = f"{blocks}.{number}."
        names = [path for path, _ in linears(decoder.twin) if path.startswith(prefix) and re.search(r"\.(v_proj|qkv_proj)$", path)]
        if len(names) != 1:
            raise EngineError(f"no single attention of layer {number} is known, where the format keeps the cache's scales: leave cache out")
        place = names[0].rpartition(".")[0]
        made |= {f"{place}.{name}": step.reshape(1).clone() for name, step in zip(("k_scale", "v_scale"), steps, strict=True)}
    return made


def _tensors(decoder: QuantizedDecoder, schemes: Mapping[str, Scheme]) -> Tensors:
    made: Tensors = {}
    for path, scheme in schemes.items():
        stored = stored_matrix(decoder.matrices[path].weight, scheme)
        if scheme.activations == "tensor":
            grid = decoder.matrices[path].grid
            assert grid is not None, "static activations have a step"
            stored["input_scale"] = torch.tensor([grid.scale])
        made.update({f"{path}.{name}": tensor for name, tensor in stored.items()})
    seen: set[int] = set()
    for name, tensor in decoder.twin.state_dict(keep_vars=True).items():
        if name.removesuffix(".weight") in schemes or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        made[name] = in_half(name, tensor)
    return made


def in_half(name: str, tensor: Tensor) -> Tensor:
    """What is stored of a tensor that is no matrix of a block. Raises EngineError for numbers beyond float16."""
    if tensor.is_floating_point() and tensor.abs().max() > LARGEST:
        raise EngineError(f"{name} holds numbers beyond float16: export this model to onnx or safetensors")
    return (tensor.detach().half() if tensor.is_floating_point() else tensor.detach()).contiguous().clone()


def stored_matrix(weight: QTensor, scheme: Scheme) -> Tensors:
    """The tensors of one matrix by the format's names. Integers are signed there: unsigned ones and zero points are moved by half."""
    if scheme.floats:
        return _stored_floats(weight, scheme)
    half = 1 << (scheme.bits - 1)
    signed = weight.codes.to(torch.int16) - (0 if weight.scheme.symmetric else half)
    if scheme.dynamic:
        return {"weight": signed.to(torch.int8).contiguous(), "weight_scale": weight.scale.contiguous()}
    made = {
        "weight_packed": words((signed + half).to(torch.uint8), scheme.bits), "weight_scale": weight.scale.contiguous(),
        "weight_shape": torch.tensor(weight.codes.shape, dtype=torch.int64),
    }  # fmt: skip
    if weight.zero is not None:
        # Zero points are packed along the outputs.
        made["weight_zero_point"] = words(weight.zero.t().contiguous(), scheme.bits).t().contiguous()
    return made


def _stored_floats(weight: QTensor, scheme: Scheme) -> Tensors:
    # The scales of microscaling formats lie there as the bytes that their powers of two are.
    scale = weight.scale.view(torch.uint8) if scheme.floats.startswith("mx") else weight.scale
    if scheme.bits == 8:
        if scheme.rows != 1:
            scale = scale[:: scheme.rows] if scheme.rows else scale[0]
        return {"weight": weight.codes.view(torch.float8_e4m3fn).contiguous(), "weight_scale": scale.contiguous()}
    made = {"weight_packed": pack(weight.codes, scheme.bits), "weight_scale": scale.contiguous()}
    if weight.tensor_scale is not None:
        # Its readers divide by it.
        made["weight_global_scale"] = weight.tensor_scale.reciprocal().reshape(1)
    return made


def words(codes: Tensor, bits: int) -> Tensor:
    """uint8 (rows, n) below ``2**bits`` as int32 words, little-endian: (rows, ceil(n * bits / 32))."""
    packed = pack(codes, bits)
    return torch.nn.functional.pad(packed, (0, -packed.shape[1] % 4)).contiguous().view(torch.int32)


def note(decoder: QuantizedDecoder, schemes: Mapping[str, Scheme]) -> str:
    """What differs from the decoder; what it kept in fp32 lies in float16 too."""
    return note_by_form(decoder.twin, forms_of(decoder), schemes, decoder.cache)


def note_by_form(model: Any, forms: Mapping[str, Form], schemes: Mapping[str, Scheme], cache: QuantizedCache | None = None) -> str:
    """The same of ``model``, of which no weights are read, and of what its matrices are."""
    said = []
    parts = anatomy(model)
    blocks = {matrix.path for matrix in parts.matrices if matrix.block is not None}
    if wider := sum(forms[path][0].bits != scheme.bits for path, scheme in schemes.items()):
        said.append(f"{wider} matrices of fewer bits are stored in 4 or 8")
    if outside := sum(path not in schemes and path not in blocks for path in forms):
        said.append(f"{outside} matrices outside of the blocks are stored in float16")
    if narrow := [path for path in forms if path in blocks and path not in schemes]:
        said.append(f"{len(narrow)} matrices of 8 outputs or fewer are stored in float16, for zero points: {_named(narrow, parts.blocks)}")
    if rest := parts.uncovered:
        said.append(f"{len(rest)} tensors that no method quantizes are stored in float16: {_named(rest, parts.blocks)}")
    if cache is not None and not holds_cache(cache):
        said.append(f"its readers have no cache of {cache.spec}: keys and values are floats there")
    if plain := sum(forms[path][1] is not None and not (scheme.dynamic or scheme.activations) for path, scheme in schemes.items()):
        said.append(f"the activations of {plain} matrices are not rounded: the format's readers have them for 8-bit weights a channel")
    if any(scheme.activations and scheme.floats.startswith("mx") for scheme in schemes.values()):
        said.append("the format's readers choose the powers of two of activations by a rule of their own")
    return "; ".join(said)


def _named(paths: Sequence[str], blocks: str) -> str:
    """``mlp.experts.down_proj`` once for all blocks."""
    numbered = re.compile(rf"{re.escape(blocks)}\.\d+\.")
    return ", ".join(dict.fromkeys(numbered.sub("", path) for path in paths))


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
