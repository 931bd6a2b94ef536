// Linear maps: the matrix products of cuda/gemm.cuh (the gradient of a bias: bias.cu). Operation: src/ops/linear.rs, which
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
