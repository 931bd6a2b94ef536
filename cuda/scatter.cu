// Rows added to a table in a fixed order: what the backward passes of embedding, gather and latent share.
//   contribution e goes to row key(e) of y; y[v] += sum over e with key(e) = v of factor(e) * x[row(e)], e ascending
//
//   kernel                  in                            out                   grid                              block
//   scatter_sort_rows       index[E]                      sorted[E]             1, where E <= 1024                32 .. 256
//   scatter_sort_tokens     id[N] soft_id[S,k]            sorted[E]             the same, E = N max(k, 1)         32 .. 256
//   scatter_sort_latents    id[E] source[E]               sorted[E]             the same                          32 .. 256
//   scatter_order_*         as those                      sorted[E]             ceil(E / 32), where E <= 8192     1024
//   scatter_tiles_*         as those                      keys[E] entries[E]    ceil(E / 512), where E > 8192     512
//   scatter_ranks           keys[E] entries[E]            sorted[E]             ceil(E / 512), where E > 8192     512
//   scatter_add_rows_*      x[E,C] sorted                 y[V,C] (+=)           (ceil(E / 32), ceil(C / 32 V))    128
//   scatter_add_tokens_*    x[N,C] sorted id weight[S,k]  y[V,C] (+=)           the same                          128
//   scatter_add_latents_*   x[E,C] sorted mask            y[V,C] (+=)           the same                          128
//
// `sorted` are pairs of key and entry.
//
// Shared memory: sort 4 KiB, order 36 KiB, tiles 6 KiB, others none. Bytes: sort 12 E; order 4 E a block, from the second
// cache, and 8 E; tiles 12 E, ranks 16 E and the searches, which hit L1; add reads 8 E + E C of x and reads and writes
// each row of y that somebody names: once, however many name it.
//
// Why so. Sums must not depend on which block runs first, so no float is added atomically; a block for each of 150
// thousand table rows that looks through all ids costs far more than the sum. Hence contributions are sorted by key,
// stable in e, and each run of one key is added by one warp in order. How they are sorted, their number decides
// (scatter_order.cuh).
//
// In `add` a warp has eight neighbouring contributions and 32 V columns: V = 4, or 1 where C is no multiple of 4. It
// loads its eight rows of x at once, so that rare tokens, one a run, still keep eight loads in flight; a run that began
// in its eight is followed to its end by the same warp, eight rows at a time.
//
// Indices that do not exist: the contribution is NaN and goes to row 0, where the gradient's norm finds it.
#include "scatter_order.cuh"

// Contributions of a warp in `add`.
constexpr u32 SLOTS = 8;

// ---- order ----------------------------------------------------------------------------------------------------------

#define ORDERS(NAME, KEYS, ...)                                                                                       \
    KERNEL(SORT_BLOCK) scatter_sort_##NAME(__VA_ARGS__, u32 count, u32 bound, uint2 *sorted) {                        \
        sort_order(KEYS, count, bound, sorted);                                                                       \
    }                                                                                                                 \
    KERNEL(COUNT_BLOCK) scatter_order_##NAME(__VA_ARGS__, u32 count, u32 bound, uint2 *sorted) {                      \
        count_order(KEYS, count, bound, sorted);                                                                      \
    }                                                                                                                 \
    KERNEL(TILE) scatter_tiles_##NAME(__VA_ARGS__, u32 count, u32 bound, u32 *keys, u32 *entries) {                   \
        u32 e = blockIdx.x * TILE + threadIdx.x, entry = e, key = SKIP;                                               \
        if (e < count) key = key_of(KEYS, bound, e, entry);                                                           \
        sort_tile(key, entry, count, keys, entries);                                                                  \
    }
ORDERS(rows, (RowKeys{index}), const u32 *index)
ORDERS(tokens, (TokenKeys{ids, soft_ids, mixtures, kept}), const int *ids, const u32 *soft_ids, u32 mixtures, u32 kept)
ORDERS(latents, (LatentKeys{ids, source}), const int *ids, const int *source)

