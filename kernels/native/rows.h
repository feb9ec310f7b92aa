/* Arithmetic of rows, one thread. A template: REAL, LANES, NAME and the shuffles come from windows.c. */

#define VEC NAME(vec)
#define INDICES NAME(indices)
typedef REAL VEC __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef INDEX INDICES __attribute__((vector_size(LANES * sizeof(REAL))));
#define AT(p) (*(VEC *)(p))

/* to[j][i] = from[i][j] for LANES x LANES values: every stage interleaves row i with row i + LANES / 2. */
INLINE void NAME(turn_block)(i64 stride_from, i64 stride_to, const REAL *restrict from, REAL *restrict to) {
    VEC rows[LANES], mixed[LANES];
    for (int i = 0; i < LANES; i++) rows[i] = AT(from + i * stride_from);
    for (int stage = 0; stage < STAGES; stage++) {
        for (int i = 0; i < LANES / 2; i++) {
            mixed[2 * i] = SHUFFLE(rows[i], rows[i + LANES / 2], LOW);
            mixed[2 * i + 1] = SHUFFLE(rows[i], rows[i + LANES / 2], HIGH);
        }
        for (int i = 0; i < LANES; i++) rows[i] = mixed[i];
    }
    for (int i = 0; i < LANES; i++) AT(to + i * stride_to) = rows[i];
}

/* to[j * stride_to + i] = from[i * stride_from + j] for i < rows, j < columns. */
static void NAME(turn_rows)(i64 rows, i64 columns, i64 stride_from, i64 stride_to, const REAL *restrict from,
                            REAL *restrict to) {
    i64 whole_rows = rows / LANES * LANES, whole_columns = columns / LANES * LANES;
    for (i64 j = 0; j < whole_columns; j += LANES)
        for (i64 i = 0; i < whole_rows; i += LANES)
            NAME(turn_block)(stride_from, stride_to, from + i * stride_from + j, to + j * stride_to + i);
    for (i64 j = 0; j < columns; j++)
        for (i64 i = j < whole_columns ? whole_rows : 0; i < rows; i++) to[j * stride_to + i] = from[i * stride_from + j];
}

/* y = (1 - f) * left + f * right */
INLINE void NAME(interpolate)(i64 C, REAL f, const REAL *restrict left, const REAL *restrict right, REAL *restrict y) {
    for (i64 c = 0; c < C; c++) y[c] = (1 - f) * left[c] + f * right[c];
}

/* dy/dp summed over channels: dp = sum of dy * (right - left) */
INLINE REAL NAME(slope)(i64 C, const REAL *restrict dy, const REAL *restrict left, const REAL *restrict right) {
    REAL sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 c = 0; c < C; c++) sum += dy[c] * (right[c] - left[c]);
    return sum;
}

INLINE void NAME(add_scaled)(i64 C, REAL f, const REAL *restrict d, REAL *restrict sum) {
    for (i64 c = 0; c < C; c++) sum[c] += f * d[c];
}

/* Depthwise convolution, frames [t0, t1), two vectors of channels from c: out[t] (+)= sum over k of
 * taps[k] * in[t + k - K/2], zero beyond [0, W). Turned, the taps are read from the last: the adjoint. */
INLINE void NAME(convolve_block)(const i64 K, i64 t0, i64 t1, i64 W, i64 C, int turned, int add,
                                 const REAL *restrict taps, const REAL *restrict in, REAL *restrict out) {
    const i64 half = K / 2;
    VEC w0[MAX_TAPS], w1[MAX_TAPS];
    for (i64 k = 0; k < K; k++) {
        const REAL *tap = taps + (turned ? K - 1 - k : k) * C;
        w0[k] = AT(tap), w1[k] = AT(tap + LANES);
    }
    for (i64 t = t0; t < t1; t++) {
        const REAL *row = in + (t - half) * C;
        REAL *to = out + t * C;
        VEC a = {0}, b = {0};
        if (add) a = AT(to), b = AT(to + LANES);
        if (t >= half && t < W - half)
            for (i64 k = 0; k < K; k++) a += w0[k] * AT(row + k * C), b += w1[k] * AT(row + k * C + LANES);
        else
            for (i64 k = MAX(half - t, 0); k < MIN(W + half - t, K); k++)
                a += w0[k] * AT(row + k * C), b += w1[k] * AT(row + k * C + LANES);
        AT(to) = a, AT(to + LANES) = b;
    }
}

static void NAME(convolve_rows)(i64 K, i64 t0, i64 t1, i64 W, i64 C, int turned, int add, const REAL *restrict taps,
                                const REAL *restrict in, REAL *restrict out) {
    i64 c = 0;
    for (; c + 2 * LANES <= C; c += 2 * LANES)
        if (K == 7) /* a constant: the taps' loop is unrolled and its weights stay in registers */
            NAME(convolve_block)(7, t0, t1, W, C, turned, add, taps + c, in + c, out + c);
        else
            NAME(convolve_block)(K, t0, t1, W, C, turned, add, taps + c, in + c, out + c);
    for (i64 t = t0; t < t1; t++)
        for (i64 rest = c; rest < C; rest++) {
            REAL sum = add ? out[t * C + rest] : 0;
            for (i64 k = MAX(K / 2 - t, 0); k < MIN(W + K / 2 - t, K); k++)
                sum += taps[(turned ? K - 1 - k : k) * C + rest] * in[(t + k - K / 2) * C + rest];
            out[t * C + rest] = sum;
        }
}

