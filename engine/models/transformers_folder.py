"""What a folder in the Hugging Face layout holds, judged before anything of it is loaded. Torch-free."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.reading import MB, read_json, regular

# Either file alone, or the pair, is a tokenizer that transformers reads.
_TOKENIZERS = (
    ("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",), ("spiece.model",), ("vocab.txt",),
    ("sentencepiece.bpe.model",), ("source.spm", "target.spm", "vocab.json"),
)  # fmt: skip
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
AGAIN = "copy or download it again"
_OPENED = (".json", ".txt", ".model", ".jinja", ".safetensors", ".bin")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
# An index of weights has a line for each tensor.
_LARGEST = 64 * MB
# Published decoders have at most some 130.
_MOST_LAYERS = 1000


@dataclass(frozen=True)
class Folder:
    """A folder whose parts are all there: the parsed ``config.json``, the files of weights, and whether it has a tokenizer."""

    path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    has_tokenizer: bool


def look(path: Path, decoder: bool = True) -> Folder:
    """Judge ``path`` by its files; with ``decoder`` it must be a model that predicts the next token.

    Raises EngineError, in one line, for a folder that is no model, a shard that is missing or not whole, a model that is quantized
    already, and a config that asks for code of its own."""
    if not path.is_dir():
        raise EngineError(f"{path} {'is a file' if path.exists() else 'does not exist'}: give the folder of a language model")
    config = _json(path / "config.json", path)
    _readable(path)
    weights = _weights(path)
    for file in weights:
        if file.suffix == ".safetensors":
            whole_safetensors(file)
    _loadable(path, config)
    if decoder:
        _decoder(path, config)
    return Folder(path, config, weights, any(all((path / name).is_file() for name in names) for names in _TOKENIZERS))


def _readable(folder: Path) -> None:
    """Raises EngineError for a file that transformers would open by its name and wait for, or never come to the end of."""
    for file in sorted(folder.iterdir()):
        if file.suffix in _OPENED and not file.is_dir():
            try:
                regular(file)
            except OSError as error:
                raise EngineError(f"{file} cannot be read ({error.strerror}): {AGAIN}") from error


def _json(file: Path, folder: Path) -> dict[str, Any]:
    try:
        found = read_json(file, _LARGEST)
    except FileNotFoundError as error:
        raise EngineError(f"{folder} is no language model: it has no {file.name}; give a folder that save_pretrained wrote") from error
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(f"{file} cannot be read as JSON ({type(error).__name__}): {AGAIN}") from error
    if not isinstance(found, dict):
        raise EngineError(f"{file} is not a JSON object: {AGAIN}")
    return found


def _weights(path: Path) -> tuple[Path, ...]:
    """The files of weights, safetensors before PyTorch's. Raises EngineError where one is missing."""
    for single, index in zip(_SINGLE, _INDEX, strict=True):
        if (path / single).is_file():
            return (path / single,)
        if (path / index).is_file():
            placed = _json(path / index, path).get("weight_map")
            if not isinstance(placed, dict) or not placed:
                raise EngineError(f"{path / index} has no weight_map: {AGAIN}")
            names = sorted({str(name) for name in placed.values()})
            if any(Path(name).name != name for name in names):
                raise EngineError(f"{path / index} names files outside its folder: use another copy of the model")
            missing = [name for name in names if not (path / name).is_file()]
            if missing:
                raise EngineError(f"{path} lacks {len(missing)} of {len(names)} files of weights, {missing[0]} first: {AGAIN}")
            return tuple(path / name for name in names)
    raise EngineError(f"{path} has no weights: it needs model.safetensors or pytorch_model.bin beside config.json")


def whole_safetensors(file: Path) -> None:
    """Raises EngineError where a file's length is not what its header says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError("no header")
            header = json.loads(stream.read(length))
        wanted = 8 + length + max((part["data_offsets"][1] for name, part in header.items() if name != "__metadata__"), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise EngineError(f"{file} is not a whole safetensors file: {AGAIN}") from error
    if wanted != size:
        raise EngineError(f"{file} has {size:,} of {wanted:,} bytes: {AGAIN}")


def _plausible(path: Path, config: dict[str, Any]) -> None:
    """Raises EngineError for a config that asks for more layers than any model has: building them would take minutes, or all memory,
    before a weight is found missing."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for key in _LAYERS:
            asked = part.get(key)
            if isinstance(asked, int | float) and not isinstance(asked, bool) and asked > _MOST_LAYERS:
                raise EngineError(f"{path / 'config.json'} asks for {asked:.3g} layers ({key}), more than any model has: {AGAIN}")


def _loadable(path: Path, config: dict[str, Any]) -> None:
    """Raises EngineError for a config that names no kind of model, one that is quantized already, or none that could be."""
    _plausible(path, config)
    kind = config.get("model_type")
    if config.get("quantization_config"):
        asked = config["quantization_config"]
        method = asked.get("quant_method", "another tool") if isinstance(asked, dict) else asked
        raise EngineError(f"{path} is quantized already ({method}): give the model in fp32 or 16 bits that it was made from")
    if not isinstance(kind, str):
        raise EngineError(f"{path / 'config.json'} names no model_type: give a folder that save_pretrained wrote")


def _decoder(path: Path, config: dict[str, Any]) -> None:
    """Raises EngineError for a model that is no decoder."""
    made_of = config.get("architectures") or []
    made_of = made_of if isinstance(made_of, list) else [made_of]
    if made_of and not any(str(name).endswith(("LMHeadModel", "ForCausalLM")) for name in made_of):
        raise EngineError(f"{path} holds {made_of[0]}, which does not predict the next token: give a decoder such as GPT-2")
