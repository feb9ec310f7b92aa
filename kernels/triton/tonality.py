"""Device functions of the tonality transform, and the kernel that prepares its pointwise weight.

Tiles are time-major, `[BLOCK_T, channels]`: lanes of a warp lie along frames, as the clips do in memory.

Centring
--------
LayerNorm takes the mean over channels out of u = A·(conv + d) + b, with A the pointwise weight, d and b the biases.
That mean is itself linear in conv, so it can be taken out of A and b beforehand:

    A' = A − mean over its rows (outputs),   b' = (A·d + b) − mean of it,   u' = A'·conv + b' = u − mean_c u

u' has mean zero exactly (in real arithmetic), so a frame's variance is mean_c u'², and LayerNorm's backward has one
reduction less. The gradients fold back: dA = G − mean over rows of G with G = dA' + db'·dᵀ, since Σ_frames du' = db'
reaches A through d as well; dd = A'ᵀ·db'; db = db' − mean db' (`windowed_tonality_backward` states it in full).

Precision of the product
------------------------
`"ieee"` and `"fp64"`: as is. `"tf32"`: tensor cores, 10 bits of mantissa. `"bf16"`: operands rounded to bfloat16.
`"bf16x3"`: each operand as the sum of two bfloat16 numbers, hi + lo, and three of the four products. Each operand then
has 17 bits, and the product left out is of the size of the last one: a relative error of up to 3·2⁻¹⁸ = 1.1e-5 (twice
that where two products follow one another, backward), some twenty times that of true float32. The fourth product alone
would not mend it. All accumulate in float32 (`"fp64"` in float64).

Three TF32 products (22 bits) would be as exact as float32; as of now they do not fit: 40.5 instructions per output
forward in Triton 3.6, and backward either spills or exceeds the shared memory of sm_90.
"""

import triton
import triton.language as tl


@triton.jit
def depthwise(y, c, j, weight_ptr, K: tl.constexpr, PADDED: tl.constexpr, BLOCK_C: tl.constexpr):
    """z[j] = Σ_k weight[k]·y[j + k − K // 2] within a tile [BLOCK_T, BLOCK_C], without bias; weight is [K, PADDED].

    Frames are fetched from the neighbouring rows of the tile, which wraps around: the first and last K // 2 rows of z
    are meaningless, and tiles overlap accordingly. BLOCK_T is a power of two.
    """
    BLOCK_T: tl.constexpr = y.shape[0]
    z = y * tl.load(weight_ptr + (K // 2) * PADDED + c)[None, :]
    for k in tl.static_range(K):
        if k != K // 2:
            row = (j + (k - K // 2)) & (BLOCK_T - 1)
            shifted = tl.gather(y, tl.broadcast_to(row[:, None], (BLOCK_T, BLOCK_C)), 0)
            z += tl.load(weight_ptr + k * PADDED + c)[None, :] * shifted
    return z


@triton.jit
def split(a, PRECISION: tl.constexpr):
    """(hi, lo): what `multiply` takes for one operand; lo is meant only for "bf16x3"."""
    if PRECISION == "bf16x3":
        hi = a.to(tl.bfloat16)
        return hi, (a - hi.to(tl.float32)).to(tl.bfloat16)
    elif PRECISION == "bf16":
        hi = a.to(tl.bfloat16)
        return hi, hi
    else:
        return a, a


@triton.jit
def multiply(a_hi, a_lo, b_hi, b_lo, acc, PRECISION: tl.constexpr):
    """acc + a @ b, operands as `split` gives them."""
    if PRECISION == "bf16x3":
        acc = tl.dot(a_hi, b_lo, acc)
        acc = tl.dot(a_lo, b_hi, acc)
        return tl.dot(a_hi, b_hi, acc)
    elif PRECISION == "bf16":
        return tl.dot(a_hi, b_hi, acc)
    elif PRECISION == "fp64":
        return tl.dot(a_hi, b_hi, acc, out_dtype=tl.float64)
    else:
        return tl.dot(a_hi, b_hi, acc, input_precision=PRECISION)


@triton.jit
def prepare_weights(
    depthwise_weight_ptr,  # [C, 1, K]
    depthwise_bias_ptr,  # d [C]
    pointwise_weight_ptr,  # A [C, C]
    pointwise_bias_ptr,  # b [C]
    norm_weight_ptr,  # [C]
    norm_bias_ptr,
    depthwise_ptr,  # out: [K, PADDED]
    hi_ptr,  # out: A' [PADDED, PADDED] (output, input), in the dtype the product takes
    lo_ptr,  # out: A' − hi, only for "bf16x3"
    vectors_ptr,  # out: [3, PADDED]: b', norm_weight, norm_bias
    C: tl.constexpr,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Widen to COMPUTE, pad with zeros, centre, fold and split, in one launch of PADDED // BLOCK + 1 programs.

    Each takes BLOCK input channels of A; the last one the per-channel numbers.
    """
    n = tl.program_id(0)
    row = tl.arange(0, PADDED)
    real = row < C
    if n < PADDED // BLOCK:
        column = n * BLOCK + tl.arange(0, BLOCK)
        mask = real[:, None] & (column < C)[None, :]
        a = tl.load(pointwise_weight_ptr + row[:, None] * C + column[None, :], mask=mask, other=0.0).to(COMPUTE)
        a = tl.where(mask, a - (tl.sum(a, 0) / C)[None, :], 0.0)
        hi, lo = split(a, PRECISION)
        offsets = row[:, None] * PADDED + column[None, :]
        tl.store(hi_ptr + offsets, hi)
        if PRECISION == "bf16x3":
            tl.store(lo_ptr + offsets, lo)
    else:
        square = row[:, None] * C + row[None, :]  # Triton wants one type per name across branches: not `a` again
        whole = tl.load(pointwise_weight_ptr + square, mask=real[:, None] & real[None, :], other=0.0).to(COMPUTE)
        d = tl.load(depthwise_bias_ptr + row, mask=real, other=0.0).to(COMPUTE)
        b = tl.load(pointwise_bias_ptr + row, mask=real, other=0.0).to(COMPUTE) + tl.sum(whole * d[None, :], 1)
        tl.store(vectors_ptr + row, tl.where(real, b - tl.sum(b, 0) / C, 0.0))
        gamma = tl.load(norm_weight_ptr + row, mask=real, other=0.0).to(COMPUTE)
        beta = tl.load(norm_bias_ptr + row, mask=real, other=0.0).to(COMPUTE)
        tl.store(vectors_ptr + PADDED + row, gamma)
        tl.store(vectors_ptr + 2 * PADDED + row, beta)
        for k in tl.static_range(K):
            tap = tl.load(depthwise_weight_ptr + row * K + k, mask=real, other=0.0).to(COMPUTE)
            tl.store(depthwise_ptr + k * PADDED + row, tap)
