"""Reading weights from files that are not trusted: safetensors, or PyTorch files with ``weights_only=True``."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError, one_line
from engine.models import pickled

# Averages first: where a file has both, they are what was validated and is published.
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "params_ema", "ema_model", "ema")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "weights", "params", "module")
_NO_WEIGHTS = ("optim", "sched", "lr_", "scaler", "callback", "loop", "hyper", "arg", "config")
_DEEPEST = 4
_MODELS = (".onnx", ".pt2", ".xml")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.")
# Left in a model by profilers (thop), and by torch's AveragedModel.
_COUNTERS = ("total_ops", "total_params")
_AVERAGED = "n_averaged"
AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.", "aux_classifier.")


@dataclass(frozen=True)
class Checkpoint:
    """Names to tensors, without prefixes of wrappers; ``notes`` say what was chosen of a file that holds more."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """`` (its state_dict_ema, …)``, or empty where there was nothing to choose."""
        return f" ({'; '.join(self.notes)})" if self.notes else ""


def read_state(path: Path, own: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors of ``read_checkpoint``."""
    return read_checkpoint(path, own).tensors


def read_checkpoint(path: Path, own: Collection[str] = ()) -> Checkpoint:
    """Names to tensors, without prefixes of wrappers unless the model's ``own`` names have them. Raises EngineError, in
    one line, for a file that is missing, damaged, or wants to run code."""
    if not path.is_file():
        raise EngineError(f"weights {path} {_instead(path)}: give a .safetensors, .pt or .pth file")
    if path.suffix in _MODELS:
        raise EngineError(f"{path} is an exported model, not weights: give the .safetensors, .pt or .pth file of the fp32 model")
    try:
        safetensors = path.suffix == ".safetensors" or _looks_like_safetensors(path)
        state, notes = (_safetensors(path), []) if safetensors else _torch(path)
    except OSError as error:
        raise EngineError(f"weights {path} cannot be read ({error.strerror or error}): check its permissions") from error
    tensors = {str(name): value for name, value in _unwrapped(state, notes).items() if isinstance(value, Tensor)}
    if any(name.startswith("layer/") for name in tensors):
        raise EngineError(f"{path} is a quantized model, the result of a run, not weights: give the file of the fp32 model")
    if not tensors:
        keys = f"; its keys are {_list([str(key) for key in state])}" if state else ""
        raise EngineError(f"{path} holds no tensors by name{keys}: give the file of a state_dict")
    return Checkpoint(_named(tensors, own, notes), tuple(notes))


def _instead(path: Path) -> str:
    return "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "do not exist"


def _unwrapped(state: Mapping[str, Any], notes: list[str]) -> Mapping[str, Any]:
    """The mapping of tensors inside of a training checkpoint, with a note where the file has another one."""
    for _ in range(_DEEPEST):
        held = [key for key in (*_AVERAGES, *_WRAPPERS) if _holds_tensors(state.get(key))]
        if not held and not any(isinstance(value, Tensor) for value in state.values()):
            held = [str(key) for key, value in state.items() if not str(key).lower().startswith(_NO_WEIGHTS) and _holds_tensors(value)]
            if len(held) > 1:
                return state
        if not held:
            return state
        first, others = held[0], held[1:]
        if first in _AVERAGES or others or first not in _WRAPPERS:
            average = ", the averaged weights" if first in _AVERAGES else ""
            notes.append(f"its {first}{average}{f', not {_list(others)}' if others else ''}")
        state = state[first]
    return state


def _holds_tensors(value: Any, depth: int = _DEEPEST) -> bool:
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(inner, Tensor) or (depth > 1 and _holds_tensors(inner, depth - 1)) for inner in value.values())


def _named(tensors: dict[str, Tensor], own: Collection[str], notes: list[str]) -> dict[str, Tensor]:
    """The tensors by the names that a model has: without a wrapper's prefix, and without what others left in it."""
    left = [name for name in tensors if name.rpartition(".")[2] in _COUNTERS and name not in own]
    if _AVERAGED in tensors and _AVERAGED not in own:
        left.append(_AVERAGED)
        notes.append("an average of weights (AveragedModel)")
    if left and len(left) < len(tensors):
        tensors = {name: value for name, value in tensors.items() if name not in left}
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    if needed and not needed <= tensors.keys() and (prefix := _prefix(tensors, needed)):
        rest = [name for name in tensors if not name.startswith(prefix)]
        if rest:
            notes.append(f"what is below {prefix.rstrip('.')}, without {_list(rest)}")
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), ""):
        if any(name.startswith(prefix) for name in own):
            break
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _prefix(tensors: Mapping[str, Tensor], needed: Collection[str]) -> str:
    """The prefix below which all that a model needs is found; empty where there is none."""
    one = min(needed)
    prefixes = sorted({name.removesuffix(one) for name in tensors if name.endswith(f".{one}")}, key=len)
    return next((p for p in prefixes if all(f"{p}{name}" in tensors for name in needed)), "")


def _looks_like_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size


def _looks_like_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(2)
    return head == b"PK" or head[:1] == b"\x80"


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise EngineError(f"{path} is not a whole safetensors file ({_short(error)}): copy or download it again") from error


