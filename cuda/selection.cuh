// What the sampler's kernels select with: ids in order of rank, whole-numbered masses, block-wide sorts and scans.
//
// A rank key is a logit and an id in one 64-bit number: the larger key is the more probable id, the lower id among
// equal logits. Keys are unique, so no order of work can change what is selected. Masses are the whole numbers of
// src/cpu/sampler/filter.rs, so no order of summation can either.
#pragma once
#include "softmax.cuh"

// Threads of all the sampler's kernels, a row's block.
constexpr int BLOCK = 512;
constexpr int WARPS = BLOCK / WARP;
// One block a multiprocessor suffices, so registers are not what a row waits for.
#define ROW_KERNEL extern "C" __global__ void __launch_bounds__(BLOCK, 1)
constexpr u32 FAULTY = 0xffffffffu;
constexpr float FINITE = 3.4028235e38f;

// ---- rank ---------------------------------------------------------------------------------------------------------

// A number of the same order as the logit.
__device__ __forceinline__ u32 order_of(float logit) {
    u32 bits = __float_as_uint(__fadd_rn(logit, 0.0f)); // -0 equals 0.
    return bits ^ ((u32)((int)bits >> 31) | 0x80000000u);
}
__device__ __forceinline__ u64 rank_key(float logit, u32 id) { return (u64)order_of(logit) << 32 | (u32)~id; }
__device__ __forceinline__ float logit_of(u64 key) {
    u32 ordered = (u32)(key >> 32);
    return __uint_as_float(ordered & 0x80000000u ? ordered ^ 0x80000000u : ~ordered);
}
__device__ __forceinline__ u32 id_of(u64 key) { return ~(u32)key; }

// ---- masses -------------------------------------------------------------------------------------------------------

// Bits of a mass below the weight 1.
__device__ __forceinline__ int fraction_bits(u32 vocabulary) { return min(44, 31 + __clz(vocabulary)); }

// floor(weight * 2^fraction) of a weight from 0 to about 1.
__device__ __forceinline__ u64 mass_of(float weight, int fraction) {
    u32 bits = __float_as_uint(weight);
    int shift = (int)(bits >> 23) - 150 + fraction;
    u64 digits = (bits & 0x7fffffu) | 0x800000u;
    if (shift >= 0) return digits << shift;
    return shift > -24 ? digits >> -shift : 0;
}

// The least mass that p of `total` is; p by its bits.
__device__ __forceinline__ u64 share(u64 p, u64 total) {
    double part = __dmul_rn(__longlong_as_double((long long)p), __ull2double_rn(total));
    return min(__double2ull_ru(part), total);
}

// ln of a mass.
__device__ __forceinline__ float log_mass(u64 mass, int fraction) {
    return gumbel_ln(__fmul_rn(__ull2float_rn(mass), __int_as_float((127 - fraction) << 23)));
}

// ---- the whole block ----------------------------------------------------------------------------------------------

// Sum of x over the threads before this one, and over all. `room` holds WARPS numbers and is free again on return.
__device__ __forceinline__ u64 block_scan(u64 x, u64 *room, u64 &total) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u64 inclusive = x;
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        u64 before = __shfl_up_sync(ALL_LANES, inclusive, distance);
        if (lane >= distance) inclusive += before;
    }
    if (lane == WARP - 1) room[warp] = inclusive;
    __syncthreads();
    // Every warp scans the warps' sums itself: that takes fewer steps than to walk along them.
    u64 sums = room[lane % WARPS];
    __syncthreads();
#pragma unroll
    for (int distance = 1; distance < WARPS; distance *= 2) {
        u64 before = __shfl_up_sync(ALL_LANES, sums, distance);
        if (lane >= distance) sums += before;
    }
    total = __shfl_sync(ALL_LANES, sums, WARPS - 1);
    u64 earlier = __shfl_sync(ALL_LANES, sums, warp ? warp - 1 : 0);
    return (warp ? earlier : 0) + inclusive - x;
}

__device__ __forceinline__ u64 block_total(u64 x, u64 *room) {
    u64 total;
    block_scan(x, room, total);
    return total;
}

__device__ __forceinline__ u64 block_largest(u64 x, u64 *room) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, distance));
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = x;
    __syncthreads();
    x = room[threadIdx.x % WARPS];
    __syncthreads();
