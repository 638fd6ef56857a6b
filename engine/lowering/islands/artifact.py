"""``model.safetensors`` of a model with islands: their programs, and the numbers of what runs between them.

The file holds no code: the model's own forward comes with ``load_quantized(DIR, model=…)``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError, one_line
from engine.kernels.choose import kernels_for
from engine.kernels.probe import probe
from engine.lowering.graph.artifact import SCHEMA, content, damaged, restored, stored, warn_of
from engine.lowering.graph.call import Call
from engine.lowering.graph.runtime import QuantizedModel
from engine.lowering.islands.model import IslandsModel, QuantizedIsland
from engine.models import computed_weights

_BETWEEN = "between/"


def to_bytes(model: IslandsModel, recipe_yaml: str, isa: str) -> bytes:
    """The file's content. Weights are stored in their bits; what no island holds is stored as it is."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    islands = []
    for number, island in enumerate(model.islands):
        found, about = stored(island.model.program, f"{number}/")
        tensors |= found
        results = len(island.model.program.results)
        islands.append(
            {"path": island.path, **about, "forward": island.call.to_json(), "taken": island.taken.to_json(), "results": results}
        )
    tensors |= {f"{_BETWEEN}{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in _outside(model.root, islands).items()}
    header = {"schema": SCHEMA, "kind": "islands", "islands": islands, "recipe": recipe_yaml, "isa": isa}
    return save(tensors, {"qtui": json.dumps(header)})


def _outside(root: nn.Module, islands: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The tensors of ``root`` that no island holds."""
    starts = tuple(f"{island['path']}." for island in islands)
    return {name: tensor for name, tensor in root.state_dict().items() if isinstance(tensor, Tensor) and not name.startswith(starts)}


def header_of(path: Path) -> dict[str, Any]:
    """The header of a file. Raises EngineError for one that is damaged or foreign."""
    return content(path)[1]


def load(path: Path, model: nn.Module | None) -> IslandsModel:
    """The model of a file on this machine's kernels. ``model`` gives the forward; it is copied, and its numbers outside of the islands
    are the file's. Raises EngineError."""
    tensors, header = content(path)
    if model is None:
        raise EngineError(
            f"{path} holds islands of integers, between which the model's own forward runs: give its code with "
            "load_quantized(DIR, model=factory())"
        )
    try:
        programs = [restored(tensors, island, f"{number}/") for number, island in enumerate(header["islands"])]
        machine = probe()
        warn_of(path, machine, header, programs)
        root = _with_numbers(model, tensors, path)
        islands = []
        with torch.no_grad():
            for given, program in zip(header["islands"], programs, strict=True):
                whole = dict(root.named_modules())
                call, taken = (Call.from_json(given[key], int(given["results"])) for key in ("forward", "taken"))
                _without_numbers(root.get_submodule(given["path"]))
                islands.append(QuantizedIsland(str(given["path"]), call, taken, QuantizedModel(program, kernels_for(machine), whole)))
        return IslandsModel(root, islands, complete=False)
    except EngineError:
        raise
    except AttributeError as error:
        raise EngineError(f"{path} was made of another model ({one_line(error, 120)}): give the factory of the run") from error
    except Exception as error:
        raise damaged(path, error) from error


def _without_numbers(island: nn.Module) -> None:
    """The numbers that came with the code are none of the run's: what reads them is to show."""
    for tensor in (*island.parameters(), *island.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.full_like(tensor, torch.nan)


def _with_numbers(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    """A copy of ``model`` with the file's numbers. Raises EngineError where they do not fit."""
    between = {name.removeprefix(_BETWEEN): tensor for name, tensor in tensors.items() if name.startswith(_BETWEEN)}
    root = computed_weights.copied(model).cpu().eval().requires_grad_(False)
    # As the run did, whose names are the file's.
    computed_weights.settle(root)
    own = root.state_dict()
    wrong = [name for name, tensor in between.items() if name not in own or own[name].shape != tensor.shape]
    if wrong:
        raise EngineError(f"{path} was made of another model, which has {wrong[0]}: give the factory of the run")
    root.load_state_dict(between, strict=False)
    return root
