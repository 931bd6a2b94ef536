// The gates between a token's embedding and a mixture's (src/cpu/gated_mixture.rs), element by element.
//
//   r = sigmoid(p)   i = sigmoid(q)   L = -8 softplus(-lambda) r   a = exp(L)   b = sqrt(-expm1(2 L))
//   forward   x = a e + b i h
//   backward  de = dx a
//             dL = dx (a e - i h a^2 / b)      without the second term where b = 0
//             dp = dL (-8 softplus(-lambda)) r (1 - r)      dq = dx b h i (1 - i)
//             dlambda[c] += sum over rows of dL 8 sigmoid(-lambda) r
//
//   kernel                    in                                out                        grid            block  moved
//   gated_mixture_fwd_*       e h p q [R,C] lambda[C]           x[R,C]                     ceil(n / 1024)  256    5 a n
//   gated_mixture_bwd_*       dx e h p q [R,C] lambda[C]        de dp dq [R,C] terms[R,C]  ceil(n / 1024)  256    8 a n + 4 n
//   gated_mixture_bwd_lambda  terms[R,C]                        dlambda[C] (+=)            ceil(C / 32)    1024   4 n
//
// n = R C, a = bytes of act: a thread moves four elements of each operand. lambda is as long as a row and stays
// in the caches. The rows' part of dlambda goes through memory: it is one operand of nine, and its sum then depends on
// R alone. Where an operand does not begin at a multiple of 16 bytes, or rows are no whole pieces, threads take single
// elements by the same arithmetic.
#include "rows.cuh"

constexpr int BLOCK = 256;
// Elements of a thread: of f32 lambda and terms, 128 bits, so that a warp asks for whole sectors of them beside bf16 too.
constexpr int PIECE = 4;

// The gates of one element.
struct Gates {
    float a, b;
    Sigmoid reset, input;
    float rate;
};

__device__ __forceinline__ Gates gates(float p, float q, float lambda) {
    Gates g;
    g.reset = sigmoids(p);
    g.input = sigmoids(q);
    g.rate = -8.0f * (log1pf(expf(-fabsf(lambda))) + fmaxf(-lambda, 0.0f));
    float log = g.rate * g.reset.value;
    g.a = expf(log);
    g.b = sqrtf(-expm1f(2.0f * log));
    return g;
}

template <typename act> struct Operands {
    const act *e, *h, *p, *q;
    const float *lambda;
    u32 cols;
};

template <typename act> struct Forward {
    Operands<act> in;
    act *x;
    template <int N> __device__ __forceinline__ void operator()(Width<N>, u32 at) const {
        Numbers<N> e = read<N>(in.e + at), h = read<N>(in.h + at), p = read<N>(in.p + at), q = read<N>(in.q + at);
        Numbers<N> lambda = read<N>(in.lambda + at % in.cols);
        for (int i = 0; i < N; i++) {
            Gates g = gates(p[i], q[i], lambda[i]);
            e[i] = fmaf(g.a, e[i], g.b * (g.input.value * h[i]));
        }
        write<N>(x + at, e);
    }
};

template <typename act> struct Backward {
    const act *dx;
    Operands<act> in;
    act *de, *dp, *dq;
    float *terms;
    template <int N> __device__ __forceinline__ void operator()(Width<N>, u32 at) const {
        Numbers<N> d = read<N>(dx + at), e = read<N>(in.e + at), h = read<N>(in.h + at);
        Numbers<N> p = read<N>(in.p + at), q = read<N>(in.q + at), t = read<N>(in.lambda + at % in.cols);
        for (int i = 0; i < N; i++) {
            float slope = 8.0f * sigmoids(t[i]).rest;
            Gates g = gates(p[i], q[i], t[i]);
            float through_b = g.b > 0.0f ? g.input.value * h[i] * (g.a * g.a / g.b) : 0.0f;
            float dlog = d[i] * fmaf(g.a, e[i], -through_b);
            t[i] = dlog * slope * g.reset.value;
            p[i] = dlog * g.rate * (g.reset.value * g.reset.rest);
            q[i] = d[i] * g.b * h[i] * (g.input.value * g.input.rest);
            d[i] = d[i] * g.a;
        }
        write<N>(de + at, d);
        write<N>(dp + at, p);
        write<N>(dq + at, q);
        write<N>(terms + at, t);
    }
};

template <typename act> __device__ __forceinline__ void forward(Operands<act> in, u32 count, act *x) {
    bool aligned = in.cols % PIECE == 0 && multiples(16, in.e, in.h, in.p, in.q, in.lambda, x);
    elements<PIECE, BLOCK>(count, aligned, Forward<act>{in, x});
}

template <typename act>
__device__ __forceinline__ void backward(const act *dx, Operands<act> in, u32 count, act *de, act *dp, act *dq,
                                         float *terms) {
    bool aligned = in.cols % PIECE == 0 && multiples(16, dx, in.e, in.h, in.p, in.q, in.lambda, de, dp, dq, terms);
    elements<PIECE, BLOCK>(count, aligned, Backward<act>{dx, in, de, dp, dq, terms});
}

KERNEL(BLOCK) gated_mixture_fwd_f32(const float *e, const float *h, const float *p, const float *q,
                                    const float *lambda, u32 count, u32 cols, float *x) {
    forward<float>({e, h, p, q, lambda, cols}, count, x);
}

KERNEL(BLOCK) gated_mixture_fwd_bf16(const bf16 *e, const bf16 *h, const bf16 *p, const bf16 *q, const float *lambda,
                                     u32 count, u32 cols, bf16 *x) {
    forward<bf16>({e, h, p, q, lambda, cols}, count, x);
}

KERNEL(BLOCK) gated_mixture_bwd_f32(const float *dx, const float *e, const float *h, const float *p, const float *q,
                                    const float *lambda, u32 count, u32 cols, float *de, float *dp, float *dq,
                                    float *terms) {
    backward<float>(dx, {e, h, p, q, lambda, cols}, count, de, dp, dq, terms);
}

KERNEL(BLOCK) gated_mixture_bwd_bf16(const bf16 *dx, const bf16 *e, const bf16 *h, const bf16 *p, const bf16 *q,
                                     const float *lambda, u32 count, u32 cols, bf16 *de, bf16 *dp, bf16 *dq,
                                     float *terms) {
    backward<bf16>(dx, {e, h, p, q, lambda, cols}, count, de, dp, dq, terms);
}

KERNEL(FOLD) gated_mixture_bwd_lambda(const float *terms, u32 rows, u32 cols, float *dlambda) {
    __shared__ float room[FOLD];
    u32 c = blockIdx.x * WARP + threadIdx.x % WARP;
    fold(terms, rows, cols, dlambda + c, c, room);
}
