// Gradients of causal attention over cached keys and values (the forward pass: attention.cu).
//
//   p[i, j]  = 2^(scale log2(e) q[i] . k[j] - m[i]) / l[i]      delta[i] = dout[i] . out[i]
//   ds[i, j] = scale p[i, j] (dout[i] . v[j] - delta[i])
//   dq[i] = sum_j ds[i, j] k[j]      dk[j] += sum_i ds[i, j] q[i]      dv[j] += sum_i p[i, j] dout[i]
//
//   kernel                          in                           out                      grid                   block
//   attention_backward_begin_*      rows positions dout out      entries delta            plan + delta blocks    512
//   attention_backward_tiles        entries                      reads                    ceil(L tiles / 256)    256
//   attention_backward_dq_*         q dout m 1/l delta cache     dq                       tiles, kv_heads, cols  128, 64, 32
//   attention_backward_dkv_*        the same, reads              gradient cache (+=)      blocks, kv_heads, cols 128, 64
//   attention_backward_collect_*    gradient cache               dk dv                    ceil(positions / 8)    256
//
// dq: as the forward pass, a tile of query rows walks its steps; two products more a step. dkv: a block of threads owns
// the keys of one block of slots; `tiles` told it which query rows may read them, and it takes these in order. Both
// are deterministic and have all their products on tensor cores (attention_dq.cuh, attention_dkv.cuh). The weights are
// computed twice, which costs 7 products where one kernel with atomics would need 5; in bf16 the three sums weighted by
// p and ds multiply these in two pieces, which makes 10.
//
// tiles: L lanes a tile, the power of two (at most 32) that holds its entries; they are read once, but those at the
// ends of a tile twice, and a warp's together, since a tile's few begin anywhere in a sector.
//
// Shared memory: 40 KB (dq) and 48 KB (dkv) at head_dim 64 in bf16, at most 96 KB. Bytes moved: dq reads q and dout
// once, keys and values once a tile that sees them; dkv reads keys and values and adds to their f32 gradients once,
// and reads q and dout once for every block of keys that they see.
#include "attention_dkv.cuh"
#include "attention_plan.cuh"

// ---- plan and delta -----------------------------------------------------------------------------------------------

// dout . out of one position and head; a warp, lane l has columns 2l, 2l + 1 of every 64.
template <typename act>
__device__ void dot(const act *dout, const act *out, u32 head_dim, float *delta) {
    u32 lane = threadIdx.x % WARP;
    float sum = 0.0f;
    for (u32 column = 2 * lane; column < head_dim; column += 2 * WARP) {
        if (head_dim % 2 == 0) {
            float2 a, b;
            if constexpr (sizeof(act) == 2) {
                a = __bfloat1622float2(*(const __nv_bfloat162 *)(dout + column));
                b = __bfloat1622float2(*(const __nv_bfloat162 *)(out + column));
            } else {
                a = *(const float2 *)(dout + column);
                b = *(const float2 *)(out + column);
            }
            sum = fmaf(a.y, b.y, fmaf(a.x, b.x, sum));
        } else {
            sum = fmaf(load(dout + column), load(out + column), sum);
            if (column + 1 < head_dim) sum = fmaf(load(dout + column + 1), load(out + column + 1), sum);
        }
    }
    sum = warp_sum(sum);
    if (lane == 0) *delta = sum;
}

template <typename act>
__device__ void begin(const Segment &segment, const act *dout, const act *out, float *delta, u32 heads, u32 head_dim,
                      Entry *entries, u32 plan_blocks) {
    if (blockIdx.x < plan_blocks) {
        Entry entry;
        u32 index;
        bool present = sort_entry(segment, blockIdx.x * PLAN_THREADS + threadIdx.x, entry, index);
        if (present) store_entry(entries, index, entry);
        return;
    }
    u64 unit = (u64)(blockIdx.x - plan_blocks) * (PLAN_THREADS / WARP) + threadIdx.x / WARP;
    if (unit >= (u64)segment.count * heads) return;
    dot(dout + unit * head_dim, out + unit * head_dim, head_dim, delta + unit);
}

#define BEGIN(name, act)                                                                                               \
    KERNEL(PLAN_THREADS)                                                                                               \
    attention_backward_begin_##name(const u32 *rows, const u32 *positions, const u32 *prefix_slot,                     \
                                    const u32 *prefix_len, const u32 *own_slot, u32 count, const act *dout,            \
                                    const act *out, float *delta, u32 heads, u32 head_dim, Entry *entries,             \
                                    u32 plan_blocks) {                                                                 \
        Segment segment{rows, positions, prefix_slot, prefix_len, own_slot, count};                                    \
        begin(segment, dout, out, delta, heads, head_dim, entries, plan_blocks);                                       \
    }

BEGIN(f32, float)
BEGIN(bf16, bf16)

constexpr int LIGHT_THREADS = 256;

KERNEL(LIGHT_THREADS)
attention_backward_tiles(const Entry *entries, u32 rows, u32 group, u32 tile_rows, u32 tiles, u32 lanes, Reads *reads) {
    summarize(entries, rows, group, tile_rows, tiles, lanes, reads);
}

// ---- gradients ----------------------------------------------------------------------------------------------------

