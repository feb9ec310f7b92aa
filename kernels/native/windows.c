/* The CPU kernels, for float and double: plain C, called by address (library.py) from launch.py.
 *
 * Rows are frames: a window is [W, C] with its channels side by side, so every inner loop runs along channels, without a
 * gather. What is a matrix product is left to PyTorch, whose library is the faster; everything between two products is
 * one pass here, over few windows at a time, so that rows stay in the cache. `rows.h` has the arithmetic of rows,
 * `stages.h` the passes, which alone know of threads.
 *
 * Results do not depend on the number of threads: sums over frames are kept per tile of TILE frames and added up by the
 * caller. Nothing here allocates, and nothing checks: `left` must lie in [0, T).
 */

#include <math.h>
#include <stdint.h>

typedef int64_t i64;

const char *sources(void) { return SOURCES; } /* a digest of these files, set by setup.py */

#define TILE 64     /* frames that share one set of partial sums; launch.py allocates by it */
#define LINE 16     /* frames turned at once: a cache line of float */
#define SLICE 32    /* channels that one thread adds up into dx rows */
#define MAX_TAPS 31 /* K at most: weights of a block of channels held on the stack */

#define INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#ifdef __AVX2__
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (INDICES){__VA_ARGS__})
#endif

#define REAL float
#define INDEX int32_t
#define SQRT sqrtf
#define NAME(name) name##_f32
#define LANES (VECTOR_BYTES / 4)
#if VECTOR_BYTES == 32
#define STAGES 3
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define STAGES 2
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif
#include "rows.h"
#include "stages.h"

#undef REAL
#undef INDEX
#undef SQRT
#undef NAME
#undef LANES
#undef STAGES
#undef LOW
#undef HIGH

#define REAL double
#define INDEX int64_t
#define SQRT sqrt
#define NAME(name) name##_f64
#define LANES (VECTOR_BYTES / 8)
#if VECTOR_BYTES == 32
#define STAGES 2
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#else
#define STAGES 1
#define LOW 0, 2
#define HIGH 1, 3
#endif
#include "rows.h"
#include "stages.h"
