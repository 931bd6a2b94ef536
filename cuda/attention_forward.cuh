// Forward of one tile of query rows, for prompts and for single steps alike.
//
//   t[j] = scale log2(e) q . k[j]      o = sum_j 2^(t[j] - m) v[j]      l = sum_j 2^(t[j] - m)      out = o / l
//
// Order of sums, which the bits of a query rest on. Position blocks of 64 keys are anchored at position 0, parts are
// PART_BLOCKS blocks. Within a part a query's state (m, l, o) goes through the blocks in ascending order: the scores of
// a block (one chain of products over the head dimension), the block's maximum, old state times 2^(old m - new m), plus
// the block's sum (each lane its columns, then the four lanes of a row) and one chain of products over its keys. A link
// of a chain is one product of 16 bf16, or of 8 f32 that are summed for themselves before (attention.cuh).
// Parts are merged in ascending order by `merge`. A block or part that a query does not see leaves its state as it is,
// to the bit. So it makes no difference whether one block of threads walks all parts, or each part is computed by
// another one and merged later, or a part is computed in two goes with its state kept in memory between them.
//
// The operations that decide bits are written as intrinsics: the compiler must not fuse them here and not there.
#pragma once
#include "attention_steps.cuh"

constexpr u32 PART_BLOCKS = 4;

// What to compute: query rows `first .. first + rows`.
//   end == 0   all their keys, into out and statistics
//   else       position blocks begin..end of one part, into the slots of that part; where begin lies inside the part,
//              the state after the blocks before is found there
struct __align__(16) Item {
    u32 first, rows, begin, end;
};

// What a forward kernel is given.
template <typename act>
struct Forward {
    const act *q, *keys, *values;
    act *out;
    float2 *statistics;   // (m, 1 / l): the weight of a key is 2^(t - m) / l
    const Entry *entries;
    float *slots;         // [slot][heads][padded] o
    float2 *slot_sums;    // [slot][heads][blocks of columns] (m, l)
    u32 heads, kv_heads, head_dim;
    float scale_log2;
};

// Running maximum and sum of one query row.
struct Sums {
    float m, l;
};

// Factors of an old and a new state that are added up: 2^(m - larger m). Nothing seen yet is m = -infinity, l = 0.
__device__ __forceinline__ float2 rescale(float old_m, float new_m, float &m) {
    m = fmaxf(old_m, new_m);
    float base = m == -infinity() ? 0.0f : m;
    return make_float2(exp2_approximate(__fsub_rn(old_m, base)), exp2_approximate(__fsub_rn(new_m, base)));
}

// Merges the state of a part into that of all parts before it; outputs are merged by `merge_output`.
__device__ __forceinline__ float2 merge(Sums &total, const Sums &part) {
    float m;
    float2 factors = rescale(total.m, part.m, m);
    total.l = __fmaf_rn(total.l, factors.x, __fmul_rn(part.l, factors.y));
    total.m = m;
    return factors;
}

__device__ __forceinline__ float merge_output(float total, float part, float2 factors) {
    return __fmaf_rn(total, factors.x, __fmul_rn(part, factors.y));
}

// Dynamic shared memory of a tile: queries, keys, values.
template <class S>
__device__ __forceinline__ u32 query_bytes(const Dims<S> &dims) {
    return S::ROWS * dims.stride() * 16;
}
template <class S>
__device__ __forceinline__ u32 key_bytes(const Dims<S> &dims) {
    return BLOCK_KEYS * dims.stride() * 16;
}

// WHOLE: items may ask for all keys of their rows.
template <class S, bool WHOLE>
struct Tile {
    using act = typename S::act;
    static constexpr int KEY_TILES = BLOCK_KEYS / 8, OUT_TILES = S::OUT / 8;

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
        keys = queries + query_bytes(dims);
        values = keys + key_bytes(dims);
        first_chunk = S::EXACT ? 0 : blockIdx.z * S::OUT_CHUNKS;
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

