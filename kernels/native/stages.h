/* The passes, over threads. A template, as rows.h. y, z, u and their gradients are N windows [N, W, C], the first of
 * which is window `first` of all (P to a clip); clips are [B, T, C], `left` and `fraction` [N, W], taps [K, C]. */

/* [A, R, S] -> [A, S, R] */
void NAME(turn)(i64 threads, i64 A, i64 R, i64 S, const REAL *from, REAL *to) {
    i64 tiles = (S + LINE - 1) / LINE;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 job = 0; job < A * tiles; job++) {
        i64 a = job / tiles, s = job % tiles * LINE;
        NAME(turn_rows)(R, MIN(LINE, S - s), S, R, from + a * R * S + s, to + (a * S + s) * R);
    }
}

/* y: windows cut out of clips and resampled. */
void NAME(cut)(i64 threads, i64 N, i64 P, i64 first, i64 T, i64 W, i64 C, const REAL *clips, const i64 *left,
               const REAL *fraction, REAL *y) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 row = 0; row < N * W; row++) {
        const REAL *clip = clips + (first + row / W) / P * T * C;
        i64 i = left[row], j = MIN(i + 1, T - 1);
        NAME(interpolate)(C, fraction[row], clip + i * C, clip + j * C, y + row * C);
    }
}

/* z: y through the depthwise convolution, without its bias. */
void NAME(convolve)(i64 threads, i64 N, i64 W, i64 C, i64 K, const REAL *taps, const REAL *y, REAL *z) {
    i64 tiles = (W + TILE - 1) / TILE;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 job = 0; job < N * tiles; job++) {
        i64 n = job / tiles, t0 = job % tiles * TILE, t1 = MIN(t0 + TILE, W);
        NAME(convolve_rows)(K, t0, t1, W, C, 0, 0, taps, y + n * W * C, z + n * W * C);
    }
}

/* u: the pointwise product of z, without its bias, which is added here. Blends in y (in place) and writes out,
 * [N, C, W]; keeps the mean and rate of each row of u in moments, [N, W, 2]. */
void NAME(blend)(i64 threads, i64 N, i64 W, i64 C, i64 restore, REAL eps, const REAL *bias, const REAL *strength,
                 const REAL *gamma, const REAL *beta, REAL *u, REAL *y, REAL *out, REAL *moments) {
    i64 tiles = (W + LINE - 1) / LINE;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 job = 0; job < N * tiles; job++) {
        i64 n = job / tiles, t0 = job % tiles * LINE, t1 = MIN(t0 + LINE, W);
        for (i64 row = n * W + t0; row < n * W + t1; row++) {
            REAL *m = moments + 2 * row;
            REAL level = 0, spread = 1;
            if (restore) NAME(moments_of)(C, eps, y + row * C, &level, &spread);
            NAME(add_bias)(C, eps, bias, u + row * C, m, m + 1);
            NAME(blend_row)(C, strength[n], m[0], m[1], level, spread, u + row * C, gamma, beta, y + row * C);
        }
        NAME(turn_rows)(t1 - t0, C, C, W, y + (n * W + t0) * C, out + n * C * W + t0);
    }
}

/* grad: [N, C, W]. du; dy through the blend alone; per tile dgamma, dbeta, dbias in sums, [N, tiles, 3, C], and
 * dstrength, [N, tiles]. */
void NAME(blend_backward)(i64 threads, i64 N, i64 W, i64 C, i64 restore, REAL eps, const REAL *grad, const REAL *u,
                          const REAL *moments, const REAL *y, const REAL *strength, const REAL *gamma,
                          const REAL *beta, REAL *du, REAL *dy, REAL *sums, REAL *dstrength) {
    i64 tiles = (W + TILE - 1) / TILE;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 job = 0; job < N * tiles; job++) {
        i64 n = job / tiles, t0 = job % tiles * TILE, t1 = MIN(t0 + TILE, W);
        REAL ds = 0, *dgamma = sums + job * 3 * C, *dbeta = dgamma + C, *dbias = dbeta + C;
        for (i64 c = 0; c < 3 * C; c++) dgamma[c] = 0;
        for (i64 line = t0; line < t1; line += LINE) {
            i64 end = MIN(line + LINE, t1);
            NAME(turn_rows)(C, end - line, W, C, grad + n * C * W + line, dy + (n * W + line) * C);
            for (i64 row = n * W + line; row < n * W + end; row++) {
                REAL level = 0, spread = 1;
                if (restore) NAME(moments_of)(C, eps, y + row * C, &level, &spread);
                ds += NAME(blend_row_backward)(C, restore, strength[n], moments[2 * row], moments[2 * row + 1], level,
                                               spread, u + row * C, y + row * C, gamma, beta, dy + row * C,
                                               du + row * C, dgamma, dbeta, dbias);
            }
        }
        dstrength[job] = ds;
    }
}

/* dz: the gradient of z. Adds to dy; per tile dtaps, [N, tiles, K, C]. */
void NAME(convolve_backward)(i64 threads, i64 N, i64 W, i64 C, i64 K, const REAL *taps, const REAL *y, const REAL *dz,
                             REAL *dy, REAL *dtaps) {
    i64 tiles = (W + TILE - 1) / TILE;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 job = 0; job < N * tiles; job++) {
        i64 n = job / tiles, t0 = job % tiles * TILE, t1 = MIN(t0 + TILE, W);
        NAME(convolve_rows)(K, t0, t1, W, C, 1, 1, taps, dz + n * W * C, dy + n * W * C);
        NAME(correlate_rows)(K, t0, t1, W, C, y + n * W * C, dz + n * W * C, dtaps + job * K * C);
    }
}

/* dplace: the gradient of each frame's position, [N, W]. */
void NAME(place_backward)(i64 threads, i64 N, i64 P, i64 first, i64 T, i64 W, i64 C, const REAL *clips,
                          const i64 *left, const REAL *dy, REAL *dplace) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 row = 0; row < N * W; row++) {
        const REAL *clip = clips + (first + row / W) / P * T * C;
        i64 i = left[row], j = MIN(i + 1, T - 1);
        dplace[row] = NAME(slope)(C, dy + row * C, clip + i * C, clip + j * C);
    }
}

/* Adds dy to the rows of dclips, [B, T, C], that it came from. Windows of one clip overlap, so a thread takes a slice
 * of channels of all of them: no two threads write one value, and the order of additions is fixed. */
void NAME(cut_backward)(i64 threads, i64 N, i64 P, i64 first, i64 T, i64 W, i64 C, const i64 *left, const REAL *fraction,
                        const REAL *dy, REAL *dclips) {
    i64 slices = (C + SLICE - 1) / SLICE, clip0 = first / P, touched = (first + N - 1) / P - clip0 + 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 job = 0; job < touched * slices; job++) {
        i64 b = clip0 + job / slices, c = job % slices * SLICE, width = MIN(SLICE, C - c);
        i64 begin = MAX(b * P - first, 0), end = MIN((b + 1) * P - first, N);
        REAL *clip = dclips + b * T * C + c;
        for (i64 row = begin * W; row < end * W; row++) {
            i64 i = left[row], j = MIN(i + 1, T - 1);
            NAME(add_scaled)(width, 1 - fraction[row], dy + row * C + c, clip + i * C);
            NAME(add_scaled)(width, fraction[row], dy + row * C + c, clip + j * C);
        }
    }
}
