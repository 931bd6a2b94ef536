// Gumbel noise from Philox words: the bits of src/cpu/gumbel.rs, which states formulas and error bounds.
// Every step is an intrinsic that rounds once, so that no compiler may fuse or split it.
#pragma once
#include "common.cuh"

// No noise is above the first nor below the second.
constexpr float NOISE_LARGEST = 17.0f;
constexpr float NOISE_SMALLEST = -3.25f;

// ln(x) of a positive normal number, within 1.5e-7 relative.
__device__ __forceinline__ float gumbel_ln(float x) {
    u32 bits = __float_as_uint(x);
    int exponent = (int)(bits - 0x3F3504F3u) >> 23; // sqrt(1/2)
    float f = __fadd_rn(__uint_as_float(bits - ((u32)exponent << 23)), -1.0f);
    float n = __int2float_rn(exponent);
    float q = __uint_as_float(0xBD9C59F3u);
    q = __fmaf_rn(q, f, __uint_as_float(0x3E02AD8Cu));
    q = __fmaf_rn(q, f, __uint_as_float(0xBE06C2B4u));
    q = __fmaf_rn(q, f, __uint_as_float(0x3E116D15u));
    q = __fmaf_rn(q, f, __uint_as_float(0xBE2A3921u));
    q = __fmaf_rn(q, f, __uint_as_float(0x3E4CD004u));
    q = __fmaf_rn(q, f, __uint_as_float(0xBE800114u));
    q = __fmaf_rn(q, f, __uint_as_float(0x3EAAAAAAu));
    float z = __fmul_rn(f, f);
    float y = __fmul_rn(__fmul_rn(f, z), q);
    y = __fmaf_rn(n, -2.1219444e-4f, y);
    y = __fmaf_rn(z, -0.5f, y);
    return __fmaf_rn(n, 0.693359375f, __fadd_rn(f, y));
}

// -ln(-ln(u)), u the uniform number in (0, 1) of the word.
__device__ __forceinline__ float gumbel_noise(u32 word) {
    constexpr float below_one = 1.0f - 1.0f / 16777216.0f;
    float u = __fmul_rn(__fadd_rn(__uint2float_rn(word), 0.5f), 1.0f / 4294967296.0f);
    return -gumbel_ln(-gumbel_ln(u > below_one ? below_one : u));
}

// Where a row's noise comes from: id v has word v % 4 of block v / 4.
struct Stream {
    uint2 key;
    u32 site, step;

    __device__ __forceinline__ Stream(const u32 *keys, const u32 *steps, u32 site, u32 row)
        : key(make_uint2(keys[2 * row], keys[2 * row + 1])), site(site), step(steps[row]) {}

    // Noise of ids 4 block .. 4 block + 3.
    __device__ __forceinline__ float4 noise_of_block(u32 block) const {
        uint4 words = philox(key, make_uint4(site, step, block, 0));
        return make_float4(gumbel_noise(words.x), gumbel_noise(words.y), gumbel_noise(words.z), gumbel_noise(words.w));
    }

    // Noise of one id.
    __device__ __forceinline__ float noise(u32 id) const {
        uint4 words = philox(key, make_uint4(site, step, id / 4, 0));
        u32 low = id % 2 ? words.y : words.x, high = id % 2 ? words.w : words.z;
        return gumbel_noise(id % 4 < 2 ? low : high);
    }
};