def _torch(path: Path) -> tuple[dict[str, Any], list[str]]:
    unread: tuple[str, ...] = ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch asks for a bug report where a file is not its own.
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as refused:
                if not _looks_like_pickle(path):
                    raise
                try:
                    state, unread = pickled.load(path)
                except RuntimeError:
                    # A pickle that is no file of torch's: its names were not looked at.
                    raise refused from None
    except pickle.UnpicklingError as error:
        if not _looks_like_pickle(path):
            raise EngineError(f"{path} is no PyTorch file: give the .safetensors, .pt or .pth file of the fp32 model") from error
        raise EngineError(
            f"{path} holds more than weights and was not opened, so that it cannot run code: save its state_dict() alone"
        ) from error
    except Exception as error:
        raise EngineError(f"{path} is not a whole PyTorch file ({_short(error)}): copy or download it again") from error
    if not isinstance(state, Mapping):
        kind = unread[0] if unread else type(state).__name__
        raise EngineError(f"{path} holds a {one_line(Exception(kind), 80)}, not a state_dict: save model.state_dict()")
    return dict(state), [f"{_list(list(unread))} beside them left unread"] if unread else []


def load_into(model: nn.Module, path: Path, name: str, data: str = "the data") -> Checkpoint:
    """Load the file into ``model``, and tell what was chosen of it. Raises EngineError that names the keys when they do not fit,
    or when values are not finite; ``data`` is what the model's head was made for."""
    found = read_checkpoint(path, model.state_dict())
    load_state(model, found.tensors, path, name, data)
    return found


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: Path, name: str, data: str) -> None:
    """``load_into`` for the tensors that ``read_state`` found in ``path``."""
    own = model.state_dict()
    # Published files carry the heads that only training used.
    extra_heads = [k for k in state if k not in own and k.startswith(AUXILIARY_HEADS)]
    fill(model, {k: v for k, v in state.items() if k not in extra_heads}, str(path), name, data)


def fill(model: nn.Module, state: Mapping[str, Tensor], place: str, name: str, data: str) -> None:
    """Load tensors by name into ``model``. Raises EngineError, which begins with ``place``, for tensors that do not fit."""
    own = model.state_dict()
    # A counter that old files lack and that inference never reads.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    other = [k for k in own if k in state and state[k].shape != own[k].shape]
    shapes = [f"{k} is {tuple(state[k].shape)} in the file, {tuple(own[k].shape)} in the model" for k in other]
    heads = {(state[k].shape[:1], own[k].shape[:1]) for k in other}
    if not missing and not extra and len(heads) == 1 and all(state[k].shape[1:] == own[k].shape[1:] for k in other):
        ((given, wanted),) = heads
        raise EngineError(
            f"{place} is for {_first(given)} classes and {data} has {_first(wanted)}: {shapes[0]}: give weights of that class count, "
            f"or train them with `qtui train`"
        )
    first = next((k for k, v in own.items() if v.dim() == 4), "")
    if not missing and not extra and other == [first] and state[first].dim() == 4 and state[first].shape[2:] == own[first].shape[2:]:
        channels, images = (int(tensors[first].shape[1]) for tensors in (state, own))
        raise EngineError(
            f"{place} takes images of {channels} channel{'s' * (channels != 1)} and {data} has {images}: {shapes[0]}: "
            f"give weights for {images} channels"
        )
    if missing or extra or shapes:
        parts = [_some("missing", missing), _some("not in the model", extra), _some("other shapes", shapes)]
        raise EngineError(f"{place} does not fit {name}: {'; '.join(p for p in parts if p)}: is it of another architecture or class count?")
    check_numbers({k: state[k] for k, v in own.items() if k in state and v.is_floating_point()}, place)
    broken = [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise EngineError(f"{place} holds NaN or infinity in {_list(broken)}: use another checkpoint")
    restore(model, {k: state.get(k, own[k]) for k in own})


def check_numbers(state: Mapping[str, Tensor], place: str) -> None:
    """Raises EngineError, which begins with ``place``, for tensors of a model's weights that are of another type than floating-point
    numbers, and for weights that are all zero. Tensors named as what a model computes with alone: a counter is an integer."""
    other = [k for k, v in state.items() if not v.is_floating_point()]
    if other:
        kinds = sorted({str(state[k].dtype).removeprefix("torch.") for k in other})
        raise EngineError(
            f"{place} holds {' and '.join(kinds)} where the model has floating-point weights, in {_list(other)}: "
            "give the file of the fp32 model"
        )
    if state and not any(bool(v.count_nonzero()) for v in state.values()):
        raise EngineError(f"{place} holds nothing but zeros: it was not trained, or not saved; give the trained weights")


def restore(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """``load_state_dict`` for tensors of a model of this very version: some modules ask for their version and refuse without."""
    whole: Any = model.state_dict()
    whole.update(state)
    model.load_state_dict(whole)


def _first(shape: torch.Size) -> int:
    return int(shape[0]) if shape else 1


def _some(what: str, names: list[str]) -> str:
    return f"{what}: {_list(names)}" if names else ""


def _list(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _short(error: BaseException) -> str:
    return one_line(error, 120) or type(error).__name__
