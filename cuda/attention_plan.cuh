// Who reads what, worked out on the device from the packed rows and positions, which the host does not see.
//
// Order. Entries are sorted by (family, row, position), where a family is the block of slots that holds position 0:
// rows that share a prefix stand side by side. An entry's place is the number of entries before it, counted by one
// thread against all keys; a segment that is packed in this order already, as most are, is found in one pass. Neither
// depends on timing: the same segment has the same order and the same bits.
//
// Single steps (up to STEP_ENTRIES entries, one block of threads). A run is the entries of one row of the batch. A run
// of at most 16 query rows is short: its keys are split into parts, each an item of one warp (`narrow`). Short runs
// next to each other that share a prefix read the blocks that lie in it as a whole together (`wide` items, up to a tile
// of query rows): so the rollouts of a group read their prompt once. Long runs are tiled like prompts, over all their
// keys (`wide` as well). Partial results of short runs lie in slots, one a part and entry; where these would not fit,
// everything is tiled like a prompt: slower, the same bits.
#pragma once
#include "attention_forward.cuh"

constexpr int PLAN_THREADS = 512;
constexpr u32 STEP_ENTRIES = PLAN_THREADS;
constexpr u32 SHORT_ROWS = 16;

// A packed segment and the slots of its rows (src/ops/kv_cache.rs, CacheSpan).
struct Segment {
    const u32 *rows, *positions;
    const u32 *prefix_slot, *prefix_len, *own_slot;
    u32 count;

    __device__ __forceinline__ Entry entry(u32 place) const {
        u32 row = rows[place], length = prefix_len[row];
        u32 prefix_block = length > 0 ? prefix_slot[row] / BLOCK_KEYS : 0;
        int own_block = (int)(own_slot[row] / BLOCK_KEYS) - (int)(length / BLOCK_KEYS);
        return Entry{place, row, positions[place], length, prefix_block, own_block, 0, NEVER};
    }
};

// What entries are sorted by; ties, which a correct segment does not have, go to the earlier place.
struct Key {
    u64 high;
    u32 low;
};

__device__ __forceinline__ Key key(const Entry &e) {
    u32 family = e.prefix_len > 0 ? e.prefix_block : (u32)e.own_block;
    return Key{(u64)family << 32 | e.row, e.position};
}

__device__ __forceinline__ bool before(const Key &a, const Key &b) {
    return a.high < b.high || (a.high == b.high && a.low < b.low);
}

// This thread's entry (place = index) and its index in sorted order; false where there is none. All threads of the
// block call it; they must be PLAN_THREADS.
__device__ __forceinline__ bool sort_entry(const Segment &segment, u32 place, Entry &entry, u32 &index) {
    __shared__ u64 high[PLAN_THREADS];
    __shared__ u32 low[PLAN_THREADS];
    u32 count = segment.count;
    bool in_order = true;
    for (u32 i = threadIdx.x; i + 1 < count; i += PLAN_THREADS) {
        in_order = in_order && before(key(segment.entry(i)), key(segment.entry(i + 1)));
    }
    in_order = __syncthreads_and(in_order);
    bool present = place < count;
    Key mine{0, 0};
    if (present) {
        entry = segment.entry(place);
        entry.first = entry.position;
        mine = key(entry);
    }
    index = 0;
    if (in_order) {
        if (!present) return false;
        index = place;
        // The first entry of the row, by bisection.
        u32 from = 0, to = place;
        while (from < to) {
            u32 middle = (from + to) / 2;
            if (key(segment.entry(middle)).high < mine.high) from = middle + 1;
            else to = middle;
        }
        entry.first = segment.positions[from];
        return true;
    }
    for (u32 start = 0; start < count; start += PLAN_THREADS) {
        __syncthreads();
        if (start + threadIdx.x < count) {
            Key other = key(segment.entry(start + threadIdx.x));
            high[threadIdx.x] = other.high;
            low[threadIdx.x] = other.low;
        }
        __syncthreads();
        if (!present) continue;
        u32 end = min(count - start, (u32)PLAN_THREADS);
        for (u32 i = 0; i < end; i++) {
            Key other{high[i], low[i]};
            bool tie = other.high == mine.high && other.low == mine.low && start + i < place;
            index += before(other, mine) || tie;
            if (other.high == mine.high) entry.first = min(entry.first, other.low);
        }
    }
    return present;
}

// ---- single steps -------------------------------------------------------------------------------------------------

// Sum of `value` over the threads before this one, and over all; the block has PLAN_THREADS threads.
__device__ __forceinline__ u32 sum_before(u32 value, u32 &total) {
    __shared__ u32 room[PLAN_THREADS / WARP];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, sum = value;
    for (u32 distance = 1; distance < WARP; distance *= 2) {
        u32 other = __shfl_up_sync(ALL_LANES, sum, distance);
        if (lane >= distance) sum += other;
    }
    if (lane == WARP - 1) room[warp] = sum;
    __syncthreads();
    u32 earlier = 0;
    total = 0;
    for (u32 w = 0; w < PLAN_THREADS / WARP; w++) {
        if (w < warp) earlier += room[w];
        total += room[w];
    }
    __syncthreads();
    return earlier + sum - value;
}

