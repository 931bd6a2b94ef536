// Gradients of biases: sums of columns. Operation: src/ops/linear.rs.
//
//   bias_bwd_<dtype>   dbias[c] += sum_r dy[r,c]     in dy[R,C]     grid ceil(C / 16)     block 512     shared 8 KiB (bf16 16 KiB)
//   bytes              reads dy once, a bytes a number, and reads and writes dbias
//
// A block takes 16 columns, in bf16 one sector of every row, in f32 two: the fewer columns a block has the more blocks
// there are. A gradient of 768 columns is 48 blocks, where 128 bytes a row would be 24 in f32 and 12 in bf16 on a device
// of a hundred multiprocessors. A thread has 16 bytes of every 128th row (bf16: 256th), with 8 loads in flight; then a
// warp adds a column's sums: its lanes those 32 apart, then each other. The order depends on R and the dtype alone.
#include "vector.cuh"

constexpr int BLOCK = 512, WARPS = BLOCK / WARP, IN_FLIGHT = 8;
constexpr u32 COLUMNS = 16;

template <typename T> __device__ __forceinline__ void backward(const T *dy, u32 rows, u32 cols, float *dbias) {
    constexpr u32 CELL = WIDE<T>, LANES = COLUMNS / CELL, ROWS = BLOCK / LANES;
    // With so much between columns the threads of neighbouring rows write to different banks.
    constexpr u32 PITCH = ROWS + 2;
    __shared__ float parts[COLUMNS * PITCH];
    u32 lane = threadIdx.x % LANES * CELL, first = threadIdx.x / LANES, col = blockIdx.x * COLUMNS + lane;
    float sums[CELL] = {};
    dy += col;
    if (multiples(16, dy) && cols % CELL == 0) {
        Piece<T, CELL> held[IN_FLIGHT];
        u32 row = col < cols ? first : rows;
        for (; row + (IN_FLIGHT - 1) * ROWS < rows; row += IN_FLIGHT * ROWS) {
#pragma unroll
            for (u32 i = 0; i < IN_FLIGHT; i++) held[i].read(dy + (u64)(row + i * ROWS) * cols);
#pragma unroll
            for (u32 i = 0; i < IN_FLIGHT; i++) {
                Numbers<CELL> x = held[i].numbers();
#pragma unroll
                for (u32 j = 0; j < CELL; j++) sums[j] += x[j];
            }
        }
#pragma unroll 1
        for (; row < rows; row += ROWS) {
            Numbers<CELL> x = read<CELL>(dy + (u64)row * cols);
#pragma unroll
            for (u32 j = 0; j < CELL; j++) sums[j] += x[j];
        }
    } else {
#pragma unroll 1
        for (u32 row = first; row < rows; row += ROWS) {
#pragma unroll
            for (u32 j = 0; j < CELL; j++) {
                if (col + j < cols) sums[j] += load(dy + (u64)row * cols + j);
            }
        }
    }
#pragma unroll
    for (u32 j = 0; j < CELL; j++) parts[(lane + j) * PITCH + first] = sums[j];
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < COLUMNS / WARPS; i++) {
        u32 column = threadIdx.x / WARP + i * WARPS, c = blockIdx.x * COLUMNS + column;
        float sum = 0.0f;
#pragma unroll
        for (u32 row = 0; row < ROWS; row += WARP) sum += parts[column * PITCH + row + threadIdx.x % WARP];
        sum = warp_sum(sum);
        if (threadIdx.x % WARP == 0 && c < cols) dbias[c] += sum;
    }
}

KERNEL(BLOCK) bias_bwd_f32(const float *dy, u32 rows, u32 cols, float *dbias) { backward(dy, rows, cols, dbias); }
KERNEL(BLOCK) bias_bwd_bf16(const bf16 *dy, u32 rows, u32 cols, float *dbias) { backward(dy, rows, cols, dbias); }
