"""Several processes training one model, started by `torchrun` or `accelerate launch`; one process needs none of it.

Every process reads the cases and trains on its share of each batch; the main one alone writes, evaluates and tells.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def together() -> Iterator[None]:
    """Joins the processes of one launch for the block; the others than the main one are silent in it."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    from accelerate import PartialState

    # The others wait while the main process evaluates, which may take far longer than the usual half hour.
    PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=2))
    if is_main():
        yield
    else:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield
    # Only now: after an error the other processes wait elsewhere, and would not come here.
    distributed.destroy_process_group()


def count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _joined() else 1


def is_main() -> bool:
    """Whether this is the process that writes, evaluates and tells."""
    return not _joined() or distributed.get_rank() == 0


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, without a gradient."""
    values = values.detach().clone()
    if _joined():
        distributed.all_reduce(values)
    return values


def wait() -> None:
    """Returns when all processes have come here."""
    if _joined():
        distributed.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block before the others do, which then find what it wrote."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def shared_batch_norm(model: nn.Module) -> Iterator[None]:
    """Batch norms take their statistics from all processes' shares of the batch during the block.

    So a batch of two on two processes is normalised as on one. `torch.nn.SyncBatchNorm` does the same, on a GPU
    only. Nothing changes with one process.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)] if count() > 1 else []
    for layer in layers:
        layer.forward = MethodType(_normalise, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _normalise(self: _BatchNorm, values: Tensor) -> Tensor:
    """`forward` of a batch norm layer: values [N, C, ...], N differing between processes -> the same shape."""
    if not self.training:
        return type(self).forward(self, values)
    x = values.float()
    dims = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    own = x.new_tensor([x.numel() / x.shape[1]])
    sums = _SumOverProcesses.apply(torch.cat([x.sum(dims), own]))
    total = sums[-1].detach()
    mean = sums[:-1] / total
    centred = x - mean.view(shape)
    variance = _SumOverProcesses.apply(centred.square().sum(dims)) / total
    if self.running_mean is not None and self.running_var is not None:
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * total / (total - 1).clamp_min(1), share)
    out = centred * (variance + self.eps).rsqrt().view(shape)
    if self.affine:
        out = out * self.weight.view(shape) + self.bias.view(shape)
    return out.to(values.dtype)


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total
