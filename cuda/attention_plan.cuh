// Who reads what, worked out on the device from the packed rows and positions, which the host does not see.
//
// Order. Entries are sorted by (family, row, position), where a family is the block of slots that holds position 0:
// rows that share a prefix stand side by side. An entry's place is the number of entries before it, counted by one
// thread against all keys; a segment that is packed in this order already, as most are, is found in one pass. Neither
// depends on timing: the same segment has the same order and the same bits.
//
// Single steps (up to STEP_ENTRIES entries, one block of threads): items of work, attention_items.cuh.
#pragma once
#include "attention_items.cuh"

constexpr int PLAN_THREADS = 512;
constexpr u32 STEP_ENTRIES = PLAN_THREADS;

// This thread's entry (place = index) and its index in sorted order; false where there is none. All threads of the
// block call it; they must be PLAN_THREADS.
__device__ __forceinline__ bool sort_entry(const Segment &segment, u32 place, Entry &entry, u32 &index) {
    __shared__ u64 high[PLAN_THREADS];
    __shared__ u32 low[PLAN_THREADS];
    u32 count = segment.count;
    bool present = place < count, few = count <= PLAN_THREADS, in_order = true;
    Key mine{0, 0};
    if (present) {
        entry = segment.entry(place);
        entry.first = entry.position;
        mine = key(entry);
    }
    auto show = [&](u32 at, const Key &shown) {
        high[at] = shown.high;
        low[at] = shown.low;
    };
    if (few) {
        if (present) show(place, mine);
        __syncthreads();
        in_order = place == 0 || !present || before(Key{high[place - 1], low[place - 1]}, mine);
    } else {
#pragma unroll 4
        for (u32 i = threadIdx.x; i + 1 < count; i += PLAN_THREADS) {
            in_order = in_order && before(key(segment.entry(i)), key(segment.entry(i + 1)));
        }
    }
    in_order = __syncthreads_and(in_order);
    index = 0;
    if (in_order) {
        if (!present) return false;
        index = place;
        // The first entry of the row, by bisection.
        u32 from = 0, to = place;
        while (from < to) {
            u32 middle = (from + to) / 2;
            u64 other = few ? high[middle] : key(segment.entry(middle)).high;
            if (other < mine.high) from = middle + 1;
            else to = middle;
        }
        entry.first = few ? low[from] : segment.positions[from];
        return true;
    }
    for (u32 start = 0; start < count; start += PLAN_THREADS) {
        __syncthreads();
        if (!few && start + threadIdx.x < count) show(threadIdx.x, key(segment.entry(start + threadIdx.x)));
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
    u32 *number;         // of items
    Item *items;
    u32 *tickets;        // of query rows and key-value heads, made 0
    u32 group, tile;     // query heads of a key-value head; query rows of an item
    u32 capacity;        // slots
};

// Plans single steps; thread i plans entry i and returns its slot.
__device__ __forceinline__ u32 plan_steps(const StepPlan &plan, const Sorted<STEP_ENTRIES> &sorted, u32 count) {
    __shared__ u32 last_of_run[STEP_ENTRIES], last_of_group[STEP_ENTRIES], flags[STEP_ENTRIES];
    u32 i = threadIdx.x;
    bool present = i < count, head = present && sorted.opens(i), alone = present && !sorted.linked(i);
    flags[i] = (head ? 1 : 0) | (alone ? 2 : 0);
    u32 begin = largest_so_far(head ? i : 0), first = largest_so_far(alone ? i : 0);
    u32 following = present && i + 1 < count ? flags[i + 1] : 3;
    if (present && (following & 1)) last_of_run[begin] = i;
    if (present && (following & 2)) last_of_group[first] = i;
    u32 slots, slot = sum_before(present ? sorted.blocks(i) : 0, slots);
    bool fits = slots <= plan.capacity;
    Work work;
    if (present) {
        work = Work(sorted, i, begin, last_of_run[begin] + 1, first, last_of_group[first] + 1, plan.group, plan.tile, fits);
    }
    u32 number = present ? work.count(sorted) : 0, all, at = sum_before(number, all);
    for (u32 n = 0; n < number; n++) store_item(plan.items + at + n, work.at(sorted, n));
    if (i == 0) *plan.number = all;
    return fits ? slot : NEVER;
}
