// Linear maps on Hopper (compute capability 9.0): products of bf16 matrices by warpgroups, in the order of gemm.cuh and
// with the bits of linear.cu's. Operation: src/ops/linear.rs through src/ops/product.rs.
//
//   C[M,N] = A[M,K] B[K,N] + bias[N]    or C += ...,    then activated = gelu(C), where that is wanted
//
//   form  A stored   B stored     kernel linear_<form>_bf16_<tile>_sm90a; forms as in linear.cu
//   nt    [M,K]      [N,K]
//   nn    [M,K]      [K,N]
//
//   tile     outputs   threads               grid                       shared: stages of 64 k
//   wide     128x128   2 warpgroups, 64x128  ceil(M/128) ceil(N/128)    160 KiB: 5
//   square   64x64     1 warpgroup           ceil(M/64) ceil(N/64)      64 KiB: 4
//
//   bytes    A is read ceil(N / tile's N) times, B ceil(M / tile's M) times, mostly from L2; C is written once
//
// Operands have 16-byte aligned lines; C may lie anywhere.
//
// # How a block works
//   for each 64 k:
//       cp.async, STAGES - 2 stages ahead    the stage after the next two is free: every warpgroup has waited for it
//       what landed is shown to the tensor core, barrier
//       four products of 16 k                part; asynchronous
//       after two of these (a chunk):        wait; total += part
//   total -> shared memory -> bias, activation, += -> C in 16-byte rows
//
// Two warpgroups share B and stagger by themselves: while one adds its part, the other's products run.
//
// Seen on an H200, microseconds (mma.sync; cuBLASLt): 4096x3072x768 62 (117; 33), 4096x4096x4096 311 (705; 177),
// 4096x896x4864 98 (209; 49).
#include "gemm.cuh"
#include "warpgroup.cuh"

template <Axis AXIS_B, u32 N, u32 WARPGROUPS, u32 STAGES>
struct WarpgroupProduct {
    static constexpr u32 M = 64 * WARPGROUPS, THREADS = 128 * WARPGROUPS, DEPTH = 64, CELL = 8;
    static constexpr u32 PANEL_A = M * ATOM_LINE, PANEL_B = N * ATOM_LINE, STAGE = PANEL_A + PANEL_B;
    // Lines of 64 columns that one k of B has.
    static constexpr u32 BLOCKS_OF_COLUMNS = N / 64, TO_COLUMNS = DEPTH * ATOM_LINE;
    static constexpr u32 STEPS = DEPTH / 16, PER_CHUNK = K_CHUNK / DEPTH;
    using Out = Totals<1, 4>;
    static_assert(STAGES * STAGE >= THREADS / WARP * Out::OUT, "room for totals");

    // Copies the lines `first`, `first` + 1, ... of an operand whose k is contiguous: COUNT lines of 64 k.
    template <u32 COUNT>
    static __device__ __forceinline__ void fetch_rows(const bf16 *from, u32 stride, u32 first, u32 rows, u32 at, u32 k,
                                                      u32 to) {
        constexpr u32 STEP = THREADS / ATOM_CELLS;
        u32 line = threadIdx.x / ATOM_CELLS, cell = threadIdx.x % ATOM_CELLS, col = at + cell * CELL;
        u32 bytes = col < k ? min(CELL, k - col) * (u32)sizeof(bf16) : 0;
#pragma unroll
        for (u32 i = 0; i < COUNT / STEP; i++) {
            u32 l = line + i * STEP;
            cp_async_part(to + swizzled(l, cell), from + (u64)(first + l) * stride + col, first + l < rows ? bytes : 0);
        }
    }

    // Copies 64 k of N columns from `first` on of an operand whose columns are contiguous.
    static __device__ __forceinline__ void fetch_columns(const bf16 *from, u32 stride, u32 first, u32 cols, u32 at, u32 k,
                                                         u32 to) {
        constexpr u32 CELLS = N / CELL;
#pragma unroll
        for (u32 i = 0; i < DEPTH * CELLS / THREADS; i++) {
            u32 id = threadIdx.x + i * THREADS, line = id / CELLS, cell = id % CELLS, col = first + cell * CELL;
            u32 bytes = col < cols && at + line < k ? min(CELL, cols - col) * (u32)sizeof(bf16) : 0;
            cp_async_part(to + cell / ATOM_CELLS * TO_COLUMNS + swizzled(line, cell % ATOM_CELLS),
                          from + (u64)(at + line) * stride + col, bytes);
        }
    }