KERNEL(TILE)
scatter_ranks(const u32 *tile_keys, const u32 *tile_entries, u32 count, uint2 *sorted) {
    u32 e = blockIdx.x * TILE + threadIdx.x;
    if (e - threadIdx.x % WARP >= count) return;
    // Lanes past the last key take part with one that is not less.
    u32 key = e < count ? tile_keys[e] : SKIP, rank = threadIdx.x, own = blockIdx.x * TILE;
    for (u32 tile = 0; tile < count; tile += TILE) {
        if (tile != own) rank += standing_before(tile_keys + tile, min((u32)TILE, count - tile), key, tile < own);
    }
    if (e < count) sorted[rank] = make_uint2(key, tile_entries[e]);
}

// ---- add ------------------------------------------------------------------------------------------------------------

// Where contributions come from: the row of x, and what each of its elements is multiplied by.

struct Rows {
    struct Slot {
        u32 row;
    };
    __device__ __forceinline__ static Slot nothing() { return {0}; }
    __device__ __forceinline__ Slot slot(u32 entry) const { return {entry}; }
    __device__ __forceinline__ static Slot shared(Slot mine, int lane) {
        return {__shfl_sync(ALL_LANES, mine.row, lane)};
    }
    template <int V>
    __device__ __forceinline__ Numbers<V> add(Slot, u32, Numbers<V> x, Numbers<V> sum) const {
        return sum + x;
    }
};

struct Tokens {
    const int *ids;
    const float *weights;
    u32 kept;
    struct Slot {
        u32 row;
        float weight;
    };
    __device__ __forceinline__ static Slot nothing() { return {0, 0.0f}; }
    __device__ __forceinline__ Slot slot(u32 entry) const {
        u32 row = entry / kept;
        int id = ids[row];
        return {row, id >= 0 ? 1.0f : weights[(u64)(0xfffffffeu - (u32)id) * kept + entry % kept]};
    }
    __device__ __forceinline__ static Slot shared(Slot mine, int lane) {
        return {__shfl_sync(ALL_LANES, mine.row, lane), __shfl_sync(ALL_LANES, mine.weight, lane)};
    }
    template <int V>
    __device__ __forceinline__ Numbers<V> add(Slot slot, u32, Numbers<V> x, Numbers<V> sum) const {
        return multiply_add(x, slot.weight, sum);
    }
};

struct Latents {
    Mask mask;
    struct Slot {
        u32 row;
        int instance;
    };
    __device__ __forceinline__ static Slot nothing() { return {0, -1}; }
    __device__ __forceinline__ Slot slot(u32 entry) const {
        return {entry, mask.bits ? mask.instance[entry] : -1};
    }
    __device__ __forceinline__ static Slot shared(Slot mine, int lane) {
        return {__shfl_sync(ALL_LANES, mine.row, lane), __shfl_sync(ALL_LANES, mine.instance, lane)};
    }
    template <int V>
    __device__ __forceinline__ Numbers<V> add(Slot slot, u32 c, Numbers<V> x, Numbers<V> sum) const {
        MaskRow m = mask.of(slot.instance);
        u32 bits = m.bits(c);
#pragma unroll
        for (int i = 0; i < V; i++) sum[i] = bits >> i & 1u ? fmaf(x[i], m.scale, sum[i]) : sum[i];
        return sum;
    }
};

