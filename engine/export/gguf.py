"""``model.gguf``, for llama.cpp and what is built on it: quantized blocks as they were measured, tokenizer and settings in one file.

Matrices in GGUF's own formats are written as their blocks. Integers that are symmetric around zero, with float16 scales of whole rows or
of groups that 32 divides, are the same numbers in ``Q4_0``, ``Q5_0`` and ``Q8_0``, and so are those of MXFP4; nothing else has a place.
What is not quantized is float32. Activations are llama.cpp's own: it rounds them to 8 bits in blocks as they come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.export.base import ExportContext, Runner, decoder_runner
from engine.export.gguf_architectures import Architecture, architecture
from engine.export.gguf_tokenizer import Vocabulary, vocabulary
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.lowering.modules.stepping import of_model
from engine.models.anatomy import anatomy, weight_of
from engine.models.experts import holds_experts
from engine.numerics.gguf_blocks import planes
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import WeightScheme, scheme_of
from engine.planning.plan import Plan
from engine.recipe.recipe import Recipe
from engine.tasks.decode_timing import step_of

# llama.cpp's number of the mixture whose most frequent format this is: general.file_type.
FILE_TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "MXFP4": 38,
    "F32": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: ``data`` are blocks, uint8 (rows, bytes a row), of the type ``kind``, or float32 where that is ``F32``."""

    name: str
    kind: str
    data: Tensor


def refuses(model: Any, recipe: Recipe, plan: Plan | None) -> str | None:
    """An architecture or layers without a place in the format."""
    try:
        if holds_experts(model):
            raise EngineError("GGUF export knows no mixtures of experts here: export to safetensors")
        found = architecture(model.config)
        found.settings(model.config)
        for row in () if plan is None else plan.layers:
            if row.actual.weights is not None and row.tied is None:
                kind_of(row.path, scheme_of(row.actual.weights), row.weight_shape[1])
    except EngineError as error:
        return str(error)
    return None


def write(context: ExportContext, path: Path) -> str:
    """A note for a person of what differs in llama.cpp."""
    return write_file(context.model, context.source, path, Path(context.name).name)


