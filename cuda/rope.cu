// Rotary position embedding of x[R, heads * 2H] in place (src/cpu/rope.rs), pairs (i, i + H) of each head.
//
//   forward   x[i] <- x[i] cos - x[i+H] sin      x[i+H] <- x[i+H] cos + x[i] sin      angles of positions[r]
//   backward  the inverse rotation: the same with -sin
//
//   kernel       in                                 out             grid                       block  moved
//   rope_fwd_*   x positions[R] cos[P,H] sin[P,H]   x[R,heads*2H]   ceil(R G ceil(H/4) / 256)  256    R H (4 a heads + 8)
//   rope_bwd_*   the same                                                               (a = bytes of act)
//
// A thread turns four pairs of `share` heads of one row by the same angles (G = ceil(heads / share)): the table's row
// is read once for all of them. With many rows a thread takes all heads; with few, fewer, so that the device is not
// idle: table rows come from the second cache, so few heads a thread cost little. f32 moves 128 bits an access, bf16 64: with eight pairs a thread, neighbouring threads would be 32 bytes apart
// in the table and touch twice the sectors they need. Heads whose half is no multiple of 4 are turned pair by pair.
// A position beyond the table is not looked up: its row becomes NaN (the host checks positions before it plans).
#include "vector.cuh"

constexpr int BLOCK = 256;
// Heads that a thread reads before it writes the first: no load passes a store to the same operand.
constexpr u32 HELD = 4;

template <int N, bool INVERSE, typename act>
__device__ __forceinline__ void turn(act *x, const u32 *positions, const float *cos, const float *sin, u32 limit,
                                     u32 rows, u32 heads, u32 half, u32 share) {
    u32 pieces = half / N, groups = (heads + share - 1) / share;
    u32 thread = blockIdx.x * BLOCK + threadIdx.x;
    u32 piece = thread % pieces, group = thread / pieces % groups, row = thread / pieces / groups;
    if (row >= rows) return;
    u32 position = positions[row];
    Numbers<N> c, s;
    if (position < limit) {
        c = read<N>(cos + (u64)position * half + piece * N);
        s = read<N>(sin + (u64)position * half + piece * N);
    } else {
        for (int i = 0; i < N; i++) c[i] = s[i] = nan();
    }
    u32 first = group * share, end = min(heads, first + share);
    act *low = x + ((u64)row * heads + first) * 2 * half + piece * N;
    for (u32 head = first; head < end; head += HELD, low += 2 * HELD * half) {
        Numbers<N> a[HELD], b[HELD];
#pragma unroll
        for (u32 h = 0; h < HELD; h++) {
            if (head + h >= end) break;
            a[h] = read<N>(low + 2 * h * half);
            b[h] = read<N>(low + (2 * h + 1) * half);
        }
#pragma unroll
        for (u32 h = 0; h < HELD; h++) {
            if (head + h >= end) break;
            for (int i = 0; i < N; i++) {
                float sine = INVERSE ? -s[i] : s[i], before = a[h][i];
                a[h][i] = fmaf(before, c[i], -(b[h][i] * sine));
                b[h][i] = fmaf(b[h][i], c[i], before * sine);
            }
            write<N>(low + 2 * h * half, a[h]);
            write<N>(low + (2 * h + 1) * half, b[h]);
        }
    }
}

template <bool INVERSE, typename act>
__device__ __forceinline__ void rotate(act *x, const u32 *positions, const float *cos, const float *sin, u32 limit,
                                       u32 rows, u32 heads, u32 half, u32 share) {
    if (half % 4 == 0) turn<4, INVERSE>(x, positions, cos, sin, limit, rows, heads, half, share);
    else turn<1, INVERSE>(x, positions, cos, sin, limit, rows, heads, half, share);
}

#define ROPE(act, name)                                                                                               \
    KERNEL(BLOCK)                                                                                                     \
    rope_fwd_##name(act *x, const u32 *positions, const float *cos, const float *sin, u32 limit, u32 rows, u32 heads, \
                    u32 half, u32 share) {                                                                            \
        rotate<false>(x, positions, cos, sin, limit, rows, heads, half, share);                                       \
    }                                                                                                                 \
    KERNEL(BLOCK)                                                                                                     \
    rope_bwd_##name(act *x, const u32 *positions, const float *cos, const float *sin, u32 limit, u32 rows, u32 heads, \
                    u32 half, u32 share) {                                                                            \
        rotate<true>(x, positions, cos, sin, limit, rows, heads, half, share);                                        \
    }

ROPE(float, f32)
ROPE(bf16, bf16)
