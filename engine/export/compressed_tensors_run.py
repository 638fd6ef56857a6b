"""A compressed-tensors folder in the public libraries: transformers builds the model, compressed-tensors unpacks the weights."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, one_line
from engine.lowering.modules.skeleton import empty
from engine.lowering.modules.stepping import of_model
from engine.models.transformers_load import quiet

PACKED_ZEROS = (
    "transformers {} alone does not load it, with packed zero points beside layers of another form: compressed-tensors unpacked the weights"
)


class CompressedDecoder:
    """Computes in float32 as transformers does: the weights are unpacked, activations rounded where the config says. ``note`` tells a
    person where transformers alone could not read the folder. Raises EngineError for a folder that cannot be read, or whose tensors
    are not those of the model."""

    def __init__(self, folder: Path) -> None:
        versions = {name: importlib.metadata.version(name) for name in ("transformers", "compressed-tensors")}
        self.note = ""
        with quiet(), _silent():
            try:
                self.model = _transformers(folder)
            except EngineError:
                if not _affine(folder):
                    raise
                self.model = _library(folder)
                self.note = PACKED_ZEROS.format(versions["transformers"])
            self.model.eval()
            self._unpack()
        self.label = ", ".join(f"{name} {version}" for name, version in versions.items())

    @torch.inference_mode()
    def _unpack(self) -> None:
        """What is packed is unpacked when it first runs; floats of few bits in bfloat16, whatever type was asked for."""
        first = torch.zeros(1, 1, dtype=torch.int64)
        try:
            self(first)
        except RuntimeError:
            # Transformers refuses to cast a quantized model; torch's own cast takes its weights for what they are by now.
            torch.nn.Module.float(self.model)
            self(first)

    @torch.inference_mode()
    def __call__(self, ids: Tensor) -> Tensor:
        """Token ids (N, T) to logits (N, T, vocabulary)."""
        found: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return found.float()

    @torch.inference_mode()
    def step(self, ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits of ids (N, T) that follow those of ``cache``, None for none, and the cache with them."""
        logits, held = of_model(self.model)(ids, cache)
        return logits.float(), held


def _transformers(folder: Path) -> Any:
    import transformers

    decoders: Any = transformers.AutoModelForCausalLM
    options = {"dtype": torch.float32, "trust_remote_code": False, "local_files_only": True, "output_loading_info": True}
    try:
        model, info = decoders.from_pretrained(folder, attn_implementation="sdpa", **options)
    except Exception as error:
        raise EngineError(f"{folder} cannot be loaded by transformers ({one_line(error, 160)}): export it again") from error
    strange = sorted(str(name) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info.get(kind) or ())
    if strange:
        raise EngineError(f"{folder} and the model differ in {len(strange)} tensors, {strange[0]} first: export it again")
    return model


def _affine(folder: Path) -> bool:
    try:
        groups = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]["config_groups"].values()
        return any(not group["weights"]["symmetric"] for group in groups)
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return False


@torch.no_grad()
def _library(folder: Path) -> Any:
    """The model with weights that compressed-tensors has unpacked module by module; activations are not rounded."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.utils.match import is_match
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stored_tensors, about = load_file(folder / "model.safetensors"), config.pop("quantization_config")
        tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in stored_tensors.items()}
        model = empty(config)
        for path, module in model.named_modules():
            stored = {name.removeprefix(f"{path}."): tensors.pop(name) for name in list(tensors) if name.startswith(f"{path}.weight_")}
            if stored:
                groups = (group for group in about["config_groups"].values() if is_match(path, module, group["targets"], about["ignore"]))
                scheme = QuantizationScheme(**next(groups))
                if f"{path}.weight" in tensors:
                    stored["weight"] = tensors[f"{path}.weight"]
                compressor: Any = BaseCompressor.get_value_from_registry(scheme.format)
                tensors[f"{path}.weight"] = compressor.decompress(stored, scheme)["weight"]
        places = dict(model.state_dict())
        same = {place.data_ptr() for name, place in places.items() if name in tensors}
        if strange := [name for name, place in places.items() if name not in tensors and place.data_ptr() not in same]:
            raise ValueError(f"{strange[0]} is missing")
        for name, tensor in tensors.items():
            if places[name].shape != tensor.shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}")
            places[name].copy_(tensor)
    except Exception as error:
        raise EngineError(f"{folder} cannot be unpacked by compressed-tensors ({one_line(error, 160)}): export it again") from error
    return model


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the library's bars and log on the terminal."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            from loguru import logger

            logger.disable("compressed_tensors")
        except ImportError:
            pass
        yield
