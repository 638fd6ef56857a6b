"""A language model from a GGUF file: transformers builds it from the file's metadata, the ``gguf`` package dequantizes its blocks.

What comes of it is a float32 model: the file's quantization has happened, and is told beside the model's name.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from engine.errors import EngineError, one_line
from engine.reading import regular

NEEDED = ("gguf", "accelerate")
_VERSIONS = (2, 3)


@dataclass(frozen=True)
class Read:
    """``blocks`` counts the file's tensors by their type, the most frequent first."""

    model: Any
    blocks: tuple[tuple[str, int], ...]

    @property
    def words(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in self.blocks)


def read(path: Path) -> Read:
    """Raises EngineError, in one line, for a file that is missing, damaged, cut off, big-endian, or of an architecture or types that
    the libraries do not know, and where they are not installed."""
    check(path)
    from engine.models.transformers_load import quiet

    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            fields, blocks = _looked(path)
            return Read(_model(path, fields), blocks)
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"{path} is no whole GGUF file of a decoder that transformers reads ({one_line(error, 160)})") from error


def tokenizer(path: Path) -> Any:
    """The file's tokenizer as transformers rebuilds it. Raises EngineError where it cannot."""
    import transformers

    from engine.models.transformers_load import quiet

    auto: Any = transformers.AutoTokenizer
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            return auto.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise EngineError(f"the tokenizer of {path} cannot be rebuilt ({one_line(error, 160)}): give data of token ids") from error


def check(path: Path) -> None:
    """Raises EngineError for what is no GGUF file of a version and byte order that is read here, and for packages that lack."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise EngineError(f"{path} needs {' and '.join(missing)} to be read: uv pip install {' '.join(missing)}")
    try:
        regular(path)
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror or 'no such file'}): give a GGUF file") from error
    if len(head) < 8 or head[:4] != b"GGUF":
        raise EngineError(f"{path} is no GGUF file: it does not begin with GGUF")
    (version,) = struct.unpack("<I", head[4:])
    if version & 0xFFFF == 0:
        raise EngineError(f"{path} is big-endian: convert it for this machine, which is not")
    if version not in _VERSIONS:
        raise EngineError(f"{path} is GGUF of version {version}: versions {' and '.join(map(str, _VERSIONS))} are read here")


def _looked(path: Path) -> tuple[dict[str, Any], tuple[tuple[str, int], ...]]:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    wanted = ("general.architecture", "context_length", "key_length")
    fields = {name: field.contents() for name, field in reader.fields.items() if name.endswith(wanted)}
    return fields, tuple(Counter(str(tensor.tensor_type.name) for tensor in reader.tensors).most_common())


def _model(path: Path, fields: dict[str, Any]) -> Any:
    import transformers

    place = {"gguf_file": path.name, "local_files_only": True}
    configs: Any = transformers.AutoConfig
    config = configs.from_pretrained(path.parent, **place)
    name = fields["general.architecture"]
    # What transformers does not take from the file of these architectures.
    if config.model_type == "gpt2":
        config.n_positions = int(fields[f"{name}.context_length"])
    if hasattr(config, "head_dim") and f"{name}.attention.key_length" in fields:
        config.head_dim = int(fields[f"{name}.attention.key_length"])
        # As llama.cpp computes it, but for the largest of each family.
        if hasattr(config, "query_pre_attn_scalar") and config.num_hidden_layers not in (46, 62):
            config.query_pre_attn_scalar = config.head_dim
    if getattr(config, "pad_token_id", None) is not None and config.pad_token_id >= config.vocab_size:
        config.pad_token_id = None
    decoders: Any = transformers.AutoModelForCausalLM
    model, info = decoders.from_pretrained(path.parent, config=config, dtype=torch.float32, output_loading_info=True, **place)
    strange = sorted(str(name) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info.get(kind) or ())
    if strange:
        raise EngineError(f"{path} and its architecture differ in {len(strange)} tensors, {strange[0]} first: copy or download it again")
    return model.eval()
