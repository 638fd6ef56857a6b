"""Training in 16 bits where the device is fast at it, with weights and sums in 32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from engine.training.optimizer import Optimizer
from engine.training.schedule import Schedule


def half_type(device: str) -> torch.dtype | None:
    """What ``device`` multiplies faster than float32, or None."""
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # Elsewhere it is emulated, and slower than float32.
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return torch.bfloat16 if supported is not None and supported() else None


def precision(schedule: Schedule, device: str) -> str | None:
    """``bfloat16`` or ``float16`` where training by ``schedule`` computes in it, None where it computes in float32.

    float16 has too few small numbers for AdamW's second moments, also where gradients are scaled.
    """
    found = half_type(device) if schedule.mixed else None
    if found is None or (found == torch.float16 and schedule.optimizer == "adamw"):
        return None
    return str(found).removeprefix("torch.")


class Half:
    """Mixed precision, or nothing of it where ``name`` is None. float16 has so few small numbers that its gradients are scaled."""

    def __init__(self, name: str | None, device: str) -> None:
        self._type: torch.dtype | None = getattr(torch, name) if name else None
        self._device = device
        self._scaler = torch.amp.GradScaler(device, enabled=self._type == torch.float16)

    def autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self._type is None else torch.autocast(self._device, self._type)

    def step(
        self, loss: Tensor, optimizer: Optimizer, parameters: Iterable[nn.Parameter], clip: float | None,
        after: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Backward, what comes ``after`` it, the gradient's norm bounded by ``clip``, and the optimizer's step."""
        # The scaler asks for torch's optimizer and uses its groups and its step.
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if after is not None:
            after()
        if clip is not None:
            self._scaler.unscale_(optimizer)  # type: ignore[arg-type]
            nn.utils.clip_grad_norm_(parameters, clip)
        self._scaler.step(optimizer)  # type: ignore[arg-type]
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The scale of the gradients, which moves while training; empty where they are not scaled."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError or RuntimeError for a state of another type."""
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(dict(state))
