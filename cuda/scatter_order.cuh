// Contributions in the order of their keys, and of themselves where keys are equal: what the scatter's sums are taken in.
//
// As many as one block holds are sorted by it: a bitonic network of 4 words a thread, where a word is key and entry and
// so unique. Nine of ten steps stay in a thread or a warp. 512 contributions take 5 thousand instructions of 4 warps, where
// counting takes 65 thousand of 512, and move 6 KB instead of 50: every key is read once, and the list leaves in whole
// sectors. (Tables of more than two million rows, whose keys do not fit beside the entry, go by the next way.)
//
// Up to some thousands of them each finds its place by counting all that go before it: E^2 comparisons are spread over
// the whole device, and nothing waits for anything but one barrier, while a network of so many words would keep one
// multiprocessor busy for longer. Places lie apart, 8 bytes to a sector each: of 1025 contributions that is a sixth more
// sectors than their blocks need, of 2048 and more less than a tenth.
//
// More are sorted by two kernels without workspace beyond the lists: a tile of 512 orders itself (its rank in the tile is
// the number of keys before it, counted in shared memory, where all lanes read the same word), then every key finds its
// rank in each other tile. A warp's 32 keys ascend and so do the tile's: the warp bisects for its first key, all lanes at
// the same word, and walks on from there in runs of 32 keys, in which each lane bisects by shuffles. Keys go to their
// places together with their entries, since such a place is a sector of its own. Keys equal: the earlier entry goes
// first, so the order is that of e on any machine.
#pragma once
#include "indexed_rows.cuh"

constexpr int TILE = 512;
// Most contributions that one block sorts, and its threads at most: SORT_KEYS keys each.
constexpr u32 SORTED = 1024;
constexpr u32 SORT_KEYS = 4;
constexpr int SORT_BLOCK = SORTED / SORT_KEYS;
// Most contributions whose places are counted, and threads of such a block.
constexpr u32 COUNTED = 8192;
constexpr int COUNT_BLOCK = 1024;
// Key of entries that bring nothing; sorts last.
constexpr u32 SKIP = 0xffffffffu;
// Set in an entry whose index does not exist.
constexpr u32 BAD = 0x80000000u;

// ---- keys -----------------------------------------------------------------------------------------------------------

// The key of an index into `bound` rows. An index that does not exist marks its entry and goes to row 0.
__device__ __forceinline__ u32 key_of(u32 index, u32 bound, u32 &entry) {
    if (index < bound) return index;
    entry |= BAD;
    return 0;
}

// ---- order ----------------------------------------------------------------------------------------------------------

// Sorts a tile of keys by (key, entry). Threads past `count` take part with keys that sort behind all others.
__device__ __forceinline__ void sort_tile(u32 key, u32 entry, u32 count, u32 *keys, u32 *entries) {
    __shared__ uint4 tile[TILE / 4];
    u32 t = threadIdx.x, e = blockIdx.x * TILE + t;
    reinterpret_cast<u32 *>(tile)[t] = key;
    __syncthreads();
    // Keys of earlier warps come first when equal, those of later warps behind; within the warp the index decides.
    u32 rank = 0, warp = t / WARP * (WARP / 4), i = 0;
    for (; i < warp; i++) {
        uint4 k = tile[i];
        rank += (k.x <= key) + (k.y <= key) + (k.z <= key) + (k.w <= key);
    }
    for (; i < warp + WARP / 4; i++) {
        uint4 k = tile[i];
        u32 at = 4 * i;
        rank += (k.x < key || (k.x == key && at < t)) + (k.y < key || (k.y == key && at + 1 < t)) +
                (k.z < key || (k.z == key && at + 2 < t)) + (k.w < key || (k.w == key && at + 3 < t));
    }
    for (; i < TILE / 4; i++) {
        uint4 k = tile[i];
        rank += (k.x < key) + (k.y < key) + (k.z < key) + (k.w < key);
    }
    // Through shared memory, so that neighbours write neighbouring words.
    __shared__ u32 sorted_keys[TILE], sorted_entries[TILE];
    sorted_keys[rank] = key;
    sorted_entries[rank] = entry;
    __syncthreads();
    if (e >= count) return;
    keys[e] = sorted_keys[t];
    entries[e] = sorted_entries[t];
}

// Where keys come from: `named` finds the row indices of N contributions that exist, with their loads in flight together,
// and says by bits which of them bring anything.

struct RowKeys {
    const u32 *index;
    template <int N> __device__ __forceinline__ u32 named(const u32 (&e)[N], u32 (&row)[N]) const {
#pragma unroll
        for (int i = 0; i < N; i++) row[i] = index[e[i]];
        return (1u << N) - 1;
    }
};

