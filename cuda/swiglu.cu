// The gated unit of Llama's and Qwen's MLP (src/cpu/swiglu.rs), element by element.
//
//   forward   y = g * s * up                     g = gate, s = sigmoid(g)
//   backward  dup   = dy * g * s
//             dgate = dy * up * s * (1 + g * (1 - s))
//
//   kernel         in                       out                grid                       block   moved (a = bytes of act)
//   swiglu_fwd_*   gate[n] up[n]            y[n]               ceil(n / (256 * 16/a))     256     3 a n
//   swiglu_bwd_*   dy[n] gate[n] up[n]      dgate[n] dup[n]    ceil(n / (256 * 16/a))     256     5 a n
//
// A thread moves 128 bits of each operand; nothing is shared. Where an operand does not begin at a multiple of 16
// bytes, or at the end, threads take single elements by the same arithmetic.
#include "vector.cuh"

constexpr int BLOCK = 256;

template <typename act> struct Forward {
    const act *gate, *up;
    act *y;
    template <int N> __device__ __forceinline__ void operator()(Width<N>, u32 at) const {
        Numbers<N> g = read<N>(gate + at), u = read<N>(up + at);
        for (int i = 0; i < N; i++) g[i] = g[i] * sigmoid(g[i]) * u[i];
        write<N>(y + at, g);
    }
};

template <typename act> struct Backward {
    const act *dy, *gate, *up;
    act *dgate, *dup;
    template <int N> __device__ __forceinline__ void operator()(Width<N>, u32 at) const {
        Numbers<N> d = read<N>(dy + at), g = read<N>(gate + at), u = read<N>(up + at);
        for (int i = 0; i < N; i++) {
            Sigmoid s = sigmoids(g[i]);
            u[i] = d[i] * u[i] * s.value * fmaf(g[i], s.rest, 1.0f);
            g[i] = d[i] * (g[i] * s.value);
        }
        write<N>(dgate + at, u);
        write<N>(dup + at, g);
    }
};

template <typename act> __device__ __forceinline__ void forward(const act *gate, const act *up, u32 count, act *y) {
    elements<WIDE<act>, BLOCK>(count, multiples(16, gate, up, y), Forward<act>{gate, up, y});
}

template <typename act>
__device__ __forceinline__ void backward(const act *dy, const act *gate, const act *up, u32 count, act *dgate,
                                         act *dup) {
    bool aligned = multiples(16, dy, gate, up, dgate, dup);
    elements<WIDE<act>, BLOCK>(count, aligned, Backward<act>{dy, gate, up, dgate, dup});
}

KERNEL(BLOCK) swiglu_fwd_f32(const float *gate, const float *up, u32 count, float *y) { forward(gate, up, count, y); }
KERNEL(BLOCK) swiglu_fwd_bf16(const bf16 *gate, const bf16 *up, u32 count, bf16 *y) { forward(gate, up, count, y); }
KERNEL(BLOCK) swiglu_bwd_f32(const float *dy, const float *gate, const float *up, u32 count, float *dgate, float *dup) {
    backward(dy, gate, up, count, dgate, dup);
}
KERNEL(BLOCK) swiglu_bwd_bf16(const bf16 *dy, const bf16 *gate, const bf16 *up, u32 count, bf16 *dgate, bf16 *dup) {
    backward(dy, gate, up, count, dgate, dup);
}
