// The residual sum with a masked branch (src/cpu/masked_residual.rs).
//
//   forward   y[n,c] = x[n,c] + m[n,c] * branch[n,c]      m = 0 or 1/(1-p); 1 in rows without a mask
//   backward  dbranch[n,c] = m[n,c] * dy[n,c]             dx = dy is the residual stream itself
//
//   kernel                  in                            out            grid            block   moved (a = bytes of act)
//   masked_residual_fwd_*   x branch [R,C] bits instance  y[R,C]         ceil(R/each)    256     (3 a + 1/8) R C
//   masked_residual_bwd_*   dy[R,C] bits instance         dbranch[R,C]   ceil(R/each)    256     (2 a + 1/8) R C
//
// A warp takes `each`/8 neighbouring rows of at most 1024 columns (wider rows belong to a block), 128 bits a thread,
// and reads a row's bitmap by one access, a word a lane; where neighbouring rows have the same instance, once for all.
// Nothing is shared between threads but the bitmap's words, which are handed around by shuffles.
#include "masks.cuh"

constexpr int BLOCK = 256;

KERNEL(BLOCK) masked_residual_fwd_f32(const float *x, const float *branch, const u32 *bits, const int *instance,
                                      u32 instances, u32 stride, u32 offset, float scale, u32 rows, u32 cols, u32 each,
                                      float *y) {
    Mask mask = {bits, instance, stride, offset, scale, instances};
    by_width<float, BLOCK>(cols, MaskedRows<float, BLOCK, true>{x, branch, mask, rows, cols, each, y});
}

KERNEL(BLOCK) masked_residual_fwd_bf16(const bf16 *x, const bf16 *branch, const u32 *bits, const int *instance,
                                       u32 instances, u32 stride, u32 offset, float scale, u32 rows, u32 cols, u32 each,
                                       bf16 *y) {
    Mask mask = {bits, instance, stride, offset, scale, instances};
    by_width<bf16, BLOCK>(cols, MaskedRows<bf16, BLOCK, true>{x, branch, mask, rows, cols, each, y});
}

// Told nothing, ptxas aims at three blocks a multiprocessor and spills.
KERNEL(BLOCK, 2) masked_residual_bwd_f32(const float *dy, const u32 *bits, const int *instance, u32 instances, u32 stride,
                                      u32 offset, float scale, u32 rows, u32 cols, u32 each, float *dbranch) {
    Mask mask = {bits, instance, stride, offset, scale, instances};
    by_width<float, BLOCK>(cols, MaskedRows<float, BLOCK, false>{nullptr, dy, mask, rows, cols, each, dbranch});
}

KERNEL(BLOCK) masked_residual_bwd_bf16(const bf16 *dy, const u32 *bits, const int *instance, u32 instances, u32 stride,
                                       u32 offset, float scale, u32 rows, u32 cols, u32 each, bf16 *dbranch) {
    Mask mask = {bits, instance, stride, offset, scale, instances};
    by_width<bf16, BLOCK>(cols, MaskedRows<bf16, BLOCK, false>{nullptr, dy, mask, rows, cols, each, dbranch});
}
