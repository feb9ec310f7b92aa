"""Bytes that a training step keeps for its backward pass, by module: this agent beside the structure it replaces.

    python benchmarks/agent_step.py --saved [--json F]

No GPU and no memory is needed: the step runs on meta tensors, which have sizes and no values, and every tensor that
autograd saves is counted once, by its storage (`torch.autograd.graph.saved_tensors_hooks`). Weights, inputs and what a
caller holds anyway are left out. What is counted is what eager CUDA keeps. Where that differs from meta tensors' own
way, both agents get the same stand-in:

    attention    a fused kernel (flash, memory-efficient or cuDNN): q, k, v, its output, one float32 a row; no weights
    dropout      `torch.native_dropout`: one byte an element (ours draws most of its masks anew and keeps seeds)
    windows      ours alone: the fused operator keeps its inputs (`tests/kernels/test_citizenship.py` holds it to that)

Of a compiled step, what the forward graph hands to the backward graph is counted, cut as for CUDA: dropout is hashed,
convolutions keep channels together, attention is PyTorch's memory-efficient kernel for float32. Nothing is run.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_window.model import convolution, dropout, encoder, tonality


class _Attention(torch.autograd.Function):
    """Shapes of a fused attention kernel; its output has frames before heads in memory, as those have."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, heads, frames, width = q.shape
        out = q.new_empty(n, frames, heads, width).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_empty((n, heads, frames), dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class _Windows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, window: int, x: Tensor, start: Tensor, *rest: Tensor) -> Tensor:
        ctx.save_for_backward(x, start, *rest)
        return x.new_empty(*start.shape, x.shape[1], window)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, *(torch.empty_like(t) for t in ctx.saved_tensors)


def _windowed_tonality(x: Tensor, start: Tensor, *rest: Any, eps: float, restore: str, backend: str) -> Tensor:
    *tensors, window = rest
    return _Windows.apply(window, x, start, *tensors)


