// Forward of single steps: an item is some query rows of one kv head that find a block of 64 keys in the same slots.
//
// What takes time in a step is not work but waiting: one row reads its keys once. So every block of keys is an item of
// its own, and four warps share it: warp w has keys 16w .. 16w + 15 for the scores, then the weights go through shared
// memory and it has every fourth 16 columns of the result. What decides bits is as in attention_forward.cuh: a lane's
// sum over 16 keys is a link of the chain there.
//
// Steps of up to FEW entries are one launch: every block of threads works out the plan, which takes as long as reading
// it would, and takes keys and values of the segment's own positions from where they are given; who has a position's
// first query row stores them. More entries are planned, and their keys stored, by a launch before (attention.cu).
//
// The state of a block of keys goes to a slot. Who finishes the last block of a query row (a ticket tells) merges the
// row's slots in ascending order, writes its result, and makes the ticket 0 for the next launch. An item of at most 16
// rows and all their blocks needs neither.
#pragma once
#include "attention_forward.cuh"
#include "attention_few.cuh"

constexpr u32 MOST_ITEM_ROWS = 64;

// Where states of blocks of keys meet.
struct Meeting {
    float *slots;       // [slot][heads][padded] o
    float2 *slot_sums;  // [slot][heads] (m, l)
    u32 *tickets;       // [query rows][kv_heads], 0 before and after a launch
    u32 capacity;       // slots
};

// Static shared memory of a block of threads.
template <typename act>
struct StepRoom {
    static constexpr int STEPS = BLOCK_KEYS * sizeof(act) / 32;
    uint4 weights[STEPS][WARP];
    float2 sums[4][WARP];
    float largest[4][16];
    u32 at[MOST_ITEM_ROWS], position[MOST_ITEM_ROWS], slot[MOST_ITEM_ROWS];
    u32 finished[MOST_ITEM_ROWS / WARP];
    // Of few entries: all of them, their slots, and which of the block's lanes are the segment's own (places, or NEVER).
    Sorted<FEW> sorted;
    u32 slots[FEW], fresh[BLOCK_KEYS];
};

// Few entries, and their keys and values as they are given.
template <typename act>
struct Given {
    Segment segment;
    const act *k, *v;
    u32 tile;
};

// The left operands of sums over keys, as `StepRoom::weights` holds them: a warp's packed bf16, or its four f32 sums.
template <typename act>
struct StoredOperands {
    const uint4 (*weights)[WARP];
    static constexpr int STEPS = StepRoom<act>::STEPS;
    __device__ __forceinline__ Operand<act> take(int step) const {
        uint4 w;
        // Read anew for each 16 columns: the compiler would keep all steps' operands in registers.
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                     : "r"(shared_address(&weights[step][threadIdx.x % WARP]))
                     : "memory");
        Operand<act> a;
        if constexpr (sizeof(act) == 2) {
            a.a[0] = w.x, a.a[1] = w.y, a.a[2] = w.z, a.a[3] = w.w;
        } else {
            float sums[4] = {__uint_as_float(w.x), __uint_as_float(w.y), __uint_as_float(w.z), __uint_as_float(w.w)};
            a.take(sums);
        }
        return a;
    }
};

template <class S>
struct StepItem {
    using act = typename S::act;
    static_assert(S::WARPS == 4);
    static constexpr int PAIRS = (S::OUT / 16 + S::WARPS - 1) / S::WARPS;
    // Keys and values of the widest heads take turns in one tile, so that a multiprocessor of 100 KB has room.
    static constexpr bool IN_TURN = S::DIM * sizeof(act) > 512;

    const Forward<act> &task;
    const Meeting &meeting;
    const Given<act> &given;
    bool few;
    StepRoom<act> &room;
    char *memory;
    u32 queries, keys, values;
    Dims<S> dims;
    u32 kv_head, group, chunks, warp, g, t;

