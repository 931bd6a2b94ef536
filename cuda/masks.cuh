// Rows multiplied by bitmaps: how a team of threads (rows.cuh) reads one, and the loop that masked_residual.cu and
// mask.cu share.
#pragma once
#include "rows.cuh"

// The bits of the pieces that a thread owns. A warp that owns a row alone reads its bitmap by one access, a word a
// lane (NARROW columns are 32 words), and hands the words around; other teams read words where they need them.
template <typename On> struct MaskPieces {
    MaskRow row;
    __device__ __forceinline__ void bring(const On &, const MaskRow &mask) { row = mask; }
    __device__ __forceinline__ u32 bits(int, u32 c) const { return row.bits(c); }
};
template <int N, int MAX> struct MaskPieces<Columns<WARP, N, MAX>> {
    u32 held[MAX];
    // All lanes of the warp call this together, with the same row.
    __device__ __forceinline__ void bring(const Columns<WARP, N, MAX> &on, const MaskRow &mask) {
        u32 word = mask.words && on.thread * WARP < on.pieces * N ? mask.words[on.thread] : ALL_LANES;
#pragma unroll
        for (int k = 0; k < MAX; k++)
            held[k] = __shfl_sync(ALL_LANES, word, k * N + on.thread * N / WARP) >> (on.thread * N % WARP);
    }
    __device__ __forceinline__ u32 bits(int k, u32) const { return held[k]; }
};

// y = x + m * b by one rounding; a dropped element of b does not count, whatever it is.
template <int N>
__device__ __forceinline__ Numbers<N> masked_sum(Numbers<N> x, const Numbers<N> &b, u32 bits, float scale) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = choose(bits, 1u << i, fmaf(b[i], scale, x[i]), x[i]);
    return x;
}

// m * x; exactly 0 where dropped.
template <int N> __device__ __forceinline__ Numbers<N> masked(Numbers<N> x, u32 bits, float scale) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = choose(bits, 1u << i, x[i] * scale, 0.0f);
    return x;
}

// y = x + m * b (ADD), or y = m * b, over the rows of a block: `each` of them, at most 32 a team, and a team takes
// neighbouring rows, which often share an instance: then the bitmap is read once. With y = b rows without a mask are
// left alone.
template <typename act, int BLOCK, bool ADD> struct MaskedRows {
    const act *x, *b;
    Mask mask;
    u32 rows, cols, each;
    act *y;

    template <typename On> __device__ __forceinline__ void operator()(On on) const {
        u32 share = each * On::THREADS / BLOCK, row = blockIdx.x * each + on.team() * share, lane = threadIdx.x % WARP;
        u32 count = row < rows ? min(share, rows - row) : 0;
        int instance = mask.bits && lane < count ? mask.instance[row + lane] : -1;
        MaskPieces<On> pieces;
        MaskRow last = {nullptr, 1.0f};
        pieces.bring(on, last);
        for (u32 i = 0; i < count; i++, row++) {
            MaskRow now = mask.of(__shfl_sync(ALL_LANES, instance, i));
            if (!ADD && y == b && !now.words && now.scale == 1.0f) continue;
            if (now.words != last.words) pieces.bring(on, now);
            last = now;
            u64 at = (u64)row * cols;
            // All of a row is asked for before any of it is written: y may be b or x, so no load passes a store.
            Row<act, On> stream, added;
            if constexpr (ADD) hold(stream, on, x + at, true);
            hold(added, on, b + at, true);
            on.each([&](int k, u32 c) {
                Numbers<On::N> v = added(k, c);
                u32 bits = pieces.bits(k, c);
                if constexpr (ADD) v = masked_sum(stream(k, c), v, bits, now.scale);
                else v = masked(v, bits, now.scale);
                write<On::N>(y + at + c, v);
            });
        }
    }
};
