// What a tile of query rows reads, step by step: for each position block in ascending order, each class of neighbouring
// query rows that find this block in the same slots. Rows of one entry, of one row of the batch, and of rows that share
// a prefix (for the blocks that lie in the prefix as a whole) are of one class. A prompt's tile has one class a block;
// a tile of rollouts has one class for the shared prompt and one for each rollout after it.
#pragma once
#include "attention.cuh"

// The rows of a tile, in shared memory.
template <int ROWS>
struct TileRows {
    u32 at[ROWS];            // place * heads + head: which vector of the packed queries; NEVER beyond the tile
    u32 position[ROWS];
    u32 prefix_len[ROWS];
    u32 prefix_block[ROWS];
    int own_block[ROWS];
    u32 slot[ROWS];          // place of partial results
};

// Entries lie in groups of 32, all first halves before all second ones: a warp that takes 32 neighbours asks for whole
// sectors by both of its loads.
__device__ __forceinline__ u32 half_of(u32 index, u32 half) { return (index / WARP * 2 + half) * WARP + index % WARP; }

__device__ __forceinline__ Entry load_entry(const Entry *entries, u32 index) {
    const uint4 *halves = (const uint4 *)entries;
    uint4 a = halves[half_of(index, 0)], b = halves[half_of(index, 1)];
    return Entry{a.x, a.y, a.z, a.w, b.x, (int)b.y, b.z, b.w};
}

__device__ __forceinline__ void store_entry(Entry *entries, u32 index, const Entry &e) {
    uint4 *halves = (uint4 *)entries;
    halves[half_of(index, 0)] = make_uint4(e.place, e.row, e.position, e.prefix_len);
    halves[half_of(index, 1)] = make_uint4(e.prefix_block, (u32)e.own_block, e.first, e.slot);
}

// Whether two entries that stand one after the other find position block `block` in the same slots: below the result.
__device__ __forceinline__ u32 shared_blocks(const Entry &a, const Entry &b) {
    if (a.row == b.row) return NEVER;
    bool shares = a.prefix_len == b.prefix_len && a.prefix_block == b.prefix_block;
    return shares ? b.prefix_len / BLOCK_KEYS : 0;
}

struct Step {
    u32 block, from, to;  // position block; rows from..to of the tile
};

// Walks the steps of a tile. Every warp holds the same walk: lane l knows where rows l and l + 32 part from the row
// before them.
template <int ROWS>
struct Steps {
    u32 apart[ROWS > WARP ? 2 : 1];
    u32 rows, end;
    u64 starts;  // rows at which a class of the current block starts

    // Fills `tile` with query rows `first .. first + rows`; all threads call it. A barrier is due before `tile` is read.
    __device__ __forceinline__ void open(TileRows<ROWS> &tile, const Entry *entries, u32 first, u32 count, u32 group,
                                         u32 heads, u32 kv_head) {
        rows = count;
#pragma unroll
        for (u32 i = 0; i < (ROWS > WARP ? 2 : 1); i++) {
            u32 row = threadIdx.x % WARP + WARP * i;
            apart[i] = NEVER;
            if (row < count) {
                u32 entry = (first + row) / group, member = (first + row) % group;
                Entry e = load_entry(entries, entry);
                if (row == 0) apart[i] = 0;
                else if (member == 0) apart[i] = shared_blocks(load_entry(entries, entry - 1), e);
                if (threadIdx.x < WARP) {
                    tile.at[row] = e.place * heads + kv_head * group + member;
                    tile.position[row] = e.position;
                    tile.prefix_len[row] = e.prefix_len;
                    tile.prefix_block[row] = e.prefix_block;
                    tile.own_block[row] = e.own_block;
                    tile.slot[row] = e.slot;
                }
            } else if (row < ROWS && threadIdx.x < WARP) {
                tile.at[row] = NEVER;
                tile.position[row] = 0;
            }
        }
    }

    // The first step at or after block `begin`, of those before block `finish`.
    __device__ __forceinline__ Step first(const TileRows<ROWS> &tile, u32 begin, u32 finish) {
        end = finish;
        Step step{begin, 0, 0};
        mark(begin);
        return next(tile, step);
    }

    // The step after this one that any row sees; block == end after the last.
    __device__ __forceinline__ Step next(const TileRows<ROWS> &tile, Step step) {
        for (;;) {
            step.from = step.to;
            if (step.from >= rows) {
                step.block++;
                step.from = 0;
                if (step.block < end) mark(step.block);
            }
            if (step.block >= end) return Step{end, 0, 0};
            u64 later = step.from >= 63 ? 0 : starts >> (step.from + 1) << (step.from + 1);
            step.to = later ? (u32)__ffsll((long long)later) - 1 : rows;
            if (seen(tile, step) > 0) return step;
        }
    }

    // Keys of the step's block that some row of its class sees. The last row of a class sees the most: within a row
    // of the batch positions ascend, and blocks of a shared prefix are seen as a whole.
    __device__ __forceinline__ u32 seen(const TileRows<ROWS> &tile, const Step &step) const {
        u32 start = step.block * BLOCK_KEYS, keys = tile.position[step.to - 1] + 1;
        return keys > start ? min(keys - start, BLOCK_KEYS) : 0;
    }

    // Whether any of the tile's rows `from .. to` belongs to the step and sees a key of its block.
    __device__ __forceinline__ bool sees(const TileRows<ROWS> &tile, const Step &step, u32 from, u32 to) const {
        return step.from < to && step.to > from &&
               tile.position[min(step.to, to) - 1] >= step.block * BLOCK_KEYS;
    }

    __device__ __forceinline__ void mark(u32 block) {
        starts = __ballot_sync(ALL_LANES, block >= apart[0]);
        if constexpr (ROWS > WARP) starts |= (u64)__ballot_sync(ALL_LANES, block >= apart[1]) << 32;
    }
};

// How many keys of the block at `start` the row at `position` sees, when it belongs to the step.
template <int ROWS>
__device__ __forceinline__ u32 limit(const TileRows<ROWS> &tile, const Step &step, u32 row) {
    u32 start = step.block * BLOCK_KEYS, keys = tile.position[row] + 1;
    return row >= step.from && row < step.to && keys > start ? min(keys - start, BLOCK_KEYS) : 0;
}

// The position block of a tile's largest position. All threads of a warp call it.
template <int ROWS>
__device__ __forceinline__ u32 last_block(const TileRows<ROWS> &tile) {
    u32 largest = 0;
#pragma unroll
    for (u32 row = threadIdx.x % WARP; row < ROWS; row += WARP) largest = max(largest, tile.position[row]);
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, distance));
    }
    return largest / BLOCK_KEYS;
}