template <int V, typename Source, typename from, typename to>
__device__ __forceinline__ void add(Source source, const uint2 *sorted, u32 count, const from *x, u32 cols, u32 column,
                                    to *y) {
    u32 lane = threadIdx.x % WARP, first = (blockIdx.x * WARPS + threadIdx.x / WARP) * SLOTS;
    if (first >= count) return;
    bool inside = column < cols;
    x += column, y += column;
    // The run that is being added, and its sum so far. What went before the warp's slots is an earlier warp's.
    u32 run = SKIP, before = first > 0 ? sorted[first - 1].x : SKIP;
    Numbers<V> sum = all<V>(0.0f);
    for (u32 base = first; base < count; base += SLOTS) {
        bool slot = lane < SLOTS && base + lane < count;
        uint2 pair = slot ? sorted[base + lane] : make_uint2(SKIP, 0);
        u32 mine = pair.x, entry = pair.y;
        // Taken are the slots begin..end: all but those of the run before, then those of the run alone.
        u32 begin = __popc(__ballot_sync(ALL_LANES, mine == before && mine != SKIP));
        u32 end = __popc(__ballot_sync(ALL_LANES, mine != SKIP && (base == first || mine == run)));
        bool taken = lane >= begin && lane < end;
        typename Source::Slot from_lane = Source::nothing();
        if (taken && !(entry & BAD)) from_lane = source.slot(entry);
        u32 key[SLOTS], bad[SLOTS];
        typename Source::Slot slots[SLOTS];
#pragma unroll
        for (int u = 0; u < SLOTS; u++) {
            key[u] = __shfl_sync(ALL_LANES, taken ? mine : SKIP, u);
            bad[u] = __shfl_sync(ALL_LANES, entry & BAD, u);
            slots[u] = Source::shared(from_lane, u);
        }
        Numbers<V> rows[SLOTS];
#pragma unroll
        for (int u = 0; u < SLOTS; u++) {
            rows[u] = all<V>(nan());
            if (key[u] != SKIP && inside && !bad[u]) rows[u] = read<V>(x + (u64)slots[u].row * cols);
        }
#pragma unroll
        for (int u = 0; u < SLOTS; u++) {
            if (key[u] == SKIP) continue;
            if (key[u] != run) {
                if (run != SKIP && inside) write(y + (u64)run * cols, sum);
                run = key[u];
                if (inside) sum = read<V>(y + (u64)run * cols);
            }
            if (inside) sum = source.add(slots[u], column, rows[u], sum);
        }
        // A run that ended within these slots has no followers.
        if (end < SLOTS || begin == SLOTS) break;
        before = SKIP;
    }
    if (run != SKIP && inside) write(y + (u64)run * cols, sum);
}

template <typename Source, typename from, typename to>
__device__ __forceinline__ void add(Source source, const uint2 *sorted, u32 count, const from *x, u32 cols, to *y) {
    u32 lane = threadIdx.x % WARP;
    if (cols % 4 == 0) add<4>(source, sorted, count, x, cols, (blockIdx.y * WARP + lane) * 4, y);
    else add<1>(source, sorted, count, x, cols, blockIdx.y * WARP + lane, y);
}

#define ROWS(dtype, from, to)                                                                                         \
    KERNEL(ROW_BLOCK)                                                                                                 \
    scatter_add_rows_##dtype(const uint2 *sorted, u32 count, const from *x, u32 cols, to *y) {                        \
        add(Rows{}, sorted, count, x, cols, y);                                                                       \
    }
#define TOKENS(dtype, from)                                                                                           \
    KERNEL(ROW_BLOCK)                                                                                                 \
    scatter_add_tokens_##dtype(const int *ids, const float *weights, u32 kept, const uint2 *sorted, u32 count,        \
                               const from *x, u32 cols, float *y) {                                                   \
        add(Tokens{ids, weights, kept}, sorted, count, x, cols, y);                                                   \
    }
#define LATENTS(dtype, act)                                                                                           \
    KERNEL(ROW_BLOCK)                                                                                                 \
    scatter_add_latents_##dtype(const u32 *bits, const int *instance, u32 instances, u32 stride, u32 offset,          \
                                float scale, const uint2 *sorted, u32 count, const act *x, u32 cols, act *y) {        \
        add(Latents{{bits, instance, stride, offset, scale, instances}}, sorted, count, x, cols, y);                  \
    }
// Gradients of activations have the activations' dtype, those of tables are f32.
ROWS(f32, float, float)
ROWS(bf16, bf16, bf16)
ROWS(bf16_f32, bf16, float)
TOKENS(f32, float)
TOKENS(bf16, bf16)
LATENTS(f32, float)
LATENTS(bf16, bf16)
