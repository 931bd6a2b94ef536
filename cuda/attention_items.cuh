// Single steps as items of work. A run is the entries of one row of the batch; runs next to each other that share a
// prefix are a group. An item is a tile of query rows and a block of 64 keys: of a group for the blocks that lie in its
// prefix as a whole, so that rollouts read their prompt together, and of a run for the blocks after them. The states of
// an entry's blocks lie in slots, one a block; where these would not fit, an item is a tile of a run and all its blocks:
// slower, the same bits.
#pragma once
#include "attention_steps.cuh"

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

// Query rows `first .. first + rows`, position blocks `begin .. end`: one, or all that the rows see, and then there are
// at most 16 rows. `position` is the largest of the rows.
struct __align__(16) Item {
    u32 first, rows, begin, end;
    u32 prefix_len, prefix_block;
    int own_block;
    u32 position;
};

__device__ __forceinline__ Item load_item(const Item *at) {
    uint4 a = *(const uint4 *)at, b = *((const uint4 *)at + 1);
    return Item{a.x, a.y, a.z, a.w, b.x, b.y, (int)b.z, b.w};
}

__device__ __forceinline__ void store_item(Item *at, const Item &item) {
    *(uint4 *)at = make_uint4(item.first, item.rows, item.begin, item.end);
    *((uint4 *)at + 1) = make_uint4(item.prefix_len, item.prefix_block, (u32)item.own_block, item.position);
}

__device__ __forceinline__ u32 up(u32 a, u32 b) { return (a + b - 1) / b; }

// The entries of single steps in sorted order, one array a field.
template <u32 MOST>
struct Sorted {
    u32 place[MOST], row[MOST], position[MOST], prefix_len[MOST], prefix_block[MOST], first[MOST];
    int own_block[MOST];

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
    __device__ __forceinline__ u32 blocks(u32 i) const { return position[i] / BLOCK_KEYS + 1; }
    // Whether entry i opens a run, and whether it belongs to the group of the entry before it.
    __device__ __forceinline__ bool opens(u32 i) const { return i == 0 || row[i - 1] != row[i]; }
    __device__ __forceinline__ bool linked(u32 i) const {
        return i > 0 && (!opens(i) || shared_blocks(get(i - 1, 0), get(i, 0)) > 0);
    }
};

// Tiles of `tile` query rows of the entries `begin .. end` whose first row belongs to entry i: number `from .. to`.
struct Tiles {
    u32 begin, end, group, tile, from, to;
    __device__ __forceinline__ Tiles(u32 begin, u32 end, u32 i, u32 group, u32 tile)
        : begin(begin), end(end), group(group), tile(tile) {
        from = up((i - begin) * group, tile);
        to = min(up((i + 1 - begin) * group, tile), up((end - begin) * group, tile));
    }
    __device__ __forceinline__ u32 first(u32 n) const { return begin * group + n * tile; }
    __device__ __forceinline__ u32 rows(u32 n) const { return min(tile, (end - begin) * group - n * tile); }
    __device__ __forceinline__ u32 last_entry(u32 n) const { return (first(n) + rows(n) - 1) / group; }
};

// The items that start in entry i: tiles of its group, then tiles of its run.
struct Work {
    Tiles together, alone;
    u32 shared;  // blocks that the group reads together
    bool fits;

    __device__ __forceinline__ Work() : together(0, 0, 0, 1, 1), alone(0, 0, 0, 1, 1), shared(0), fits(true) {}

    // Entry i of the run `begin .. end` and the group `first .. last`.
    template <u32 MOST>
    __device__ __forceinline__ Work(const Sorted<MOST> &sorted, u32 i, u32 begin, u32 end, u32 first, u32 last, u32 group,
                                    u32 tile, bool fits)
        : together(0, 0, 0, 1, 1), alone(begin, end, i, group, fits ? tile : 16), shared(0), fits(fits) {
        if (fits && (first != begin || last != end)) shared = sorted.prefix_len[i] / BLOCK_KEYS;
        if (shared > 0) together = Tiles(first, last, i, group, tile);
    }

    template <u32 MOST>
    __device__ __forceinline__ u32 of_tile(const Sorted<MOST> &sorted, u32 n) const {
        return fits ? sorted.blocks(alone.last_entry(n)) - shared : 1;
    }

    template <u32 MOST>
    __device__ __forceinline__ u32 count(const Sorted<MOST> &sorted) const {
        u32 number = (together.to - together.from) * shared;
        for (u32 n = alone.from; n < alone.to; n++) number += of_tile(sorted, n);
        return number;
    }

    template <u32 MOST>
    __device__ __forceinline__ static Item item(const Sorted<MOST> &sorted, const Tiles &tiles, u32 n, u32 begin, u32 end) {
        u32 last = tiles.last_entry(n);
        return Item{tiles.first(n),           tiles.rows(n), begin, end, sorted.prefix_len[last], sorted.prefix_block[last],
                    sorted.own_block[last], sorted.position[last]};
    }

    // Item `number` of those counted.
    template <u32 MOST>
    __device__ __forceinline__ Item at(const Sorted<MOST> &sorted, u32 number) const {
        u32 all = (together.to - together.from) * shared;
        if (number < all) {
            u32 block = number % shared;
            return item(sorted, together, together.from + number / shared, block, block + 1);
        }
        number -= all;
        for (u32 n = alone.from;; n++) {
            u32 of = of_tile(sorted, n);
            if (number < of) {
                u32 block = shared + number;
                return fits ? item(sorted, alone, n, block, block + 1)
                            : item(sorted, alone, n, 0, sorted.blocks(alone.last_entry(n)));
            }
            number -= of;
        }
    }
};
