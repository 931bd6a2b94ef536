// Gradients of keys and values: a block of threads owns some keys of one block of slots and one key-value head, and
// goes through all query rows that read them in the plan's order. So a sum has one owner and one order, without
// atomics, and the readers of a shared prefix meet in it.
//
//   p[i, j] and ds[i, j] as in attention_dq.cuh      dv[j] += sum_i p[i, j] dout[i]      dk[j] += sum_i ds[i, j] q[i]
//
// The products have keys as rows, 16 a warp: scores k q^T and v dout^T come out as the left operands that the sums want.
// In bf16, p and ds are multiplied in two pieces: the first keys of a row are read by queries of few keys and by those
// of many, whose p and ds differ by orders of magnitude, and rounding the largest would hide the rest of the sum.
#pragma once
#include "attention_dq.cuh"

// Which blocks of slots a tile of query rows reads: least and most, in the rows' own spans and in prefixes.
struct __align__(16) Reads {
    u32 own_least, own_most, prefix_least, prefix_most;
};

constexpr u32 WINDOW_WORDS = 16;  // tiles looked at together: 32 a word

// Lanes from..to of a block of slots that an entry sees, as from | to << 16. With `detach`, keys before the row's first
// position in the segment do not count.
__device__ __forceinline__ u32 lanes_seen(const Entry &e, u32 slot_block, bool detach) {
    int block = (int)slot_block - (int)e.prefix_block;
    u32 from = 0, to = 0;
    if (block >= 0 && (u32)block * BLOCK_KEYS < e.prefix_len) {
        to = min(e.prefix_len - block * BLOCK_KEYS, BLOCK_KEYS);
    } else {
        block = (int)slot_block - e.own_block;
        if (block < (int)(e.prefix_len / BLOCK_KEYS) || (u32)block * BLOCK_KEYS > e.position) return 0;
        from = max((int)e.prefix_len - block * (int)BLOCK_KEYS, 0);
        to = min(e.position + 1 - block * BLOCK_KEYS, BLOCK_KEYS);
    }
    if (detach && e.first > block * BLOCK_KEYS) from = max(from, e.first - block * BLOCK_KEYS);
    return from < to ? from | to << 16 : 0;
}

// The query rows of one stage.
template <int QUERIES>
struct Readers {
    u32 at[QUERIES];        // place * heads + head, or NEVER
    u32 lanes[QUERIES];     // lanes_seen
    float2 statistics[QUERIES];
    float delta[QUERIES];
};

// QUERIES query rows at a time; with two STAGES the next ones arrive while the products are computed.
template <class S, int QUERIES, int STAGES>
struct KeyGradient {
    using act = typename S::act;
    static constexpr u32 KEYS = S::ROWS;
    static constexpr int TILES = QUERIES / 8, OUT_TILES = S::OUT / 8;

    const Backward<act> &task;
    Readers<QUERIES> (&readers)[STAGES];
    char *memory;
    u32 keys, values, rows_at, row_bytes;
    Dims<S> dims;
    u32 slot_block, first_key, kv_head, group;
    bool detach;
    u32 first_chunk, chunks, warp, g, t;

    __device__ __forceinline__ KeyGradient(const Backward<act> &task, Readers<QUERIES> (&readers)[STAGES], char *memory,
                                           bool detach)
        : task(task), readers(readers), memory(memory), dims{task.head_dim}, detach(detach) {
        row_bytes = dims.stride() * 16;
        keys = shared_address(memory);
        values = keys + KEYS * row_bytes;
        rows_at = values + KEYS * row_bytes;
        slot_block = blockIdx.x / (BLOCK_KEYS / KEYS);
        first_key = blockIdx.x % (BLOCK_KEYS / KEYS) * KEYS;
        kv_head = blockIdx.y;
        group = task.heads / task.kv_heads;
        first_chunk = S::DIM == S::OUT ? 0 : blockIdx.z * S::OUT_CHUNKS;
        chunks = S::EXACT ? S::OUT_CHUNKS : min(2 * dims.steps() - first_chunk, (u32)S::OUT_CHUNKS);
        warp = threadIdx.x / WARP;
        g = threadIdx.x % WARP / 4;
        t = threadIdx.x % 4;
    }

    // Queries of a stage, then gradients of the output.
    __device__ __forceinline__ u32 stage_queries(u32 stage) const { return rows_at + stage * 2 * QUERIES * row_bytes; }
    __device__ __forceinline__ u32 stage_douts(u32 stage) const { return stage_queries(stage) + QUERIES * row_bytes; }

