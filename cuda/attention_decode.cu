// Attention of single steps: latent steps and sampled tokens, where a row has one or few new positions and many keys.
// The plan and the kernel for prompts are in attention.cu.
//
//   kernel                       in                             out                 grid                          block
//   attention_decode_d64_*       q cache entries items slots    out statistics      items (any number), kv_heads  128
//   attention_decode_d128_*      the same
//   attention_decode_to128_*     head_dim up to 128
//   attention_decode_to256_*     head_dim up to 256
//
// A block of threads an item and key-value head: query rows that share a block of 64 keys, that block
// (attention_decode.cuh). So a single row of n keys keeps kv_heads x n / 64 blocks of threads busy, and rollouts of a
// group read the prompt they share once for up to 64 of their query rows. The last of a row's blocks merges the states
// of all: one launch, no float atomics, one order of sums.
//
// Shared memory: (rows + 128) x head_dim elements, rows 16 to 64: 18 KB at head_dim 64 in bf16; heads above 512 bytes
// keep one tile of 64 instead of two. Bytes moved: keys and values once for the query rows of an item; states, head_dim
// + 2 floats a query row and block of 64 keys, written once and read once, which stay in the L2 cache: 1/16 of the keys
// and values in bf16 where each key-value head has one query head and nothing is shared.
#include "attention_decode.cuh"

// Items of a plan, or, where there is none, of the few entries of the segment.
template <class S>
__device__ __forceinline__ void decode(const Forward<typename S::act> &task, const Meeting &meeting,
                                       const Given<typename S::act> &given, const Item *items, const u32 *number) {
    __shared__ StepRoom<typename S::act> room;
    extern __shared__ uint4 memory[];
    bool few = items == nullptr;
    StepItem<S> step(task, meeting, given, few, room, (char *)memory);
    if (few && threadIdx.x < WARP) sort_few(given.segment, room.sorted);
    for (u32 i = blockIdx.x;; i += gridDim.x) {
        __syncthreads();
        Item item;
        if (few) {
            // Made anew for each item: few blocks of threads have more than one, and none has registers to keep it.
            FewPlan plan(room.sorted, given.segment.count, task.heads / task.kv_heads, given.tile, meeting.capacity);
            if (i >= plan.all) return;
            if (threadIdx.x < WARP) room.slots[threadIdx.x] = plan.slot;
            item = plan.item(room.sorted, i);
            __syncthreads();
        } else {
            if (i >= *number) return;
            item = load_item(items + i);
        }
        step.run(item);
    }
}

#define DECODE(name, ...)                                                                                              \
    using name##_shape = Shape<__VA_ARGS__>;                                                                           \
    KERNEL_OF(name##_shape)                                                                                            \
    name(const name##_shape::act *q, const name##_shape::act *keys, const name##_shape::act *values,                   \
         name##_shape::act *out, float2 *statistics, const Entry *entries, u32 heads, u32 kv_heads, u32 head_dim,      \
         float scale_log2, const Item *items, const u32 *number, float *slots, float2 *slot_sums, u32 *tickets,        \
         u32 capacity, const u32 *rows, const u32 *positions, const u32 *prefix_slot, const u32 *prefix_len,           \
         const u32 *own_slot, u32 count, const name##_shape::act *k, const name##_shape::act *v, u32 tile) {           \
        Forward<name##_shape::act> task{q,       keys,  values,   out,      statistics,                                \
                                        entries, heads, kv_heads, head_dim, scale_log2};                               \
        Meeting meeting{slots, slot_sums, tickets, capacity};                                                          \
        Given<name##_shape::act> given{{rows, positions, prefix_slot, prefix_len, own_slot, count}, k, v, tile};       \
        decode<name##_shape>(task, meeting, given, items, number);                                                     \
    }

#define DECODE_OF(name, act, width, exact, out, warps, tile_blocks, blocks, ...)                                        \
    DECODE(attention_decode_##name, act, width, width, 4, blocks, exact)
HEAD_WIDTHS(DECODE_OF)
