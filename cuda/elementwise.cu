// Sums of gradients that meet, and multiples (src/cpu/elementwise.rs).
//
//   add     y += x
//   scale   y *= factor
//
//   kernel              in      out     grid                        block   moved (a = bytes of act)
//   elementwise_add_*   x[n]    y[n]    ceil(n / (256 * 16/a))      256     3 a n
//   elementwise_scale_* y[n]    y[n]    ceil(n / (256 * 16/a))      256     2 a n
//
// A thread moves 128 bits of each operand; nothing is shared. Where an operand does not begin at a multiple of 16
// bytes, or at the end, threads take single elements. (A copy is the device's own copy: ops/elementwise.rs.)
#include "vector.cuh"

constexpr int BLOCK = 256;

template <typename act> struct Add {
    const act *x;
    act *y;
    template <int N> __device__ __forceinline__ void operator()(Width<N>, u32 at) const {
        Numbers<N> v = read<N>(x + at), sum = read<N>(y + at);
        for (int i = 0; i < N; i++) sum[i] += v[i];
        write<N>(y + at, sum);
    }
};

template <typename act> __device__ __forceinline__ void add(const act *x, u32 count, act *y) {
    elements<WIDE<act>, BLOCK>(count, multiples(16, x, y), Add<act>{x, y});
}

KERNEL(BLOCK) elementwise_add_f32(const float *x, u32 count, float *y) { add(x, count, y); }
KERNEL(BLOCK) elementwise_add_bf16(const bf16 *x, u32 count, bf16 *y) { add(x, count, y); }

template <typename act> struct Scale {
    act *y;
    float factor;
    template <int N> __device__ __forceinline__ void operator()(Width<N>, u32 at) const {
        Numbers<N> v = read<N>(y + at);
        for (int i = 0; i < N; i++) v[i] *= factor;
        write<N>(y + at, v);
    }
};

template <typename act> __device__ __forceinline__ void scale(float factor, u32 count, act *y) {
    elements<WIDE<act>, BLOCK>(count, multiples(16, y), Scale<act>{y, factor});
}

KERNEL(BLOCK) elementwise_scale_f32(float factor, u32 count, float *y) { scale(factor, count, y); }
KERNEL(BLOCK) elementwise_scale_bf16(float factor, u32 count, bf16 *y) { scale(factor, count, y); }