    // Who reads: the rows of tile `tile`. A barrier is due before anyone looks.
    __device__ __forceinline__ void describe(u32 tile, u32 stage) const {
        Readers<QUERIES> &to = readers[stage];
        for (u32 r = threadIdx.x; r < QUERIES; r += S::THREADS) {
            u32 row = tile * QUERIES + r;
            to.at[r] = NEVER;
            to.lanes[r] = 0;
            to.statistics[r] = make_float2(0.0f, 0.0f);
            to.delta[r] = 0.0f;
            if (row >= task.rows) continue;
            Entry e = load_entry(task.entries, row / group);
            u32 at = e.place * task.heads + kv_head * group + row % group;
            to.at[r] = at;
            to.lanes[r] = lanes_seen(e, slot_block, detach);
            to.statistics[r] = task.statistics[at];
            to.delta[r] = task.delta[at];
        }
    }

    __device__ __forceinline__ void load(u32 stage) const {
        const u32 *at = readers[stage].at;
        u32 queries = stage_queries(stage), douts = stage_douts(stage);
        load_rows<S>(queries, memory + (queries - keys), task.q, at, QUERIES, dims);
        load_rows<S>(douts, memory + (douts - keys), task.dout, at, QUERIES, dims);
    }

    __device__ __forceinline__ void load_own() const {
        // Lanes that nobody sees may hold anything: a key is a row of the products, so it stays in its own row.
        u64 first = ((u64)slot_block * task.kv_heads + kv_head) * BLOCK_KEYS + first_key;
        Source from{first, first, 0, KEYS};
        load_keys<S, KEYS>(keys, task.keys, from, dims.padded(), 0, 2 * dims.steps(), dims.stride());
        load_keys<S, KEYS>(values, task.values, from, dims.padded(), 0, 2 * dims.steps(), dims.stride());
    }

    // One stage, the query rows of tile `tile`, against this warp's keys.
    __device__ __forceinline__ void add(u32 tile, u32 stage, float (&dk)[OUT_TILES][4],
                                        float (&dv)[OUT_TILES][4]) const {
        const Readers<QUERIES> &of = readers[stage];
        u32 least = first_key + 16 * warp, lane = threadIdx.x % WARP;
        bool any = false;
        for (u32 r = lane; r < QUERIES; r += WARP) {
            u32 lanes = of.lanes[r];
            any = any || ((lanes >> 16) > least && (lanes & 0xffff) < least + 16);
        }
        if (!__any_sync(ALL_LANES, any)) return;
        u32 count = min(task.rows - tile * QUERIES, (u32)QUERIES);
        float weights[TILES][4] = {}, slopes[TILES][4] = {};
        products<S, TILES>(weights, keys, 16 * warp, stage_queries(stage), count, dims);
        products<S, TILES>(slopes, values, 16 * warp, stage_douts(stage), count, dims);
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            u32 column = 8 * n + 2 * t;
            uint2 lanes = *(const uint2 *)(of.lanes + column);
            float2 delta = *(const float2 *)(of.delta + column);
            float4 both = *(const float4 *)(of.statistics + column);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 key = least + g + i / 2 * 8, seen = i % 2 ? lanes.y : lanes.x;
                bool visible = key >= (seen & 0xffff) && key < seen >> 16;
                float m = i % 2 ? both.z : both.x, inverse = i % 2 ? both.w : both.y;
                float weight = exp2_approximate(fmaf(weights[n][i], task.scale_log2, -m)) * inverse;
                float slope = weight * (slopes[n][i] - (i % 2 ? delta.y : delta.x)) * task.scale;
                weights[n][i] = visible ? weight : 0.0f;
                slopes[n][i] = visible ? slope : 0.0f;
            }
        }
        u32 stride = dims.stride();
        ScoreOperands<act, TILES> of_values{weights}, of_keys{slopes};
        u32 douts = stage_douts(stage) + first_chunk * 16, queries = stage_queries(stage) + first_chunk * 16;
        weighted<S, OUT_TILES, true>(dv, of_values, douts, stride, 0, chunks, count);
        weighted<S, OUT_TILES, true>(dk, of_keys, queries, stride, 0, chunks, count);
    }

    // Adds to the gradients of this block's keys.
    __device__ __forceinline__ void write(float *gradient, const float (&sums)[OUT_TILES][4]) const {
        u32 padded = dims.padded();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 key = first_key + 16 * warp + g + 8 * half;
            float *to = gradient + (((u64)slot_block * task.kv_heads + kv_head) * BLOCK_KEYS + key) * padded;
#pragma unroll
            for (int n = 0; n < OUT_TILES; n++) {
                u32 column = first_chunk * S::PER_CHUNK + 8 * n + 2 * t;
                if (S::EXACT || column < padded) {
                    float2 *pair = (float2 *)(to + column), old = *pair;
                    *pair = make_float2(old.x + sums[n][2 * half], old.y + sums[n][2 * half + 1]);
                }
            }
        }
    }

    // `tiles` tiles of QUERIES query rows, of which `reads` says what they read.
    __device__ __forceinline__ void run(const Reads *reads, u32 tiles, float *grad_keys, float *grad_values) {
        __shared__ u32 found[WINDOW_WORDS];
        float dk[OUT_TILES][4] = {}, dv[OUT_TILES][4] = {};
        bool loaded = false;
        for (u32 window = 0; window < tiles; window += WINDOW_WORDS * WARP) {
            for (u32 word = warp; word < WINDOW_WORDS; word += S::WARPS) {
                u32 tile = window + word * WARP + threadIdx.x % WARP;
                bool hit = false;
                if (tile < tiles) {
                    uint4 r = *(const uint4 *)(reads + tile);
                    hit = (slot_block >= r.x && slot_block <= r.y) || (slot_block >= r.z && slot_block <= r.w);
                }
                u32 hits = __ballot_sync(ALL_LANES, hit);
                if (threadIdx.x % WARP == 0) found[word] = hits;
            }
            __syncthreads();
            u32 stage = 0, tile = next_hit(found, 0);
            if (tile != NEVER) {
                describe(window + tile, 0);
                __syncthreads();
                if (!loaded) load_own();
                loaded = true;
                load(0);
                cp_async_commit();
            }
            while (tile != NEVER) {
                u32 next = next_hit(found, tile + 1), other = STAGES - 1 - stage;
                if (STAGES == 2 && next != NEVER) describe(window + next, other);
                cp_async_wait<0>();
                __syncthreads();
                if (STAGES == 2 && next != NEVER) {
                    load(other);
                    cp_async_commit();
                }
                add(window + tile, stage, dk, dv);
                __syncthreads();
                if (STAGES == 1 && next != NEVER) {
                    describe(window + next, 0);
                    __syncthreads();
                    load(0);
                    cp_async_commit();
                }
                if (STAGES == 2) stage = other;
                tile = next;
            }
            __syncthreads();
        }
        if (!loaded) return;
        write(grad_keys, dk);
        write(grad_values, dv);
    }

    // The first marked tile of the window at or after `tile`.
    __device__ __forceinline__ static u32 next_hit(const u32 *found, u32 tile) {
        for (u32 word = tile / WARP; word < WINDOW_WORDS; word++) {
            u32 bits = found[word];
            if (word == tile / WARP) bits = bits >> tile % WARP << tile % WARP;
            if (bits) return word * WARP + __ffs(bits) - 1;
        }
        return NEVER;
    }
};

