// Gradient of the queries: a tile of query rows walks the same steps as in the forward pass.
//
//   p[j] = 2^(t[j] - m) / l      ds[j] = scale p[j] (dout . v[j] - delta)      dq = sum_j ds[j] k[j]
//   delta = dout . out           m, 1 / l: the forward pass's statistics
//
// In bf16, ds is multiplied in two pieces: dq is small beside its terms, which cancel (sum_j ds[j] = 0).
#pragma once
#include "attention_steps.cuh"

// What the backward kernels are given.
template <typename act>
struct Backward {
    const act *q, *dout, *keys, *values;
    const float2 *statistics;  // (m, 1 / l)
    const float *delta;
    const Entry *entries;
    u32 rows, heads, kv_heads, head_dim;
    float scale, scale_log2;
};

// Tiles of keys and values in shared memory, by how many fit.
//   3   two of keys, one of values: the next keys arrive during the whole step
//   2   one of each: the next keys arrive when the step is done
//   1   one for both: keys, values, keys again
template <class S, int TILES_>
struct QueryGradient {
    using act = typename S::act;
    static constexpr int KEY_TILES = BLOCK_KEYS / 8, OUT_TILES = S::OUT / 8;

    const Backward<act> &task;
    TileRows<S::ROWS> &rows;
    char *memory;
    u32 queries, douts, keys, values, key_bytes;
    Dims<S> dims;
    u32 kv_head, first_chunk, chunks, warp, g, t;

    __device__ __forceinline__ QueryGradient(const Backward<act> &task, TileRows<S::ROWS> &rows, char *memory)
        : task(task), rows(rows), memory(memory), dims{task.head_dim}, kv_head(blockIdx.y) {
        u32 row_bytes = dims.stride() * 16;
        key_bytes = BLOCK_KEYS * row_bytes;
        queries = shared_address(memory);
        douts = queries + S::ROWS * row_bytes;
        keys = douts + S::ROWS * row_bytes;
        values = keys + (TILES_ - 1) * key_bytes;
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

    __device__ __forceinline__ void load(u32 tile, const act *cache, const Source &from) const {
        load_keys<S>(tile, cache, from, dims.padded(), 0, 2 * dims.steps(), dims.stride());
        cp_async_commit();
    }

    // Copies have arrived for all threads, and all warps are through with what they read before.
    template <int PENDING>
    __device__ __forceinline__ static void arrive() {
        cp_async_wait<PENDING>();
        __syncthreads();
    }

    // Query rows `first .. first + count`.
    __device__ __forceinline__ void run(u32 first, u32 count, act *dq) {
        Steps<S::ROWS> steps;
        steps.open(rows, task.entries, first, count, task.heads / task.kv_heads, task.heads, kv_head);
        __syncthreads();
        load_rows<S>(queries, memory, task.q, rows.at, S::ROWS, dims);
        load_rows<S>(douts, memory + (douts - queries), task.dout, rows.at, S::ROWS, dims);
        float2 statistics[2];
        float delta[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 at = rows.at[16 * warp + g + 8 * half];
            statistics[half] = at == NEVER ? make_float2(0.0f, 0.0f) : task.statistics[at];
            delta[half] = at == NEVER ? 0.0f : task.delta[at];
        }

        float sums[OUT_TILES][4] = {};
        u32 end = last_block(rows) + 1, current = keys;
        Step step = steps.first(rows, 0, end);
        Source source = from(steps, step);
        load(current, task.keys, source);
        while (step.block < end) {
            Step next = steps.next(rows, step);
            bool mine = steps.sees(rows, step, 16 * warp, 16 * warp + 16), more = next.block < end;
            u32 seen = source.most;
            float scores[KEY_TILES][4] = {}, products_v[KEY_TILES][4] = {};

            arrive<0>();
            if constexpr (TILES_ > 1) load(values, task.values, source);
            if (mine) products<S, KEY_TILES>(scores, queries, 16 * warp, current, seen, dims);
            if constexpr (TILES_ == 1) {
                __syncthreads();
                load(values, task.values, source);
            }
            u32 after = current;
            Source source_after = more ? from(steps, next) : source;
            if constexpr (TILES_ == 3) {
                after = current == keys ? keys + key_bytes : keys;
                if (more) load(after, task.keys, source_after);
            }
            if (TILES_ == 3 && more) arrive<1>();
            else arrive<0>();
            if (mine) {
                products<S, KEY_TILES>(products_v, douts, 16 * warp, values, seen, dims);
                slopes(step, scores, products_v, statistics, delta);
            }
            if constexpr (TILES_ == 1) {
                __syncthreads();
                load(keys, task.keys, source);
                arrive<0>();
            }
            if (mine) {
                ScoreOperands<act, KEY_TILES> slopes{products_v};
                weighted<S, OUT_TILES, true>(sums, slopes, current + first_chunk * 16, dims.stride(), 0, chunks, seen);
            }
            if constexpr (TILES_ < 3) {
                __syncthreads();
                if (more) load(current, task.keys, source_after);
            }
            step = next;
            source = source_after;
            current = after;
        }
        write_rows<S>(dq, sums, rows.at, 16 * warp, memory, first_chunk, chunks, dims);
    }

    // Turns dout . v into the gradient of q . k.
    __device__ __forceinline__ void slopes(const Step &step, const float (&scores)[KEY_TILES][4],
                                           float (&products_v)[KEY_TILES][4], const float2 (&statistics)[2],
                                           const float (&delta)[2]) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 visible = limit(rows, step, 16 * warp + g + 8 * half);
            float scale = statistics[half].y * task.scale;
#pragma unroll
            for (int n = 0; n < KEY_TILES; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float &slope = products_v[n][2 * half + i];
                    float weight = exp2_approximate(fmaf(scores[n][2 * half + i], task.scale_log2, -statistics[half].x));
                    bool seen = 8 * n + 2 * t + i < visible;
                    slope = seen ? weight * (slope - delta[half]) * scale : 0.0f;
                }
            }
        }
    }
};
