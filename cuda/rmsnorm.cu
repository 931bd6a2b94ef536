// RMS norm over the last axis (src/cpu/rmsnorm.rs); the arithmetic of a row is RmsNorm in norms.cuh.
//
//   forward   rstd[r] = 1/sqrt(mean_c x[r,c]^2 + eps)     y[r,c] = x[r,c] * rstd[r] * w[c]
//   backward  dx[r,c] = rstd * (dy*w)[c] - x[r,c] * rstd^3/C * sum_k (dy*w*x)[k]
//             dw[c]  += sum_r dy[r,c] * x[r,c] * rstd[r]
//
//   kernel           in                    out                    grid           block  shared  moved (a = bytes of act)
//   rmsnorm_fwd_*    x[R,C] w[C]           y[R,C] rstd[R]         ceil(R/each)   512    4.2 KB  2 R C a + 4 C grid
//   rmsnorm_bwd_*    dy x [R,C] w rstd     dx[R,C] partial[G,C]   G = as above   256    38 KB   3 R C a + 8 C grid
//   rmsnorm_bwd_dw   partial[G,C]          dw[C] (+=)             ceil(C/32)     1024   4.1 KB  4 C G
//
// A row is read once and stays in registers (rows.cuh says who owns what). A block takes `each` rows, forward 16 (a
// warp each, all of them on their way at once), backward 32 where there are many, so that the gain, which is as long as
// a row, costs little beside them: it lies in shared memory.
// Backward reads dy and x once for both gradients: a block leaves the sum of its rows' part of dw, and a second kernel
// adds the blocks in order. Walking columns instead, one thread a column, would read dy and x twice (5 R C instead of
// 3 R C) on C/32 blocks. A grid of one block adds to dw itself; the second kernel is then not launched.
// The order of dw's terms depends on R alone: warps of a block take rows in turn, then warps, then blocks ascend.
#include "norms.cuh"

constexpr int FORWARD = 512, BACKWARD = 256;

template <typename act>
__device__ __forceinline__ void forward(const act *x, const float *w, float eps, u32 rows, u32 cols, u32 each, act *y,
                                        float *rstd) {
    __shared__ float warps[FORWARD / WARP];
    __shared__ __align__(16) float shelf[Shelf::FLOATS];
    Parameters parameters = {w, nullptr, eps, nullptr, nullptr};
    NormForward<RmsNorm, FORWARD, act> run = {x, parameters, rows, cols, each, y, rstd, {warps, {shelf}, {nullptr}}};
    by_width<act, FORWARD>(cols, run);
}

template <typename act>
__device__ __forceinline__ void backward(const act *dy, const act *x, const float *w, const float *rstd, u32 rows,
                                         u32 cols, u32 each, act *dx, float *partial, float *dw) {
    __shared__ float warps[BACKWARD / WARP];
    __shared__ __align__(16) float shelf[1 + BACKWARD / WARP][Shelf::FLOATS];
    Parameters parameters = {w, nullptr, 0.0f, dw, nullptr};
    Room room = {warps, {shelf[0]}, {shelf[1]}};
    NormBackward<RmsNorm, BACKWARD, act> run = {dy, x, parameters, rstd, rows, cols, each, dx, partial, room};
    by_width<act, BACKWARD>(cols, run);
}

KERNEL(FORWARD) rmsnorm_fwd_f32(const float *x, const float *w, float eps, u32 rows, u32 cols, u32 each, float *y,
                                float *rstd) {
    forward(x, w, eps, rows, cols, each, y, rstd);
}

KERNEL(FORWARD) rmsnorm_fwd_bf16(const bf16 *x, const float *w, float eps, u32 rows, u32 cols, u32 each, bf16 *y,
                                 float *rstd) {
    forward(x, w, eps, rows, cols, each, y, rstd);
}

KERNEL(BACKWARD) rmsnorm_bwd_f32(const float *dy, const float *x, const float *w, const float *rstd, u32 rows,
                                 u32 cols, u32 each, float *dx, float *partial, float *dw) {
    backward(dy, x, w, rstd, rows, cols, each, dx, partial, dw);
}

KERNEL(BACKWARD) rmsnorm_bwd_bf16(const bf16 *dy, const bf16 *x, const float *w, const float *rstd, u32 rows, u32 cols,
                                  u32 each, bf16 *dx, float *partial, float *dw) {
    backward(dy, x, w, rstd, rows, cols, each, dx, partial, dw);
}

KERNEL(FOLD) rmsnorm_bwd_dw(const float *partial, u32 parts, u32 cols, float *dw) {
    __shared__ float room[FOLD];
    u32 c = blockIdx.x * WARP + threadIdx.x % WARP;
    fold(partial, parts, cols, dw + c, c, room);
}