@contextlib.contextmanager
def as_on_cuda() -> Iterator[None]:
    """The stand-ins; and values that are asked for are 1 (the original cuts windows by them)."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> Tensor:
        return _Attention.apply(q, k, v)

    def drop(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(x, p, True)[0] if training and p > 0 else x

    with (
        mock.patch.object(F, "scaled_dot_product_attention", attend),
        mock.patch.object(F, "dropout", drop),
        mock.patch.object(tonality, "windowed_tonality", _windowed_tonality),
        mock.patch.object(Tensor, "item", return_value=1.0),
    ):
        yield


def saved_by_module(agent: nn.Module, x: Tensor, y: Tensor, depth: int = 3) -> Counter[str]:
    """Bytes by module (names of at most `depth` parts) of the step `sum(mean(outputs²)) + mean(losses)`."""
    names = {module: ".".join(name.split(".")[:depth]) for name, module in agent.named_modules()}
    own = {t.untyped_storage()._cdata for t in (*agent.parameters(), *agent.buffers(), x, y)}
    kept: dict[int, Tensor] = {}  # keeps each alive, so that no storage takes another's address
    found: Counter[str] = Counter()
    stack = ["the loss"]
    call = nn.Module.__call__

    def named_call(module: nn.Module, *args: Any, **options: Any) -> Any:
        stack.append(names.get(module) or stack[-1])
        try:
            return call(module, *args, **options)
        finally:
            stack.pop()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in kept:
            kept[storage._cdata] = tensor
            found[stack[-1]] += storage.nbytes()
        return tensor

    saving = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with mock.patch.object(nn.Module, "__call__", named_call), saving:  # a module's hooks would make it another one
        outputs, losses, _ = agent(x, y)
        loss = torch.stack(losses).mean() + sum(o.square().mean() for o in outputs)
    loss.backward()
    return found


def on_meta(agent: nn.Module, batch: int, frames: int, *, recompute: bool = False) -> Counter[str]:
    if recompute:
        agent.recompute = True
    agent = agent.to("meta").train()
    x, y = (torch.empty(batch, 128, frames, device="meta") for _ in range(2))
    with as_on_cuda():
        return saved_by_module(agent, x, y)


class _Cut(Exception):
    """The graphs are there: nothing more is to be compiled, nor run."""


def compiled(agent: nn.Module, batch: int, frames: int, keep: str, depth: int = 3) -> Counter[str]:
    """Bytes that a compiled step keeps, by module; `keep` as of `train`."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    from adaptive_window.training.partition import Lean

    agent = agent.train()
    x, y = (torch.zeros(batch, 128, frames) for _ in range(2))  # not on meta, which Dynamo asks for autocast
    found: Counter[str] = Counter()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        outputs, losses, _ = agent(x, y)
        return torch.stack(losses).mean() + sum(o.square().mean() for o in outputs)

    def cut(*args: Any, **kwargs: Any) -> Any:
        forward, backward = (Lean() if keep == "little" else min_cut_rematerialization_partition)(*args, **kwargs)
        held = {node.name for node in forward.graph.find_nodes(op="placeholder")}
        needed = {node.name for node in backward.graph.find_nodes(op="placeholder")} - held
        for node in forward.graph.nodes:
            if node.name in needed and isinstance(value := node.meta["val"], Tensor):
                found[_module_of(node, depth)] += value.nbytes
        raise _Cut

    def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, dropout)[0]

    def yes(x: Tensor) -> bool:  # Dynamo looks into it, which it cannot with a mock
        return True

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=lambda *_: None, partition_fn=cut, decompositions=select_decomp_table())
    with (
        mock.patch.object(encoder, "attention", attend),
        mock.patch.object(dropout, "is_hashed", yes),
        mock.patch.object(convolution, "channels_together", yes),
        mock.patch.object(encoder, "compiles_for_cuda", yes),
        contextlib.suppress(_Cut, torch._dynamo.exc.BackendCompilerFailed),
    ):
        torch.compile(loss, backend=backend, fullgraph=True, dynamic=False)(x, y)
    if not found:
        raise RuntimeError("the step was not cut into a forward and a backward graph")
    return found


def _module_of(node: torch.fx.Node, depth: int) -> str:
    """Name of the innermost module that a node was traced in, of at most `depth` parts."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]).rpartition("']")[2].strip(".") if stack else "of no module"
    return ".".join(path.split(".")[:depth]) or "the agent itself"


def report(original: Counter[str], ours: Counter[str], batch: int) -> dict[str, Any]:
    """Prints both tables, and returns the totals and the tables."""
    for title, counts in (("original", original), ("ours", ours)):
        print_table(title, counts, batch)
    print(f"ours / original: {ours.total() / original.total():.2f}")
    return {
        "batch": batch,
        "dtype": "float32",
        "original_bytes": original.total(),
        "ours_bytes": ours.total(),
        "ratio": ours.total() / original.total(),
        "original_by_module": dict(original),
        "ours_by_module": dict(ours),
    }


def report_compiled(original: Counter[str], by_keep: dict[str, Counter[str]], batch: int) -> dict[str, Any]:
    """Prints what a compiled step keeps beside the original, and returns the totals and the tables."""
    for keep, counts in by_keep.items():
        print_table(f"ours compiled, --keep {keep}", counts, batch)
        print(f"ours compiled, --keep {keep} / original: {counts.total() / original.total():.2f}")
    return {
        **{f"compiled_{keep}_bytes": counts.total() for keep, counts in by_keep.items()},
        **{f"compiled_{keep}_by_module": dict(counts) for keep, counts in by_keep.items()},
    }


def print_table(title: str, counts: Counter[str], batch: int) -> None:
    gib = 2**30
    print(f"{title}: {counts.total() / gib:.2f} GiB kept for the backward pass at B = {batch}, float32")
    for name, size in counts.most_common():
        if size > 0.005 * counts.total():
            print(f"    {size / gib:6.2f}  {name}")