def load(path: Path, context: ExportContext) -> Runner:
    """In transformers, which dequantizes; architectures that it does not read from GGUF are dequantized by ``gguf`` itself."""
    from engine.export.gguf_run import opened

    model, label, note = opened(path, context.model.twin.config)

    @torch.inference_mode()
    def step(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        logits, held = of_model(model)(ids, cache)
        return logits.float(), held

    return decoder_runner(label, "float32 on dequantized blocks", step, step_of(model), note)


def write_file(decoder: QuantizedDecoder, source: Path | None, path: Path, name: str = "model") -> str:
    """Write the file; the tokenizer comes from the folder ``source``. Raises EngineError for an architecture, a tokenizer or a matrix
    that has no place in it, before anything is written."""
    from gguf import GGMLQuantizationType, GGUFWriter

    config = decoder.twin.config
    found = architecture(config)
    settings = found.settings(config)
    words = vocabulary(source, decoder.twin.get_input_embeddings().weight.shape[0])
    tensors = list(entries(decoder, found))
    kinds = [entry.kind for entry in tensors if entry.kind != "F32"]
    writer = GGUFWriter(path, found.name)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_quantization_version(2)
    writer.add_file_type(FILE_TYPES[max(set(kinds), key=kinds.count) if kinds else "F32"])
    for key, value in settings.items():
        _add(writer, f"{found.name}.{key}", value)
    _add_vocabulary(writer, words)
    for entry in tensors:
        if entry.kind == "F32":
            writer.add_tensor(entry.name, entry.data.numpy())
        else:
            writer.add_tensor(entry.name, entry.data.numpy(), raw_dtype=GGMLQuantizationType[entry.kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return note(decoder)


def entries(decoder: QuantizedDecoder, found: Architecture) -> Iterator[Entry]:
    """The tensors in the model's order, tied ones once. Raises EngineError for one without a name or a form in the format."""
    config, names = decoder.twin.config, tensor_names(decoder.twin, found)
    if (factors := found.rotary(config)) is not None:
        yield Entry("rope_freqs.weight", "F32", factors)
    for name, (path, parameter) in names.items():
        order = found.rows(config, path)
        matrix = decoder.matrices.get(path) if name.endswith(".weight") else None
        if matrix is not None:
            kind, data = stored(path, matrix.weight)
        else:
            kind, data = "F32", _plain(decoder.twin, path, parameter).to(torch.float32)
            data = data + 1 if found.raised and name.endswith("norm.weight") else data
        yield Entry(name, kind, (data if order is None else data[order]).contiguous())


def tensor_names(model: Any, found: Architecture) -> dict[str, tuple[str, Tensor]]:
    """The module's path and the parameter, by the name in the file; a tied one where it is first. Raises EngineError for a parameter
    that has no name there."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next(key for key, name in MODEL_ARCH_NAMES.items() if name == found.name)
    known = get_tensor_name_map(kind, anatomy(model).depth)
    names: dict[str, tuple[str, Tensor]] = {}
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        path, _, part = name.rpartition(".")
        given = known.get_name(path)
        if given is None:
            raise EngineError(f"{found.name} has no place for {name} in GGUF: export to safetensors")
        names[f"{given}.{part}"] = (path, parameter.detach())
    return names


def _plain(model: Any, path: str, parameter: Tensor) -> Tensor:
    """A parameter as GGUF has it: matrices as (out, in)."""
    return weight_of(model.get_submodule(path)) if parameter.dim() == 2 else parameter


def kind_of(path: str, spec: WeightScheme, inputs: int) -> str:
    """The type of the blocks that hold a matrix of rows of ``inputs`` weights. Raises EngineError where none does."""
    form = spec.format
    block = form.layout.weights if form.layout else 32
    size = spec.size(inputs)
    if inputs % block == 0:
        if form.layout is not None:
            return form.name.upper()
        if form.name == "mxfp4":
            return "MXFP4"
        if not form.levels and not form.affine and size % block == 0:
            return "Q4_0" if form.bits <= 4 else "Q5_0" if form.bits == 5 else "Q8_0"
    why = f"GGUF has no blocks for {spec}, which {path} with rows of {inputs} is"
    raise EngineError(f"{why}: take preset q4_k_m, q8_0 or another of GGUF's, or export to safetensors")


def stored(path: str, weight: QTensor) -> tuple[str, Tensor]:
    """The type and the blocks, uint8 (rows, bytes a row), that stand for exactly what ``weight`` does."""
    rows, inputs = weight.shape[0], weight.shape[1]
    kind = kind_of(path, weight.scheme, inputs)
    if weight.format.layout is not None:
        return kind, weight.to_tensors()["packed"]
    if weight.format.name == "mxfp4":
        blocks = weight.codes.reshape(-1, 32)
        return kind, torch.cat([weight.scale.view(torch.uint8).reshape(-1, 1), planes(blocks, 4, 16)], 1).reshape(rows, -1)
    if weight.scale.dtype != torch.float16 or weight.multiplier is not None:
        raise EngineError(
            f"GGUF has float16 scales, and {path} has {str(weight.scale.dtype).removeprefix('torch.')}: export to safetensors"
        )
    scale = weight.scale.repeat_interleave(inputs // 32 // weight.scale.shape[1], 1).contiguous().view(torch.uint8).reshape(-1, 2)
    return kind, torch.cat([scale, _of_integers(weight.codes.reshape(-1, 32), kind)], 1).reshape(rows, -1)


def _of_integers(codes: Tensor, kind: str) -> Tensor:
    """Signed integers (blocks, 32) as the bytes behind a block's scale."""
    if kind == "Q8_0":
        return codes.view(torch.uint8)
    moved = (codes + (8 if kind == "Q4_0" else 16)).to(torch.uint8)
    if kind == "Q4_0":
        return planes(moved, 4, 16)
    high = ((moved >> 4).reshape(-1, 4, 8) << torch.arange(8, dtype=torch.uint8)).sum(2, dtype=torch.uint8)
    return torch.cat([high, planes(moved & 15, 4, 16)], 1)


def note(decoder: QuantizedDecoder) -> str:
    """What differs in llama.cpp from what was measured."""
    said = []
    if rounded := sum(matrix.activations is not None for matrix in decoder.matrices.values()):
        said.append(f"the activations of {rounded} matrices are not rounded as measured: llama.cpp has 8 bits in blocks of its own")
    if decoder.cache is not None:
        kind = {"int8": "q8_0", "int4": "q4_1"}.get(decoder.cache.spec.format, "f16")
        said.append(f"llama.cpp chooses its cache when it starts, and has blocks of its own: --cache-type-k {kind} --cache-type-v {kind}")
    window = getattr(decoder.twin.config, "sliding_window", None)
    if decoder.twin.config.model_type == "mistral" and window:
        said.append(f"llama.cpp computes Mistral without its windows of {window} tokens")
    return "; ".join(said)


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _add_vocabulary(writer: Any, words: Vocabulary) -> None:
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.split)
    writer.add_token_list(list(words.tokens))
    writer.add_token_types(list(words.kinds))
    if words.model == "llama":
        writer.add_token_scores(list(words.scores))
    if words.merges:
        writer.add_token_merges(list(words.merges))
    for name, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id), ("unk", writer.add_unk_token_id),
                      ("pad", writer.add_pad_token_id)):  # fmt: skip
        if name in words.special:
            add(words.special[name])
    if words.prefixed is not None:
        writer.add_add_bos_token(words.prefixed and "bos" in words.special)
    if words.model == "llama":
        writer.add_add_space_prefix(words.space)
    if words.template is not None:
        writer.add_chat_template(words.template)
