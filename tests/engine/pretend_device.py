"""A second device in Python: tensors on it are computed on the processor, and one that meets a tensor of the processor is refused
as a GPU would refuse it. It shows where a tensor was left behind, without a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
aten = torch.ops.aten
# What may read a tensor of the processor beside one of the device, as on CUDA.
_MIXED = {"aten::copy_", "aten::_to_copy", "aten::index.Tensor", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}


class Away(torch.Tensor):
    """A tensor on the device; ``held`` is where its numbers are."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Away:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=torch.device(NAME, 0),
            requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held.detach()
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Away({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = tree_leaves((args, kwargs))
    here = [x for x in given if isinstance(x, torch.Tensor) and not isinstance(x, Away) and x.dim() > 0]
    away = [x for x in given if isinstance(x, Away)]
    if away and here and func._schema.name not in _MIXED and str(func) not in _MIXED:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found at least two, {NAME} and cpu")
    wanted = kwargs.get("device")
    target = torch.device(wanted).type if wanted is not None else (NAME if away else "cpu")
    own = {k: ("cpu" if k == "device" and v is not None else v) for k, v in kwargs.items()}
    inner = tree_map(lambda x: x.held if isinstance(x, Away) else x, (args, own))
    out = _STAND_INS.get(func, func)(*inner[0], **inner[1])
    if func._schema.name == "aten::copy_":
        return args[0]
    if target != NAME:
        return out
    wrapped = tree_map(lambda x: Away(x) if isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _pack(pairs: torch.Tensor, tiles: int) -> torch.Tensor:
    """CUDA's packing of nibbles keeps them in an order of its own: here they only wait for ``_multiply``."""
    assert pairs.dtype == torch.uint8 and pairs.shape[0] % 8 == 0 and pairs.shape[1] * 2 % (tiles * 16) == 0
    return pairs.clone()


def _multiply(x: torch.Tensor, packed: torch.Tensor, group: int, scales: torch.Tensor) -> torch.Tensor:
    """What the kernel computes, by its documentation: ``(code - 8) * scale + zero``, the even inputs in the high half of a byte."""
    codes = torch.stack([packed >> 4, packed & 15], 2).flatten(1).float()
    step, zero = (scales[..., i].float().t().repeat_interleave(group, 1) for i in (0, 1))
    return (x.float() @ ((codes - 8) * step + zero).T).to(torch.bfloat16)


def _sums(codes: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """With what CUDA asks for: more than 16 rows, and multiples of 8."""
    assert codes.shape[0] > 16 and codes.shape[1] % 8 == 0 and weight.shape[1] % 8 == 0 and not weight.is_contiguous()
    return aten._int_mm.default(codes, weight)


_STAND_INS = {
    aten._convert_weight_to_int4pack.default: _pack, aten._weight_int4pack_mm.default: _multiply, aten._int_mm.default: _sums,
}  # fmt: skip
_library: list[torch.library.Library] = []


def register() -> None:
    """Make the device known to torch, for the rest of the process."""
    if _library:
        return
    _setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda func, *args, **kwargs: compute(func, args, kwargs), "PrivateUse1")
    _library.append(library)
    made = torch.tensor

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        # torch.tensor fills memory itself, which is not there.
        here = made(data, *args, **kwargs)
        return here if device is None else here.to(device)

    torch.tensor = tensor
