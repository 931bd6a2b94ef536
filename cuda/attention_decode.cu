// Attention of single steps: latent steps and sampled tokens, where a row has one or few new positions and many keys.
// The plan and the kernel for wide items are in attention.cu.
//
//   kernel                        in                             out      grid                               block
//   attention_decode_fwd_d64_*    q cache entries items slots    slots    items (any number), kv_heads       32
//   attention_decode_fwd_d128_*   the same
//   attention_decode_fwd_any_*    head_dim up to 256                      items, kv_heads, columns / 128|64  32
//   attention_decode_merge_*      slots entries                  out stat ceil(entries x heads / 8)          256
//
// One warp an item: at most 16 query rows of one row of the batch (its positions in this segment x the query heads of
// one key-value head) and one part, 256 keys. So a single row of n keys keeps kv_heads x n / 256 warps busy. What
// rows share of their prompt was computed before by wide items, 64 query rows reading it once; where a prompt ends
// inside a part, its state lies in the part's slot and the item goes on from there. The merge then goes through an
// entry's parts in ascending order: the same operations in the same order as in a tile that walks all its keys.
//
// Shared memory: (16 + 64) x head_dim + 64 x columns elements, 18 KB at head_dim 64 in bf16. Bytes moved: keys and
// values once for up to 16 query rows (their own) or a tile of query rows (shared ones); partial results, head_dim + 2
// floats a query row and part of 256 keys, written once and read once: 1/64 of the keys and values in bf16 where each
// key-value head has one query head, group / 64 in general.
#include "attention_plan.cuh"

using Bf16D64 = Shape<bf16, 64, 64, 1, 12, true>;
using Bf16D128 = Shape<bf16, 128, 128, 1, 12, true>;
using Bf16Any = Shape<bf16, 256, 128, 1, 12, false>;
using F32D64 = Shape<float, 64, 64, 1, 12, true>;
using F32D128 = Shape<float, 128, 128, 1, 8, true>;
using F32Any = Shape<float, 256, 64, 1, 8, false>;

FORWARD(attention_decode_fwd_d64_bf16, Bf16D64, false)
FORWARD(attention_decode_fwd_d128_bf16, Bf16D128, false)
FORWARD(attention_decode_fwd_any_bf16, Bf16Any, false)
FORWARD(attention_decode_fwd_d64_f32, F32D64, false)
FORWARD(attention_decode_fwd_d128_f32, F32D128, false)
FORWARD(attention_decode_fwd_any_f32, F32Any, false)

constexpr int MERGE_THREADS = 256;
constexpr u32 MOST_COLUMNS = 256;

// One warp an entry and head; lane l holds columns 2l, 2l + 1 of every 64.
template <typename act>
__device__ void merge_parts(const float *slots, const float2 *slot_sums, const Entry *entries, u32 count, u32 heads,
                            u32 head_dim, u32 column_blocks, act *out, float2 *statistics) {
    u32 unit = blockIdx.x * (MERGE_THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (unit >= count * heads) return;
    Entry e = load_entry(entries, unit / heads);
    u32 head = unit % heads, padded = (head_dim + 7) / 8 * 8, parts = e.position / BLOCK_KEYS / PART_BLOCKS + 1;
    if (e.slot == NEVER) return;

    float2 total[MOST_COLUMNS / 64] = {};
    Sums sums = {-infinity(), 0.0f};
    for (u32 part = 0; part < parts; part++) {
        u64 slot = (u64)(e.slot + part) * heads + head;
        float2 found = slot_sums[slot * column_blocks];
        Sums of_part = {found.x, found.y};
        float2 factors = merge(sums, of_part);
        const float *at = slots + slot * padded;
#pragma unroll
        for (u32 i = 0; i < MOST_COLUMNS / 64; i++) {
            u32 column = 64 * i + 2 * lane;
            if (column >= padded) continue;
            float2 pair = *(const float2 *)(at + column);
            total[i].x = merge_output(total[i].x, pair.x, factors);
            total[i].y = merge_output(total[i].y, pair.y, factors);
        }
    }

    u64 row = (u64)e.place * heads + head;
    float inverse = __frcp_rn(sums.l);
    if (lane == 0) statistics[row] = make_float2(sums.m, inverse);
    act *to = out + row * head_dim;
#pragma unroll
    for (u32 i = 0; i < MOST_COLUMNS / 64; i++) {
        u32 column = 64 * i + 2 * lane;
        if (column >= head_dim) continue;
        float x = __fmul_rn(total[i].x, inverse), y = __fmul_rn(total[i].y, inverse);
        if (head_dim % 2 == 0) {
            if constexpr (sizeof(act) == 2) *(u32 *)(to + column) = pack_bf16(x, y);
            else *(float2 *)(to + column) = make_float2(x, y);
        } else {
            store(to + column, x);
            if (column + 1 < head_dim) store(to + column + 1, y);
        }
    }
}

#define MERGE(name, act)                                                                                               \
    KERNEL(MERGE_THREADS)                                                                                              \
    attention_decode_merge_##name(const float *slots, const float2 *slot_sums, const Entry *entries, u32 count,        \
                                  u32 heads, u32 head_dim, u32 column_blocks, act *out, float2 *statistics) {                  \
        merge_parts(slots, slot_sums, entries, count, heads, head_dim, column_blocks, out, statistics);                       \
    }

MERGE(f32, float)
MERGE(bf16, bf16)