// What each of `tiles` tiles of `tile_rows` query rows reads. A tile has `lanes` neighbouring lanes, a power of two up to
// a warp: where tiles have few entries, a warp takes several and asks for theirs together, so in whole sectors.
__device__ __forceinline__ void summarize(const Entry *entries, u32 rows, u32 group, u32 tile_rows, u32 tiles, u32 lanes,
                                          Reads *to) {
    u32 tile = (blockIdx.x * blockDim.x + threadIdx.x) / lanes, lane = threadIdx.x % lanes;
    Reads r{NEVER, 0, NEVER, 0};
    if (tile < tiles) {
        u32 first = tile * tile_rows / group, last = (min(rows, (tile + 1) * tile_rows) - 1) / group;
        for (u32 i = first + lane; i <= last; i += lanes) {
            Entry e = load_entry(entries, i);
            r.own_least = min(r.own_least, (u32)(e.own_block + (int)(e.prefix_len / BLOCK_KEYS)));
            r.own_most = max(r.own_most, (u32)(e.own_block + (int)(e.position / BLOCK_KEYS)));
            if (e.prefix_len > 0) {
                r.prefix_least = min(r.prefix_least, e.prefix_block);
                r.prefix_most = max(r.prefix_most, e.prefix_block + (e.prefix_len - 1) / BLOCK_KEYS);
            }
        }
    }
    for (u32 distance = lanes / 2; distance > 0; distance /= 2) {
        r.own_least = min(r.own_least, __shfl_xor_sync(ALL_LANES, r.own_least, distance));
        r.own_most = max(r.own_most, __shfl_xor_sync(ALL_LANES, r.own_most, distance));
        r.prefix_least = min(r.prefix_least, __shfl_xor_sync(ALL_LANES, r.prefix_least, distance));
        r.prefix_most = max(r.prefix_most, __shfl_xor_sync(ALL_LANES, r.prefix_most, distance));
    }
    if (tile < tiles && lane == 0) *(uint4 *)(to + tile) = make_uint4(r.own_least, r.own_most, r.prefix_least, r.prefix_most);
}
