// Input embeddings: token rows, soft mixtures of rows, position rows.
//   forward   id >= 0     x[n] = table[id]
//             id = -1     x[n] stays: a latent was written there before
//             id = -2-s   x[n] = sum_j weight[s,j] * table[soft_id[s,j]]       j ascending, fused multiply-adds
//             then        x[n] += position_table[position[n]]
//   backward  dtable[v] += sum over n, j of (1 or weight[s,j]) * dx[n]         n, then j, ascending: scatter.cu
//             dposition[p] += sum over n of dx[n]                              n ascending: scatter.cu
//             dweight[s,j] = sum over n of dx[n] . table[soft_id[s,j]]         n ascending
// An id, a mixture or a position that does not exist: x[n] = NaN, dweight[s,j] = NaN; backward's sums see scatter.cu.
//
//   kernel                   in                                         out          grid                           block
//   embedding_fwd_*          id[N] position[N] soft table[V,C] [P,C]    x[N,C]       (ceil(N / 4), ceil(C / 1024))  128
//   embedding_bwd_weights_*  id[N] soft_id[S,k] table[V,C] dx[N,C]      dweight[S,k] S                              256
//
// Dtypes: f32; bf16; `mixed` is a bf16 table under f32 activations. Weights of mixtures, and their gradients, are f32.
// Shared memory: forward none, weights 4 KiB. Bytes with s an element of x and t one of a table: forward
// N C (s + t) + 8 N for tokens, the same and N C t more with positions, S C (s + k t) + 8 S k for mixtures; weights
// S C (s + k t) + 8 S k, and the ids once for each mixture.
//
// Forward gives a warp one row, or 1024 columns of it: its id is read once for many columns, and the terms of a mixture
// are handed from lane to lane. Everything that makes up x[n] is summed in f32 registers and rounded once.
// Weights: a block has one mixture, looks through the ids for its positions, keeps 1024 columns of dx[n] in shared
// memory, and gives each warp every eighth term. A table row is read once, dx[n] once.
#include "indexed_rows.cuh"

// ---- forward ----------------------------------------------------------------------------------------------------------

struct Soft {
    const u32 *ids;
    const float *weights;
    u32 mixtures, kept;
};

// Columns c.. of a mixture. The whole warp calls it; lanes that are not `inside` only hand terms on.
template <int V, typename stored>
__device__ __forceinline__ Numbers<V> mixture(Soft soft, u32 which, const stored *table, u32 vocabulary, u32 cols, u32 c,
                                           bool inside, u32 lane) {
    Numbers<V> sum = all<V>(0.0f);
    const u64 first = (u64)which * soft.kept;
    for (u32 base = 0; base < soft.kept; base += WARP) {
        u32 id = 0;
        float weight = 0.0f;
        if (base + lane < soft.kept) {
            id = soft.ids[first + base + lane];
            weight = soft.weights[first + base + lane];
            if (id >= vocabulary) id = 0, weight = nan();
        }
        u32 terms = min((u32)WARP, soft.kept - base);
#pragma unroll 4
        for (u32 j = 0; j < terms; j++) {
            u32 row = __shfl_sync(ALL_LANES, id, j);
            float share = __shfl_sync(ALL_LANES, weight, j);
            if (inside) sum = multiply_add(read<V>(table + (u64)row * cols + c), share, sum);
        }
    }
    return sum;
}

template <int V, typename stored, typename act>
__device__ __forceinline__ void forward(const int *ids, const u32 *positions, Soft soft, const stored *table,
                                        u32 vocabulary, const stored *position_table, u32 length, u32 rows, u32 cols,
                                        act *x) {
    Run run(cols);
    if (run.row >= rows) return;
    int id = ids[run.row];
    u32 which = 0xfffffffeu - (u32)id;
    bool latent = id == -1, token = id >= 0;
    bool exists = latent || (token ? (u32)id < vocabulary : which < soft.mixtures && vocabulary > 0);
    x += (u64)run.row * cols;
    if (position_table) {
        u32 position = positions[run.row];
        exists = exists && position < length;
        position_table += (u64)position * cols;
    } else if (latent) {
        return;
    }
    auto add_position = [&](u32 c, Numbers<V> v) {
        return position_table ? v + read<V>(position_table + c) : v;
    };
    auto put = [&](u32 c, Numbers<V> v) { write(x + c, v); };
    if (exists && !latent && !token) {
        for (u32 base = run.first; base < run.end; base += WARP * V) {
            u32 c = base + run.lane * V;
            Numbers<V> v = mixture<V>(soft, which, table, vocabulary, cols, c, c < run.end, run.lane);
            if (c < run.end) put(c, add_position(c, v));
        }
        return;
    }
    const stored *row = table + (u64)(u32)id * cols;
    run.move<V>(
        [&](u32 c) {
            if (!exists) return all<V>(nan());
            return add_position(c, latent ? read<V>(x + c) : read<V>(row + c));
        },
        put);
}

// ---- gradient of the weights --------------------------------------------------------------------------------------

