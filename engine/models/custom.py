"""One's own models: ``package.module:factory`` or ``path/file.py:factory``, a callable without arguments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine import user_code
from engine.errors import EngineError

if TYPE_CHECKING:
    from torch import nn


def is_custom(name: str) -> bool:
    return ":" in name


def build(name: str) -> nn.Module:
    """Call the factory that ``name`` names. Raises UsageError when it cannot be found, EngineError when it fails."""
    return checked(user_code.made(name, "model"), name)


def build_with(name: str, weights: str | None, data: str) -> tuple[nn.Module, str]:
    """What the factory gives, with the tensors of the file ``weights`` where there is one, and where its weights come from; ``data`` is
    named in messages. Raises as ``build`` does, and EngineError for a file that does not fit."""
    model = build(name)
    if not weights:
        return model, "as its factory gives them"
    from engine.models.weights_file import load_into

    return model, f"from {weights}{load_into(model, Path(weights), name, data).said}"


def checked(model: object, name: str) -> nn.Module:
    """``model`` as a module that can be traced. Raises EngineError for anything else."""
    import torch
    from torch import nn
    from torch.nn.parameter import is_lazy

    if not isinstance(model, nn.Module):
        raise EngineError(f"{name} returned {type(model).__name__}, not an nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise EngineError(f"{name} returned a TorchScript module, which cannot be traced: return the nn.Module that it was made from")
    if lazy := next((path for path, p in model.named_parameters() if is_lazy(p)), None):
        layer = type(model.get_submodule(lazy.rpartition(".")[0])).__name__
        raise EngineError(
            f"{name} returned a model whose {lazy} has no shape yet ({layer} is a lazy layer): "
            "give the layer its sizes, or call the model on images once in the factory, before it returns it"
        )
    # A compiled model computes as the one that it was made from.
    original = getattr(model, "_orig_mod", model)
    return original if isinstance(original, nn.Module) else model
