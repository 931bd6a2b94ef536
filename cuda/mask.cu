// Dropout bitmaps (src/cpu/mask.rs): drawing them, and multiplying rows by them.
//
//   fill    bit i of site u of instance r = word i of Philox(stream_r, (u, step_r, i/4, attempt_r)) >= threshold
//   apply   x[n,i] = bit ? x[n,i] * scale : 0        rows of instance -1 stay as they are
//
//   kernel         in                           out                         grid                        block   moved
//   mask_fill      keys[I,4] sites[S,3]         bits[I,stride]              ceil(I*W/256) x S           256     4 I stride
//   mask_apply_*   x[R,C] bits instance         x[R,C]                      ceil(R/each)                256     (2 a + 1/8) R C
//
// fill: a thread draws one word, eight blocks of Philox; y of the grid is the site, W the words of the widest one.
// The work is arithmetic (some 800 operations for 4 bytes), so what counts is that neighbouring threads write
// neighbouring words. Bits past a site's width are 0. The numbers are integers: they equal the CPU's bit for bit.
// apply is the backward kernel of masked_residual.cu in place; rows without a mask are neither read nor written.
#include "masks.cuh"

constexpr int BLOCK = 256;

KERNEL(BLOCK) mask_fill(const u32 *keys, const u32 *sites, u32 threshold, u32 instances, u32 stride, u32 *bits) {
    const u32 *site = sites + 3 * blockIdx.y;
    u32 number = site[0], width = site[1], offset = site[2];
    u32 words = (width + 31) / 32;
    u64 thread = (u64)blockIdx.x * BLOCK + threadIdx.x;
    if (thread >= (u64)instances * words) return;
    u32 instance = (u32)(thread / words), word = (u32)(thread % words);
    uint4 key = reinterpret_cast<const uint4 *>(keys)[instance];
    u32 drawn = 0;
#pragma unroll 1
    for (u32 block = 0; block < 8; block++) {
        uint4 four = philox(make_uint2(key.x, key.y), make_uint4(number, key.z, 8 * word + block, key.w));
        u32 nibble = (four.x >= threshold) | (four.y >= threshold) << 1 | (four.z >= threshold) << 2 |
                     (four.w >= threshold) << 3;
        drawn |= nibble << (4 * block);
    }
    u32 used = width - 32 * word;
    if (used < 32) drawn &= (1u << used) - 1;
    bits[(u64)instance * stride + offset + word] = drawn;
}

KERNEL(BLOCK) mask_apply_f32(float *x, const u32 *bits, const int *instance, u32 instances, u32 stride, u32 offset,
                             float scale, u32 rows, u32 cols, u32 each) {
    Mask mask = {bits, instance, stride, offset, scale, instances};
    by_width<float, BLOCK>(cols, MaskedRows<float, BLOCK, false>{nullptr, x, mask, rows, cols, each, x});
}

KERNEL(BLOCK) mask_apply_bf16(bf16 *x, const u32 *bits, const int *instance, u32 instances, u32 stride, u32 offset,
                              float scale, u32 rows, u32 cols, u32 each) {
    Mask mask = {bits, instance, stride, offset, scale, instances};
    by_width<bf16, BLOCK>(cols, MaskedRows<bf16, BLOCK, false>{nullptr, x, mask, rows, cols, each, x});
}
