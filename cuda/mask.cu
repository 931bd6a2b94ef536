// Dropout bitmaps (src/cpu/mask.rs): drawing them, and multiplying rows by them.
//
//   fill    bit i of site u of instance r = word i of Philox(stream_r, (u, step_r, i/4, attempt_r)) >= threshold
//   apply   x[n,i] = bit ? x[n,i] * scale : 0        rows of instance -1 stay as they are
//
//   kernel         in                           out                  grid                   block   moved
//   mask_fill      keys[I,4] sites[S,3]         bits[I,stride]       ceil(I*stride/256)     256     4 I stride
//   mask_apply_*   x[R,C] bits instance         x[R,C]               ceil(R/each)           256     (2 a + 1/8) R C
//
// fill: a thread draws one word, eight blocks of Philox. The work is arithmetic (some 800 operations for 4 bytes), so
// what counts is that no thread idles and that neighbouring threads write neighbouring words: threads go through the
// words of all sites as they lie in memory, and look for their site among the S in shared memory (12 S bytes). Bits past
// a site's width are 0. The numbers are integers: they equal the CPU's bit for bit.
// apply is the backward kernel of masked_residual.cu in place; rows without a mask are neither read nor written.
#include "masks.cuh"

constexpr int BLOCK = 256;

// `sites`: number, width and first word of each, in the order of their words, which they fill without gaps.
KERNEL(BLOCK)
mask_fill(const u32 *keys, const u32 *sites, u32 count, u32 threshold, u32 instances, u32 stride, u32 *bits) {
    extern __shared__ u32 table[];
    for (u32 i = threadIdx.x; i < 3 * count; i += BLOCK) table[i] = sites[i];
    __syncthreads();
    u64 thread = (u64)blockIdx.x * BLOCK + threadIdx.x;
    if (thread >= (u64)instances * stride) return;
    u32 instance = (u32)(thread / stride), at = (u32)(thread % stride);
    // The last site that begins at this word or before.
    u32 site = 0;
    for (u32 step = 1u << (31 - __clz(count)); step > 0; step /= 2)
        if (site + step < count && table[3 * (site + step) + 2] <= at) site += step;
    u32 number = table[3 * site], width = table[3 * site + 1], word = at - table[3 * site + 2];
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
    bits[thread] = drawn;
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
