// The forward pass: what decides the bits of a result, and tiles of query rows that walk all their keys. Single steps
// spread the same operations over the multiprocessors: attention_decode.cuh.
//
//   t[j] = scale log2(e) q . k[j]      o = sum_j 2^(t[j] - m) v[j]      l = sum_j 2^(t[j] - m)      out = o / l
//
// Order of sums, which the bits of a query rest on. Position blocks of 64 keys are anchored at position 0. The state
// (m, l, o) of a block stands for itself: the scores (one chain of products over the head dimension), their maximum m,
// the weights 2^(t - m), their sum l (in a lane: its four columns of each 16 keys in a chain, then the four sums in a
// chain; then the four lanes of a row), and o, one chain of products over the 64 keys that starts from 0. A link of a
// chain is one product of 16 bf16, or of 8 f32 that are summed for themselves before (attention.cuh). The states of
// blocks are merged in ascending order by `merge`; one that a query does not see leaves the state as it is. So it makes
// no difference whether one block of threads walks all keys or each block of keys is another one's and merged later.
//
// The operations that decide bits are written as intrinsics: the compiler must not fuse them here and not there.
#pragma once
#include "attention_steps.cuh"

// What a forward kernel is given.
template <typename act>
struct Forward {
    const act *q, *keys, *values;
    act *out;
    float2 *statistics;   // (m, 1 / l): the weight of a key is 2^(t - m) / l
    const Entry *entries;
    u32 heads, kv_heads, head_dim;
    float scale_log2;
};

// Maximum and sum of one query row.
struct Sums {
    float m, l;
};

// What exponents are relative to: a row that has seen nothing has m = -infinity, and weights of 0.
__device__ __forceinline__ float base_of(float m) { return m == -infinity() ? 0.0f : m; }

__device__ __forceinline__ float weight_of(float score, float scale_log2, float base) {
    return exp2_approximate(__fmaf_rn(score, scale_log2, -base));
}

// A lane's sum over its columns of 16 keys: two tiles of scores.
__device__ __forceinline__ float sum_of_16(float a, float b, float c, float d) {
    return __fadd_rn(__fadd_rn(__fadd_rn(a, b), c), d);
}

