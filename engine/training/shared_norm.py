"""Batch normalization by the statistics of a batch whose items several ranks have."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.machine import ranks


class _Added(torch.autograd.Function):
    """The sum over the ranks of what each of them has. Each rank's loss depends on all parts: so does the gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return ranks.added_up(value.clone())  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return ranks.added_up(grads[0].clone())  # type: ignore[no-any-return]


def share_statistics(model: nn.Module) -> None:
    """Let the batch normalizations of ``model`` use, in training, the mean and the variance of the items of all ranks (as torch's
    SyncBatchNorm does, which has no kernel for the processor). Nothing where one process works."""
    if not ranks.several():
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = partial(_normalized, module, module.forward)  # type: ignore[method-assign]


def _normalized(norm: Any, alone: Any, x: Tensor) -> Tensor:
    if not norm.training or not ranks.several():
        return alone(x)  # type: ignore[no-any-return]
    dims = [dim for dim in range(x.dim()) if dim != 1]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    own = x.new_tensor([x.numel() / x.shape[1]])
    sums = _added(torch.cat([x.sum(dims), own]))
    count = sums[-1]
    mean = sums[:-1] / count
    centred = x - mean.reshape(shape)
    variance = _added(centred.square().sum(dims)) / count
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            rate = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean, rate)
            norm.running_var.lerp_(variance * (count / (count - 1).clamp_min(1)), rate)
    weight = torch.rsqrt(variance + norm.eps) if norm.weight is None else torch.rsqrt(variance + norm.eps) * norm.weight
    result = centred * weight.reshape(shape)
    return result if norm.bias is None else result + norm.bias.reshape(shape)


def _added(value: Tensor) -> Tensor:
    result: Tensor = _Added.apply(value)
    return result