#pragma unroll
    for (int distance = WARPS / 2; distance > 0; distance /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

__device__ __forceinline__ float block_max(float x, u64 *room) { return logit_of(block_largest(rank_key(x, 0), room)); }

__device__ __forceinline__ void order(u64 &a, u64 &b, bool descending) {
    u64 high = max(a, b), low = min(a, b);
    a = descending ? high : low;
    b = descending ? low : high;
}

// Sorts E * BLOCK keys, the largest first: bitonic (Batcher 1968). Key e of thread t is number e * BLOCK + t, before
// and after. Distances below a warp are shuffles, those of BLOCK and more stay in the thread; only what lies between
// passes through `room`, which holds E * BLOCK keys.
template <int E>
__device__ __forceinline__ void sort_descending(u64 (&key)[E], u64 *room) {
    u32 thread = threadIdx.x;
#pragma unroll 1
    for (u32 size = 2; size <= E * BLOCK; size *= 2) {
#pragma unroll 1
        for (u32 distance = size / 2; distance > 0; distance /= 2) {
            if (distance >= BLOCK) {
#pragma unroll
                for (int step = 1; step < E; step *= 2)
#pragma unroll
                    for (int e = 0; e < E; e++)
                        if (distance == step * BLOCK && !(e & step))
                            order(key[e], key[e | step], ((e * BLOCK + thread) & size) == 0);
                continue;
            }
            if (distance >= WARP) {
                __syncthreads();
#pragma unroll
                for (int e = 0; e < E; e++) room[e * BLOCK + thread] = key[e];
                __syncthreads();
            }
#pragma unroll
            for (int e = 0; e < E; e++) {
                u64 other = distance >= WARP ? room[e * BLOCK + (thread ^ distance)]
                                             : __shfl_xor_sync(ALL_LANES, key[e], distance);
                bool lower = (thread & distance) == 0, descending = ((e * BLOCK + thread) & size) == 0;
                key[e] = lower == descending ? max(key[e], other) : min(key[e], other);
            }
        }
    }
    __syncthreads();
}

// Keys up to which each finds its place by counting those before it; more are sorted.
constexpr u32 FEW = BLOCK;

// The `held` keys of `buffer`, at most BLOCK of them, ordered: thread t gets the t-th largest, 0 beyond them. Each counts
// those before it, for which a few keys need fewer steps than a sort; keys are unique. By the whole block.
__device__ __forceinline__ u64 order_few(u32 held, u64 *buffer) {
    u32 thread = threadIdx.x, place = 0;
    u64 mine = 0;
    __syncthreads();
    if (thread < held) {
        mine = buffer[thread];
#pragma unroll 4
        for (u32 other = 0; other < held; other++) place += buffer[other] > mine;
    }
    __syncthreads();
    if (thread < held) buffer[place] = mine;
    __syncthreads();
    return thread < held ? buffer[thread] : 0;
}

// ---- what a row gives back ----------------------------------------------------------------------------------------

// A row's places; those that are not wanted are absent (0).
struct Output {
    u32 *token;
    float *log_probability;
    u32 *ids;
    u32 *count;
    u32 capacity;
    float *weights;

    __device__ __forceinline__ Output(u32 row, u32 *tokens, float *log_probability, u32 *ids, u32 *counts, u32 capacity,
                                      float *weights)
        : token(tokens ? tokens + row : nullptr), log_probability(log_probability ? log_probability + row : nullptr),
          ids(ids ? ids + (u64)row * capacity : nullptr), count(counts ? counts + row : nullptr), capacity(capacity),
          weights(weights ? weights + (u64)row * capacity : nullptr) {}

    // By one thread.
    __device__ __forceinline__ void draw(u32 id, float score) const {
        if (token) *token = id;
        if (log_probability) *log_probability = score;
    }

    // A row without a draw. `kept` is FAULTY, or more than there is room for. By the whole block.
    __device__ __forceinline__ void fail(u32 kept) const {
        float nan = __int_as_float(0x7fc00000);
        if (threadIdx.x == 0) {
            draw(FAULTY, nan);
            if (count) *count = kept;
        }
        if (!weights) return;
        for (u32 i = threadIdx.x; i < capacity; i += BLOCK) {
            ids[i] = 0;
            weights[i] = nan;
        }
    }
};

// Gumbel-Softmax weights of the `kept` ids that stand in out.ids, with the unused places set to id 0 and weight 0.
//   y[v] = softmax over kept of ((s[v] + eps[v]) / tau)
__device__ __forceinline__ void mix(const float *logits, float scale, float inverse_tau, const Stream &stream, u32 kept,
                                    const Output &out, u64 *room) {
    __syncthreads(); // The ids were written by other threads of this block.
    float maximum = -infinity();
    for (u32 i = threadIdx.x; i < kept; i += BLOCK) {
        u32 id = out.ids[i];
        float value = __fadd_rn(__fmul_rn(logits[id], scale), stream.noise(id));
        out.weights[i] = value;
        maximum = fmaxf(maximum, value);
    }
    maximum = block_max(maximum, room);
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < kept; i += BLOCK) {
        float weight = exponential(__fmul_rn(__fsub_rn(out.weights[i], maximum), inverse_tau));
        out.weights[i] = weight;
        sum = __fadd_rn(sum, weight);
    }
    sum = block_sum<WARPS>(sum, reinterpret_cast<float *>(room));
    for (u32 i = threadIdx.x; i < out.capacity; i += BLOCK) {
        if (i >= kept) out.ids[i] = 0;
        out.weights[i] = i < kept ? __fdiv_rn(out.weights[i], sum) : 0.0f;
    }
}
