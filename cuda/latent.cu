// The feedback of final hidden states as inputs (Hao et al. 2024, "Coconut").
//   forward   id = -1                    x[n] = m[n] * hidden[row[n]]       m by selection: dropped is exactly 0
//   backward  id = -1, source[n] >= 0    dhidden[source[n]] += m[n] * dx[n], n ascending: scatter.cu
//   store     last[n] != 0               feedback[row[n]] = hidden[n]
//   fork                                 feedback[r] = feedback[from]       for the rows r of a range
// A row or a mask instance that does not exist: forward writes NaN to x[n]; store has nowhere to write and does not.
//
//   kernel          in                               out              grid                           block  shared
//   latent_fwd_*    hidden[R,C] row[N] id[N] mask    x[N,C]           (ceil(N / 4), ceil(C / 1024))  128    0
//   latent_store_*  hidden[N,C] row[N] last[N]       feedback[R,C]    (ceil(N / 4), ceil(C / 1024))  128    0
//   latent_fork_*   feedback[from,C]                 feedback[K,C]    ceil(C / V / 128)              128    0
//
// Bytes, with L rows that are latents (flagged) of N and s bytes an element: forward 2 L C s + 4 (N + L), under a mask
// C/8 + 4 more a latent; store 2 L C s + 4 (N + L); fork (1 + K) C s.
// Forward and store give a warp one row, or 1024 columns of it; a row that is not concerned costs one read. Fork's
// threads each read V = 16 bytes once and write them to all rows.
#include "indexed_rows.cuh"

template <int V, typename act>
__device__ __forceinline__ void forward(const act *hidden, u32 states, const u32 *from, const int *ids, u32 rows,
                                        u32 cols, Mask mask, act *x) {
    Run run(cols);
    if (run.row >= rows || ids[run.row] != -1) return;
    u32 state = from[run.row];
    MaskRow m = mask.of(mask.bits ? mask.instance[run.row] : -1);
    bool exists = state < states;
    x += (u64)run.row * cols;
    hidden += (u64)state * cols;
    run.move<V>(
        [&](u32 c) {
            if (!exists) return all<V>(nan());
            Numbers<V> h = read<V>(hidden + c);
            u32 bits = m.bits(c);
#pragma unroll
            for (int i = 0; i < V; i++) h[i] = bits >> i & 1u ? h[i] * m.scale : 0.0f;
            return h;
        },
        [&](u32 c, Numbers<V> v) { write(x + c, v); });
}

template <int V, typename act>
__device__ __forceinline__ void keep(const act *hidden, const u32 *rows, const u32 *last, u32 count, u32 cols,
                                     act *feedback, u32 feedback_rows) {
    Run run(cols);
    if (run.row >= count || last[run.row] == 0) return;
    u32 to = rows[run.row];
    if (to >= feedback_rows) return;
    hidden += (u64)run.row * cols;
    feedback += (u64)to * cols;
    run.move<V>([&](u32 c) { return read<V>(hidden + c); },
                [&](u32 c, Numbers<V> v) { write(feedback + c, v); });
}

template <int V, typename act>
__device__ __forceinline__ void fork(act *feedback, u32 cols, u32 from, u32 first, u32 end) {
    u32 c = (blockIdx.x * ROW_BLOCK + threadIdx.x) * V;
    if (c >= cols) return;
    Numbers<V> state = read<V>(feedback + (u64)from * cols + c);
    for (u32 row = first; row < end; row++) {
        if (row != from) write(feedback + (u64)row * cols + c, state);
    }
}

#define ENTRIES(dtype, act)                                                                                           \
    KERNEL(ROW_BLOCK)                                                                                                 \
    latent_fwd_##dtype(const act *hidden, u32 states, const u32 *from, const int *ids, u32 rows, u32 cols,            \
                       const u32 *bits, const int *instance, u32 instances, u32 stride, u32 offset, float scale,      \
                       act *x) {                                                                                      \
        Mask mask = {bits, instance, stride, offset, scale, instances};                                               \
        constexpr int V = vector<act>();                                                                              \
        if (cols % V == 0) forward<V>(hidden, states, from, ids, rows, cols, mask, x);                     \
        else forward<1>(hidden, states, from, ids, rows, cols, mask, x);                                   \
    }                                                                                                                 \
    KERNEL(ROW_BLOCK)                                                                                                 \
    latent_store_##dtype(const act *hidden, const u32 *rows, const u32 *last, u32 count, u32 cols, act *feedback,     \
                         u32 feedback_rows) {                                                                         \
        constexpr int V = vector<act>();                                                                              \
        if (cols % V == 0) keep<V>(hidden, rows, last, count, cols, feedback, feedback_rows);                         \
        else keep<1>(hidden, rows, last, count, cols, feedback, feedback_rows);                                       \
    }                                                                                                                 \
    KERNEL(ROW_BLOCK) latent_fork_##dtype(act *feedback, u32 cols, u32 from, u32 first, u32 end) {                    \
        constexpr int V = vector<act>();                                                                              \
        if (cols % V == 0) fork<V>(feedback, cols, from, first, end);                                                 \
        else fork<1>(feedback, cols, from, first, end);                                                               \
    }
ENTRIES(f32, float)
ENTRIES(bf16, bf16)