    __device__ __forceinline__ StepItem(const Forward<act> &task, const Meeting &meeting, const Given<act> &given, bool few,
                                        StepRoom<act> &room, char *memory)
        : task(task), meeting(meeting), given(given), few(few), room(room), memory(memory), dims{task.head_dim},
          kv_head(blockIdx.y) {
        keys = shared_address(memory);
        values = IN_TURN ? keys : keys + BLOCK_KEYS * dims.stride() * 16;
        queries = values + BLOCK_KEYS * dims.stride() * 16;
        group = task.heads / task.kv_heads;
        chunks = 2 * dims.steps();
        warp = threadIdx.x / WARP;
        g = threadIdx.x % WARP / 4;
        t = threadIdx.x % 4;
    }

    __device__ __forceinline__ Source from(const Item &item, u32 block) const {
        u32 keys_seen = item.position + 1 - block * BLOCK_KEYS;
        return source(item.prefix_len, item.prefix_block, item.own_block, block, min(keys_seen, BLOCK_KEYS),
                      task.kv_heads, kv_head);
    }

    __device__ __forceinline__ void load_values(const Item &item, u32 block, bool fresh) const {
        if (fresh) load_fresh(values, task.values, given.v, from(item, block));
        else load_keys<S>(values, task.values, from(item, block), dims.padded(), 0, chunks, dims.stride());
        cp_async_commit();
    }

    // Starts copying a block's keys and, where they have a tile of their own, values. Tells whether some of them are the
    // segment's own.
    __device__ __forceinline__ bool load(const Item &item, u32 block) const {
        bool fresh = few && find_fresh(item, block);
        if (fresh) load_fresh(keys, task.keys, given.k, from(item, block));
        else load_keys<S>(keys, task.keys, from(item, block), dims.padded(), 0, chunks, dims.stride());
        cp_async_commit();
        if (!IN_TURN) load_values(item, block, fresh);
        return fresh;
    }

    // ---- keys and values of the segment itself --------------------------------------------------------------------

    // Whether a block that the item reads holds positions of the segment; room.fresh then tells which.
    __device__ __forceinline__ bool find_fresh(const Item &item, u32 block) const {
        u32 i = threadIdx.x % WARP, lane = 0;
        bool found = false;
        if (i < given.segment.count) {
            u32 position = room.sorted.position[i], slot_block = (u32)(room.sorted.own_block[i] + (int)(position / BLOCK_KEYS));
            u32 start = block * BLOCK_KEYS, cut = item.prefix_len > start ? item.prefix_len - start : 0;
            lane = position % BLOCK_KEYS;
            found = slot_block == (lane < cut ? item.prefix_block + block : (u32)(item.own_block + (int)block));
        }
        if (!__any_sync(ALL_LANES, found)) return false;
        __syncthreads();
        if (threadIdx.x < BLOCK_KEYS) room.fresh[threadIdx.x] = NEVER;
        __syncthreads();
        if (warp == 0 && found) room.fresh[lane] = room.sorted.place[i];
        __syncthreads();
        return true;
    }

    // As load_keys, but what the segment gives is taken from there.
    __device__ __forceinline__ void load_fresh(u32 tile, const act *cache, const act *packed, const Source &from) const {
        u32 head_dim = dims.head_dim(), stride = dims.stride(), filled = chunks * S::PER_CHUNK;
        for (u32 i = threadIdx.x; i < BLOCK_KEYS * chunks; i += S::THREADS) {
            u32 lane = i / chunks, chunk = i % chunks, place = room.fresh[lane];
            bool ours = place != NEVER;
            if (ours && !dims.aligned()) continue;
            const act *at = packed + ((u64)place * task.kv_heads + kv_head) * head_dim;
            if (!ours) at = cache + ((lane < from.cut ? from.prefix : from.own) + lane) * dims.padded();
            bool wanted = lane < from.most && (S::EXACT || chunk < (ours ? head_dim : dims.padded()) / S::PER_CHUNK);
            cp_async_16(chunk_address(tile, lane, chunk, stride), wanted ? at + chunk * S::PER_CHUNK : cache, wanted);
        }
        if (dims.aligned()) return;
        for (u32 i = threadIdx.x; i < BLOCK_KEYS * filled; i += S::THREADS) {
            u32 lane = i / filled, column = i % filled, place = room.fresh[lane];
            if (place == NEVER) continue;
            const act *at = packed + ((u64)place * task.kv_heads + kv_head) * head_dim;
            act value = lane < from.most && column < head_dim ? at[column] : act(0.0f);
            u32 offset = chunk_address(tile - keys, lane, column / S::PER_CHUNK, stride);
            ((act *)(memory + offset))[column % S::PER_CHUNK] = value;
        }
    }

