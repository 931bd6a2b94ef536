// Log-density of rows under normals of one deviation, up to what is constant (src/cpu/gaussian_density.rs).
//
//   forward   score[r] = -scale * sum_c (x[r,c] - m[r,c])^2                  scale = 1 / (2 sigma^2)
//   backward  dm[r,c]  = 2 scale * d[r] * (x[r,c] - m[r,c])
//
//   kernel                   in               out         grid  block  shared  moved (a = bytes of act)
//   gaussian_density_fwd_*   x m [R,C]        score[R]    R     256    32 B    2 R C a
//   gaussian_density_bwd_*   x m [R,C] d[R]   dm[R,C]     R     256    0       3 R C a
//
// A block has one row, and reads it once. Threads sum what they visit, then lanes, then warps, in a fixed order. 128-bit
// accesses where rows are whole numbers of them; which of the two it is depends on C alone, so that a row's bits do not
// depend on its place.
#include "vector.cuh"

constexpr int BLOCK = 256, WARPS = BLOCK / WARP;

template <int N, typename act>
__device__ __forceinline__ float squares(const act *x, const act *m, u32 cols) {
    float sum = 0.0f;
    for (u32 c = threadIdx.x * N; c < cols; c += BLOCK * N) {
        Numbers<N> a = read<N>(x + c), b = read<N>(m + c);
        for (int i = 0; i < N; i++) {
            float e = a[i] - b[i];
            sum = fmaf(e, e, sum);
        }
    }
    return sum;
}

template <typename act>
__device__ __forceinline__ void forward(const act *x, const act *m, u32 cols, float scale, float *score) {
    __shared__ float sums[WARPS];
    u64 row = static_cast<u64>(blockIdx.x) * cols;
    bool wide = cols % WIDE<act> == 0 && multiples(16, x, m);
    float sum = wide ? squares<WIDE<act>>(x + row, m + row, cols) : squares<1>(x + row, m + row, cols);

    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < WARPS; w++) sum += sums[w];
    score[blockIdx.x] = -scale * sum;
}

template <int N, typename act>
__device__ __forceinline__ void slopes(const act *x, const act *m, u32 cols, float factor, act *dm) {
    for (u32 c = threadIdx.x * N; c < cols; c += BLOCK * N) {
        Numbers<N> a = read<N>(x + c), b = read<N>(m + c);
        for (int i = 0; i < N; i++) a[i] = factor * (a[i] - b[i]);
        write<N>(dm + c, a);
    }
}

template <typename act>
__device__ __forceinline__ void backward(const act *x, const act *m, const float *d, u32 cols, float scale, act *dm) {
    u64 row = static_cast<u64>(blockIdx.x) * cols;
    float factor = 2.0f * scale * d[blockIdx.x];
    if (cols % WIDE<act> == 0 && multiples(16, x, m, dm)) {
        slopes<WIDE<act>>(x + row, m + row, cols, factor, dm + row);
    } else {
        slopes<1>(x + row, m + row, cols, factor, dm + row);
    }
}

KERNEL(BLOCK) gaussian_density_fwd_f32(const float *x, const float *m, u32 cols, float scale, float *score) {
    forward(x, m, cols, scale, score);
}
KERNEL(BLOCK) gaussian_density_fwd_bf16(const bf16 *x, const bf16 *m, u32 cols, float scale, float *score) {
    forward(x, m, cols, scale, score);
}
KERNEL(BLOCK) gaussian_density_bwd_f32(const float *x, const float *m, const float *d, u32 cols, float scale, float *dm) {
    backward(x, m, d, cols, scale, dm);
}
KERNEL(BLOCK) gaussian_density_bwd_bf16(const bf16 *x, const bf16 *m, const float *d, u32 cols, float scale, bf16 *dm) {
    backward(x, m, d, cols, scale, dm);
}