// Entry e = n * kept + j is term j of the mixture at position n; a token is term 0 of its position.
struct TokenKeys {
    const int *ids;
    const u32 *soft_ids;
    u32 mixtures, kept;
    template <int N> __device__ __forceinline__ u32 named(const u32 (&e)[N], u32 (&row)[N]) const {
        int id[N];
        u32 bring = 0, mixed = 0;
#pragma unroll
        for (int i = 0; i < N; i++) id[i] = ids[e[i] / kept];
#pragma unroll
        for (int i = 0; i < N; i++) {
            row[i] = id[i] < 0 ? SKIP : (u32)id[i];
            if (id[i] < -1 && 0xfffffffeu - (u32)id[i] < mixtures) mixed |= 1u << i;
            else if (id[i] != -1 && e[i] % kept == 0) bring |= 1u << i;
        }
        if (!mixed) return bring;
#pragma unroll
        for (int i = 0; i < N; i++) {
            bool own = mixed >> i & 1;
            u64 mixture = own ? 0xfffffffeu - (u32)id[i] : 0;
            u32 term = soft_ids[mixture * kept + e[i] % kept];
            if (own) row[i] = term;
        }
        return bring | mixed;
    }
};

struct LatentKeys {
    const int *ids, *source;
    template <int N> __device__ __forceinline__ u32 named(const u32 (&e)[N], u32 (&row)[N]) const {
        int id[N];
        u32 latent = 0;
#pragma unroll
        for (int i = 0; i < N; i++) id[i] = ids[e[i]];
#pragma unroll
        for (int i = 0; i < N; i++) latent |= id[i] == -1 ? 1u << i : 0;
        if (!latent) return 0;
#pragma unroll
        for (int i = 0; i < N; i++) row[i] = (u32)source[e[i]];
#pragma unroll
        for (int i = 0; i < N; i++) latent &= row[i] == SKIP ? ~(1u << i) : ~0u; // From no state: -1.
        return latent;
    }
};

// The key of a contribution that exists.
template <typename Keys> __device__ __forceinline__ u32 key_of(const Keys &keys, u32 bound, u32 e, u32 &entry) {
    u32 at[1] = {e}, row[1] = {};
    return keys.named(at, row) ? key_of(row[0], bound, entry) : SKIP;
}

// The whole order of at most COUNTED contributions at once. A block finds the places of 32 of them, a lane each: its
// warps share the keys out in runs of 32, and count those that stand before the lane's.
template <typename Keys> __device__ __forceinline__ void count_order(Keys keys, u32 count, u32 bound, uint2 *sorted) {
    __shared__ uint4 all[COUNTED / 4];
    __shared__ u32 found[COUNT_BLOCK / WARP][WARP];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, runs = (count + WARP - 1) / WARP, own = blockIdx.x;
    u32 *key = reinterpret_cast<u32 *>(all), entry = 0;
    for (u32 e = threadIdx.x; e < runs * WARP; e += COUNT_BLOCK) key[e] = e < count ? key_of(keys, bound, e, entry) : SKIP;
    __syncthreads();
    u32 mine = key[own * WARP + lane], before = 0;
    for (u32 run = warp; run < runs; run += COUNT_BLOCK / WARP) {
        const uint4 *four = all + run * (WARP / 4);
        if (run < own) {
#pragma unroll
            for (u32 i = 0; i < WARP / 4; i++) {
                uint4 k = four[i];
                before += (k.x <= mine) + (k.y <= mine) + (k.z <= mine) + (k.w <= mine);
            }
        } else if (run > own) {
#pragma unroll
            for (u32 i = 0; i < WARP / 4; i++) {
                uint4 k = four[i];
                before += (k.x < mine) + (k.y < mine) + (k.z < mine) + (k.w < mine);
            }
        } else {
            for (u32 i = 0; i < WARP; i++) {
                u32 other = key[run * WARP + i];
                before += other < mine || (other == mine && i < lane);
            }
        }
    }
    found[warp][lane] = before;
    __syncthreads();
    u32 e = own * WARP + lane;
    if (warp > 0 || e >= count) return;
    before = 0;
#pragma unroll
    for (u32 w = 0; w < COUNT_BLOCK / WARP; w++) before += found[w][lane];
    entry = e;
    mine = key_of(keys, bound, e, entry);
    sorted[before] = make_uint2(mine, entry);
}

// A contribution as one word of the order of key and entry: 21 bits of key, 10 of entry, and whether its index exists.
// The host sees to it that the target has fewer rows than NO_KEY.
constexpr u32 NO_KEY = (1u << 21) - 1;
__device__ __forceinline__ u32 pack(u32 key, u32 e, bool bad) { return min(key, NO_KEY) << 11 | e << 1 | bad; }
__device__ __forceinline__ uint2 unpack(u32 word) {
    u32 key = word >> 11, e = word >> 1 & (SORTED - 1);
    return make_uint2(key == NO_KEY ? SKIP : key, word & 1 ? e | BAD : e);
}

// Leaves the smaller of two words where `smaller`, else the larger.
__device__ __forceinline__ u32 one_of(u32 mine, u32 other, bool smaller) { return (other < mine) == smaller ? other : mine; }

