// RMS norm over the last axis.
//   forward   rstd[r] = 1/sqrt(mean_c x[r,c]^2 + eps)     y[r,c] = x[r,c] * rstd[r] * w[c]
#include "common.cuh"
constexpr int BLOCK = 256;
template <typename act>
__device__ void forward(const act *x, const float *w, float eps, u32 cols, act *y, float *rstd) {
    __shared__ float room[BLOCK / WARP];
    u32 row = blockIdx.x;
    x += (u64)row * cols;
    y += (u64)row * cols;
    float squares = 0.0f;
    for (u32 c = threadIdx.x; c < cols; c += BLOCK) { float v = load(x + c); squares = fmaf(v, v, squares); }
    float r = rsqrtf(block_sum<BLOCK / WARP>(squares, room) / cols + eps);
    for (u32 c = threadIdx.x; c < cols; c += BLOCK) store(y + c, load(x + c) * r * w[c]);
    if (threadIdx.x == 0) rstd[row] = r;
}
KERNEL(BLOCK) rmsnorm_fwd_f32(const float *x, const float *w, float eps, u32 cols, float *y, float *rstd) { forward(x, w, eps, cols, y, rstd); }
KERNEL(BLOCK) rmsnorm_fwd_bf16(const bf16 *x, const float *w, float eps, u32 cols, bf16 *y, float *rstd) { forward(x, w, eps, cols, y, rstd); }