    static __device__ __forceinline__ void run(const bf16 *a, u32 stride_a, const bf16 *b, u32 stride_b, u32 m, u32 n, u32 k,
                                               void *c, u32 stride_c, bool add, bool half, const float *bias,
                                               void *activated) {
        extern __shared__ __align__(1024) unsigned char room[];
        u32 start = shared_address(room), lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = threadIdx.x / 128;
        Place place = place_of_block<M, N>(m, n);
        int stages = (k + DEPTH - 1) / DEPTH;
        auto fetch = [&](int stage, u32 to) {
            fetch_rows<M>(a, stride_a, place.row, m, stage * DEPTH, k, to);
            if constexpr (AXIS_B == K_CONTIGUOUS) {
                fetch_rows<N>(b, stride_b, place.col, n, stage * DEPTH, k, to + PANEL_A);
            } else {
                fetch_columns(b, stride_b, place.col, n, stage * DEPTH, k, to + PANEL_A);
            }
        };

        float part[N / 2], total[N / 2];
#pragma unroll
        for (u32 i = 0; i < N / 2; i++) part[i] = total[i] = 0.0f;
#pragma unroll
        for (int stage = 0; stage < (int)STAGES - 2; stage++) {
            if (stage < stages) fetch(stage, start + stage * STAGE);
            cp_async_commit();
        }
        u32 used = 0, filled = STAGES - 2;
        for (int at = 0; at < stages; at++) {
            cp_async_wait<STAGES - 3>();
            show_to_tensor_core();
            __syncthreads();
            // Everybody has waited for the products of two stages ago, whose room is filled next.
            if (at + (int)STAGES - 2 < stages) fetch(at + STAGES - 2, start + filled * STAGE);
            cp_async_commit();
            filled = filled == STAGES - 1 ? 0 : filled + 1;
            u32 panel_a = start + used * STAGE + group * 64 * ATOM_LINE, panel_b = start + used * STAGE + PANEL_A;
            used = used == STAGES - 1 ? 0 : used + 1;
            bool opens = at % PER_CHUNK == 0, ends = at % PER_CHUNK == PER_CHUNK - 1 || at + 1 == stages;
            warpgroup_fence();
#pragma unroll
            for (u32 step = 0; step < STEPS; step++) {
                // 16 k further is 32 bytes further in every line, or two atoms further.
                u64 of_a = describe(panel_a + step * 32, 0);
                u64 of_b = AXIS_B == K_CONTIGUOUS ? describe(panel_b + step * 32, 0)
                                                  : describe(panel_b + step * 2 * ATOM, TO_COLUMNS);
                warpgroup_product<AXIS_B == OTHER_CONTIGUOUS>(part, of_a, of_b, !(opens && step == 0));
            }
            warpgroup_commit();
            if (ends) {
                warpgroup_wait<0>();
#pragma unroll
                for (u32 i = 0; i < N / 2; i++) total[i] += part[i];
            } else {
                warpgroup_wait<1>();
            }
        }
        cp_async_wait<0>();
        __syncthreads();
        float *out = reinterpret_cast<float *>(room + warp * Out::OUT);
        Output to{c, activated, bias, stride_c, m, n, add, half};
#pragma unroll
        for (u32 i = 0; i < N / 32; i++) {
            const float(&columns)[1][4][4] = *reinterpret_cast<const float(*)[1][4][4]>(total + 16 * i);
            Out::write(columns, out, to, place.row + warp * 16, place.col + i * 32, lane);
        }
    }
};

// Bits of `flags`, as in linear.cu.
constexpr u32 ADD = 1, C_IS_BF16 = 2;

#define PRODUCT(NAME, AXIS_B, N, WARPGROUPS, STAGES)                                                                   \
    KERNEL(128 * WARPGROUPS)                                                                                           \
    NAME(const bf16 *a, u32 stride_a, const bf16 *b, u32 stride_b, u32 m, u32 n, u32 k, void *c, u32 stride_c,         \
         u32 flags, const float *bias, void *activated) {                                                              \
        WarpgroupProduct<AXIS_B, N, WARPGROUPS, STAGES>::run(a, stride_a, b, stride_b, m, n, k, c, stride_c,           \
                                                             flags & ADD, flags & C_IS_BF16, bias, activated);         \
    }

PRODUCT(linear_nt_bf16_wide_sm90a, K_CONTIGUOUS, 128, 2, 5)
PRODUCT(linear_nt_bf16_square_sm90a, K_CONTIGUOUS, 64, 1, 4)
PRODUCT(linear_nn_bf16_wide_sm90a, OTHER_CONTIGUOUS, 128, 2, 5)
PRODUCT(linear_nn_bf16_square_sm90a, OTHER_CONTIGUOUS, 64, 1, 4)
