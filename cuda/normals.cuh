// Normal random numbers from Philox words, computed in f32 (src/cpu/random.rs computes them in f64).
//   u(word) = (word + 1/2) / 2^32      normals of words a b: sqrt(-2 ln u(a)) (cos, sin)(2 pi u(b))
// The logarithm is taken of u below a half and of 1 - u above, where u itself has lost its digits.
#pragma once
#include "common.cuh"

// 2^-32 (word + 1/2).
__device__ __forceinline__ float uniform(u32 word) { return fmaf((float)word, 0x1p-32f, 0x1p-33f); }

// -ln u(word); 1 - u(word) is u(~word).
__device__ __forceinline__ float minus_log(u32 word) {
    return word >> 31 ? -log1pf(-uniform(~word)) : -logf(uniform(word));
}

// The two normals of two words, times `deviation`.
__device__ __forceinline__ float2 two_normals(u32 first, u32 second, float deviation) {
    float radius = deviation * sqrtf(2.0f * minus_log(first)), sine, cosine;
    sincospif(2.0f * uniform(second), &sine, &cosine);
    return make_float2(radius * cosine, radius * sine);
}
