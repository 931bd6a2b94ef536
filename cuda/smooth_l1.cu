// Smooth L1 distance of rows, and the spread of the target (src/cpu/smooth_l1.rs).
//
//   l(e) = e^2 / (2 beta) where |e| < beta, else |e| - beta / 2              e = x - t
//   forward   out[r] = (sum_c l(x[r,c] - t[r,c]),  mean of t[r,:],  sum_c (t[r,c] - mean)^2)
//   backward  dx = scale * clamp(e / beta, -1, 1)
//
//   kernel            in             out        grid                     block  shared  moved (a = bytes of act)
//   smooth_l1_fwd_*   x t [R,C]      out[R,3]    R                        256    128 B   2 R C a
//   smooth_l1_bwd_*   x t [n]        dx[n]      ceil(n / (256 * 16/a))   256    0       3 a n
//
// A block has one row and reads it once: mean and spread grow together (Welford), then lanes and warps merge theirs in
// a fixed order (Chan, Golub and LeVeque), so that no second pass over the target is needed and a large mean costs no
// digits. 128-bit reads where rows are whole numbers of them; which of the two it is depends on C alone, so that a row's
// bits do not depend on its place.
#include "vector.cuh"

constexpr int BLOCK = 256, WARPS = BLOCK / WARP;

struct Spread {
    float count, mean, squares;

    __device__ __forceinline__ void take(float t) {
        count += 1.0f;
        float off = t - mean;
        mean += off / count;
        squares = fmaf(off, t - mean, squares);
    }

    __device__ __forceinline__ void merge(const Spread &other) {
        float all = count + other.count, off = other.mean - mean;
        if (all == 0.0f) return;
        float part = other.count / all;
        mean = fmaf(off, part, mean);
        squares += fmaf(off * off, count * part, other.squares);
        count = all;
    }
};

template <int N, typename act>
__device__ __forceinline__ void gather(const act *x, const act *t, u32 cols, float beta, float &loss, Spread &spread) {
    float half = 0.5f / beta, rest = 0.5f * beta;
    for (u32 c = threadIdx.x * N; c < cols; c += BLOCK * N) {
        Numbers<N> a = read<N>(x + c), b = read<N>(t + c);
        for (int i = 0; i < N; i++) {
            float e = a[i] - b[i], size = fabsf(e);
            loss += size < beta ? half * e * e : size - rest;
            spread.take(b[i]);
        }
    }
}

template <typename act>
__device__ __forceinline__ void forward(const act *x, const act *t, u32 cols, float beta, float *out) {
    __shared__ float losses[WARPS], counts[WARPS], means[WARPS], squares[WARPS];
    u64 row = static_cast<u64>(blockIdx.x) * cols;
    float loss = 0.0f;
    Spread spread = {0.0f, 0.0f, 0.0f};
    if (cols % WIDE<act> == 0 && multiples(16, x, t)) {
        gather<WIDE<act>>(x + row, t + row, cols, beta, loss, spread);
    } else {
        gather<1>(x + row, t + row, cols, beta, loss, spread);
    }

    loss = warp_sum(loss);
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        Spread other = {__shfl_down_sync(ALL_LANES, spread.count, distance),
                        __shfl_down_sync(ALL_LANES, spread.mean, distance),
                        __shfl_down_sync(ALL_LANES, spread.squares, distance)};
        spread.merge(other);
    }
    u32 warp = threadIdx.x / WARP;
    if (threadIdx.x % WARP == 0) {
        losses[warp] = loss;
        counts[warp] = spread.count;
        means[warp] = spread.mean;
        squares[warp] = spread.squares;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < WARPS; w++) {
        loss += losses[w];
        spread.merge({counts[w], means[w], squares[w]});
    }
    out += 3 * static_cast<u64>(blockIdx.x);
    out[0] = loss;
    out[1] = spread.mean;
    out[2] = spread.squares;
}

template <typename act> struct Backward {
    const act *x, *t;
    float inverse, scale;
    act *dx;
    template <int N> __device__ __forceinline__ void operator()(Width<N>, u32 at) const {
        Numbers<N> a = read<N>(x + at), b = read<N>(t + at);
        for (int i = 0; i < N; i++) {
            float slope = (a[i] - b[i]) * inverse;
            // Comparisons, not fminf: a NaN stays one.
            slope = slope < -1.0f ? -1.0f : slope;
            a[i] = scale * (slope > 1.0f ? 1.0f : slope);
        }
        write<N>(dx + at, a);
    }
};

template <typename act>
__device__ __forceinline__ void backward(const act *x, const act *t, u32 count, float inverse, float scale, act *dx) {
    elements<WIDE<act>, BLOCK>(count, multiples(16, x, t, dx), Backward<act>{x, t, inverse, scale, dx});
}

KERNEL(BLOCK) smooth_l1_fwd_f32(const float *x, const float *t, u32 cols, float beta, float *out) {
    forward(x, t, cols, beta, out);
}
KERNEL(BLOCK) smooth_l1_fwd_bf16(const bf16 *x, const bf16 *t, u32 cols, float beta, float *out) {
    forward(x, t, cols, beta, out);
}
KERNEL(BLOCK) smooth_l1_bwd_f32(const float *x, const float *t, u32 count, float inverse, float scale, float *dx) {
    backward(x, t, count, inverse, scale, dx);
}
KERNEL(BLOCK) smooth_l1_bwd_bf16(const bf16 *x, const bf16 *t, u32 count, float inverse, float scale, bf16 *dx) {
    backward(x, t, count, inverse, scale, dx);
}
