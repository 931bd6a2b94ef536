// Linear maps: the matrix products of cuda/gemm.cuh, and sums over rows for biases. Operation: src/ops/linear.rs, which
// launches products through src/ops/product.rs. What a product is and in which order it sums: gemm.cuh.
//
//   C[M,N] = A[M,K] B[K,N] + bias[N]    or C += ...,    then activated = gelu(C), where that is wanted
//
//   form  A stored   B stored   forward           dx                dw (+=)
//   nt    [M,K]      [N,K]      x, w[out,in]      dy, w[in,out]
//   nn    [M,K]      [K,N]      x, w[in,out]      dy, w[out,in]
//   tn    [K,M]      [K,N]                                          dy, x (w[out,in]) or x, dy (w[in,out])
//
//   kernel linear_<form>_<operands>_<tile>
//   operands   A     B                C             arithmetic                          depth of a stage, stages
//   f32        f32   f32              f32           tf32 x 3                            16, 3 (square 4)
//   rounded    f32   bf16 (tn: f32)   f32           bf16; f32 is rounded when read      16, 4 (tn wide: 3)
//   bf16       bf16  bf16             f32 or bf16   bf16                                32, 3 (square 4)
//
//   tile     outputs   threads                      grid                         shared
//   wide     128x128   8 warps of 64x32             ceil(M/128) ceil(N/128)      48 KiB at most (pipeline; then totals)
//   square   64x64     4 warps of 32x32             ceil(M/64) ceil(N/64)        32 KiB at most
//   skinny   16x32     4 warps, one chunk of k each ceil(M/16) ceil(N/32)        42 KiB at most (and 6 of them parts)
//
//   bytes    A is read ceil(N / tile's N) times, B ceil(M / tile's M) times, mostly from L2; C is written once
//
// Why three tiles: wide reads each panel least often and keeps the tensor cores busiest (16 mma a step for six
// ldmatrix); square has four times the blocks where C is small; skinny is for decode, where reading B once is all
// that counts: a block for 32 outputs, whose warps stream different chunks of k with 2-3 stages each in flight.
// All have the same bits.
//
//   linear_bwd_bias_<dtype>   dbias[c] += sum_r dy[r,c]   in dy[R,C]   grid ceil(C/32)   block 256   reads dy once
//
// There a thread sums 16 bytes of columns over every 32nd (bf16: 64th) row, then a warp adds these sums in order.
#include "gemm.cuh"

using Wide = Tile<128, 128, 2, 4, 1>;
using Square = Tile<64, 64, 2, 2, 1>;
using Skinny = Tile<16, 32, 1, 1, 4>;

// Bits of `flags`.
constexpr u32 ADD = 1, C_IS_BF16 = 2;

#define PRODUCT(NAME, TA, AXIS_A, TB, AXIS_B, ARITHMETIC, TILE)                                                        \
    KERNEL(TILE::THREADS)                                                                                              \
    NAME(const TA *a, u32 stride_a, const TB *b, u32 stride_b, u32 m, u32 n, u32 k, void *c, u32 stride_c, u32 flags,  \
         const float *bias, void *activated) {                                                                         \
        Product<TA, AXIS_A, TB, AXIS_B, ARITHMETIC, TILE>::run(a, stride_a, b, stride_b, m, n, k, c, stride_c,         \
                                                               flags & ADD, flags & C_IS_BF16, bias, activated);       \
    }

#define FORMS(OPERANDS, TA, TB, TB_TN, ARITHMETIC)                                                                     \
    PRODUCT(linear_nt_##OPERANDS##_wide, TA, K_CONTIGUOUS, TB, K_CONTIGUOUS, ARITHMETIC, Wide)                         \
    PRODUCT(linear_nt_##OPERANDS##_square, TA, K_CONTIGUOUS, TB, K_CONTIGUOUS, ARITHMETIC, Square)                     \
    PRODUCT(linear_nt_##OPERANDS##_skinny, TA, K_CONTIGUOUS, TB, K_CONTIGUOUS, ARITHMETIC, Skinny)                     \
    PRODUCT(linear_nn_##OPERANDS##_wide, TA, K_CONTIGUOUS, TB, OTHER_CONTIGUOUS, ARITHMETIC, Wide)                     \
    PRODUCT(linear_nn_##OPERANDS##_square, TA, K_CONTIGUOUS, TB, OTHER_CONTIGUOUS, ARITHMETIC, Square)                 \
    PRODUCT(linear_nn_##OPERANDS##_skinny, TA, K_CONTIGUOUS, TB, OTHER_CONTIGUOUS, ARITHMETIC, Skinny)                 \
    PRODUCT(linear_tn_##OPERANDS##_wide, TA, OTHER_CONTIGUOUS, TB_TN, OTHER_CONTIGUOUS, ARITHMETIC, Wide)              \
    PRODUCT(linear_tn_##OPERANDS##_square, TA, OTHER_CONTIGUOUS, TB_TN, OTHER_CONTIGUOUS, ARITHMETIC, Square)

FORMS(f32, float, float, float, SPLIT_TF32)
FORMS(rounded, float, bf16, float, BF16)
FORMS(bf16, bf16, bf16, bf16, BF16)

// ---- dbias --------------------------------------------------------------------------------------------------------

constexpr int BLOCK = 256, COLUMNS = 32, PITCH = COLUMNS + 4;

template <typename T>
__device__ __forceinline__ void add_cell(float (&sums)[16 / sizeof(T)], uint4 cell) {
    const u32 word[4] = {cell.x, cell.y, cell.z, cell.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if constexpr (sizeof(T) == 4) {
            sums[i] += __uint_as_float(word[i]);
        } else {
            sums[2 * i] += __uint_as_float(word[i] << 16);
            sums[2 * i + 1] += __uint_as_float(word[i] & 0xffff0000u);
        }
    }
}

template <typename T>
__device__ void backward_bias(const T *dy, u32 rows, u32 cols, float *dbias) {
    constexpr u32 CELL = 16 / sizeof(T), LANES = COLUMNS / CELL, ROWS = BLOCK / LANES;
    __shared__ __align__(16) float parts[ROWS * PITCH];
    u32 lane = threadIdx.x % LANES * CELL, first = threadIdx.x / LANES, col = blockIdx.x * COLUMNS + lane;
    Source<T> from(dy, cols, rows, cols);
    float sums[CELL] = {};
    if (from.aligned && col < cols) {
#pragma unroll 4
        for (u32 row = first; row < rows; row += ROWS)
            add_cell<T>(sums, *reinterpret_cast<const uint4 *>(from.at(row, col)));
    } else {
#pragma unroll 1
        for (u32 row = first; row < rows; row += ROWS) add_cell<T>(sums, from.gather(row, col));
    }
#pragma unroll
    for (u32 i = 0; i < CELL; i += 4)
        *reinterpret_cast<float4 *>(parts + first * PITCH + lane + i) =
            make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
    __syncthreads();
    col = blockIdx.x * COLUMNS + threadIdx.x;
    if (threadIdx.x >= COLUMNS || col >= cols) return;
    float total = 0.0f;
#pragma unroll 8
    for (u32 row = 0; row < ROWS; row++) total += parts[row * PITCH + threadIdx.x];
    dbias[col] += total;
}

KERNEL(BLOCK) linear_bwd_bias_f32(const float *dy, u32 rows, u32 cols, float *dbias) {
    backward_bias(dy, rows, cols, dbias);
}
KERNEL(BLOCK) linear_bwd_bias_bf16(const bf16 *dy, u32 rows, u32 cols, float *dbias) {
    backward_bias(dy, rows, cols, dbias);
}