// Largest `value` over the threads up to this one.
__device__ __forceinline__ u32 largest_so_far(u32 value) {
    __shared__ u32 room[PLAN_THREADS / WARP];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (u32 distance = 1; distance < WARP; distance *= 2) {
        u32 other = __shfl_up_sync(ALL_LANES, value, distance);
        if (lane >= distance) value = max(value, other);
    }
    if (lane == WARP - 1) room[warp] = value;
    __syncthreads();
    for (u32 w = 0; w < warp; w++) value = max(value, room[w]);
    __syncthreads();
    return value;
}

// Where the work of single steps is written.
struct StepPlan {
    u32 *counts;         // wide items, narrow items
    Item *wide, *narrow;
    u32 group, tile;     // query heads of a key-value head; query rows of a wide item
    u32 capacity;        // slots, and narrow or shared items
};

__device__ __forceinline__ u32 up(u32 a, u32 b) { return (a + b - 1) / b; }

// The entries of single steps in sorted order, one array a field.
struct Sorted {
    u32 place[STEP_ENTRIES], row[STEP_ENTRIES], position[STEP_ENTRIES], prefix_len[STEP_ENTRIES];
    u32 prefix_block[STEP_ENTRIES], first[STEP_ENTRIES];
    int own_block[STEP_ENTRIES];

    __device__ __forceinline__ void set(u32 i, const Entry &e) {
        place[i] = e.place;
        row[i] = e.row;
        position[i] = e.position;
        prefix_len[i] = e.prefix_len;
        prefix_block[i] = e.prefix_block;
        own_block[i] = e.own_block;
        first[i] = e.first;
    }
    __device__ __forceinline__ Entry get(u32 i, u32 slot) const {
        return Entry{place[i], row[i], position[i], prefix_len[i], prefix_block[i], own_block[i], first[i], slot};
    }
};

// Plans single steps; thread i plans entry i and returns its slot.
__device__ __forceinline__ u32 plan_steps(const StepPlan &plan, const Sorted &sorted, u32 count) {
    __shared__ u32 last_of_run[STEP_ENTRIES], last_of_group[STEP_ENTRIES];
    __shared__ u32 flags[STEP_ENTRIES];
    u32 i = threadIdx.x, group = plan.group, tile = plan.tile;
    bool present = i < count;

    // Runs: the entries of one row of the batch.
    bool head = present && (i == 0 || sorted.row[i - 1] != sorted.row[i]);
    u32 begin = largest_so_far(head ? i : 0);
    if (present && (i + 1 == count || sorted.row[i + 1] != sorted.row[i])) last_of_run[begin] = i;
    __syncthreads();
    u32 run = present ? last_of_run[begin] + 1 - begin : 0;
    bool is_short = present && run * group <= SHORT_ROWS;

    // Groups: neighbouring short runs that find the first blocks of a prefix in the same slots.
    flags[i] = is_short;
    __syncthreads();
    bool linked = is_short && i > 0 && flags[i - 1] &&
                  shared_blocks(sorted.get(i - 1, 0), sorted.get(i, 0)) > 0;
    __syncthreads();
    flags[i] = linked;
    u32 first = largest_so_far(present && !linked ? i : 0);
    if (present && (i + 1 == count || !flags[i + 1])) last_of_group[first] = i;
    __syncthreads();
    u32 last = present ? last_of_group[first] : 0;
    bool shares = is_short && sorted.row[first] != sorted.row[last];

    u32 blocks = present ? sorted.position[last_of_run[begin]] / BLOCK_KEYS + 1 : 0, parts = up(blocks, PART_BLOCKS);
    u32 slots, slot = sum_before(is_short ? parts : 0, slots);
    bool fits = slots <= plan.capacity;

    u32 shared = shares ? sorted.prefix_len[i] / BLOCK_KEYS : 0, shared_parts = up(shared, PART_BLOCKS);
    u32 members = (last + 1 - first) * group, skipped = shared / PART_BLOCKS;
    u32 narrow = fits && head && is_short ? parts - skipped : 0;
    u32 together = fits && i == first ? up(members, tile) * shared_parts : 0;
    u32 tiles = fits && head && !is_short ? up(run * group, tile) : 0;
    u32 all_narrow, narrow_at = sum_before(narrow, all_narrow);
    u32 all_wide, wide_at = sum_before(together + tiles, all_wide);

    for (u32 n = 0; n < narrow; n++) {
        u32 part = skipped + n;
        plan.narrow[narrow_at + n] = Item{i * group, run * group, max(shared, part * PART_BLOCKS),
                                          min(blocks, (part + 1) * PART_BLOCKS)};
    }
    for (u32 n = 0; n < together; n++) {
        u32 part = n % shared_parts, at = n / shared_parts * tile;
        plan.wide[wide_at + n] = Item{first * group + at, min(members - at, tile), part * PART_BLOCKS,
                                      min(shared, (part + 1) * PART_BLOCKS)};
    }
    for (u32 n = 0; n < tiles; n++) {
        plan.wide[wide_at + n] = Item{i * group + n * tile, min(run * group - n * tile, tile), 0, 0};
    }
    if (!fits) {
        all_wide = up(count * group, tile);
        for (u32 n = i; n < all_wide; n += PLAN_THREADS) {
            plan.wide[n] = Item{n * tile, min(count * group - n * tile, tile), 0, 0};
        }
    }
    if (i == 0) {
        plan.counts[0] = all_wide;
        plan.counts[1] = all_narrow;
    }
    return is_short && fits ? slot : NEVER;
}
