// Cut and draw of one filter by many blocks a row (sampler_wide.cuh): each takes 4096 columns.
//
//   masses    amounts (masses for top-p, numbers for top-k) in buckets: in shared memory, then added to the row's
//   certain   every block finds the cut bucket in the row's buckets; keeps and draws of its columns; adds its list
//
// What blocks add up are whole numbers, of keys the largest is taken and the list is ordered later, so the order in
// which blocks come does not matter.
#pragma once
#include "sampler_wide.cuh"

// Columns of a block.
constexpr u32 PIECE = WARPS * RUN;

// A block's row and columns; a row's blocks stand side by side.
struct Piece {
    u32 row, first;
    __device__ __forceinline__ explicit Piece(u32 cols) {
        u32 blocks = (cols + PIECE - 1) / PIECE;
        row = blockIdx.x / blocks;
        first = blockIdx.x % blocks * PIECE;
    }
    // The run of this thread's warp.
    __device__ __forceinline__ Wide wide(const Row &row, float scale, u64 *store, u64 *room, u32 *count) const {
        u32 run = first + threadIdx.x / WARP * RUN;
        return {row, scale, 0.0f, 0.0f, fraction_bits(row.cols), run, min(row.cols, run + 1), RUN,
                store, room, nullptr, count, nullptr};
    }
};

// The amounts of the block's columns are added to the row's. By the whole block.
__device__ __forceinline__ void add_masses(const Piece &piece, const Row &row, const Scratch &scratch, float scale,
                                           bool by_mass) {
    // 64-bit numbers in two halves: shared memory adds words.
    __shared__ u32 low[BUCKETS], high[BUCKETS];
    __shared__ u64 room[WARPS];
    Wide wide = piece.wide(row, scale, nullptr, room, nullptr);
    for (u32 i = threadIdx.x; i < BUCKETS; i += BLOCK) low[i] = high[i] = 0;
    if (!wide.extents(scratch)) return;
    __syncthreads();
    u64 last = 0;
    wide.pass<PIECE_QUADS>([&](float logit, u32) {
        float s = __fmul_rn(logit, scale);
        u32 bucket = wide.bucket(s);
        u64 amount = by_mass ? mass_of(wide.weight(s), wide.fraction) : 1;
        // What most ids fall into is summed by the thread.
        if (bucket == BUCKETS - 1) {
            last += amount;
            return;
        }
        u32 part = (u32)amount, before = atomicAdd(low + bucket, part), rest = (u32)(amount >> 32) + (before + part < before);
        if (rest) atomicAdd(high + bucket, rest);
    });
    last = block_total(last, room);
    for (u32 i = threadIdx.x; i < BUCKETS; i += BLOCK) {
        u64 amount = i == BUCKETS - 1 ? last : (u64)high[i] << 32 | low[i];
        if (amount) atomicAdd(scratch.amounts + i, amount);
    }
}

// The cut of the row's amounts: k ids, or the mass p where it is not 0. By the whole block.
__device__ __forceinline__ Cut cut_of(const u64 *amounts, u32 k, u64 p, u64 *room, u32 *shared_bucket, u64 *shared_amount) {
    static_assert(BUCKETS == 4 * BLOCK, "two pairs a thread");
    // Pairs of neighbours, so that a warp reads whole sectors.
    ulonglong2 mine[2];
#pragma unroll
    for (u32 i = 0; i < 2; i++) mine[i] = reinterpret_cast<const ulonglong2 *>(amounts)[i * BLOCK + threadIdx.x];
    u64 before[2], totals[2];
#pragma unroll
    for (u32 i = 0; i < 2; i++) before[i] = block_scan(mine[i].x + mine[i].y, room, totals[i]);
    before[1] += totals[0];
    u64 total = totals[0] + totals[1], amount = p ? share(p, total) : k;
    Cut cut = {NO_BUCKET, 0, ~0ull, 0, 0, 0};
    if (!p && total <= k) return cut;
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        u64 middle = before[i] + mine[i].x, end = middle + mine[i].y;
        if (!(before[i] < amount && amount <= end)) continue;
        bool second = middle < amount;
        *shared_bucket = 2 * (i * BLOCK + threadIdx.x) + second;
        *shared_amount = amount - (second ? middle : before[i]);
    }
    __syncthreads();
    cut.bucket = *shared_bucket;
    cut.amount = *shared_amount;
    cut.before = amount - cut.amount;
    return cut;
}

// Keeps and draws of the block's columns. By the whole block.
__device__ __forceinline__ void draw_piece(const Piece &piece, const Row &row, const Scratch &scratch, float scale, u32 k,
                                           u64 top_p, float min_p, const Stream &stream, bool drawing, bool listing) {
    __shared__ u64 list[LIST];
    __shared__ u64 room[WARPS];
    __shared__ u32 shared_bucket, count, place;
    __shared__ u64 shared_amount;
    Wide wide = piece.wide(row, scale, list, room, &count);
    if (threadIdx.x == 0) count = 0;
    if (!wide.extents(scratch)) return;
    __syncthreads();
    Cut cut = {NO_BUCKET, 0, ~0ull, 0, 0, 0};
    if (k || top_p) cut = cut_of(scratch.amounts, k, top_p, room, &shared_bucket, &shared_amount);
    Drawn drawn = {-infinity(), FAULTY, 0};
    // What the better buckets' masses are is known.
    bool weighing = !top_p || min_p > 0.0f;
    draw_certain<PIECE_QUADS>(wide, cut, min_p, stream, drawing, weighing, listing ? scratch.bitmap : nullptr, drawn);
    u64 mass = block_total(drawn.mass, room), best = block_largest(drawn.key(), room);
    Header *header = scratch.header;
    if (threadIdx.x == 0) {
        if (best) atomicMax(&header->best, best);
        if (piece.first == 0) header->amount = cut.amount;
        if (piece.first == 0 && !weighing) mass = cut.before;
        if (mass) atomicAdd(&header->mass, mass);
        if (count) place = atomicAdd(&header->listed, count);
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < min(count, LIST); i += BLOCK)
        if (place + i < LIST) scratch.list[place + i] = list[i];
}
