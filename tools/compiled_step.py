"""TorchInductor's code for a training step on a GPU that is not there: agent, losses and backward pass.

The graphs are cut and lowered as `torch.compile` does it with the options of `train`; agent and clips are tensors
without memory, and what is called by name (products, convolutions, attention, our own operators) is not looked into.
`absent_gpu.load` and `pretend` come before.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

CHANNELS, FRAMES = 128, 1200


class _Made(Exception):
    """The code is there, and is not run."""


class Step(NamedTuple):
    forward: str  # TorchInductor's code
    backward: str


def _attention(precision: str) -> Any:
    from adaptive_window.model.attention_tf32 import tf32_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
        if precision == "tf32":
            return tf32_attention(q, k, v, dropout)
        return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, dropout, False, False)[0]

    return attention


@contextlib.contextmanager
def _as_compiled_for_cuda(precision: str) -> Iterator[None]:
    """The agent takes the ways that it takes where it is compiled for CUDA, with cuDNN's attention and convolutions."""
    from adaptive_window.model import encoder, tonality

    native: Any = torch._C

    def layout(x: Tensor, weight: Tensor, backend: object) -> Any:
        both = (x, weight)
        last = x.dim() == 4 and any(t.is_contiguous(memory_format=torch.channels_last) for t in both)
        return torch.channels_last if last else torch.contiguous_format

    with (
        mock.patch.object(torch.compiler, "is_compiling", return_value=True),
        mock.patch.object(encoder, "attention", _attention(precision)),
        mock.patch.object(encoder, "is_plain", return_value=True),  # of fake weights
        mock.patch.object(tonality, "is_plain", return_value=True),
        mock.patch.object(native, "_select_conv_backend", return_value=native._ConvBackend.Cudnn),
        mock.patch.object(native, "_conv_determine_backend_memory_format", layout),
    ):
        yield


def _fake(agent: nn.Module, mode: Any) -> nn.Module:
    """The agent on CUDA, without memory."""
    with mode:
        for module in agent.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    made = torch.empty(weight.shape, dtype=weight.dtype, device="cuda")
                    module._parameters[name] = nn.Parameter(made)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    return agent.train()


def generate(precision: str, batch: int, keep: str, agent: nn.Module) -> Step:
    """TorchInductor's code for the step, forward and backward.

    Args:
        precision: "bf16" (autocast) or "tf32".
        batch: B.
        keep: "little" or "all", as of `train`.
        agent: gets weights without memory.
    """
    import torch._inductor.config as inductor
    from torch._functorch.aot_autograd import aot_function
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import _recursive_joint_graph_passes, compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode

    from adaptive_window.training.partition import lean_options

    if precision == "tf32":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    options = lean_options("cuda") if keep == "little" else {}
    partition = options.pop("custom_partitioner_fn", min_cut_rematerialization_partition)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    _fake(agent, mode)
    with mode:
        clips = [torch.empty(batch, CHANNELS, FRAMES, device="cuda") for _ in range(2)]
    state = {**dict(agent.named_parameters()), **dict(agent.named_buffers())}
    held = list(range(len(state)))

    def loss(*given: Tensor) -> tuple[Tensor]:
        *weights, x, y = given
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bf16"):
            named = dict(zip(state, weights, strict=True))
            outputs, losses, _ = torch.func.functional_call(agent, named, (x, y))
        return (torch.stack(losses).mean() + sum(o.float().square().mean() for o in outputs),)

    graphs: list[Any] = []
    codes: list[str] = []

    def cut(joint: Any, inputs: Any, **kwargs: Any) -> Any:
        _recursive_joint_graph_passes(joint)
        settings = {**kwargs, "static_lifetime_input_indices": held, "compiler": "inductor"}
        graphs.extend(partition(joint, inputs, **settings))
        return tuple(graphs)

    def lower(gm: Any, example_inputs: Any) -> Any:
        is_backward = bool(codes)
        static = [] if is_backward else held
        return compile_fx_inner(
            gm, example_inputs, is_backward=is_backward, static_input_idxs=static, graph_id=len(codes)
        )

    def run(*args: Any) -> Any:
        raise _Made

    def keep_code(lowering: Any) -> Any:
        made, _ = lowering.codegen()
        codes.append(getattr(made, "value", made))
        return types.SimpleNamespace(call=run, __file__=__file__, key=str(len(codes)), runner=None)

    settings = {**options, "benchmark_kernel": True, "force_disable_caches": True, "compile_threads": 1}
    context = TracingContext(mode)
    with (
        inductor.patch(**settings),
        mock.patch.object(GraphLowering, "compile_to_module", keep_code),
        _as_compiled_for_cuda(precision),
        V.set_fake_mode(mode),
        tracing(context),
        mode,
    ):
        step = aot_function(
            loss,
            fw_compiler=lower,
            bw_compiler=lower,
            partition_fn=cut,
            decompositions=select_decomp_table(),
            keep_inference_input_mutations=True,
        )
        with contextlib.suppress(_Made):
            step(*state.values(), *clips)
        if len(codes) == 1:
            inputs = [node.meta["val"] for node in graphs[1].graph.find_nodes(op="placeholder")]
            lower(graphs[1], inputs)
    if len(codes) != 2:
        raise RuntimeError(f"TorchInductor made {len(codes)} of the step's two modules")
    return Step(*codes)
