// Layer norm over the last axis (src/cpu/layernorm.rs); the arithmetic of a row is LayerNorm in norms.cuh.
//
//   forward   mean[r] = mean_c x[r,c]      rstd[r] = 1/sqrt(mean_c (x[r,c] - mean[r])^2 + eps)
//             h[r,c] = (x[r,c] - mean[r]) * rstd[r]       y[r,c] = h[r,c] * w[c] + b[c]
//   backward  dx[r,c] = rstd * ((dy*w)[c] - mean_k (dy*w)[k] - h[c] * mean_k (dy*w*h)[k])
//             dw[c] += sum_r dy[r,c] * h[r,c]     db[c] += sum_r dy[r,c]
//
//   kernel            in                    out                       grid           block  shared   moved (a = bytes of act)
//   layernorm_fwd_*   x[R,C] w[C] b[C]      y[R,C] (mean, rstd)[R]    ceil(R/each)   512    8.3 KB   2 R C a + 8 C grid
//   layernorm_bwd_*   dy x [R,C] w stats    dx[R,C] partial[G,2,C]    G = as above   256    38 KB    3 R C a + 12 C grid
//   layernorm_bwd_dw  partial[G,2,C]        dw[C] db[C] (+=)          ceil(2C/32)    1024   4.1 KB   8 C G
//
// The mean is subtracted before squares are added (two passes over registers, not over memory): a mean far from zero
// costs no digits. Everything else is as in rmsnorm.cu: a row is read once, a block takes `each` rows, gain and bias
// lie in shared memory, blocks leave sums that a second kernel adds in order.
#include "norms.cuh"

constexpr int FORWARD = 512, BACKWARD = 256;

template <typename act>
__device__ __forceinline__ void forward(const act *x, const float *w, const float *b, float eps, u32 rows, u32 cols,
                                        u32 each, act *y, float *statistics) {
    __shared__ float warps[FORWARD / WARP];
    __shared__ __align__(16) float shelf[2][Shelf::FLOATS];
    Parameters parameters = {w, b, eps, nullptr, nullptr};
    Room room = {warps, {shelf[0]}, {shelf[1]}};
    NormForward<LayerNorm, FORWARD, act> run = {x, parameters, rows, cols, each, y, statistics, room};
    by_width<act, FORWARD>(cols, run);
}

template <typename act>
__device__ __forceinline__ void backward(const act *dy, const act *x, const float *w, const float *statistics, u32 rows,
                                         u32 cols, u32 each, act *dx, float *partial, float *dw, float *db) {
    __shared__ float warps[BACKWARD / WARP];
    __shared__ __align__(16) float shelf[1 + BACKWARD / WARP][Shelf::FLOATS];
    Parameters parameters = {w, nullptr, 0.0f, dw, db};
    Room room = {warps, {shelf[0]}, {shelf[1]}};
    NormBackward<LayerNorm, BACKWARD, act> run = {dy, x, parameters, statistics, rows, cols, each, dx, partial, room};
    by_width<act, BACKWARD>(cols, run);
}

KERNEL(FORWARD) layernorm_fwd_f32(const float *x, const float *w, const float *b, float eps, u32 rows, u32 cols,
                                  u32 each, float *y, float *statistics) {
    forward(x, w, b, eps, rows, cols, each, y, statistics);
}

KERNEL(FORWARD) layernorm_fwd_bf16(const bf16 *x, const float *w, const float *b, float eps, u32 rows, u32 cols,
                                   u32 each, bf16 *y, float *statistics) {
    forward(x, w, b, eps, rows, cols, each, y, statistics);
}

KERNEL(BACKWARD) layernorm_bwd_f32(const float *dy, const float *x, const float *w, const float *statistics, u32 rows,
                                   u32 cols, u32 each, float *dx, float *partial, float *dw, float *db) {
    backward(dy, x, w, statistics, rows, cols, each, dx, partial, dw, db);
}

KERNEL(BACKWARD) layernorm_bwd_bf16(const bf16 *dy, const bf16 *x, const float *w, const float *statistics, u32 rows,
                                    u32 cols, u32 each, bf16 *dx, float *partial, float *dw, float *db) {
    backward(dy, x, w, statistics, rows, cols, each, dx, partial, dw, db);
}

KERNEL(FOLD) layernorm_bwd_dw(const float *partial, u32 parts, u32 cols, float *dw, float *db) {
    __shared__ float room[FOLD];
    u32 c = blockIdx.x * WARP + threadIdx.x % WARP;
    fold(partial, parts, 2 * cols, c < cols ? dw + c : db + (c - cols), c, room);
}
