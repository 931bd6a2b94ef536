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
//   operands   A     B                C             arithmetic
//   f32        f32   f32              f32           tf32 x 3
//   rounded    f32   bf16 (tn: f32)   f32           bf16; f32 is rounded when read
//   bf16       bf16  bf16             f32 or bf16   bf16
//
//   tile     outputs   threads                      grid                         shared (product.rs: Tile::shared_bytes)
//   wide     64x128    4 warps of 64x32             ceil(M/64) ceil(N/128)       72 KiB: 3 stages of 128 bytes a line; not rounded
//   square   64x64     4 warps of 32x32             ceil(M/64) ceil(N/64)        48 KiB (rounded 36): 3 stages of 128 bytes a line
//   skinny   16x32     4 warps, a chunk of k each   ceil(M/16) ceil(N/32)        42 KiB at most: 3 stages of 64 bytes, parts
//   narrow   16x16     8 warps, a chunk of k each   ceil(M/16) ceil(N/16)        71 KiB at most: 2 stages of 128 bytes, parts
//
//   bytes    A is read ceil(N / tile's N) times, B ceil(M / tile's M) times, mostly from L2; C is written once
//
// Why four tiles: wide reads each panel least often, 16 mma a step for six ldmatrix, and leaves room for three blocks on a
// multiprocessor, whose barriers then hide behind each other; square has more blocks where C is small; skinny and narrow
// are for decode, where reading B once is all that counts: a block for 32 (16) outputs, whose warps stream different
// chunks of k. Skinny reads A half as often; narrow has more warps on every line where there are few columns.
// On a GPU of compute capability 9.0, cuda/linear_sm90a.cu has wide and square for bf16 operands. All have the same bits.
//
// Seen on an H200, microseconds (cuBLASLt): bf16 4096x3072x768 wide 81, 4096x4096x4096 468; f32 4096x3072x768 414 (390);
// bf16 with 8 rows: 4864x896 narrow 8.4 (8.3), 896x4864 narrow 14 (10), 151936x896 skinny 94 (77).
#include "gemm.cuh"

using Wide = Tile<64, 128, 1, 4, 1, 128, 3>;
using Square = Tile<64, 64, 2, 2, 1, 128, 3>;
using Skinny = Tile<16, 32, 1, 1, 4, 64, 3>;
using Narrow = Tile<16, 16, 1, 1, 8, 128, 2>;

// Bits of `flags`.
constexpr u32 ADD = 1, C_IS_BF16 = 2;

// BLOCKS: what a multiprocessor should hold, by which the compiler counts its registers.
#define PRODUCT(NAME, BLOCKS, TA, AXIS_A, TB, AXIS_B, ARITHMETIC, TILE)                                                \
    KERNEL(TILE::THREADS, BLOCKS)                                                                                      \
    NAME(const TA *a, u32 stride_a, const TB *b, u32 stride_b, u32 m, u32 n, u32 k, void *c, u32 stride_c, u32 flags,  \
         const float *bias, void *activated) {                                                                         \
        Product<TA, AXIS_A, TB, AXIS_B, ARITHMETIC, TILE>::run(a, stride_a, b, stride_b, m, n, k, c, stride_c,         \
                                                               flags & ADD, flags & C_IS_BF16, bias, activated);       \
    }

#define WIDE(FORM, BLOCKS, ...) PRODUCT(FORM##_wide, BLOCKS, __VA_ARGS__, Wide)
#define SQUARE(FORM, ...) PRODUCT(FORM##_square, 1, __VA_ARGS__, Square)
#define SKINNY(FORM, ...) PRODUCT(FORM##_skinny, 1, __VA_ARGS__, Skinny)
#define NARROW(FORM, ...) PRODUCT(FORM##_narrow, 1, __VA_ARGS__, Narrow)

#define WIDE_FORMS(OPERANDS, BLOCKS, T, ARITHMETIC)                                                                    \
    WIDE(linear_nt_##OPERANDS, BLOCKS, T, K_CONTIGUOUS, T, K_CONTIGUOUS, ARITHMETIC)                                   \
    WIDE(linear_nn_##OPERANDS, BLOCKS, T, K_CONTIGUOUS, T, OTHER_CONTIGUOUS, ARITHMETIC)                               \
    WIDE(linear_tn_##OPERANDS, 2, T, OTHER_CONTIGUOUS, T, OTHER_CONTIGUOUS, ARITHMETIC)
#define FORMS(OPERANDS, TA, TB, TB_TN, ARITHMETIC)                                                                     \
    SQUARE(linear_nt_##OPERANDS, TA, K_CONTIGUOUS, TB, K_CONTIGUOUS, ARITHMETIC)                                       \
    SQUARE(linear_nn_##OPERANDS, TA, K_CONTIGUOUS, TB, OTHER_CONTIGUOUS, ARITHMETIC)                                   \
    SQUARE(linear_tn_##OPERANDS, TA, OTHER_CONTIGUOUS, TB_TN, OTHER_CONTIGUOUS, ARITHMETIC)                            \
    SKINNY(linear_nt_##OPERANDS, TA, K_CONTIGUOUS, TB, K_CONTIGUOUS, ARITHMETIC)                                       \
    NARROW(linear_nt_##OPERANDS, TA, K_CONTIGUOUS, TB, K_CONTIGUOUS, ARITHMETIC)

FORMS(f32, float, float, float, SPLIT_TF32)
FORMS(rounded, float, bf16, float, BF16)
FORMS(bf16, bf16, bf16, bf16, BF16)
// Large products of f32 factors that are to be rounded are products of rounded ones: product.rs.
WIDE_FORMS(f32, 2, float, SPLIT_TF32)
WIDE_FORMS(bf16, 3, bf16, BF16)
// Weights [in,out] are no output heads, and narrow serves all others; but sixteen columns of f32 are too short a line for
// the swizzle.
NARROW(linear_nn_rounded, float, K_CONTIGUOUS, bf16, OTHER_CONTIGUOUS, BF16)
NARROW(linear_nn_bf16, bf16, K_CONTIGUOUS, bf16, OTHER_CONTIGUOUS, BF16)
SKINNY(linear_nn_f32, float, K_CONTIGUOUS, float, OTHER_CONTIGUOUS, SPLIT_TF32)
