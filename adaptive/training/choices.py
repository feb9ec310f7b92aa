"""How TorchInductor is told to lay out the kernel of LayerNorm's backward pass.

One kernel can make the gradient of the input, by sums over rows, and those of weight and bias, by sums over columns,
from one reading of what all three need (`mix_order_reduction`). TorchInductor gives rows of up to 512 to two warps in
blocks of four. The rows are then divided between the warps, every partial sum over columns goes through shared memory,
and that is what the kernel waits for: 480 us on an H100 (76,800 rows of 512) where its bytes take 225. In blocks of two
rows each warp has half of the columns, and only a row's two sums are exchanged.

The choices of a thread are TorchInductor's own but for these kernels, and for these where `SPLIT` is asked for.
"""

from __future__ import annotations

from typing import Any

import torch._inductor.config
from torch._inductor.choices import InductorChoices
from torch._inductor.codegen.triton import FixedTritonConfig
from torch._inductor.custom_graph_pass import get_hash_for_files
from torch._inductor.virtualized import V

SPLIT = 80  # rows of a program: 960 programs at 96 windows of 800 frames, which an H100 (132 x 8) runs all at once
ROWS = 2  # at a time
COLUMNS = 256  # of a warp: 8 of a thread


class Choices(InductorChoices):
    """TorchInductor's own, but for rows of 256 to 512 that are summed both ways."""

    def triton_kernel_kwargs(self, kernel_cls: Any, features: Any, groups: Any, kernel_kwargs: Any) -> dict[str, Any]:
        split = torch._inductor.config.triton.mix_order_reduction_split_size
        width = int(features.reduction_numel) if features.reduction_numel.is_Integer else 0
        if not kernel_kwargs.get("mix_order_reduction") or split != SPLIT or not COLUMNS <= width <= 2 * COLUMNS:
            return super().triton_kernel_kwargs(kernel_cls, features, groups, kernel_kwargs)
        warps = 1 if width == COLUMNS else 2
        fixed = {"XBLOCK": ROWS, "RSPLIT_SIZE": split, "NUM_STAGES": 1, "num_warps": warps, "num_stages": 1}
        return {**kernel_kwargs, "fixed_config": FixedTritonConfig(fixed)}

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,))


def choose() -> bool:
    """Makes these the choices of this thread; False where somebody else's take their place."""
    if type(V.choices) is InductorChoices:
        V.set_choices_handler(Choices())
    return type(V.choices) is Choices
