"""The steps of one process, taken by several.

Each rank takes its equal share of every global batch and `DistributedDataParallel` averages the gradients. That is the
gradient of the whole batch wherever a loss is a mean over samples. Two things are not, and are computed from means over
all ranks:

- the pairs' losses, which take absolute values of means over the batch (`joint_batch_mean`; always);
- BatchNorm, whose statistics in training are those of the whole batch (`JointBatchNorm`; with `--sync-batchnorm`).

So N processes with `--sync-batchnorm` and `--dropout 0` follow the loss curve of one. Without `--sync-batchnorm` every
rank normalizes by its own share of the batch, as is common, and evaluation and checkpoints have rank 0's running
statistics. Dropout, and the stretch that a decoded loss of a differentiable codec looks at, are drawn by each rank.

Fully sharded training (FSDP2) is not offered: weights, gradients and AdamW's state of the agent, 21 million parameters,
take 0.34 GB in float32, which every device holds; sharding would only add a gathering to each checkpoint.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as collectives
from torch.nn.parallel import DistributedDataParallel

from ..model.agent import AdaptiveWindowCreativeAgent
from ..model.composer import batch_mean
from .distributed import size


def wrap(agent: nn.Module, *, sync_batchnorm: bool) -> nn.Module:
    """The agent to call in training: itself, or, under torchrun, `DistributedDataParallel` of it.

    Its batch means (and BatchNorm) become joint over the ranks in place. Weights are loaded before; rank 0's are sent
    to all here. Buffers are not sent along at each step: they change only in training, which does not read them.
    """
    if not dist.is_initialized():
        return agent
    join_statistics(agent, sync_batchnorm=sync_batchnorm)
    devices = [torch.cuda.current_device()] if next(agent.parameters()).is_cuda else None
    # a dimension of length 1 (a depthwise weight's second) has any stride, which DDP takes for another layout
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    options = inspect.signature(DistributedDataParallel).parameters
    per_step = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"  # torch < 2.14
    chosen: dict[str, Any] = {"device_ids": devices, per_step: False}
    return DistributedDataParallel(agent, **chosen)


def join_statistics(module: nn.Module, *, sync_batchnorm: bool) -> None:
    """Makes the module's batch means, and with `sync_batchnorm` its BatchNorms, joint ones; keys and hooks stay."""
    for part in module.modules():
        if isinstance(part, AdaptiveWindowCreativeAgent):
            part.training_mean = joint_batch_mean
        if sync_batchnorm and type(part) is nn.BatchNorm1d:
            part.__class__ = JointBatchNorm


class _SumOverRanks(torch.autograd.Function):
    """Σ over ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # Not dist.all_reduce, which writes into its argument: compiled by torch 2.11, such a sum passes no gradient on.
        world = cast(dist.ProcessGroup, dist.group.WORLD)
        return collectives.wait_tensor(collectives.all_reduce(x.contiguous(), "sum", world))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _SumOverRanks.apply(grad)


def joint_mean(x: Tensor) -> Tensor:
    """Mean over the ranks, differentiable: each rank's gradient is the mean of all ranks' gradients."""
    return _SumOverRanks.apply(x) / size()


def joint_batch_mean(x: Tensor) -> Tensor:
    """The mean over the batches of all ranks, which are equally large."""
    return joint_mean(batch_mean(x))


class JointBatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` whose statistics in training are those of the batches of all ranks, which are equally large.

    `nn.SyncBatchNorm` does the same on CUDA only. Mean first, then the mean squared distance from it (E[x²] − E[x]²
    cancels): two small all-reduces forward and two backward.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, W]` -> `[N, C, W]`."""
        if not self.training:
            return super().forward(x)
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        average = joint_mean(wide.mean((0, 2)))
        centred = wide - average[:, None]
        variance = joint_mean(centred.square().mean((0, 2)))
        self._track(average.detach(), variance.detach(), x.shape[0] * x.shape[2] * size())
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None] + self.bias[:, None]).to(x.dtype)

    @torch.no_grad()
    def _track(self, average: Tensor, variance: Tensor, count: int) -> None:
        """Running statistics, with the unbiased variance, as `nn.BatchNorm1d` keeps them."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = cast(float, self.momentum)  # None, a cumulative average, is not used in this model
        for running, now in ((self.running_mean, average), (self.running_var, variance * (count / (count - 1)))):
            if running is not None:
                running.lerp_(now, momentum)
