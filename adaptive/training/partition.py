"""What a compiled step keeps for its backward pass: what takes long to compute, and nothing that is cheap.

PyTorch cuts a step into a forward and a backward graph where it holds the step to be quickest: beside the operands of
attention and of products that nothing else yields, it keeps dropout's masks, and what GELU, dropout and LayerNorm make
of them. `Lean` has these computed again, as the composer does eagerly (`model/lean.py`):

    integers and booleans           dropout's hash, from two seeds
    casts to a wider type           from the narrow
    casts of clips                  from what the caller holds anyway
    what is written for products    GELU and dropout from GELU's input; LayerNorm's output from its normalized input

Of the last, what the backward pass takes first is kept in 16 bits, which costs nothing (`first_taken`); what LeakyReLU
leaves for a convolution is kept in place of what it was made of, which costs no more (`activations`).
No product, convolution, attention or operator of ours runs twice, and no random number is drawn twice. PyTorch's own
`activation_memory_budget` keeps less still, but computes the residual stream of all layers again before the first of
them needs it, so that the most that is allocated falls by half as much.

Importing this module imports PyTorch's compiler, for seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch._inductor
from torch import Tensor, fx
from torch._functorch import config as functorch_config
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.custom_graph_pass import CustomPartitionerFn, get_hash_for_files
from torch.utils.checkpoint import CheckpointPolicy

from . import choices

aten, prims = torch.ops.aten, torch.ops.prims
CASTS = (prims.convert_element_type.default, aten._to_copy.default)
VIEWS = (aten.view.default, aten.expand.default, aten.unsqueeze.default, prims.iota.default)  # and what counts places
PRODUCTS = {aten.mm.default: 0, aten.addmm.default: 1}  # where its left operand is
SHAPES = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.transpose.int,
    aten.permute.default,
)  # of the same elements


def _value(node: fx.Node) -> Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def _shaped(node: Any) -> fx.Node:
    """What the node is, shaped anew."""
    while node.target in SHAPES:
        node = node.args[0]
    return node


def _is_elementwise(node: fx.Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _is_whole(node: fx.Node) -> bool:
    """Integers or booleans."""
    value = _value(node)
    return value is not None and not value.is_floating_point() and not value.is_complex()


def _is_normalized(node: fx.Node) -> bool:
    """Whether it is LayerNorm's input over its deviation: a product by a root for each row."""
    value = _value(node)
    if node.target != aten.mul.Tensor or value is None or not value.is_floating_point():
        return False
    roots = [_value(one) for one in node.all_input_nodes if one.target == aten.rsqrt.default]
    return any(r is not None and r.numel() * value.shape[-1] == value.numel() > r.numel() for r in roots)


def activations(graph: fx.Graph) -> set[fx.Node]:
    """Operands of convolutions that elementwise is made: LeakyReLU's outputs, by whose signs goes its gradient too.

    PyTorch's partition finds them no smaller than what they are made of, and would make them again.
    """
    found = set()
    for node in graph.nodes:
        if node.target == aten.convolution.default:
            operand = _shaped(node.args[0])
            if operand.target != aten.clone.default and _is_elementwise(operand):
                found.add(operand)  # a clone is a clip's, turned
    return found


def policy(node: fx.Node, weights: frozenset[fx.Node] = frozenset()) -> CheckpointPolicy | None:
    """What becomes of a node of the joint graph whatever PyTorch's partition says; None leaves it to that.

    A weight's cast is kept: it is small, and to cast them all again takes a launch each.
    """
    value = _value(node)
    if node.op != "call_function" or value is None:
        return None
    if node.target in CASTS and isinstance(node.args[0], fx.Node):
        source = _value(node.args[0])
        if node.args[0] in weights:
            return CheckpointPolicy.MUST_SAVE
        wider = source is not None and source.dtype.itemsize < value.dtype.itemsize
        return CheckpointPolicy.PREFER_RECOMPUTE if wider or node.args[0].op == "placeholder" else None
    if _is_normalized(node):
        return CheckpointPolicy.MUST_SAVE
    elementwise = _is_elementwise(node) or node.target in VIEWS
    whole = elementwise and value.numel() > 1 and all(_is_whole(one) for one in (node, *node.all_input_nodes))
    return CheckpointPolicy.PREFER_RECOMPUTE if whole else None


