// What kernels share: dtypes, block reductions in a fixed order, Philox, masks. Device inline functions only.
//
// Naming: `act` is the dtype of activations (f32 or bf16); vectors (gains, biases), statistics, log-probabilities and
// gradients of parameters are f32 in both. Arithmetic is f32. A warp is 32 lanes; blocks are multiples of 32.
//
// NVRTC has no <cmath> macros: infinity and NaN are made from their bits.
#pragma once
#include <cuda_bf16.h>

typedef __nv_bfloat16 bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

// KERNEL(threads of a block), or KERNEL(threads of a block, blocks that a multiprocessor should at least hold).
#define KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)

constexpr int WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }
__device__ __forceinline__ float nan() { return __int_as_float(0x7fffffff); }

// ---- one element --------------------------------------------------------------------------------------------------

__device__ __forceinline__ float load(const float *p) { return *p; }
__device__ __forceinline__ float load(const bf16 *p) { return __bfloat162float(*p); }
__device__ __forceinline__ void store(float *p, float x) { *p = x; }
__device__ __forceinline__ void store(bf16 *p, float x) { *p = __float2bfloat16_rn(x); }

// ---- arithmetic of one element ------------------------------------------------------------------------------------

// 1 / (1 + e^-x). The quotient is approximate (2 ulp): a correctly rounded one costs more than the whole rest.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }

// sigmoid(x) and 1 - sigmoid(x), neither by a difference: where one is near 1, the other has all its digits.
struct Sigmoid {
    float value, rest;
};
__device__ __forceinline__ Sigmoid sigmoids(float x) {
    float e = expf(-fabsf(x)), large = __fdividef(1.0f, 1.0f + e), small = e * large;
    return x < 0.0f ? Sigmoid{small, large} : Sigmoid{large, small};
}

// `yes` where a bit of `word & of` is set, else `no`, by a selection: of `?:` around a fused multiply-add the compiler
// makes a branch for each element.
__device__ __forceinline__ float choose(u32 word, u32 of, float yes, float no) {
    float chosen;
    asm("{ .reg .pred p; setp.ne.u32 p, %1, 0; selp.f32 %0, %2, %3, p; }"
        : "=f"(chosen)
        : "r"(word & of), "f"(yes), "f"(no));
    return chosen;
}

// ---- sums over a block, the same bits in every run ----------------------------------------------------------------

// Butterfly over the lanes of a full warp: every lane gets the same sum.
__device__ __forceinline__ float warp_sum(float x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

// Sum over a block of WARPS warps; every thread gets it. `room` holds WARPS floats and is free again on return.
template <int WARPS>
__device__ __forceinline__ float block_sum(float x, float *room) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = x;
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < WARPS; warp++) total += room[warp];
    __syncthreads();
    return total;
}

// ---- Philox4x32-10 (Salmon et al., SC 2011), laid out as src/base/rng.rs states -----------------------------------

__device__ __forceinline__ uint4 philox(uint2 key, uint4 counter) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u32 high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
        u32 high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    return counter;
}

// ---- masks: one site of a MaskSet over the rows of an operand (src/ops/mask.rs) -----------------------------------

// What multiplies one row: its bitmap and the factor of kept elements. Without a bitmap everything is kept.
struct MaskRow {
    const u32 *words;
    float scale;

    // Bit i belongs to element `col + i`, up to the end of that element's word.
    __device__ __forceinline__ u32 bits(u32 col) const { return words ? words[col / 32] >> (col % 32) : ALL_LANES; }
};

// `bits[instances, stride]`, the site's first word is `offset`; `instance[row]` is -1 where nothing is masked. An
// absent mask has bits = 0. The host promises instances in -1..instances; a row that breaks the promise reads no
// bitmap and becomes NaN, which nothing downstream takes for a result.
struct Mask {
    const u32 *bits;
    const int *instance;
    u32 stride, offset;
    float scale;
    u32 instances;

    // The bitmap of instance `at`.
    __device__ __forceinline__ MaskRow of(int at) const {
        if (!bits || at < 0) return {nullptr, 1.0f};
        if ((u32)at >= instances) return {nullptr, nan()};
        return {bits + (u64)at * stride + offset, scale};
    }
};