    // Stores keys and values of the positions in the block whose first query rows are the item's.
    __device__ __forceinline__ void store_fresh(const Item &item, u32 block) const {
        u32 head_dim = dims.head_dim(), first = up(item.first, group), last = (item.first + item.rows - 1) / group + 1;
        act *keys = (act *)task.keys, *values = (act *)task.values;
        bool aligned = dims.aligned();
        u32 parts = aligned ? head_dim / S::PER_CHUNK : head_dim;
        for (u32 i = threadIdx.x; first + i / parts < last; i += S::THREADS) {
            u32 entry = first + i / parts, part = i % parts, position = room.sorted.position[entry];
            if (position / BLOCK_KEYS != block) continue;
            u64 slot_block = (u32)(room.sorted.own_block[entry] + (int)block);
            u64 to = ((slot_block * task.kv_heads + kv_head) * BLOCK_KEYS + position % BLOCK_KEYS) * dims.padded();
            u64 from = ((u64)room.sorted.place[entry] * task.kv_heads + kv_head) * head_dim;
            if (aligned) {
                *((uint4 *)(keys + to) + part) = *((const uint4 *)(given.k + from) + part);
                *((uint4 *)(values + to) + part) = *((const uint4 *)(given.v + from) + part);
            } else {
                keys[to + part] = given.k[from + part];
                values[to + part] = given.v[from + part];
            }
        }
    }

    // ---- work -----------------------------------------------------------------------------------------------------

    // The item's query rows; a barrier is due before anyone looks.
    __device__ __forceinline__ void open(const Item &item) const {
        for (u32 r = threadIdx.x; r < up16(item.rows); r += S::THREADS) {
            room.at[r] = NEVER;
            room.position[r] = 0;
            if (r >= item.rows) continue;
            u32 row = item.first + r, i = row / group;
            Entry e = few ? room.sorted.get(i, room.slots[i]) : load_entry(task.entries, i);
            room.at[r] = e.place * task.heads + kv_head * group + row % group;
            room.position[r] = e.position;
            room.slot[r] = e.slot;
        }
    }

    __device__ __forceinline__ static u32 up16(u32 rows) { return (rows + 15) / 16 * 16; }

    __device__ __forceinline__ void run(const Item &item) {
        bool fresh = load(item, item.begin);
        open(item);
        __syncthreads();
        load_rows<S>(queries, memory + (queries - keys), task.q, room.at, up16(item.rows), dims);
        cp_async_commit();

        bool whole = item.rows <= 16 && item.begin == 0 && item.end == item.position / BLOCK_KEYS + 1;
        float total[PAIRS][2][4] = {};
        Sums sums[2] = {{-infinity(), 0.0f}, {-infinity(), 0.0f}};
        for (u32 block = item.begin; block < item.end; block++) {
            if (fresh) store_fresh(item, block);  // while keys and values are on their way
            cp_async_wait<0>();
            __syncthreads();
            for (u32 first = 0; first < item.rows; first += 16) {
                float output[PAIRS][2][4] = {};
                Sums of_block[2];
                attend(item, block, fresh, first, output, of_block);
                if (whole) take_up(output, of_block, total, sums);
                else write_slots(block, first, output, of_block);
            }
            if (block + 1 == item.end) break;
            __syncthreads();  // all warps are through with keys and values
            fresh = load(item, block + 1);
        }
        if (whole) write(total, sums);
        else meet(item);
    }

