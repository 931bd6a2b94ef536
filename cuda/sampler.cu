// Sampling of tokens from rows of logits, scores on a stored support, and Gumbel-Softmax mixtures. The laws, the order
// of the filters and the roundings are those of src/cpu/sampler.rs: given the same bits of logits, tokens and supports
// are the CPU's. Log-probabilities are the bits of log_probability.cu where nothing is filtered (softmax.cuh).
//
//   s[v] = logit[v] * scale      eps[v] = -ln(-ln u), u from word v of the row's stream (gumbel.cuh)
//   draw   argmax over kept of s[v] + eps[v], the lower id of equals      greedy: of s[v]
//   score  (s[token] - M) - ln sum over kept of exp(s - M)
//   mix    y[v] = softmax over kept of ((s[v] + eps[v]) / tau)
//   mix backward   dlogit[v] = scale / tau * y[v] (dy[v] - <y, dy>), 0 where not kept
//   score backward dlogit[v] = scale * dy (1[v = token] - p[v]), 0 where not kept
//
//   kernel                   in                               out                                    passes over the row
//   sampler_fwd_f32          logits[R,V]                      token[R] log_probability[R] count[R]   1
//   sampler_fwd_extents_f32  logits                           largest of groups; or of the row, and smallest  1
//   sampler_fwd_topk_f32     logits, extents                  the same, ids[R,C]; weights[R,C]       about k groups of 128
//   sampler_fwd_masses_f32   logits, extents                  masses or numbers of buckets           1
//   sampler_fwd_certain_f32  logits, extents, masses          what is certain, the list              1
//   sampler_fwd_wide_f32     all of these                     as topk                                0; rarely 3 and more
//   sampler_fwd_score_f32    logits token ids count           log_probability[R]                     1, or the kept ids
//   sampler_bwd_score_f32    the same, dy[R]                  dlogits[R,V]                           2, or the kept ids; 1 write
//   sampler_bwd_mixture_f32  ids count weights dweights[R,C]  dlogits[R,V]                           1 write
//   sampler_noise_f32        words[N]                         eps[N]                                 for tests: the noise's bits
//
//   kernels              grid               block   shared
//   fwd, fwd_extents     R ceil(V / 4096)   128     none
//   fwd_masses, certain  R ceil(V / 4096)   512     17 KiB
//   topk, wide           R                  512     26 KiB, 25 KiB
//   fwd_score            R                  512     12 bytes a chunk of 1024 columns (dynamic)
//   bwd_score, mixture   R ceil(V / 4096)   512     score as above
//   noise                N / 512            512     none
//   bytes moved: 4 V a pass and a row, ids and weights of what is kept
//
// A draw needs the whole row, and a step has few rows: one block a row would leave most of a device idle. So what is
// needed of all columns is done by many blocks a row, a warp 256 or 1024 columns with all of its loads in flight; what
// they leave (sampler_split.cuh) is little, and one block ends the row. Without filters that is the one which comes
// last; with them it is a launch of its own. Noise costs more than a logit's bytes, so ids that cannot win get none:
// whoever wins is not below the largest logit - 3.25, and no noise is above 17.
//
// A row without a softmax (NaN, plus infinity, nothing above minus infinity), or that keeps more ids than there is room
// for, gives token 0xffffffff, log-probability NaN, weights NaN; its count is 0xffffffff, or what it would keep.
#include "sampler_pieces.cuh"
#include "sampler_support.cuh"
#include "sampler_topk.cuh"

extern __shared__ u32 dynamic_room[];

#define CHUNK_KERNEL extern "C" __global__ void __launch_bounds__(CHUNK_BLOCK)
// Two blocks a multiprocessor: a step's pieces are often some more than a device has multiprocessors.
#define PIECE_KERNEL extern "C" __global__ void __launch_bounds__(BLOCK, 2)

// The whole vocabulary: statistics and draw in one pass.
CHUNK_KERNEL
sampler_fwd_f32(const float *logits, u32 vocabulary, float scale, u32 greedy, const u32 *keys, const u32 *steps, u32 site,
                u64 *memory, u32 *tokens, float *log_probabilities, u32 *counts) {
    Place place(vocabulary);
    Row row(logits + (u64)place.row * vocabulary, vocabulary);
    Scratch scratch(memory, place.row, vocabulary);
    if (place.inside()) {
        Stream stream(keys, steps, site, place.row);
        Chunk chunk = chunk_drawn(row, place.chunk, scale, greedy, stream);
        if (threadIdx.x % WARP == 0) {
            scratch.chunks[place.chunk] = chunk;
            __threadfence();
        }
    }
    __syncthreads();
    bool last = false;
    if (threadIdx.x == 0) last = atomicAdd(&scratch.header->arrived, 1) + 1 == place.blocks;
    if (!__syncthreads_or(last)) return;
    // All chunks of the row have been left; one warp makes them a draw.
    __threadfence();
    if (threadIdx.x == 0) scratch.header->arrived = 0;
    if (threadIdx.x >= WARP) return;
    u64 best;
    Part part = merge_chunks(scratch.chunks, place.chunks, best);
    if (threadIdx.x) return;
    Output out(place.row, tokens, log_probabilities, nullptr, counts, 0, nullptr);
    if (!part.sound()) return out.fail(FAULTY);
    u32 token = id_of(best);
    float s = __fmul_rn(row.start[token], scale);
    out.draw(token, log_probability(s, part.maximum, part.log_sum()));
    if (out.count) *out.count = 0;
}