def first_taken(graph: fx.Graph) -> list[fx.Node]:
    """Operands of the forward pass's last products, from the last of the largest on, which elementwise is made.

    The backward pass holds most when it comes to that one: kept or made again, it is there, beside its gradient. Until
    then the room for the two is free for all of these, if they are no more than half as much again as the largest.
    Only where they have 16 bits: in float32 they would be a twentieth of what the original keeps, and beyond the bar.
    """
    backward: set[fx.Node] = set()
    operands = []
    for node in graph.nodes:
        if (node.op == "placeholder" and "tangents" in str(node.target)) or not backward.isdisjoint(
            node.all_input_nodes
        ):
            backward.add(node)
        elif node.target in PRODUCTS:
            operand = _shaped(node.args[PRODUCTS[node.target]])
            value = _value(operand)
            if _is_elementwise(operand) and value is not None and value.dtype.itemsize <= 2:
                operands.append(operand)
    sizes = [value.nbytes if (value := _value(operand)) is not None else 0 for operand in operands]
    if not sizes:
        return []
    last = max(place for place, size in enumerate(sizes) if size == max(sizes))
    return operands[last:] if 2 * sum(sizes[last:]) <= 3 * max(sizes) else []


class Lean(CustomPartitionerFn):
    """A partition for `torch.compile(..., options={"custom_partitioner_fn": Lean()})`."""

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        choices.choose()  # in the thread that compiles
        inputs = gm.graph.find_nodes(op="placeholder")
        weights = frozenset(inputs[i] for i in kwargs.get("static_lifetime_input_indices") or ())
        kept = {*first_taken(gm.graph), *activations(gm.graph)}
        for node in gm.graph.nodes:
            found = CheckpointPolicy.MUST_SAVE if node in kept else policy(node, weights)
            if _is_whole(node) and not kept.isdisjoint(node.all_input_nodes):
                found = CheckpointPolicy.PREFER_RECOMPUTE  # signs
            if "recompute" not in node.meta and found:  # else checkpointing has said so
                node.meta["recompute"] = found
        # the rule that keeps what a product of the backward pass needs to have written out
        with functorch_config.patch(ban_recompute_materialized_backward=False):
            return min_cut_rematerialization_partition(gm, joint_inputs, **{"compiler": "inductor", **kwargs})

    def uuid(self) -> Any:
        return get_hash_for_files((__file__, choices.__file__))


def lean_options(device: str = "cuda") -> dict[str, Any]:
    """`options` of `torch.compile` for a step that keeps little, with what TorchInductor needs for its kernels then.

    realize_opcount_threshold      a mask's hash is more operations than it puts into one kernel with what uses them;
                                   written out, it would be four bytes an element
    triton.mix_order_reduction,    one kernel for LayerNorm's gradients of input and weights, and one for many casts, as
    combo_kernels                  `choices` lays them out; laid out otherwise, two kernels for LayerNorm's are quicker
    allow_buffer_reuse             CUDA's allocator gives a freed block to what comes next; TorchInductor holds it for
                                   the next tensor of that size (on CPUs new memory costs time: there it may)
    """
    options = {
        "realize_opcount_threshold": 100,
        **(choices.OPTIONS if choices.choose() else {"triton.mix_order_reduction": False}),
        "allow_buffer_reuse": device != "cuda",
    }
    known = torch._inductor.list_options()
    return {"custom_partitioner_fn": Lean(), **{name: value for name, value in options.items() if name in known}}