// The lanes of a row, four neighbours, together.
__device__ __forceinline__ float row_sum(float x) {
    x = __fadd_rn(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return __fadd_rn(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

// Merges the state of a block into that of all blocks before it; outputs are merged by `merge_output`.
__device__ __forceinline__ float2 merge(Sums &total, const Sums &block) {
    float m = fmaxf(total.m, block.m), base = base_of(m);
    float2 factors = make_float2(exp2_approximate(__fsub_rn(total.m, base)), exp2_approximate(__fsub_rn(block.m, base)));
    total.l = __fmaf_rn(total.l, factors.x, __fmul_rn(block.l, factors.y));
    total.m = m;
    return factors;
}

__device__ __forceinline__ float merge_output(float total, float block, float2 factors) {
    return __fmaf_rn(total, factors.x, __fmul_rn(block, factors.y));
}

// Dynamic shared memory of a tile: queries, keys, values.
template <class S>
struct Tile {
    using act = typename S::act;
    static constexpr int KEY_TILES = BLOCK_KEYS / 8, OUT_TILES = S::OUT / 8;
    // Tiles of the result that are summed together: enough independent chains, few registers.
    static constexpr int GROUP = 4;

    const Forward<act> &task;
    TileRows<S::ROWS> &rows;
    char *memory;
    u32 queries, keys, values;  // addresses of the tiles
    Dims<S> dims;
    u32 kv_head;
    u32 first_chunk, chunks;    // columns of the values
    u32 warp, g, t;

    __device__ __forceinline__ Tile(const Forward<act> &task, TileRows<S::ROWS> &rows, char *memory)
        : task(task), rows(rows), memory(memory), dims{task.head_dim}, kv_head(blockIdx.y) {
        queries = shared_address(memory);
        keys = queries + S::ROWS * dims.stride() * 16;
        values = keys + BLOCK_KEYS * dims.stride() * 16;
        first_chunk = S::DIM == S::OUT ? 0 : blockIdx.z * S::OUT_CHUNKS;
        chunks = S::EXACT ? S::OUT_CHUNKS : min(2 * dims.steps() - first_chunk, (u32)S::OUT_CHUNKS);
        warp = threadIdx.x / WARP;
        g = threadIdx.x % WARP / 4;
        t = threadIdx.x % 4;
    }

    __device__ __forceinline__ Source from(const Steps<S::ROWS> &steps, const Step &step) const {
        return source(rows.prefix_len[step.from], rows.prefix_block[step.from], rows.own_block[step.from], step.block,
                      steps.seen(rows, step), task.kv_heads, kv_head);
    }

    // Row of the tile that this thread's sums [0..1] (half 0) and [2..3] (half 1) belong to.
    __device__ __forceinline__ u32 row(u32 half) const { return 16 * warp + g + 8 * half; }

    __device__ __forceinline__ u32 value_stride() const { return S::EXACT ? S::OUT_CHUNKS : min(dims.stride(), (u32)S::OUT_CHUNKS); }

    // All keys of query rows `first .. first + count`.
    __device__ __forceinline__ void run(u32 first, u32 count) {
        Steps<S::ROWS> steps;
        steps.open(rows, task.entries, first, count, task.heads / task.kv_heads, task.heads, kv_head);
        __syncthreads();
        load_rows<S>(queries, memory, task.q, rows.at, S::ROWS, dims);

        float total[OUT_TILES][4] = {};
        Sums sums[2] = {{-infinity(), 0.0f}, {-infinity(), 0.0f}};
        u32 end = last_block(rows) + 1;
        Step step = steps.first(rows, 0, end);
        Source from_step = from(steps, step);
        load_keys<S>(keys, task.keys, from_step, dims.padded(), 0, 2 * dims.steps(), dims.stride());
        cp_async_commit();
        while (step.block < end) {
            Step next = steps.next(rows, step);
            bool mine = steps.sees(rows, step, 16 * warp, 16 * warp + 16);

            cp_async_wait<0>();
            __syncthreads();  // the keys have arrived, and all warps are through with the values before
            load_keys<S>(values, task.values, from_step, dims.padded(), first_chunk, chunks, value_stride());
            cp_async_commit();
            float scores[KEY_TILES][4] = {};
            float2 factors[2];
            u32 seen = steps.seen(rows, step);
            if (mine) {
                products<S, KEY_TILES>(scores, queries, 16 * warp, keys, seen, dims);
                weigh(step, scores, sums, factors);
            }

            cp_async_wait<0>();
            __syncthreads();  // the values have arrived, and all warps are through with the keys
            if (next.block < end) {
                from_step = from(steps, next);
                load_keys<S>(keys, task.keys, from_step, dims.padded(), 0, 2 * dims.steps(), dims.stride());
                cp_async_commit();
            }
            if (mine) add(scores, factors, seen, total);
            step = next;
        }
        write(total, sums);
    }

    // Turns the scores of a block into weights relative to the block's own maximum, and takes its maximum and sum up in
    // those of the row; `factors` are what outputs are merged with.
    __device__ __forceinline__ void weigh(const Step &step, float (&scores)[KEY_TILES][4], Sums (&sums)[2],
                                          float2 (&factors)[2]) const {
        u32 visible[2] = {limit(rows, step, row(0)), limit(rows, step, row(1))};
        if (!__all_sync(ALL_LANES, min(visible[0], visible[1]) == BLOCK_KEYS)) {
#pragma unroll
            for (int n = 0; n < KEY_TILES; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (8 * n + 2 * t + i % 2 >= visible[i / 2]) scores[n][i] = -infinity();
                }
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float largest = -infinity();
#pragma unroll
            for (int n = 0; n < KEY_TILES; n++) {
                largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            }
            float m = __fmul_rn(row_max(largest), task.scale_log2), base = base_of(m);
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < KEY_TILES; n += 2) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float &weight = scores[n + i / 2][2 * half + i % 2];
                    weight = weight_of(weight, task.scale_log2, base);
                }
                sum = __fadd_rn(sum, sum_of_16(scores[n][2 * half], scores[n][2 * half + 1], scores[n + 1][2 * half],
                                               scores[n + 1][2 * half + 1]));
            }
            factors[half] = merge(sums[half], Sums{m, row_sum(sum)});
        }
    }

    // Merges a block's output into the total.
    __device__ __forceinline__ void add(const float (&weights)[KEY_TILES][4], const float2 (&factors)[2], u32 seen,
                                        float (&total)[OUT_TILES][4]) const {
        ScoreOperands<act, KEY_TILES> operands{weights};
#pragma unroll
        for (int n = 0; n < OUT_TILES; n += GROUP) {
            float block[GROUP][4] = {};
            weighted<S, GROUP>(block, operands, values, value_stride(), n, chunks, seen);
#pragma unroll
            for (int of = 0; of < GROUP; of++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    total[n + of][i] = merge_output(total[n + of][i], block[of][i], factors[i / 2]);
                }
            }
        }
    }

    __device__ __forceinline__ void write(float (&total)[OUT_TILES][4], const Sums (&sums)[2]) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 at = rows.at[row(half)];
            float inverse = __frcp_rn(sums[half].l);
            if (at != NEVER && t == 0 && blockIdx.z == 0) task.statistics[at] = make_float2(sums[half].m, inverse);
#pragma unroll
            for (int n = 0; n < OUT_TILES; n++) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) total[n][i] = __fmul_rn(total[n][i], inverse);
            }
        }
        write_rows<S>(task.out, total, rows.at, 16 * warp, memory, first_chunk, chunks, dims);
    }
};

// The tiles of all `rows` query rows, the last ones, which see the most keys, first.
#define FORWARD(name, ...)                                                                                             \
    using name##_shape = Shape<__VA_ARGS__>;                                                                           \
    KERNEL_OF(name##_shape)                                                                                            \
    name(const name##_shape::act *q, const name##_shape::act *keys, const name##_shape::act *values,                   \
         name##_shape::act *out, float2 *statistics, const Entry *entries, u32 rows, u32 heads, u32 kv_heads,          \
         u32 head_dim, float scale_log2) {                                                                             \
        __shared__ TileRows<name##_shape::ROWS> tile_rows;                                                             \
        extern __shared__ uint4 memory[];                                                                              \
        Forward<name##_shape::act> task{q,       keys,  values,   out,      statistics,                                \
                                        entries, heads, kv_heads, head_dim, scale_log2};                               \
        u32 first = (gridDim.x - 1 - blockIdx.x) * name##_shape::ROWS;                                                 \
        Tile<name##_shape>(task, tile_rows, (char *)memory).run(first, min(rows - first, (u32)name##_shape::ROWS));    \
    }
