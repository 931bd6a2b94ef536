// The plan of single steps of few entries, as a warp works it out for itself: lane i has entry i. What an item is stands in
// attention_items.cuh, how it is worked on in attention_decode.cuh.
#pragma once
#include "attention_items.cuh"

constexpr u32 FEW = WARP;

// The entries of a segment of few, put in order by one warp.
__device__ __forceinline__ void sort_few(const Segment &segment, Sorted<FEW> &sorted) {
    u32 lane = threadIdx.x % WARP, index = lane;
    bool present = lane < segment.count;
    Entry e{};
    Key mine{~0ull, NEVER};
    if (present) {
        e = segment.entry(lane);
        mine = key(e);
    }
    Key previous{__shfl_up_sync(ALL_LANES, mine.high, 1), __shfl_up_sync(ALL_LANES, mine.low, 1)};
    if (!__all_sync(ALL_LANES, !present || lane == 0 || before(previous, mine))) {
        index = 0;
        for (u32 i = 0; i < segment.count; i++) {
            Key other{__shfl_sync(ALL_LANES, mine.high, i), __shfl_sync(ALL_LANES, mine.low, i)};
            bool tie = other.high == mine.high && other.low == mine.low && i < lane;
            index += before(other, mine) || tie;
        }
    }
    if (present) sorted.set(index, e);
}

// What a warp knows of the plan of few entries: lane i of entry i.
struct FewPlan {
    Work work;
    u32 before, number, all;  // items of the entries before, of this one, of all
    u32 slot;

    __device__ __forceinline__ FewPlan(const Sorted<FEW> &sorted, u32 count, u32 group, u32 tile, u32 capacity) {
        u32 i = threadIdx.x % WARP, ahead = 2u << i;
        bool present = i < count;
        u32 ends = count < WARP ? 1u << count : 0;
        u32 runs = __ballot_sync(ALL_LANES, present && sorted.opens(i)) | ends;
        u32 groups = __ballot_sync(ALL_LANES, present && !sorted.linked(i)) | ends;
        auto from = [&](u32 starts) { return WARP - 1 - __clz(starts & (ahead - 1)); };
        auto to = [&](u32 starts) { return i + 1 < WARP && starts >> (i + 1) ? i + __ffs(starts >> (i + 1)) : WARP; };
        u32 slots;
        slot = sum_before(present ? sorted.blocks(i) : 0, slots);
        bool fits = slots <= capacity;
        if (!fits) slot = NEVER;
        if (present) work = Work(sorted, i, from(runs), to(runs), from(groups), to(groups), group, tile, fits);
        number = present ? work.count(sorted) : 0;
        before = sum_before(number, all);
    }

    __device__ __forceinline__ static u32 sum_before(u32 value, u32 &total) {
        u32 sum = value;
        for (u32 distance = 1; distance < WARP; distance *= 2) {
            u32 other = __shfl_up_sync(ALL_LANES, sum, distance);
            if (threadIdx.x % WARP >= distance) sum += other;
        }
        total = __shfl_sync(ALL_LANES, sum, WARP - 1);
        return sum - value;
    }

    // Item `index`, for all lanes.
    __device__ __forceinline__ Item item(const Sorted<FEW> &sorted, u32 index) const {
        bool mine = index >= before && index < before + number;
        u32 from = __ffs(__ballot_sync(ALL_LANES, mine)) - 1;
        Item found{};
        if (mine) found = work.at(sorted, index - before);
        auto tell = [&](u32 x) { return __shfl_sync(ALL_LANES, x, from); };
        return Item{tell(found.first),      tell(found.rows),         tell(found.begin),          tell(found.end),
                    tell(found.prefix_len), tell(found.prefix_block), (int)tell(found.own_block), tell(found.position)};
    }
};
