// The sampler with top-k up to 128, alone or before top-p and min-p: one pass over the row.
//
//   round    every thread loads 16 columns; ids that are not below the bar go to a buffer of 1024 rank keys
//   bar      first the k-th best of the threads' best ids, which at least k ids reach; then the k-th best seen
//   flush    the buffer is sorted and cut to k, which raises the bar
//
// With a bar so near the end from the first round on, a vocabulary of 150 000 random logits needs two or three
// flushes. Where a round's ids do not fit (logits in ascending order), they are added one a thread at a time.
#pragma once
#include "selection.cuh"

constexpr u32 TOP_K_MOST = 128;
constexpr u32 CANDIDATES = 2 * BLOCK;
constexpr int ROUND_QUADS = 4;
constexpr u32 ROUND = BLOCK * 4 * ROUND_QUADS;

struct TopK {
    u64 *buffer; // CANDIDATES keys, shared.
    u32 *count;  // Keys in it, shared.
    u32 k;
    u32 held; // Keys in the buffer after the last step; the same in every thread, and at most BLOCK between rounds.
    u64 bar;

    // Sorts what is held and keeps the best k. By the whole block, which has finished writing.
    __device__ __forceinline__ void flush() {
        u32 thread = threadIdx.x;
        u64 key[2] = {thread < held ? buffer[thread] : 0, thread + BLOCK < held ? buffer[thread + BLOCK] : 0};
        sort_descending(key, buffer);
        buffer[thread] = key[0]; // k is below BLOCK.
        held = min(held, k);
        if (thread == 0) *count = held;
        __syncthreads();
        if (held == k) bar = buffer[k - 1];
    }

    // Adds the ids of a round that pass: bit 4 j + i of `passing` is column 4 (first_quad + 32 j + lane) + i. The last
    // round leaves the best k in order.
    __device__ __forceinline__ void add(const Row &row, u32 first_quad, u32 passing, bool last) {
        bool fits;
        do {
            u32 before = held, mine = __popc(passing);
            u32 at = mine ? atomicAdd(count, mine) : 0;
            __syncthreads();
            held = *count;
            fits = held <= CANDIDATES;
            if (!fits) { // One id a thread has room.
                mine = min(mine, 1);
                __syncthreads();
                if (threadIdx.x == 0) *count = before;
                __syncthreads();
                if (mine) at = atomicAdd(count, 1);
                __syncthreads();
                held = *count;
            }
            for (; mine; mine--, passing &= passing - 1) {
                u32 id = column(first_quad, passing);
                buffer[at++] = rank_key(row.start[id], id);
            }
            __syncthreads();
            if (held > CANDIDATES / 2 || (last && fits)) flush();
            // What is left may have fallen below the bar.
            for (u32 rest = passing; rest; rest &= rest - 1) {
                u32 id = column(first_quad, rest);
                if (rank_key(row.start[id], id) < bar) passing &= ~(rest & -rest);
            }
        } while (!fits);
    }

    // The column of the lowest bit.
    static __device__ __forceinline__ u32 column(u32 first_quad, u32 passing) {
        u32 bit = __ffs(passing) - 1;
        return 4 * (first_quad + bit / 4 * WARP + threadIdx.x % WARP) + bit % 4;
    }
};

__device__ __forceinline__ void consider(u64 &best, float logit, u32 id) {
    if (logit > -infinity()) best = max(best, rank_key(logit, id));
}

// One row. `top_p` by its bits, 0 for none; `min_p` 0 for none.
__device__ __forceinline__ void draw_top_k(const Row &row, float scale, u32 k, u64 top_p, float min_p, const Stream &stream,
                                           const Output &out, float inverse_tau) {
    __shared__ u64 buffer[CANDIDATES];
    __shared__ u64 room[WARPS];
    __shared__ u32 count;
    __shared__ u32 kept_ids[TOP_K_MOST];
    u32 thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    if (thread == 0) count = 0;
    TopK top = {buffer, &count, k, 0, 0};
    bool broken = false;
    for (u32 first = 0; first < row.cols; first += ROUND) {
        u32 first_quad = first / 4 + warp * WARP * ROUND_QUADS;
        float4 quads[ROUND_QUADS];
        row.load(first_quad, quads);
        if (first == 0) {
            u64 best[1] = {0};
#pragma unroll
            for (int j = 0; j < ROUND_QUADS; j++) {
                u32 id = 4 * (first_quad + j * WARP + lane);
                consider(best[0], quads[j].x, id);
                consider(best[0], quads[j].y, id + 1);
                consider(best[0], quads[j].z, id + 2);
                consider(best[0], quads[j].w, id + 3);
            }
            sort_descending(best, buffer);
            if (thread == k - 1) room[0] = best[0];
            __syncthreads();
            top.bar = room[0];
        }
        // The bar's logit; before there is one, anything above minus infinity.
        float least = top.bar ? logit_of(top.bar) : -FINITE;
        u32 passing = 0;
#pragma unroll
        for (int j = 0; j < ROUND_QUADS; j++) {
            float logit[4] = {quads[j].x, quads[j].y, quads[j].z, quads[j].w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 id = 4 * (first_quad + j * WARP + lane) + i;
                broken |= !(__fmul_rn(logit[i], scale) <= FINITE);
                if (logit[i] >= least && rank_key(logit[i], id) >= top.bar) passing |= 1u << (4 * j + i);
            }
        }
        top.add(row, first_quad, passing, first + ROUND >= row.cols);
    }
    if (__syncthreads_or(broken)) return out.fail(FAULTY);
    if (top.held == 0) return out.fail(FAULTY);

    // One thread an id from here on; they stand in order of rank.
    int fraction = fraction_bits(row.cols);
    float maximum = __fmul_rn(logit_of(buffer[0]), scale);
    bool kept = thread < top.held;
    u64 key = kept ? buffer[thread] : 0;
    u32 id = id_of(key);
    float s = kept ? __fmul_rn(logit_of(key), scale) : -infinity();
    float weight = exponential(__fsub_rn(s, maximum));
    u64 mass = kept ? mass_of(weight, fraction) : 0, total;
    u64 before = block_scan(mass, room, total);
    if (top_p) kept = kept && before < share(top_p, total);
    kept = kept && weight >= min_p;
    total = block_total(kept ? mass : 0, room);

    u32 number = __syncthreads_count(kept);
    if (out.ids && number > out.capacity) return out.fail(number);
    if (thread < TOP_K_MOST) kept_ids[thread] = kept ? id : FAULTY;
    __syncthreads();
    if (kept && out.ids) {
        u32 place = 0;
        for (u32 other = 0; other < top.held; other++) place += kept_ids[other] < id;
        out.ids[place] = id;
    }
    if (thread == 0 && out.count) *out.count = number;
    if (out.weights) return mix(row.start, scale, inverse_tau, stream, number, out, room);
    u64 best = block_largest(kept ? rank_key(__fadd_rn(s, stream.noise(id)), id) : 0, room);
    if (thread == 0) {
        u32 token = id_of(best);
        out.draw(token, log_probability(__fmul_rn(row.start[token], scale), maximum, log_mass(total, fraction)));
    }
}
