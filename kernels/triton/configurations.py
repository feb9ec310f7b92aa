"""The fixed table of launch configurations: block sizes and warps per kernel, architecture and precision.

No autotuning: a configuration chosen at run time would change the order of sums, hence the last bits, from run to run.
Rows were chosen by compiling for sm_90 and sm_80 (registers, spills, instructions per output); those timed on a GPU say
so. Architecture 90 stands for 9.0 and later, 80 for 8.x, 0 for Triton's interpreter.

To see what is launched: `launch.record_launches()` around a call, on tensors of device "meta" if nothing is to run;
`launch.use_target(Target(90, 132))` plans for an architecture. `tools.inspect_kernels` compiles what these record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PRECISIONS = {  # of the pointwise product, by the dtype of x; what each means: tonality.py
    "float64": ("fp64",),
    "float32": ("tf32", "bf16x3", "ieee"),
    "bfloat16": ("bf16", "ieee"),
    "float16": ("tf32", "ieee"),  # 10 bits of mantissa as float16 has, and no overflow
}


@dataclass(frozen=True)
class Target:
    """What a call runs on."""

    arch: int  # 90, 80, or 0: interpreted
    processors: int  # streaming multiprocessors: how many persistent programs run at once
    precision: str | None = None  # of the pointwise product; None: as PyTorch is set


@dataclass(frozen=True)
class Configuration:
    constants: Mapping[str, int] = field(default_factory=dict)  # compile-time arguments
    num_warps: int = 4
    num_stages: int = 1  # more would turn gathered loads into 4-byte asynchronous copies
    per_processor: int = 1  # persistent programs that fit


@dataclass(frozen=True)
class Row:
    """A configuration and where it holds; None: everywhere. The first row that matches is taken."""

    configuration: Configuration
    arch: int | None = None
    precision: str | None = None
    padded: int | None = None  # channels, padded
    even: bool | None = None  # rows are whole multiples of 4 frames: elsewhere loads go one by one, in more registers
    frames_apart: bool | None = None  # frames are no neighbours in memory
    resample: bool | None = None  # the source is x, not y
    restore: bool | None = None  # frames get their mean and spread back
    full: bool | None = None  # channels are whole multiples of 64: elsewhere those past the last are masked


def _c(num_warps: int, *, per_processor: int = 1, num_stages: int = 1, **constants: int) -> Configuration:
    return Configuration(constants, num_warps, num_stages, per_processor)


def _forward(
    num_warps: int, frames: int, *, within: bool = True, ahead: int = 4, fetch: int = 4, per_processor: int = 1
) -> Configuration:
    """Of `windowed_tonality_forward`: weights prepared within, and what is read and asked for ahead (4: nothing)."""
    return _c(num_warps, per_processor=per_processor, BLOCK_T=frames, PREPARE=within, AHEAD=ahead, FETCH=fetch)


TABLE: dict[str, tuple[Row, ...]] = {
    "windowed_tonality_forward": (
        Row(_forward(8, 32, within=False), arch=0, precision="fp64"),
        Row(_forward(8, 32, ahead=1, fetch=1), arch=0),
        Row(_forward(8, 32, within=False, ahead=1), precision="fp64", restore=True, full=True),  # else 8 B spill, 3.6
        Row(_forward(8, 32, within=False), precision="fp64"),
        Row(_forward(4, 128, per_processor=2), padded=64),
        Row(_forward(8, 64), arch=80, even=False),
        Row(_forward(8, 64), arch=80, resample=False),
        Row(_forward(8, 64), arch=80, frames_apart=True),
        Row(_forward(8, 64), arch=80, restore=True),  # twice the frames spill 64 B
        Row(_forward(8, 128), frames_apart=True),  # read ahead, 112 B spill in Triton 3.8
        Row(_forward(8, 128, within=False), even=False),
        Row(_forward(8, 128, ahead=1)),
    ),
    "prepare_weights": (Row(_c(8, BLOCK=16)),),
    "recompute_windows": (
        Row(_c(2, BLOCK_T=64, BLOCK_C=64), arch=0),
        Row(_c(2, BLOCK_T=128, BLOCK_C=16), arch=90, precision="bf16"),  # measured: 22.5 us, 23.6 with 4 warps
        Row(_c(4, BLOCK_T=128, BLOCK_C=16), arch=90),  # measured: z in two parts 29.6 us, 31.4 with 2 warps
        Row(_c(2, BLOCK_T=128, BLOCK_C=16)),
    ),
    "norm_blend": (Row(_c(4, BLOCK_T=32, BLOCK_C=64)),),
    "resample_forward": (
        Row(_c(4, BLOCK_T=32, BLOCK_C=64), arch=0),
        Row(_c(4, BLOCK_T=128, BLOCK_C=32), precision="fp64"),
        Row(_c(4, BLOCK_T=128, BLOCK_C=64)),
    ),
    "resample_position_gradient": (
        Row(_c(4, BLOCK_T=32, BLOCK_C=64), arch=0),
        Row(_c(4, BLOCK_T=128, BLOCK_C=16)),
    ),
    "resample_dx": (  # a thread holds one frame of all channels
        Row(_c(4, BLOCK_X=32, BLOCK_C=64), arch=0),
        Row(_c(1, BLOCK_X=32, BLOCK_C=16), precision="fp64"),
        Row(_c(1, BLOCK_X=32, BLOCK_C=32)),
    ),
}

APART = Configuration()  # in the place of `joint_backward`: two kernels

TABLE |= {  # backward; `recompute_windows` and `resample_dx` stand above
    "joint_backward": (
        Row(APART, even=False),
        Row(_c(8, BLOCK_T=32, STAGES=1, WEIGHT_FIRST=False), arch=0),
        Row(APART, arch=80),
        Row(APART, precision="fp64"),
        Row(APART, precision="ieee"),
        Row(_c(8, BLOCK_T=32, STAGES=3, WEIGHT_FIRST=True), precision="bf16", restore=True),
        Row(APART, restore=True),  # spills 40 B
        Row(_c(8, BLOCK_T=32, STAGES=3, WEIGHT_FIRST=False)),  # twice the frames spill 24 B in Triton 3.8
    ),
    "norm_backward": (
        Row(_c(8, BLOCK_T=32, FOLD=4, APART=1, HOIST=False, STAGES=1), arch=0, precision="fp64"),
        Row(_c(8, BLOCK_T=32, FOLD=2, APART=8, HOIST=True, STAGES=1), arch=0),
        Row(_c(8, BLOCK_T=16, FOLD=1, APART=1, HOIST=False, STAGES=1), precision="fp64", even=False),
        Row(_c(8, BLOCK_T=16, FOLD=1, APART=1, HOIST=False, STAGES=1), precision="fp64", restore=True),
        Row(_c(8, BLOCK_T=32, FOLD=4, APART=1, HOIST=False, STAGES=1), precision="fp64"),
        Row(_c(8, BLOCK_T=32, FOLD=4, APART=1, HOIST=False, STAGES=1), even=False),
        Row(_c(8, BLOCK_T=64, FOLD=4, APART=1, HOIST=False, STAGES=1), arch=80),
        Row(_c(4, BLOCK_T=32, FOLD=4, APART=1, HOIST=False, STAGES=2, per_processor=2), precision="bf16"),
        Row(
            _c(4, BLOCK_T=32, FOLD=2, APART=8, HOIST=True, STAGES=3, per_processor=2), precision="bf16x3", restore=False
        ),
        Row(_c(4, BLOCK_T=32, FOLD=2, APART=8, HOIST=False, STAGES=2, per_processor=2)),
    ),
    "product_backward": (
        Row(_c(8, BLOCK_T=32, TURN=False, STAGES=1), arch=0, precision="fp64"),
        Row(_c(8, BLOCK_T=32, TURN=True, STAGES=1), arch=0),
        Row(_c(8, BLOCK_T=32, TURN=False, STAGES=1), precision="fp64"),
        Row(_c(8, BLOCK_T=32, TURN=False, STAGES=1), arch=80, precision="bf16x3"),
        Row(_c(8, BLOCK_T=64, TURN=False, STAGES=1), arch=80),
        Row(_c(8, BLOCK_T=32, TURN=True, STAGES=3), precision="tf32"),
        Row(
            _c(8, BLOCK_T=32, TURN=False, STAGES=3), precision="bf16x3"
        ),  # measured: 54.4 us, 79.9 with twice the frames
        Row(_c(8, BLOCK_T=64, TURN=False, STAGES=3), precision="bf16"),
        Row(_c(8, BLOCK_T=64, TURN=False, STAGES=1)),
    ),
    "wide_norm_backward": (Row(_c(4, BLOCK_T=32, BLOCK_C=64)),),
    "wide_product": (Row(_c(4, BLOCK_T=64, BLOCK_C=64)),),
    "wide_weight": (Row(_c(4, BLOCK_T=64, BLOCK_C=64, per_processor=2)),),
    "finish_places": (Row(_c(4, BLOCK=256)),),
    "finish_gradients": (  # BLOCK_R rows of 128 channels; of more, fewer
        Row(_c(8, BLOCK=256, BLOCK_R=2, STAGES=1), arch=0),  # so few that sums take several passes, the last in part
        Row(_c(8, BLOCK=256, BLOCK_R=4, STAGES=9), precision="fp64"),
        Row(_c(8, BLOCK=256, BLOCK_R=8, STAGES=9)),  # 64 rows on their way: 64 KB of a column's
    ),
    "window_backward": (  # COLUMNS is the number of warps
        Row(_c(4, BLOCK_T=64, BLOCK_C=64, FOLD=4, COLUMNS=4), arch=0),
        Row(_c(8, BLOCK_T=128, BLOCK_C=8, FOLD=4, COLUMNS=8), precision="fp64"),
        Row(_c(4, BLOCK_T=128, BLOCK_C=8, FOLD=1, COLUMNS=1), even=False),  # a thread holds one frame, all channels
        Row(_c(4, BLOCK_T=128, BLOCK_C=8, FOLD=4, COLUMNS=4), frames_apart=True),
        Row(_c(4, BLOCK_T=128, BLOCK_C=16, FOLD=4, COLUMNS=4), arch=80),
        Row(_c(8, BLOCK_T=128, BLOCK_C=32, FOLD=4, COLUMNS=8)),
    ),
}


def configuration(
    kernel: str,
    target: Target,
    precision: str,
    channels: int,
    *frames: int,
    frame_stride: int = 1,
    resample: bool = True,
    restore: bool = False,
) -> Configuration:
    """The first row of the kernel's table that matches.

    Args:
        precision: of the product; "fp64" for float64, whatever the kernel.
        channels, frames: C, and the lengths of the rows that the kernel reads and writes.
        frame_stride: elements from one frame of x (or y) to the next.
        resample: whether it reads x; else y.
        restore: whether frames get their mean and spread back.
    """
    padded = 64 * -(-channels // 64)
    even, full = all(count % 4 == 0 for count in frames), channels % 64 == 0
    for row in TABLE[kernel]:
        wanted = (
            (row.arch, target.arch),
            (row.precision, precision),
            (row.padded, padded),
            (row.even, even),
            (row.frames_apart, frame_stride != 1),
            (row.full, full),
            (row.resample, resample),
            (row.restore, restore),
        )
        if all(mine is None or mine == theirs for mine, theirs in wanted):
            return row.configuration
    raise LookupError(f"no configuration of {kernel} for {target}, {precision}, {channels} channels, {frames} frames")