// What draws with filters begin with: the largest logit of each group, or, where `wide`, the row's extents, with its
// buckets and list made empty.
CHUNK_KERNEL
sampler_fwd_extents_f32(const float *logits, u32 vocabulary, float scale, u32 wide, u64 *memory) {
    Place place(vocabulary);
    Row row(logits + (u64)place.row * vocabulary, vocabulary);
    Scratch scratch(memory, place.row, vocabulary);
    u32 thread = place.block * CHUNK_BLOCK + threadIdx.x;
    if (wide) {
        for (u32 i = thread; i < BUCKETS; i += place.blocks * CHUNK_BLOCK) scratch.amounts[i] = 0;
        if (thread == 0) scratch.header->mass = scratch.header->best = 0, scratch.header->listed = 0;
    }
    if (!place.inside()) return;
    float smallest, most = chunk_extent(row, place.chunk, scale, smallest);
    u32 lane = threadIdx.x % WARP;
    if (!wide) {
        if (lane % 4 == 0) scratch.largest[place.chunk * CHUNK_GROUPS + lane / 4] = most;
        return;
    }
    most = warp_max(most);
    if (lane > 0) return;
    atomicMax(&scratch.header->top, order_of(most));
    if (smallest < infinity()) atomicMax(&scratch.header->bottom, ~order_of(smallest));
}

ROW_KERNEL
sampler_fwd_topk_f32(const float *logits, u32 vocabulary, float scale, u32 k, u64 top_p, float min_p, const u32 *keys,
                     const u32 *steps, u32 site, u64 *memory, u32 *tokens, float *log_probabilities, u32 *ids, u32 *counts,
                     u32 capacity, float *weights, float inverse_tau) {
    Row row(logits + (u64)blockIdx.x * vocabulary, vocabulary);
    Scratch scratch(memory, blockIdx.x, vocabulary);
    Stream stream(keys, steps, site, blockIdx.x);
    Output out(blockIdx.x, tokens, log_probabilities, ids, counts, capacity, weights);
    draw_top_k(row, scratch.largest, scale, k, top_p, min_p, stream, out, inverse_tau);
}

PIECE_KERNEL sampler_fwd_masses_f32(const float *logits, u32 vocabulary, float scale, u32 by_mass, u64 *memory) {
    Piece piece(vocabulary);
    Row row(logits + (u64)piece.row * vocabulary, vocabulary);
    add_masses(piece, row, Scratch(memory, piece.row, vocabulary), scale, by_mass);
}

PIECE_KERNEL
sampler_fwd_certain_f32(const float *logits, u32 vocabulary, float scale, u32 k, u64 top_p, float min_p, const u32 *keys,
                        const u32 *steps, u32 site, u64 *memory, u32 drawing, u32 listing) {
    Piece piece(vocabulary);
    Row row(logits + (u64)piece.row * vocabulary, vocabulary);
    Stream stream(keys, steps, site, piece.row);
    draw_piece(piece, row, Scratch(memory, piece.row, vocabulary), scale, k, top_p, min_p, stream, drawing, listing);
}

ROW_KERNEL
sampler_fwd_wide_f32(const float *logits, u32 vocabulary, float scale, u32 k, u64 top_p, float min_p, const u32 *keys,
                     const u32 *steps, u32 site, u64 *memory, u32 split, u32 *tokens, float *log_probabilities, u32 *ids,
                     u32 *counts, u32 capacity, float *weights, float inverse_tau) {
    Row row(logits + (u64)blockIdx.x * vocabulary, vocabulary);
    Scratch scratch(memory, blockIdx.x, vocabulary);
    Stream stream(keys, steps, site, blockIdx.x);
    Output out(blockIdx.x, tokens, log_probabilities, ids, counts, capacity, weights);
    end_wide(row, scratch, split, scale, k, top_p, min_p, stream, out, inverse_tau);
}