__device__ __forceinline__ void order(u32 &a, u32 &b, bool down) {
    bool swap = (b < a) != down;
    u32 first = swap ? b : a;
    b = swap ? a : b;
    a = first;
}

// Sorts 4 words a thread, those of thread t in the places 4 t .. 4 t + 3: bitonic (Batcher 1968). Places less than 4
// apart are in the thread, less than 128 in the warp; only others pass through `room`, which has place for all.
__device__ __forceinline__ void sort_words(u32 (&word)[SORT_KEYS], uint4 *room) {
    u32 thread = threadIdx.x, count = SORT_KEYS * blockDim.x;
    // The bit `size` of a place says which way its run of so many is ordered: down where it is set.
    auto near = [&](u32 size) {
        bool down = SORT_KEYS * thread & size;
        order(word[0], word[2], down), order(word[1], word[3], down);
        order(word[0], word[1], down), order(word[2], word[3], down);
    };
    order(word[0], word[1], false), order(word[2], word[3], true);
    near(4);
#pragma unroll 1
    for (u32 size = 8; size <= count; size *= 2) {
        bool down = SORT_KEYS * thread & size;
#pragma unroll 1
        for (u32 apart = size / (2 * SORT_KEYS); apart >= WARP; apart /= 2) { // In threads.
            __syncthreads();
            room[thread] = make_uint4(word[0], word[1], word[2], word[3]);
            __syncthreads();
            uint4 other = room[thread ^ apart];
            bool smaller = ((thread & apart) != 0) == down;
            word[0] = one_of(word[0], other.x, smaller), word[1] = one_of(word[1], other.y, smaller);
            word[2] = one_of(word[2], other.z, smaller), word[3] = one_of(word[3], other.w, smaller);
        }
#pragma unroll 1
        for (u32 apart = min(size / (2 * SORT_KEYS), (u32)WARP / 2); apart > 0; apart /= 2) {
            bool smaller = ((thread & apart) != 0) == down;
#pragma unroll
            for (int i = 0; i < SORT_KEYS; i++)
                word[i] = one_of(word[i], __shfl_xor_sync(ALL_LANES, word[i], apart), smaller);
        }
        near(size);
    }
}

// The order of at most SORTED contributions, by one block of a power of two threads that hold them all.
template <typename Keys> __device__ __forceinline__ void sort_order(Keys keys, u32 count, u32 bound, uint2 *sorted) {
    __shared__ uint4 room[SORT_BLOCK];
    u32 at[SORT_KEYS], row[SORT_KEYS] = {}, word[SORT_KEYS];
    // Threads past the last contribution read it too, so that no load waits for a branch.
#pragma unroll
    for (u32 i = 0; i < SORT_KEYS; i++) at[i] = min(i * blockDim.x + threadIdx.x, count - 1);
    u32 bring = keys.named(at, row);
#pragma unroll
    for (u32 i = 0; i < SORT_KEYS; i++) {
        u32 e = i * blockDim.x + threadIdx.x, entry = 0, key = SKIP;
        if (e < count && bring >> i & 1) key = key_of(row[i], bound, entry);
        word[i] = pack(key, e, entry != 0);
    }
    sort_words(word, room);
    // Through shared memory, so that neighbours write neighbouring pairs.
    __syncthreads();
    room[threadIdx.x] = make_uint4(word[0], word[1], word[2], word[3]);
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < SORT_KEYS; i++) {
        u32 place = i * blockDim.x + threadIdx.x;
        if (place < count) sorted[place] = unpack(reinterpret_cast<const u32 *>(room)[place]);
    }
}

__device__ __forceinline__ bool stands_before(u32 other, u32 key, bool equal) {
    return other < key || (equal && other == key);
}

// How many of the `length` sorted keys stand before the calling lane's key; `equal` counts those that are the same too.
// By a full warp, whose keys ascend; `keys` begin at a sector.
__device__ __forceinline__ u32 standing_before(const u32 *keys, u32 length, u32 key, bool equal) {
    u32 lane = threadIdx.x % WARP, first = __shfl_sync(ALL_LANES, key, 0), least = 0;
    for (u32 step = TILE; step > 0; step /= 2) {
        u32 next = least + step;
        if (next <= length && stands_before(keys[next - 1], first, equal)) least = next;
    }
    u32 found = least;
    bool open = true;
    // From the sector on in which the warp's first key would stand.
    for (u32 base = least / 8 * 8; base < length; base += WARP) {
        u32 held = base + lane < length ? keys[base + lane] : 0;
        u32 known = min(length - base, (u32)WARP), within = 0;
#pragma unroll
        for (u32 step = WARP; step > 0; step /= 2) {
            u32 next = within + step, other = __shfl_sync(ALL_LANES, held, (next - 1) % WARP);
            if (next <= known && stands_before(other, key, equal)) within = next;
        }
        if (open) found = base + within;
        open = open && within == WARP;
        if (!__any_sync(ALL_LANES, open)) break;
    }
    return found;
}
