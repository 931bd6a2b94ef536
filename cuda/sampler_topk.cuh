// The sampler with top-k up to 128, alone or before top-p and min-p: the end of a row whose groups of 128 columns left
// their largest logits (sampler_split.cuh).
//
//   bar      the k-th best of the threads' best groups, which at least k ids reach; found bit by bit
//   groups   those that reach the bar go to a list: about k of them, whatever the vocabulary
//   round    a warp loads four of them; ids that reach the bar go to a buffer of 1024 rank keys
//   flush    where the buffer is half full, and at the end: it is ordered and cut to k, which raises the bar
//
// Where a round's ids do not fit (logits in ascending order), they are added one a thread at a time.
#pragma once
#include "sampler_split.cuh"

constexpr u32 TOP_K_MOST = 128;
constexpr u32 CANDIDATES = 2 * BLOCK;
// Groups that a warp takes in a round, and the block.
constexpr int ROUND_QUADS = 4;
constexpr u32 ROUND = WARPS * ROUND_QUADS;
// Groups that a thread looks at together, and the block.
constexpr u32 LOOKS = 8;
constexpr u32 PAGE = LOOKS * BLOCK;

struct TopK {
    u64 *buffer; // CANDIDATES keys, shared.
    u32 *count;  // Keys in it, shared.
    u32 k;
    u32 held; // Keys in the buffer after the last step; the same in every thread, and at most BLOCK between rounds.
    u64 bar;

    // Orders what is held and keeps the best k. By the whole block, which has finished writing.
    __device__ __forceinline__ void flush() {
        u32 thread = threadIdx.x;
        if (held <= FEW) {
            order_few(held, buffer);
        } else {
            u64 key[2] = {thread < held ? buffer[thread] : 0, thread + BLOCK < held ? buffer[thread + BLOCK] : 0};
            sort_descending(key, buffer);
            buffer[thread] = key[0]; // k is below BLOCK.
        }
        held = min(held, k);
        if (thread == 0) *count = held;
        __syncthreads();
        if (held == k) bar = buffer[k - 1];
    }

    // Adds the ids of a round that pass: bit 4 j + i of `passing` is column 4 lane + i of group j of `groups`.
    __device__ __forceinline__ void add(const Row &row, const u32 *groups, u32 passing) {
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
                u32 id = column(groups, passing);
                buffer[at++] = rank_key(row.start[id], id);
            }
            __syncthreads();
            if (held > CANDIDATES / 2) flush();
            // What is left may have fallen below the bar.
            for (u32 rest = passing; rest; rest &= rest - 1) {
                u32 id = column(groups, rest);
                if (rank_key(row.start[id], id) < bar) passing &= ~(rest & -rest);
            }
        } while (!fits);
    }

    // The column of the lowest bit.
    static __device__ __forceinline__ u32 column(const u32 *groups, u32 passing) {
        u32 bit = __ffs(passing) - 1;
        return groups[bit / 4] * GROUP + 4 * (threadIdx.x % WARP) + bit % 4;
    }
};

// The largest number that at least k threads reach by their numbers or are `above` it anyway, 0 where there is none.
__device__ __forceinline__ u32 reached_by(u32 k, u32 above, u32 mine) {
    u32 bar = 0;
#pragma unroll 1
    for (u32 bit = 0x80000000u; bit; bit /= 2)
        if (above + __syncthreads_count(mine >= (bar | bit)) >= k) bar |= bit;
    return bar;
}

// One row. `largest` is that of each group; `top_p` by its bits, 0 for none; `min_p` 0 for none.
__device__ __forceinline__ void draw_top_k(const Row &row, const float *largest, float scale, u32 k, u64 top_p, float min_p,
                                           const Stream &stream, const Output &out, float inverse_tau) {
    __shared__ __align__(16) u64 buffer[CANDIDATES];
    __shared__ u64 room[WARPS];
    __shared__ u32 count, listed;
    __shared__ u32 list[PAGE + ROUND];
    __shared__ u32 kept_ids[TOP_K_MOST];
    u32 thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP, groups = (row.cols + GROUP - 1) / GROUP;
    if (thread == 0) count = 0;
    TopK top = {buffer, &count, k, 0, 0};
    bool broken = false;
    for (u32 page = 0; page < groups; page += PAGE) {
        float mine[LOOKS], best = -infinity();
        u32 first_of_best = 0;
#pragma unroll
        for (u32 e = 0; e < LOOKS; e++) {
            u32 group = page + e * BLOCK + thread;
            mine[e] = group < groups ? largest[group] : -infinity();
            broken |= !(__fmul_rn(mine[e], scale) <= FINITE);
            if (mine[e] > best) best = mine[e], first_of_best = group * GROUP;
        }
        if (page == 0) {
            // Some id of the group has at least the rank of its last one with this logit. Among equals the ids decide:
            // else all ids of a row of equal logits would reach the bar.
            u64 reached = best > -infinity() ? rank_key(best, first_of_best + GROUP - 1) : 0;
            u32 high = (u32)(reached >> 32), bar = reached_by(k, 0, high), low = 0;
            if (bar && __syncthreads_count(high >= bar) > 2 * k) {
                u32 above = __syncthreads_count(high > bar);
                low = reached_by(k, above, high == bar ? (u32)reached : 0);
            }
            top.bar = (u64)bar << 32 | low;
        }
        __syncthreads();
        if (thread == 0) listed = 0;
        __syncthreads();
        // The bar's logit; before there is one, anything above minus infinity.
        float least = top.bar ? logit_of(top.bar) : -FINITE;
#pragma unroll
        for (u32 e = 0; e < LOOKS; e++)
            if (mine[e] >= least && rank_key(mine[e], (page + e * BLOCK + thread) * GROUP) >= top.bar)
                list[atomicAdd(&listed, 1)] = page + e * BLOCK + thread;
        __syncthreads();
        u32 length = listed;
        for (u32 first = 0; first < length; first += ROUND) {
            least = top.bar ? logit_of(top.bar) : -FINITE;
            const u32 *taken = list + first + warp * ROUND_QUADS;
            float4 quads[ROUND_QUADS];
#pragma unroll
            for (u32 j = 0; j < ROUND_QUADS; j++) {
                float4 one[1] = {make_float4(-infinity(), -infinity(), -infinity(), -infinity())};
                if (first + warp * ROUND_QUADS + j < length) row.load(taken[j] * WARP, one);
                quads[j] = one[0];
            }
            u32 passing = 0;
#pragma unroll
            for (u32 j = 0; j < ROUND_QUADS; j++) {
                float logit[4] = {quads[j].x, quads[j].y, quads[j].z, quads[j].w};
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    if (!(logit[i] >= least)) continue;
                    if (rank_key(logit[i], taken[j] * GROUP + 4 * lane + i) >= top.bar) passing |= 1u << (4 * j + i);
                }
            }
            top.add(row, taken, passing);
        }
    }
    if (__syncthreads_or(broken)) return out.fail(FAULTY);
    if (top.held == 0) return out.fail(FAULTY);
    top.flush();

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