constexpr int BLOCK = 256;
constexpr u32 COLUMNS = 1024;

// Dot product of columns first..end of a table row with dx's, which stand in shared memory; the same in all lanes.
template <int V, typename stored>
__device__ __forceinline__ float dot(const stored *row, const float *dx, u32 columns, u32 lane) {
    float sum = 0.0f;
// Unrolled further, ptxas runs out of barrier registers and keeps some on the stack.
#pragma unroll 2
    for (u32 c = lane * V; c < columns; c += WARP * V) {
        Numbers<V> a = read<V>(row + c), b = read<V>(dx + c);
#pragma unroll
        for (int i = 0; i < V; i++) sum = fmaf(a[i], b[i], sum);
    }
    return warp_sum(sum);
}

// Adds the products of one position. The block calls it together.
template <int V, typename stored, typename act>
__device__ __forceinline__ void add_position(const u32 *ids, u32 kept, const stored *table, u32 vocabulary,
                                             const act *dx, u32 cols, float *room, float *dweights) {
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (u32 first = 0; first < cols; first += COLUMNS) {
        u32 columns = min(COLUMNS, cols - first);
        __syncthreads();
        for (u32 c = threadIdx.x * V; c < columns; c += BLOCK * V) write(room + c, read<V>(dx + first + c));
        __syncthreads();
        for (u32 j = warp; j < kept; j += BLOCK / WARP) {
            u32 id = ids[j];
            bool exists = id < vocabulary;
            float product = dot<V>(table + (u64)(exists ? id : 0) * cols + first, room, exists ? columns : 0, lane);
            if (lane == 0) dweights[j] += exists ? product : nan();
        }
    }
}

template <int V, typename stored, typename act>
__device__ __forceinline__ void backward_weights(const int *ids, u32 rows, const u32 *soft_ids, u32 kept,
                                                 const stored *table, u32 vocabulary, const act *dx, u32 cols,
                                                 float *room, u32 *found, float *dweights) {
    u32 t = threadIdx.x, which = blockIdx.x;
    soft_ids += (u64)which * kept;
    dweights += (u64)which * kept;
    // The lane that adds to an element is the one that clears it.
    for (u32 j = t / WARP; j < kept; j += BLOCK / WARP) {
        if (t % WARP == 0) dweights[j] = 0.0f;
    }
    for (u32 base = 0; base < rows;) {
        bool mine = base + t < rows && (u32)ids[base + t] == 0xfffffffeu - which;
        u32 lanes = __ballot_sync(ALL_LANES, mine);
        __syncthreads();
        if (t % WARP == 0) found[t / WARP] = lanes;
        __syncthreads();
        u32 next = BLOCK;
#pragma unroll
        for (int warp = BLOCK / WARP - 1; warp >= 0; warp--) {
            if (found[warp] != 0) next = warp * WARP + __ffs(found[warp]) - 1;
        }
        if (next < BLOCK) {
            add_position<V>(soft_ids, kept, table, vocabulary, dx + (u64)(base + next) * cols, cols, room, dweights);
            next++;
        }
        base += next;
    }
}

#define ENTRIES(dtype, stored, act)                                                                                   \
    KERNEL(ROW_BLOCK)                                                                                                 \
    embedding_fwd_##dtype(const int *ids, const u32 *positions, const u32 *soft_ids, const float *soft_weights,       \
                          u32 mixtures, u32 kept, const stored *table, u32 vocabulary, const stored *position_table,  \
                          u32 length, u32 rows, u32 cols, act *x) {                                                   \
        Soft soft = {soft_ids, soft_weights, mixtures, kept};                                                         \
        constexpr int V = vector<stored, act>();                                                                      \
        if (cols % V == 0) {                                                                                          \
            forward<V>(ids, positions, soft, table, vocabulary, position_table, length, rows, cols, x);               \
        } else {                                                                                                      \
            forward<1>(ids, positions, soft, table, vocabulary, position_table, length, rows, cols, x);               \
        }                                                                                                             \
    }                                                                                                                 \
    KERNEL(BLOCK)                                                                                                     \
    embedding_bwd_weights_##dtype(const int *ids, u32 rows, const u32 *soft_ids, u32 kept, const stored *table,       \
                                  u32 vocabulary, const act *dx, u32 cols, float *dweights) {                         \
        __shared__ float4 room[COLUMNS / 4];                                                                          \
        __shared__ u32 found[BLOCK / WARP];                                                                           \
        float *columns = reinterpret_cast<float *>(room);                                                             \
        if (cols % 4 == 0) {                                                                                          \
            backward_weights<4>(ids, rows, soft_ids, kept, table, vocabulary, dx, cols, columns, found, dweights);    \
        } else {                                                                                                      \
            backward_weights<1>(ids, rows, soft_ids, kept, table, vocabulary, dx, cols, columns, found, dweights);    \
        }                                                                                                             \
    }
ENTRIES(f32, float, float)
ENTRIES(bf16, bf16, bf16)
ENTRIES(mixed, bf16, float)
