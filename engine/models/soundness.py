"""Whether a loaded model is what it says: weights that fit its config, blocks, and no look at the tokens that it is to predict."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from engine.errors import EngineError, one_line
from engine.kernels.matrix.kind import kind_of
from engine.models.anatomy import anatomy, blocks_of
from engine.models.transformers_folder import AGAIN, Folder
from engine.models.weights_file import check_numbers, read_state

_TOKENS = 8
# A row's numbers hardly depend on the others of a batch; one token in eight that is seen changes them far more.
_NOISE = 1e-5
_FLOATS = ("F64", "F32", "F16", "BF16")
_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
# What compressed-tensors, FP8 checkpoints, GPTQ and AWQ, and bitsandbytes keep beside their weights.
_SCALES = ("weight_scale", "weight_scale_inv", "weight_zero_point", "weight_packed", "qweight", "qzeros", "SCB", "absmax", "quant_state")


def unloadable(found: Folder, error: Exception) -> EngineError:
    """Why transformers could not read a folder whose files are all there, as far as it can be told."""
    for file in found.weights:
        if file.suffix == ".bin":
            try:
                read_state(file)
            except EngineError as told:
                return told
    return EngineError(_misfit(found) or f"{found.path} cannot be loaded ({one_line(error, 160) or type(error).__name__}): {AGAIN}")


def _misfit(found: Folder) -> str:
    """The first tensor whose shape is not what the config asks for."""
    import transformers

    decoders: Any = transformers.AutoModelForCausalLM
    try:
        config = transformers.AutoConfig.from_pretrained(found.path, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model = decoders.from_config(config, trust_remote_code=False)
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name, shape in _shapes(found):
            asked = wanted.get(name) or wanted.get(f"{model.base_model_prefix}.{name}")
            if asked is not None and asked != shape:
                return f"{found.path}: {name} has the shape {_by(shape)}, and config.json asks for {_by(asked)}: {AGAIN}"
    except Exception:
        # Only for the words of an error that is told in any case.
        return ""
    return ""


def check_not_zero(found: Folder, model: Any) -> None:
    """Raises EngineError for weights that are all zero."""
    check_numbers({name: value for name, value in model.state_dict().items() if value.is_floating_point()}, str(found.path))


def check_floats(found: Folder) -> None:
    """Raises EngineError for a folder whose weights are integers or 8-bit floats, or come with the scales of such: read as they are
    they would be another model."""
    for file in found.weights:
        for name, kind, dims in _kinds(file):
            wrong = kind if name.endswith("weight") and dims > 1 and kind not in _FLOATS else ""
            if wrong.lower().startswith("complex"):
                raise EngineError(f"{file} holds {ascii(name)[1:-1]} as {wrong}, not as floating-point weights")
            if wrong or name.rpartition(".")[2] in _SCALES:
                what = f"{ascii(name)[1:-1]} is {wrong}" if wrong else f"it has {ascii(name)[1:-1]}"
                raise EngineError(
                    f"{found.path} is quantized already ({what}), which its config.json does not say: give the model in fp32 or 16 bits "
                    "that it was made from"
                )


def _kinds(file: Path) -> list[tuple[str, str, int]]:
    """Name, type and number of dimensions of each tensor; nothing of a file that cannot be read, which its loading tells."""
    if file.suffix == ".safetensors":
        return [(name, str(part["dtype"]), len(part["shape"])) for name, part in _header(file).items()]
    try:
        state = torch.load(file, map_location="meta", weights_only=True)
    except Exception:
        return []
    if not isinstance(state, dict):
        return []
    tensors = ((str(name), tensor) for name, tensor in state.items() if isinstance(tensor, torch.Tensor))
    return [(name, _TYPES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.")), tensor.dim()) for name, tensor in tensors]


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return {name: part for name, part in header.items() if name != "__metadata__"}


def _shapes(found: Folder) -> list[tuple[str, tuple[int, ...]]]:
    told: list[tuple[str, tuple[int, ...]]] = []
    for file in found.weights:
        if file.suffix != ".safetensors":
            told += [(name, tuple(tensor.shape)) for name, tensor in read_state(file).items()]
            continue
        told += [(name, tuple(part["shape"])) for name, part in _header(file).items()]
    return told


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def left_over(model: Any, names: Sequence[str]) -> str:
    """The first of ``names``, tensors of a file that the model did not take, without which a block is not the one that was saved:
    of a block too many, a weight, or the bias of a layer that has none here. Empty for masks and positions that older files carry.
    """
    try:
        path, blocks = blocks_of(model)
    except EngineError:
        return ""
    bare = path.removeprefix(f"{model.base_model_prefix}.")
    inside = re.compile(rf"(?:{re.escape(path)}|{re.escape(bare)})\.(\d+)\.(.+)\.(\w+)")
    for name in sorted(names):
        if (parts := inside.fullmatch(name)) is None:
            continue
        number, layer, kind = int(parts[1]), parts[2], parts[3]
        if number >= len(blocks) or kind == "weight" or (kind == "bias" and _has_no_bias(blocks[number], layer)):
            return name
    return ""


def _has_no_bias(block: Any, layer: str) -> bool:
    # GPT-2's mask is called ``attn.bias``: only a layer's own bias is missed.
    module = dict(block.named_modules()).get(layer)
    return module is not None and kind_of(module) is not None and getattr(module, "bias", None) is None


def check_decoder(model: Any, place: Path, context: int) -> None:
    """Raises EngineError for a model without blocks, for one that cannot be run on a few tokens, and for one whose outputs depend on
    later tokens: what it would be measured at is no perplexity."""
    try:
        anatomy(model)
    except EngineError as error:
        raise EngineError(f"{place}: {error}") from error
    rows = int(model.get_input_embeddings().weight.shape[0])
    ids = torch.arange(min(_TOKENS, context)).remainder(rows).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + rows // 2) % rows
    try:
        with torch.inference_mode():
            first, second = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    except Exception as error:
        raise EngineError(f"{place} cannot be run ({type(error).__name__}: {one_line(error, 160)}): check its config.json") from error
    if float((first - second).abs().max()) > _NOISE * float(first.abs().max()):
        raise EngineError(f"{place} sees the tokens that it is to predict, as encoders such as BERT do: give a decoder such as GPT-2")