/* The taps' gradient of the same block: dtaps[k] = sum over t in [t0, t1) of dz[t] * y[t + k - K/2]. */
INLINE void NAME(correlate_block)(const i64 K, i64 t0, i64 t1, i64 W, i64 C, const REAL *restrict y,
                                  const REAL *restrict dz, REAL *restrict dtaps) {
    const i64 half = K / 2;
    VEC a[MAX_TAPS], b[MAX_TAPS];
    for (i64 k = 0; k < K; k++) a[k] = b[k] = (VEC){0};
    for (i64 t = t0; t < t1; t++) {
        const REAL *row = y + (t - half) * C, *d = dz + t * C;
        VEC d0 = AT(d), d1 = AT(d + LANES);
        if (t >= half && t < W - half)
            for (i64 k = 0; k < K; k++) a[k] += d0 * AT(row + k * C), b[k] += d1 * AT(row + k * C + LANES);
        else
            for (i64 k = MAX(half - t, 0); k < MIN(W + half - t, K); k++)
                a[k] += d0 * AT(row + k * C), b[k] += d1 * AT(row + k * C + LANES);
    }
    for (i64 k = 0; k < K; k++) AT(dtaps + k * C) = a[k], AT(dtaps + k * C + LANES) = b[k];
}

static void NAME(correlate_rows)(i64 K, i64 t0, i64 t1, i64 W, i64 C, const REAL *restrict y, const REAL *restrict dz,
                                 REAL *restrict dtaps) {
    i64 c = 0;
    for (; c + 2 * LANES <= C; c += 2 * LANES)
        if (K == 7) /* as above */
            NAME(correlate_block)(7, t0, t1, W, C, y + c, dz + c, dtaps + c);
        else
            NAME(correlate_block)(K, t0, t1, W, C, y + c, dz + c, dtaps + c);
    for (; c < C; c++)
        for (i64 k = 0; k < K; k++) {
            REAL sum = 0;
            for (i64 t = MAX(t0, K / 2 - k); t < MIN(t1, W + K / 2 - k); t++)
                sum += dz[t * C + c] * y[(t + k - K / 2) * C + c];
            dtaps[k * C + c] = sum;
        }
}

/* mean and sqrt(variance + eps) of a row */
INLINE void NAME(moments_of)(i64 C, REAL eps, const REAL *restrict row, REAL *mean, REAL *spread) {
    REAL sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 c = 0; c < C; c++) sum += row[c];
    const REAL m = sum / C;
#pragma omp simd reduction(+ : square)
    for (i64 c = 0; c < C; c++) square += (row[c] - m) * (row[c] - m);
    *mean = m, *spread = SQRT(square / C + eps);
}

/* u += bias; mean and 1 / sqrt(variance + eps) of the row */
INLINE void NAME(add_bias)(i64 C, REAL eps, const REAL *restrict bias, REAL *restrict u, REAL *mean, REAL *rate) {
    for (i64 c = 0; c < C; c++) u[c] += bias[c];
    NAME(moments_of)(C, eps, u, mean, rate);
    *rate = 1 / *rate;
}

/* y = (1 - s) * y + s * v with v = level + spread * (u - mean) * rate * gamma + beta, in place; level and spread are
 * those of y, or 0 and 1 where they are not restored */
INLINE void NAME(blend_row)(i64 C, REAL s, REAL mean, REAL rate, REAL level, REAL spread, const REAL *restrict u,
                            const REAL *restrict gamma, const REAL *restrict beta, REAL *restrict y) {
    const REAL scale = rate * spread;
    for (i64 c = 0; c < C; c++) y[c] = (1 - s) * y[c] + s * (level + (u[c] - mean) * scale * gamma[c] + beta[c]);
}

/* Its adjoint. g holds the gradient of the blended row and becomes that of y (through the blend alone). With
 * h = (u - mean) * rate and a = s * g * gamma:  du = rate * spread * (a - mean(a) - h * mean(a * h)).  Adds to dgamma,
 * dbeta and dbias (the sum of du); returns ds = sum of g * (v - y). Restored, level and spread are functions of y: to
 * its gradient they add  mean(s * g) + (y - level) / spread * mean(a * h). */
INLINE REAL NAME(blend_row_backward)(i64 C, i64 restored, REAL s, REAL mean, REAL rate, REAL level, REAL spread,
                                     const REAL *restrict u, const REAL *restrict y, const REAL *restrict gamma,
                                     const REAL *restrict beta, REAL *restrict g, REAL *restrict du,
                                     REAL *restrict dgamma, REAL *restrict dbeta, REAL *restrict dbias) {
    const REAL amount = s * spread, scale = rate * spread;
    REAL mean_dv = 0, mean_a = 0, mean_ah = 0, ds = 0;
#pragma omp simd reduction(+ : mean_dv, mean_a, mean_ah, ds)
    for (i64 c = 0; c < C; c++) {
        REAL h = (u[c] - mean) * rate, dv = s * g[c], a = dv * gamma[c];
        dgamma[c] += amount * g[c] * h;
        dbeta[c] += dv;
        mean_dv += dv;
        mean_a += a;
        mean_ah += a * h;
        ds += g[c] * (level + spread * h * gamma[c] + beta[c] - y[c]);
    }
    mean_dv /= C, mean_a /= C, mean_ah /= C;
    for (i64 c = 0; c < C; c++) {
        REAL h = (u[c] - mean) * rate, d = scale * (s * g[c] * gamma[c] - mean_a - h * mean_ah);
        du[c] = d;
        dbias[c] += d;
        g[c] *= 1 - s;
    }
    if (restored)
        for (i64 c = 0; c < C; c++) g[c] += mean_dv + (y[c] - level) * (mean_ah / spread);
    return ds;
}