    // One block of keys for the 16 rows from `first` on.
    __device__ __forceinline__ void attend(const Item &item, u32 block, bool fresh, u32 first,
                                           float (&output)[PAIRS][2][4], Sums (&of_block)[2]) const {
        u32 start = block * BLOCK_KEYS, seen = min(item.position + 1 - start, BLOCK_KEYS);
        float scores[2][4] = {};
        if (16 * warp < seen) {
            products<S, 2>(scores, queries, first, keys + 16 * warp * dims.stride() * 16, BLOCK_KEYS, dims);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 r = first + g + 8 * half, end = room.position[r] + 1;
            u32 visible = r < item.rows && end > start ? end - start : 0;
            float largest = -infinity();
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float &score = scores[i / 2][2 * half + i % 2];
                if (16 * warp + i / 2 * 8 + 2 * t + i % 2 >= visible) score = -infinity();
                largest = fmaxf(largest, score);
            }
            largest = row_max(largest);
            if (t == 0) room.largest[warp][g + 8 * half] = largest;
        }
        __syncthreads();
        if (IN_TURN) load_values(item, block, fresh);
        float sums[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float largest = room.largest[0][g + 8 * half];
#pragma unroll
            for (int w = 1; w < S::WARPS; w++) largest = fmaxf(largest, room.largest[w][g + 8 * half]);
            of_block[half].m = __fmul_rn(largest, task.scale_log2);
            float base = base_of(of_block[half].m);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float &weight = scores[i / 2][2 * half + i % 2];
                weight = weight_of(weight, task.scale_log2, base);
            }
            sums[half] = sum_of_16(scores[0][2 * half], scores[0][2 * half + 1], scores[1][2 * half], scores[1][2 * half + 1]);
        }
        u32 lane = threadIdx.x % WARP;
        room.sums[warp][lane] = make_float2(sums[0], sums[1]);
        if constexpr (sizeof(act) == 2) {
            Operand<act> a;
            a.take(scores[0], scores[1]);
            room.weights[warp][lane] = make_uint4(a.a[0], a.a[1], a.a[2], a.a[3]);
        } else {
#pragma unroll
            for (int n = 0; n < 2; n++) {
                room.weights[2 * warp + n][lane] = make_uint4(__float_as_uint(scores[n][0]), __float_as_uint(scores[n][1]),
                                                              __float_as_uint(scores[n][2]), __float_as_uint(scores[n][3]));
            }
        }
        if (IN_TURN) cp_async_wait<0>();
        __syncthreads();
        float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int w = 0; w < S::WARPS; w++) {
            float2 of_warp = room.sums[w][lane];
            sum.x = __fadd_rn(sum.x, of_warp.x);
            sum.y = __fadd_rn(sum.y, of_warp.y);
        }
        of_block[0].l = row_sum(sum.x);
        of_block[1].l = row_sum(sum.y);
        StoredOperands<act> operands{room.weights};
        // Addresses are to be computed here: the compiler would keep those of all columns over the whole item.
        u32 values = this->values;
        asm volatile("" : "+r"(values));
