// GELU in its tanh form (src/cpu/gelu.rs), element by element.
//
//   u = sqrt(2/pi) * (x + 0.044715 x^3)      s = sigmoid(2u) = (1 + tanh u) / 2
//   forward   y  = x * s
//   backward  dx = dy * (s + x * s * (1 - s) * 2u')      u' = sqrt(2/pi) * (1 + 3 * 0.044715 x^2)
//
//   kernel       in            out      grid                          block   moved (a = bytes of act)
//   gelu_fwd_*   x[n]          y[n]     ceil(n / (256 * 16/a))        256     2 a n
//   gelu_bwd_*   dy[n] x[n]    dx[n]    ceil(n / (256 * 16/a))        256     3 a n
//
// A thread moves 128 bits of each operand; nothing is shared. Where an operand does not begin at a multiple of 16
// bytes, or at the end, threads take single elements by the same arithmetic.
#include "vector.cuh"

constexpr int BLOCK = 256;
constexpr float TWICE_ROOT = 1.595769121605731f, CUBIC = 0.044715f;

// 2u.
__device__ __forceinline__ float twice_u(float x) { return TWICE_ROOT * x * fmaf(CUBIC * x, x, 1.0f); }

template <typename act> struct Forward {
    const act *x;
    act *y;
    template <int N> __device__ __forceinline__ void operator()(Width<N>, u32 at) const {
        Numbers<N> v = read<N>(x + at);
        for (int i = 0; i < N; i++) v[i] = v[i] * sigmoid(twice_u(v[i]));
        write<N>(y + at, v);
    }
};

template <typename act> struct Backward {
    const act *dy, *x;
    act *dx;
    template <int N> __device__ __forceinline__ void operator()(Width<N>, u32 at) const {
        Numbers<N> d = read<N>(dy + at), v = read<N>(x + at);
        for (int i = 0; i < N; i++) {
            Sigmoid s = sigmoids(twice_u(v[i]));
            float slope = TWICE_ROOT * fmaf(3.0f * CUBIC * v[i], v[i], 1.0f);
            v[i] = d[i] * fmaf(v[i] * (s.value * s.rest), slope, s.value);
        }
        write<N>(dx + at, v);
    }
};

template <typename act> __device__ __forceinline__ void forward(const act *x, u32 count, act *y) {
    elements<WIDE<act>, BLOCK>(count, multiples(16, x, y), Forward<act>{x, y});
}

template <typename act> __device__ __forceinline__ void backward(const act *dy, const act *x, u32 count, act *dx) {
    elements<WIDE<act>, BLOCK>(count, multiples(16, dy, x, dx), Backward<act>{dy, x, dx});
}

KERNEL(BLOCK) gelu_fwd_f32(const float *x, u32 count, float *y) { forward(x, count, y); }
KERNEL(BLOCK) gelu_fwd_bf16(const bf16 *x, u32 count, bf16 *y) { forward(x, count, y); }
KERNEL(BLOCK) gelu_bwd_f32(const float *dy, const float *x, u32 count, float *dx) { backward(dy, x, count, dx); }
KERNEL(BLOCK) gelu_bwd_bf16(const bf16 *dy, const bf16 *x, u32 count, bf16 *dx) { backward(dy, x, count, dx); }
