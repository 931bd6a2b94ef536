// Small integer operations on the device, so that a decode step needs no upload.
//   advance   positions[i] += by
//   repeat    to[i] = from[i] + add          the ranges are the same or do not meet
//   fill      x[i] = value                   4-byte or 2-byte elements
//
//   kernel          in        out       grid            block  shared  bytes
//   index_advance   x[N]      x[N]      ceil(N / 256)   256    0       8 N
//   index_repeat    from[N]   to[N]     ceil(N / 256)   256    0       8 N
//   index_fill_32   -         x[N]      ceil(N / 256)   256    0       4 N
//   index_fill_16   -         x[N]      ceil(N / 256)   256    0       2 N
//
// A thread has one element: these move a few numbers a row. Additions wrap, u32 and i32 alike, as on the CPU. Sampled tokens (u32) become input ids (i32) by `index_repeat` with add = 0: below 2^31 they have the same bits.
#include "common.cuh"

constexpr int BLOCK = 256;

KERNEL(BLOCK) index_advance(u32 *positions, u32 count, u32 by) {
    u32 i = blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) positions[i] += by;
}

KERNEL(BLOCK) index_repeat(const u32 *from, u32 *to, u32 count, u32 add) {
    u32 i = blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) to[i] = from[i] + add;
}

KERNEL(BLOCK) index_fill_32(u32 *x, u32 count, u32 value) {
    u32 i = blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) x[i] = value;
}

KERNEL(BLOCK) index_fill_16(unsigned short *x, u32 count, u32 value) {
    u32 i = blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) x[i] = (unsigned short)value;
}