#pragma unroll
        for (int p = 0; p < PAIRS; p++) {
            if (has(p)) weighted<S, 2>(output[p], operands, values, dims.stride(), 2 * pair(p), chunks, seen);
        }
    }

    // This warp's p-th 16 columns.
    __device__ __forceinline__ u32 pair(int p) const { return warp + S::WARPS * p; }
    __device__ __forceinline__ bool has(int p) const { return S::EXACT || 16 * pair(p) < dims.padded(); }
    __device__ __forceinline__ u32 column(int p, int n) const { return 16 * pair(p) + 8 * n + 2 * t; }

    __device__ __forceinline__ static void take_up(const float (&output)[PAIRS][2][4], const Sums (&of_block)[2],
                                                   float (&total)[PAIRS][2][4], Sums (&sums)[2]) {
        float2 factors[2] = {merge(sums[0], of_block[0]), merge(sums[1], of_block[1])};
#pragma unroll
        for (int p = 0; p < PAIRS; p++) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float &to = total[p][i / 4][i % 4];
                to = merge_output(to, output[p][i / 4][i % 4], factors[i % 4 / 2]);
            }
        }
    }

    // Two neighbouring numbers of a result.
    __device__ __forceinline__ void put(u32 at, u32 column, float x, float y) const {
        u32 head_dim = dims.head_dim();
        act *to = task.out + (u64)at * head_dim + column;
        if (S::EXACT || (head_dim % 2 == 0 && column < head_dim)) {
            if constexpr (sizeof(act) == 2) *(u32 *)to = pack_bf16(x, y);
            else *(float2 *)to = make_float2(x, y);
        } else {
            if (column < head_dim) store(to, x);
            if (column + 1 < head_dim) store(to + 1, y);
        }
    }

    __device__ __forceinline__ void write(const float (&total)[PAIRS][2][4], const Sums (&sums)[2]) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 at = room.at[g + 8 * half];
            if (at == NEVER) continue;
            float inverse = __frcp_rn(sums[half].l);
            if (warp == 0 && t == 0) task.statistics[at] = make_float2(sums[half].m, inverse);
#pragma unroll
            for (int p = 0; p < PAIRS; p++) {
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    float x = __fmul_rn(total[p][n][2 * half], inverse), y = __fmul_rn(total[p][n][2 * half + 1], inverse);
                    if (has(p)) put(at, column(p, n), x, y);
                }
            }
        }
    }

    // ---- states of blocks in memory -------------------------------------------------------------------------------

    __device__ __forceinline__ u64 slot(u32 r, u32 block) const {
        return (u64)(room.slot[r] + block) * task.heads + room.at[r] % task.heads;
    }

    __device__ __forceinline__ void write_slots(u32 block, u32 first, const float (&output)[PAIRS][2][4],
                                                const Sums (&of_block)[2]) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 r = first + g + 8 * half;
            if (room.at[r] == NEVER || room.position[r] < block * BLOCK_KEYS) continue;
            u64 to = slot(r, block);
            if (warp == 0 && t == 0) meeting.slot_sums[to] = make_float2(of_block[half].m, of_block[half].l);