    __device__ __forceinline__ void run(const Item &item) {
        Steps<S::ROWS> steps;
        steps.open(rows, task.entries, item.first, item.rows, task.heads / task.kv_heads, task.heads, kv_head);
        __syncthreads();
        load_rows<S>(queries, memory, task.q, rows.at, S::ROWS, dims);

        bool whole = WHOLE && item.end == 0;
        float part[OUT_TILES][4] = {}, total[WHOLE ? OUT_TILES : 1][4] = {};
        Sums part_sums[2] = {{-infinity(), 0.0f}, {-infinity(), 0.0f}}, total_sums[2] = {part_sums[0], part_sums[0]};
        if (!whole && item.begin % PART_BLOCKS != 0) read_slots(item.begin / PART_BLOCKS, part, part_sums);

        u32 end = whole ? last_block(rows) + 1 : item.end;
        Step step = steps.first(rows, item.begin, end);
        Source from_step = from(steps, step);
        load_keys<S>(keys, task.keys, from_step, dims.padded(), 0, 2 * dims.steps(), dims.stride());
        cp_async_commit();
        while (step.block < end) {
            Step next = steps.next(rows, step);
            bool mine = steps.sees(rows, step, 16 * warp, 16 * warp + 16);

            cp_async_wait<0>();
            __syncthreads();  // the keys have arrived, and all warps are through with the values before
            load_keys<S>(values, task.values, from_step, dims.padded(), first_chunk, chunks, S::OUT_CHUNKS);
            cp_async_commit();
            float scores[KEY_TILES][4] = {};
            if (mine) {
                products<S, KEY_TILES>(scores, queries, 16 * warp, keys, steps.seen(rows, step), dims);
                weigh(step, scores, part, part_sums);
            }

            cp_async_wait<0>();
            __syncthreads();  // the values have arrived, and all warps are through with the keys
            if (next.block < end) {
                from_step = from(steps, next);
                load_keys<S>(keys, task.keys, from_step, dims.padded(), 0, 2 * dims.steps(), dims.stride());
                cp_async_commit();
            }
            if (mine) {
                weighted<S, KEY_TILES, OUT_TILES>(part, scores, values, S::OUT_CHUNKS, 0, chunks,
                                                  steps.seen(rows, step));
            }

            bool part_ends = next.block >= end || next.block / PART_BLOCKS != step.block / PART_BLOCKS;
            if constexpr (WHOLE) {
                if (whole && part_ends) merge_part(total, total_sums, part, part_sums);
            }
            step = next;
        }
        if (!whole) write_slots(item.begin / PART_BLOCKS, part, part_sums);
        if constexpr (WHOLE) {
            if (whole) write(total, total_sums);
        }
    }

    // Takes a finished part up in the total and starts the next.
    __device__ __forceinline__ static void merge_part(float (&total)[OUT_TILES][4], Sums (&total_sums)[2],
                                                      float (&part)[OUT_TILES][4], Sums (&part_sums)[2]) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float2 factors = merge(total_sums[half], part_sums[half]);
            part_sums[half] = {-infinity(), 0.0f};
#pragma unroll
            for (int n = 0; n < OUT_TILES; n++) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    total[n][i] = merge_output(total[n][i], part[n][i], factors);
                    part[n][i] = 0.0f;
                }
            }
        }
    }

    // Turns the scores of a block into weights 2^(t - m) and takes them up in the running maximum and sum; the output so
    // far is rescaled to the new maximum.
    __device__ __forceinline__ void weigh(const Step &step, float (&scores)[KEY_TILES][4], float (&part)[OUT_TILES][4],
                                          Sums (&sums)[2]) const {
        float scale[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 visible = limit(rows, step, row(half));
            float largest = -infinity();
#pragma unroll
            for (int n = 0; n < KEY_TILES; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float &score = scores[n][2 * half + i];
                    if (8 * n + 2 * t + i >= visible) score = -infinity();
                    largest = fmaxf(largest, score);
                }
            }
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
            float m = fmaxf(sums[half].m, __fmul_rn(largest, task.scale_log2)), base = m == -infinity() ? 0.0f : m;
            scale[half] = exp2_approximate(__fsub_rn(sums[half].m, base));
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < KEY_TILES; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float &weight = scores[n][2 * half + i];
                    weight = exp2_approximate(__fmaf_rn(weight, task.scale_log2, -base));
                    sum = __fadd_rn(sum, weight);
                }
            }
            sum = __fadd_rn(sum, __shfl_xor_sync(ALL_LANES, sum, 1));
            sum = __fadd_rn(sum, __shfl_xor_sync(ALL_LANES, sum, 2));
            sums[half] = {m, __fmaf_rn(sums[half].l, scale[half], sum)};
        }