ROW_KERNEL
sampler_fwd_score_f32(const float *logits, u32 vocabulary, float scale, const u32 *tokens, const u32 *ids, const u32 *counts,
                      u32 capacity, float *log_probabilities) {
    __shared__ u64 room[WARPS];
    Row row(logits + (u64)blockIdx.x * vocabulary, vocabulary);
    u32 token = tokens[blockIdx.x];
    Support support = support_of_row(row, scale, token, ids + (u64)blockIdx.x * capacity, counts[blockIdx.x], capacity,
                                     reinterpret_cast<float *>(dynamic_room), room);
    if (threadIdx.x) return;
    float score = __int_as_float(0x7fc00000);
    if (support.sound) score = log_probability(__fmul_rn(row.start[token], scale), support.maximum, support.log_sum);
    log_probabilities[blockIdx.x] = score;
}

ROW_KERNEL
sampler_bwd_score_f32(const float *dy, const float *logits, u32 vocabulary, float scale, const u32 *tokens, const u32 *ids,
                      const u32 *counts, u32 capacity, float *dlogits) {
    __shared__ u64 room[WARPS];
    Piece piece(vocabulary);
    u32 at = piece.row, count = counts[at], token = tokens[at];
    // The statistics of a whole vocabulary are not worth taking once a piece: the first block has such a row alone.
    if (count == 0 && piece.first > 0) return;
    Row row(logits + (u64)at * vocabulary, vocabulary);
    dlogits += (u64)at * vocabulary;
    u32 end = count == 0 ? vocabulary : min(vocabulary, piece.first + PIECE);
    Support support = support_of_row(row, scale, token, ids + (u64)at * capacity, count, capacity,
                                     reinterpret_cast<float *>(dynamic_room), room);
    if (!support.sound) return fill(dlogits + piece.first, end - piece.first, __int_as_float(0x7fc00000));
    float slope = __fmul_rn(scale, dy[at]);
    auto gradient = [&](float logit, u32 id) {
        float p = exponential(log_probability(__fmul_rn(logit, scale), support.maximum, support.log_sum));
        float d = __fmul_rn(p, -slope);
        return id == token ? __fadd_rn(d, slope) : d;
    };
    if (support.count) {
        fill(dlogits + piece.first, end - piece.first, 0.0f);
        __syncthreads();
        for (u32 i = threadIdx.x; i < support.count; i += BLOCK) {
            u32 id = support.ids[i];
            if (id - piece.first < end - piece.first) dlogits[id] = gradient(row.start[id], id);
        }
        return;
    }
    // Reads and writes are aligned alike, since both rows have the same width.
    u32 head = min((4 - row.shift) % 4, vocabulary), body = (vocabulary - head) / 4, tail = head + 4 * body;
    if (threadIdx.x < head) dlogits[threadIdx.x] = gradient(row.start[threadIdx.x], threadIdx.x);
    for (u32 i = threadIdx.x; i < body; i += BLOCK) {
        u32 id = head + 4 * i;
        float4 x = *reinterpret_cast<const float4 *>(row.start + id);
        *reinterpret_cast<float4 *>(dlogits + id) =
            make_float4(gradient(x.x, id), gradient(x.y, id + 1), gradient(x.z, id + 2), gradient(x.w, id + 3));
    }
    u32 id = tail + threadIdx.x;
    if (id < vocabulary) dlogits[id] = gradient(row.start[id], id);
}

PIECE_KERNEL
sampler_bwd_mixture_f32(const float *dweights, const float *weights, const u32 *ids, const u32 *counts, u32 capacity,
                        float factor, u32 vocabulary, float *dlogits) {
    __shared__ u64 room[WARPS];
    Piece piece(vocabulary);
    u32 count = counts[piece.row], columns = min(PIECE, vocabulary - piece.first);
    u64 at = (u64)piece.row * capacity;
    ids += at;
    weights += at;
    dweights += at;
    dlogits += (u64)piece.row * vocabulary + piece.first;
    bool wrong = count > capacity;
    float inner = 0.0f;
    for (u32 i = threadIdx.x; i < count && !wrong; i += BLOCK) {
        wrong = ids[i] >= vocabulary;
        inner = __fmaf_rn(weights[i], dweights[i], inner);
    }
    if (__syncthreads_or(wrong)) return fill(dlogits, columns, __int_as_float(0x7fc00000));
    inner = block_sum<WARPS>(inner, reinterpret_cast<float *>(room));
    fill(dlogits, columns, 0.0f);
    __syncthreads();
    for (u32 i = threadIdx.x; i < count; i += BLOCK) {
        u32 place = ids[i] - piece.first;
        if (place < columns) dlogits[place] = __fmul_rn(factor, __fmul_rn(weights[i], __fsub_rn(dweights[i], inner)));
    }
}

ROW_KERNEL
sampler_noise_f32(const u32 *words, u32 count, float *noise) {
    u32 i = blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) noise[i] = gumbel_noise(words[i]);
}
