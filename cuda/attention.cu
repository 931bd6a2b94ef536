// Causal attention of a packed segment over the slots of a key-value cache: keys and values into their slots, the plan
// of who reads what, and the forward pass of tiles of query rows. Single steps go on in attention_decode.cu.
//
//   forward   t[j] = scale log2(e) q . k[j]   j = 0..=position      w = softmax      out = sum_j w[j] v[j]
//             statistics: m >= all t[j], and 1 / l, l = sum_j 2^(t[j] - m)
//
//   kernel                       in                            out                      grid                    block
//   attention_begin_*            rows positions layout k v     cache, entries, items    plan + store blocks     512
//   attention_fwd_d64_*          q cache entries               out statistics           tiles, kv_heads         128
//   attention_fwd_d128_*         the same
//   attention_fwd_to128_*        head_dim up to 128
//   attention_fwd_to256_bf16     head_dim up to 256                                     tiles, kv_heads, 2      128
//   attention_fwd_to256_f32      head_dim up to 256                                     tiles, kv_heads, cols   32
//
// attention_begin: a prompt of n positions is planned by ceil(n / 512) blocks of threads, up to 512 positions by one
// (attention_plan.cuh); each warp of the other blocks stores one position's keys and values, reading and writing each
// once, and makes its tickets 0.
//
// attention_fwd: one block of threads a tile of 64 query rows (positions x query heads of one key-value head) and
// key-value head, 16 rows a warp. It walks the steps of its tile (attention_steps.cuh); keys and values of a step take
// turns in two tiles of shared memory: values arrive while scores are computed, the next keys while values are summed.
// Shared memory: (rows + 64) x head_dim + 64 x columns elements: 24 KB at head_dim 64 in bf16, 48 KB at 128; twice that
// in f32. Bytes moved: q and out once, keys and values once a tile of 64 query rows that sees them. Work is 4 x head_dim
// flops a (query, key) pair, all of it on tensor cores: m16n8k16 in bf16; in f32, products are made of three tf32
// ones, which is as exact as f32. Results of 129..256 columns are computed 128 (f32: 64) columns a block, and the scores
// anew for each. Heaviest tiles go first.
//
// What the bits rest on: attention_forward.cuh.
#include "attention_forward.cuh"
#include "attention_plan.cuh"

// Copies one position's keys and values into their slots; a warp.
template <typename act>
__device__ void store_position(const Segment &segment, const act *k, const act *v, act *keys, act *values, u32 kv_heads,
                               u32 head_dim, u32 place) {
    constexpr u32 PER_CHUNK = 16 / sizeof(act);
    Entry e = segment.entry(place);
    u32 lane = threadIdx.x % WARP, padded = (head_dim + 7) / 8 * 8, width = kv_heads * head_dim;
    u64 block = (u32)(e.own_block + (int)(e.position / BLOCK_KEYS));
    u64 first = block * kv_heads * BLOCK_KEYS + e.position % BLOCK_KEYS;
    k += (u64)place * width;
    v += (u64)place * width;
    if (head_dim % PER_CHUNK == 0) {
        u32 chunks = head_dim / PER_CHUNK;
        for (u32 i = lane; i < kv_heads * chunks; i += WARP) {
            u64 to = (first + i / chunks * BLOCK_KEYS) * padded + i % chunks * PER_CHUNK;
            *(uint4 *)(keys + to) = ((const uint4 *)k)[i];
            *(uint4 *)(values + to) = ((const uint4 *)v)[i];
        }
    } else {
        for (u32 i = lane; i < width; i += WARP) {
            u64 to = (first + i / head_dim * BLOCK_KEYS) * padded + i % head_dim;
            keys[to] = k[i];
            values[to] = v[i];
        }
    }
}

template <typename act>
__device__ void begin(const Segment &segment, const act *k, const act *v, act *keys, act *values, u32 kv_heads,
                      u32 head_dim, Entry *entries, u32 plan_blocks, const StepPlan &steps) {
    if (blockIdx.x >= plan_blocks) {
        u32 place = (blockIdx.x - plan_blocks) * (PLAN_THREADS / WARP) + threadIdx.x / WARP;
        if (place >= segment.count) return;
        store_position(segment, k, v, keys, values, kv_heads, head_dim, place);
        u32 heads = steps.group * kv_heads;
        if (steps.number) {
            for (u32 i = threadIdx.x % WARP; i < heads; i += WARP) steps.tickets[place * heads + i] = 0;
        }
        return;
    }
    __shared__ Sorted<STEP_ENTRIES> sorted;
    Entry entry;
    u32 index;
    bool present = sort_entry(segment, blockIdx.x * PLAN_THREADS + threadIdx.x, entry, index);
    if (!steps.number) {
        if (present) store_entry(entries, index, entry);
        return;
    }
    if (present) sorted.set(index, entry);
    __syncthreads();
    u32 slot = plan_steps(steps, sorted, segment.count);
    if (threadIdx.x < segment.count) store_entry(entries, threadIdx.x, sorted.get(threadIdx.x, slot));
}

#define BEGIN(name, act)                                                                                               \
    KERNEL(PLAN_THREADS)                                                                                               \
    attention_begin_##name(const u32 *rows, const u32 *positions, const u32 *prefix_slot, const u32 *prefix_len,       \
                           const u32 *own_slot, u32 count, const act *k, const act *v, act *keys, act *values,         \
                           u32 kv_heads, u32 head_dim, Entry *entries, u32 plan_blocks, u32 *number, Item *items,      \
                           u32 *tickets, u32 group, u32 tile, u32 capacity) {                                          \
        Segment segment{rows, positions, prefix_slot, prefix_len, own_slot, count};                                    \
        StepPlan steps{number, items, tickets, group, tile, capacity};                                                 \
        begin<act>(segment, k, v, keys, values, kv_heads, head_dim, entries, plan_blocks, steps);                      \
    }

BEGIN(f32, float)
BEGIN(bf16, bf16)

#define FORWARD_OF(name, act, width, exact, out, warps, blocks, ...)                                                    \
    FORWARD(attention_fwd_##name, act, width, out, warps, blocks, exact)
HEAD_WIDTHS(FORWARD_OF)