#define QUERY_GRADIENT(name, TILES, ...)                                                                               \
    using name##_shape = Shape<__VA_ARGS__>;                                                                           \
    KERNEL_OF(name##_shape)                                                                                            \
    name(const name##_shape::act *q, const name##_shape::act *dout, const name##_shape::act *keys,                     \
         const name##_shape::act *values, const float2 *statistics, const float *delta, const Entry *entries,          \
         u32 rows, u32 heads, u32 kv_heads, u32 head_dim, float scale, float scale_log2, u32 tile_rows,                          \
         name##_shape::act *dq) {                                                                                      \
        __shared__ TileRows<name##_shape::ROWS> tile;                                                                  \
        extern __shared__ uint4 memory[];                                                                              \
        Backward<name##_shape::act> task{q,    dout,  keys,     values,   statistics, delta,    entries,              \
                                         rows, heads, kv_heads, head_dim, scale, scale_log2};                          \
        u32 first = (gridDim.x - 1 - blockIdx.x) * tile_rows;                                                          \
        QueryGradient<name##_shape, TILES>(task, tile, (char *)memory).run(first, min(tile_rows, rows - first), dq);   \
    }

#define QUERY_GRADIENT_OF(name, act, width, exact, out, fw, fb, sb, tiles, warps, blocks, ...)                           \
    QUERY_GRADIENT(attention_backward_dq_##name, tiles, act, width, out, warps, blocks, exact)
HEAD_WIDTHS(QUERY_GRADIENT_OF)

#define KEY_GRADIENT(name, QUERIES, STAGES, ...)                                                                       \
    using name##_shape = Shape<__VA_ARGS__>;                                                                           \
    KERNEL_OF(name##_shape)                                                                                            \
    name(const name##_shape::act *q, const name##_shape::act *dout, const name##_shape::act *keys,                     \
         const name##_shape::act *values, const float2 *statistics, const float *delta, const Entry *entries,          \
         u32 rows, u32 heads, u32 kv_heads, u32 head_dim, float scale, float scale_log2, const Reads *reads, u32 tiles,          \
         u32 detach, float *grad_keys, float *grad_values) {                                                           \
        __shared__ Readers<QUERIES> readers[STAGES];                                                                   \
        extern __shared__ uint4 memory[];                                                                              \
        Backward<name##_shape::act> task{q,    dout,  keys,     values,   statistics, delta,    entries,              \
                                         rows, heads, kv_heads, head_dim, scale, scale_log2};                          \
        KeyGradient<name##_shape, QUERIES, STAGES>(task, readers, (char *)memory, detach != 0)                         \
            .run(reads, tiles, grad_keys, grad_values);                                                                \
    }

#define KEY_GRADIENT_OF(name, act, width, exact, out, fw, fb, sb, qt, qw, qb, queries, stages, warps, blocks)            \
    KEY_GRADIENT(attention_backward_dkv_##name, queries, stages, act, width, out, warps, blocks, exact)
HEAD_WIDTHS(KEY_GRADIENT_OF)

// ---- gradients of the segment's own keys --------------------------------------------------------------------------

__device__ __forceinline__ void narrow(const float *from, float *to) { *(float4 *)to = *(const float4 *)from; }
__device__ __forceinline__ void narrow(const float *from, bf16 *to) {
    float4 a = *(const float4 *)from;
    *(uint2 *)to = make_uint2(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w));
}

// A warp a position: reads the gradients of its keys and values out of their slots.
template <typename act>
__device__ void collect(const Segment &segment, const float *grad_keys, const float *grad_values, u32 kv_heads,
                        u32 head_dim, act *dk, act *dv) {
    u32 place = blockIdx.x * (LIGHT_THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (place >= segment.count) return;
    Entry e = segment.entry(place);
    u32 padded = (head_dim + 7) / 8 * 8, width = kv_heads * head_dim;
    u64 block = (u32)(e.own_block + (int)(e.position / BLOCK_KEYS));
    u64 first = block * kv_heads * BLOCK_KEYS + e.position % BLOCK_KEYS;
    dk += (u64)place * width;
    dv += (u64)place * width;
    if (head_dim % 4 == 0) {
        for (u32 i = 4 * lane; i < width; i += 4 * WARP) {
            u64 from = (first + i / head_dim * BLOCK_KEYS) * padded + i % head_dim;
            narrow(grad_keys + from, dk + i);
            narrow(grad_values + from, dv + i);
        }
    } else {
        for (u32 i = lane; i < width; i += WARP) {
            u64 from = (first + i / head_dim * BLOCK_KEYS) * padded + i % head_dim;
            store(dk + i, grad_keys[from]);
            store(dv + i, grad_values[from]);
        }
    }
}

#define COLLECT(name, act)                                                                                             \
    KERNEL(LIGHT_THREADS)                                                                                              \
    attention_backward_collect_##name(const u32 *rows, const u32 *positions, const u32 *prefix_slot,                   \
                                      const u32 *prefix_len, const u32 *own_slot, u32 count, const float *grad_keys,   \
                                      const float *grad_values, u32 kv_heads, u32 head_dim, act *dk, act *dv) {        \
        Segment segment{rows, positions, prefix_slot, prefix_len, own_slot, count};                                    \
        collect(segment, grad_keys, grad_values, kv_heads, head_dim, dk, dv);                                          \
    }

COLLECT(f32, float)
COLLECT(bf16, bf16)