#pragma unroll
            for (int p = 0; p < PAIRS; p++) {
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    if (!S::EXACT && column(p, n) >= dims.padded()) continue;
                    write_slot((float2 *)(meeting.slots + to * dims.padded() + column(p, n)), output[p][n][2 * half],
                               output[p][n][2 * half + 1]);
                }
            }
        }
    }

    // Both at once: the compiler would split a plain store of two, and ask for each sector twice.
    __device__ __forceinline__ static void write_slot(float2 *at, float x, float y) {
        asm volatile("st.global.v2.f32 [%0], {%1,%2};" ::"l"(__cvta_generic_to_global(at)), "f"(x), "f"(y) : "memory");
    }

    // Counts the item's block for each of its rows, and merges the rows that have all theirs.
    __device__ __forceinline__ void meet(const Item &item) const {
        __syncthreads();  // the slots are written
        u32 r = threadIdx.x;
        if (r < MOST_ITEM_ROWS) {
            bool last = false;
            if (r < item.rows && room.position[r] >= item.begin * BLOCK_KEYS) {
                __threadfence();
                u32 *ticket = meeting.tickets + (item.first + r) * task.kv_heads + kv_head;
                last = atomicAdd(ticket, 1) == room.position[r] / BLOCK_KEYS;
                if (last) atomicExch(ticket, 0);
                __threadfence();
            }
            u32 rows = __ballot_sync(ALL_LANES, last);
            if (r % WARP == 0) room.finished[warp] = rows;
        }
        __syncthreads();
        u32 turn = 0;
#pragma unroll
        for (u32 word = 0; word < MOST_ITEM_ROWS / WARP; word++) {
            for (u32 left = room.finished[word]; left; left &= left - 1) {
                if (turn++ % S::WARPS == warp) merge_row(word * WARP + __ffs(left) - 1);
            }
        }
    }

    // Written by other multiprocessors in this launch: read where they meet. Volatile, so that loads stay where they are,
    // all before the first use.
    __device__ __forceinline__ static float2 read_slot(const float2 *at) {
        float2 x;
        asm volatile("ld.global.cg.v2.f32 {%0,%1}, [%2];" : "=f"(x.x), "=f"(x.y) : "l"(__cvta_generic_to_global(at)) : "memory");
        return x;
    }

    // A warp; lane l has columns 2l, 2l + 1 of every 64. The factors of up to 32 blocks are computed at once, a lane a
    // block, from the maximum so far, which does not depend on an order; the sums go through the blocks one by one.
    __device__ __forceinline__ void merge_row(u32 r) const {
        constexpr int PARTS = (S::OUT + 63) / 64, AHEAD = 16 / PARTS;
        u32 lane = threadIdx.x % WARP, padded = dims.padded(), blocks = room.position[r] / BLOCK_KEYS + 1;
        u64 first = slot(r, 0);
        float2 total[PARTS] = {};
        Sums sums = {-infinity(), 0.0f};
        for (u32 start = 0; start < blocks; start += WARP) {
            float2 of_block = make_float2(-infinity(), 0.0f);
            if (start + lane < blocks) of_block = read_slot(meeting.slot_sums + first + (u64)(start + lane) * task.heads);
            float m = fmaxf(of_block.x, sums.m);
#pragma unroll
            for (u32 distance = 1; distance < WARP; distance *= 2) m = fmaxf(m, __shfl_up_sync(ALL_LANES, m, distance));
            float before = __shfl_up_sync(ALL_LANES, m, 1), base = base_of(m);
            if (lane == 0) before = sums.m;
            float2 factors = make_float2(exp2_approximate(__fsub_rn(before, base)), exp2_approximate(__fsub_rn(of_block.x, base)));
            float part = __fmul_rn(of_block.y, factors.y);
            sums.m = __shfl_sync(ALL_LANES, m, WARP - 1);
            for (u32 batch = start; batch < min(start + WARP, blocks); batch += AHEAD) {
                float2 output[AHEAD][PARTS];
#pragma unroll
                for (u32 n = 0; n < AHEAD; n++) {
                    u64 at = first + (u64)min(batch + n, blocks - 1) * task.heads;
#pragma unroll
                    for (int i = 0; i < PARTS; i++) {
                        u32 column = 64 * i + 2 * lane;
                        output[n][i] = read_slot((const float2 *)(meeting.slots + at * padded + (column < padded ? column : 0)));
                    }
                }
#pragma unroll
                for (u32 n = 0; n < AHEAD; n++) {
                    if (batch + n >= blocks) break;
                    u32 of = batch + n - start;
                    float2 by = make_float2(__shfl_sync(ALL_LANES, factors.x, of), __shfl_sync(ALL_LANES, factors.y, of));
                    sums.l = __fmaf_rn(sums.l, by.x, __shfl_sync(ALL_LANES, part, of));
#pragma unroll
                    for (int i = 0; i < PARTS; i++) {
                        total[i].x = merge_output(total[i].x, output[n][i].x, by);
                        total[i].y = merge_output(total[i].y, output[n][i].y, by);
                    }
                }
            }
        }
        float inverse = __frcp_rn(sums.l);
        if (lane == 0) task.statistics[room.at[r]] = make_float2(sums.m, inverse);
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            put(room.at[r], 64 * i + 2 * lane, __fmul_rn(total[i].x, inverse), __fmul_rn(total[i].y, inverse));
        }
    }
};
