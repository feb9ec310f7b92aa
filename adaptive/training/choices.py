"""What TorchInductor is told about the kernels that it makes for a training step.

**LayerNorm's backward pass.** One kernel can make the gradient of the input, by sums over rows, and those of weight and
bias, by sums over columns, from one reading of what all three need (`mix_order_reduction`). TorchInductor gives rows of
up to 512 to two warps in blocks of four. Rows are then divided between the warps, every partial sum over columns goes
through shared memory, and that is what the kernel waits for: 480 us on an H100 (76,800 rows of 512) where its bytes
take 225. In blocks of two rows each warp has half of the columns, and only a row's two sums are exchanged.

**Sums over blocks of rows.** With the gradient of a bias one kernel writes what it sums over a block's rows
(`model/bias.py`). TorchInductor times blocks of 1 to 128 columns there, in eight warps, which meet in shared memory for
every column. Here 64 columns, 128 bytes, are four warps'.

**Small kernels.** Casts of weights and of their gradients are a hundred launches of two microseconds each. Those that
do not wait for each other become one (`combo_kernels`); without `grouped`, large kernels would be taken in as well.

In a thread and a process that have taken these choices, TorchInductor's own hold for all that is compiled without
`OPTIONS`.
"""

from __future__ import annotations

from typing import Any

import torch._inductor.config
from torch._inductor.choices import InductorChoices
from torch._inductor.codegen.triton import FixedTritonConfig
from torch._inductor.custom_graph_pass import get_hash_for_files
from torch._inductor.dependencies import MemoryDep
from torch._inductor.scheduler import ForeachKernelSchedulerNode, FusedSchedulerNode, SchedulerNode
from torch._inductor.virtualized import V

from ..model.bias import ROWS as ROWS_OF_BLOCK

SPLIT = 98  # rows of a program: 784 programs at 96 windows of 800 frames, which an H100 (132 x 6) runs all at once
ROWS = 2  # at a time
COLUMNS = 256  # of a warp: 8 of a thread
BLOCK = {"XBLOCK": 64, "num_warps": 4, "num_stages": 1}  # of sums over a block's rows
TOGETHER = 16  # small kernels at most that become one
SMALL = 2**21  # elements: some 5 us; the largest weight has 2**20
READS = 8  # a mean over frames is elementwise too, of everything that it reads
OPTIONS: dict[str, Any] = {
    "triton.mix_order_reduction": True,
    "triton.mix_order_reduction_split_size": SPLIT,
    "combo_kernels": True,
    "combo_kernels_autotune": 0,  # by the same blocks every time
}


def _wanted() -> bool:
    """Whether what is being compiled is compiled with `OPTIONS`."""
    return torch._inductor.config.triton.mix_order_reduction_split_size == SPLIT


def _sums_blocks(features: Any) -> bool:
    """Whether a kernel writes what it sums, over a block of rows."""
    if features.reduction_numel not in (ROWS_OF_BLOCK, 2 * ROWS_OF_BLOCK):
        return False
    nodes = [node for node in features.node_schedule if isinstance(node, SchedulerNode)]
    whole = features.numel * features.reduction_numel
    writes = any(
        not node.is_reduction() and made.node.get_numel() == whole for node in nodes for made in node.get_outputs()
    )
    read = [
        dep for node in nodes if node.is_reduction() for dep in node.read_writes.reads if isinstance(dep, MemoryDep)
    ]
    return writes and bool(read) and all(dep.index.coeff(dep.var_names[-1]) != 1 for dep in read if dep.var_names)


class Choices(InductorChoices):
    """TorchInductor's own, but for rows of 256 to 512 that are summed both ways, and for sums over blocks of rows."""

    def triton_kernel_kwargs(self, kernel_cls: Any, features: Any, groups: Any, kernel_kwargs: Any) -> dict[str, Any]:
        if _wanted() and not kernel_kwargs.get("mix_order_reduction") and _sums_blocks(features):
            return {**kernel_kwargs, "fixed_config": FixedTritonConfig(BLOCK)}
        width = int(features.reduction_numel) if features.reduction_numel.is_Integer else 0
        if not kernel_kwargs.get("mix_order_reduction") or not _wanted() or not COLUMNS <= width <= 2 * COLUMNS:
            return super().triton_kernel_kwargs(kernel_cls, features, groups, kernel_kwargs)
        warps = 1 if width == COLUMNS else 2
        fixed = {"XBLOCK": ROWS, "RSPLIT_SIZE": SPLIT, "NUM_STAGES": 1, "num_warps": warps, "num_stages": 1}
        return {**kernel_kwargs, "fixed_config": FixedTritonConfig(fixed)}

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,))


_torchs = ForeachKernelSchedulerNode.group_algorithm_for_combo_kernels


def _is_small(node: Any) -> bool:
    """Elementwise, of few elements, and changes nothing in place."""
    if not isinstance(node, (SchedulerNode, FusedSchedulerNode)) or node.is_reduction():
        return False
    if len(node.read_writes.reads) > READS:
        return False
    sizes = [made.node.get_numel() for made in node.get_outputs()]
    return not node.has_aliasing_or_mutation() and all(size.is_Integer and size <= SMALL for size in sizes)


def _is_first(node: Any) -> bool:
    """Whether it needs nothing that the graph makes."""
    return not node.ancestors


def _is_last(node: Any) -> bool:
    """Whether nothing else in the graph needs it."""
    return all(use.get_name() == "OUTPUT" for made in node.get_outputs() for use in made.users)


def _lists(nodes: list[Any]) -> list[list[Any]]:
    return [nodes[start : start + TOGETHER] for start in range(0, len(nodes), TOGETHER)]


def grouped(scheduler: Any) -> Any:
    """Lists of nodes, none of which needs another of its list; each list becomes one kernel.

    TorchInductor's lists are of up to 8 nodes that are equally deep in the graph, and of these the small ones stay.
    Those that need nothing of the graph, such as a weight's cast, become lists of their own, and so do those that
    nothing else needs, such as a gradient's cast. A list comes where the first of its nodes was, before what is in
    between; all of the last would so be waited for by products that free what they read, and the most that is allocated
    would rise (by 0.2 GiB at B = 32). The last come where the last of their list was.
    """
    groups = _torchs(scheduler)
    if not _wanted():
        return groups
    small = [[node for node in group if _is_small(node)] for group in groups]
    first = [node for group in small for node in group if _is_first(node)]
    others = [[node for node in group if not _is_first(node)] for group in small]
    last = _lists(
        sorted((node for group in others for node in group if _is_last(node)), key=lambda node: node.min_order)
    )
    for nodes in last:
        order = max(node.min_order for node in nodes)
        for node in nodes:
            node.min_order = order
    return [*([node for node in group if not _is_last(node)] for group in others), *_lists(first), *last]


def choose() -> bool:
    """Takes the place of TorchInductor's choices in this thread; False where somebody else's have taken it."""
    if ForeachKernelSchedulerNode.group_algorithm_for_combo_kernels is _torchs:
        ForeachKernelSchedulerNode.set_group_algorithm_for_combo_kernels(grouped)
    if type(V.choices) is InductorChoices:
        V.set_choices_handler(Choices())
    return type(V.choices) is Choices and ForeachKernelSchedulerNode.group_algorithm_for_combo_kernels is grouped