#pragma unroll
        for (int n = 0; n < OUT_TILES; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) part[n][i] = __fmul_rn(part[n][i], scale[i / 2]);
        }
    }

    // ---- results and partial results --------------------------------------------------------------------------------------------------

    __device__ __forceinline__ u32 column(int n) const { return first_chunk * S::PER_CHUNK + 8 * n + 2 * t; }

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

    // Row of the slots that a tile row's state of one part has.
    __device__ __forceinline__ u64 slot(u32 r, u32 part) const {
        return (u64)(rows.slot[r] + part) * task.heads + rows.at[r] % task.heads;
    }

    __device__ __forceinline__ void write_slots(u32 number, const float (&part)[OUT_TILES][4],
                                                const Sums (&sums)[2]) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 r = row(half);
            if (rows.at[r] == NEVER) continue;
            if (t == 0) task.slot_sums[slot(r, number) * gridDim.z + blockIdx.z] = make_float2(sums[half].m, sums[half].l);
            float *to = task.slots + slot(r, number) * dims.padded();
#pragma unroll
            for (int n = 0; n < OUT_TILES; n++) {
                if (S::EXACT || column(n) < dims.padded()) {
                    *(float2 *)(to + column(n)) = make_float2(part[n][2 * half], part[n][2 * half + 1]);
                }
            }
        }
    }

    __device__ __forceinline__ void read_slots(u32 number, float (&part)[OUT_TILES][4], Sums (&sums)[2]) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 r = row(half);
            if (rows.at[r] == NEVER) continue;
            float2 found = task.slot_sums[slot(r, number) * gridDim.z + blockIdx.z];
            sums[half] = {found.x, found.y};
            const float *at = task.slots + slot(r, number) * dims.padded();
#pragma unroll
            for (int n = 0; n < OUT_TILES; n++) {
                if (S::EXACT || column(n) < dims.padded()) {
                    float2 pair = *(const float2 *)(at + column(n));
                    part[n][2 * half] = pair.x;
                    part[n][2 * half + 1] = pair.y;
                }
            }
        }
    }
};

// A kernel over items, or over all tiles of `rows` query rows where `items` is absent.
template <class S, bool WHOLE>
__device__ __forceinline__ void forward(const Forward<typename S::act> &task, const Item *items, const u32 *number,
                                        u32 rows) {
    __shared__ TileRows<S::ROWS> tile_rows;
    extern __shared__ uint4 memory[];
    Tile<S, WHOLE> tile(task, tile_rows, (char *)memory);
    // The item and its number lie in shared memory: no register is left for them while it is worked on.
    __shared__ Item item;
    __shared__ u32 turn;
    if (threadIdx.x == 0) turn = blockIdx.x;
    for (;;) {
        __syncthreads();  // all warps are through with the item before
        u32 i = turn, tiles = (rows + S::ROWS - 1) / S::ROWS;
        if (i >= (items ? *number : tiles)) return;
        if (threadIdx.x == 0) {
            // The last tiles see the most keys and go first.
            u32 first = (tiles - 1 - i) * S::ROWS;
            item = Item{first, min(rows - first, (u32)S::ROWS), 0, 0};
            if (items) {
                uint4 found = *(const uint4 *)(items + i);
                item = Item{found.x, found.y, found.z, found.w};
            }
        }
        __syncthreads();
        tile.run(item);
        if (threadIdx.x == 0) turn += gridDim.x;
    }
}

#define FORWARD(name, S, WHOLE)                                                                                        \
    KERNEL_OF(S)                                                                                                       \
    name(const S::act *q, const S::act *keys, const S::act *values, S::act *out, float2 *statistics,                   \
         const Entry *entries,                                                                                         \
         const Item *items, const u32 *number, float *slots, float2 *slot_sums, u32 rows, u32 heads, u32 kv_heads,     \
         u32 head_dim, float scale_log2) {                                                                             \
        Forward<S::act> task{q,     keys,  values,   out,      statistics, entries, slots, slot_sums,                   \
                             heads, kv_heads, head_dim, scale_log2};                                                   \
        forward<S, WHOLE>(task, items, number, rows);                                                                  \
    }
