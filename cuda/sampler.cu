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
//   sampler_fwd_topk_f32     logits                           the same, ids[R,C]; weights[R,C]       1
//   sampler_fwd_wide_f32     logits                           the same                               2 min-p, 3 top-p or top-k
//   sampler_fwd_score_f32    logits token ids count           log_probability[R]                     1, or the kept ids
//   sampler_bwd_score_f32    the same, dy[R]                  dlogits[R,V]                           2, or the kept ids; 1 write
//   sampler_bwd_mixture_f32  ids count weights dweights[R,C]  dlogits[R,V]                           1 write
//   sampler_noise_f32        words[N]                         eps[N]                                 for tests: the noise's bits
//
//   grid R blocks (noise: N / 512), block 512; bytes moved: 4 V a pass and a row, ids and weights of what is kept
//   shared: fwd, score 12 bytes a chunk of 1024 columns (dynamic); topk 9 KiB; wide 24 KiB and V / 8 bytes (dynamic)
//           where ids are wanted
//
// A block owns a row, because a draw needs the whole row and the filters need it several times (from L2). A warp takes
// runs of 512 or 1024 columns with all of its loads in flight. Noise costs more than a logit's bytes, so ids that
// cannot win get none: whoever wins is not below the largest logit - 3.25, and no noise is above 17.
//
// A row without a softmax (NaN, plus infinity, nothing above minus infinity), or that keeps more ids than there is room
// for, gives token 0xffffffff, log-probability NaN, weights NaN; its count is 0xffffffff, or what it would keep.
#include "sampler_support.cuh"
#include "sampler_topk.cuh"
#include "sampler_wide.cuh"

extern __shared__ u32 dynamic_room[];

// The whole vocabulary: statistics and draw in one pass.
ROW_KERNEL
sampler_fwd_f32(const float *logits, u32 vocabulary, float scale, u32 greedy, const u32 *keys, const u32 *steps, u32 site,
                u32 *tokens, float *log_probabilities, u32 *counts) {
    __shared__ u64 room[WARPS];
    float *parts = reinterpret_cast<float *>(dynamic_room);
    u32 lane = threadIdx.x % WARP, chunks = (vocabulary + CHUNK - 1) / CHUNK;
    Row row(logits + (u64)blockIdx.x * vocabulary, vocabulary);
    Stream stream(keys, steps, site, blockIdx.x);
    Output out(blockIdx.x, tokens, log_probabilities, nullptr, counts, 0, nullptr);
    Drawn drawn = {-infinity(), FAULTY, 0};
    float maximum = -infinity();
    for (u32 chunk = threadIdx.x / WARP; chunk < chunks; chunk += WARPS) {
        float4 s[CHUNK_QUADS];
        row.load(chunk * (CHUNK / 4), s);
#pragma unroll
        for (int j = 0; j < CHUNK_QUADS; j++) s[j] = scaled(s[j], scale);
        Part part = part_of_chunk<false>(s);
        store_part(parts, chunk, part);
        maximum = fmaxf(maximum, part.maximum);
        float floor = __fadd_rn(maximum, NOISE_SMALLEST);
#pragma unroll
        for (int j = 0; j < CHUNK_QUADS; j++) {
            u32 quad = chunk * (CHUNK / 4) + j * WARP + lane;
            float4 noise = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (!greedy) {
                if (!(__fadd_rn(largest(s[j]), NOISE_LARGEST) >= fmaxf(floor, drawn.value))) continue;
                noise = stream.noise_of_block(quad);
            }
            drawn.take(__fadd_rn(s[j].x, noise.x), 4 * quad);
            drawn.take(__fadd_rn(s[j].y, noise.y), 4 * quad + 1);
            drawn.take(__fadd_rn(s[j].z, noise.z), 4 * quad + 2);
            drawn.take(__fadd_rn(s[j].w, noise.w), 4 * quad + 3);
        }
    }
    u64 best = block_largest(drawn.id == FAULTY ? 0 : rank_key(drawn.value, drawn.id), room);
    Part part = merge_parts<false>(parts, chunks);
    if (!part.sound()) return out.fail(FAULTY);
    if (threadIdx.x == 0) {
        u32 token = id_of(best);
        float s = __fmul_rn(row.start[token], scale);
        out.draw(token, log_probability(s, part.maximum, part.log_sum()));
        if (out.count) *out.count = 0;
    }
}

ROW_KERNEL
sampler_fwd_topk_f32(const float *logits, u32 vocabulary, float scale, u32 k, u64 top_p, float min_p, const u32 *keys,
                     const u32 *steps, u32 site, u32 *tokens, float *log_probabilities, u32 *ids, u32 *counts, u32 capacity,
                     float *weights, float inverse_tau) {
    Row row(logits + (u64)blockIdx.x * vocabulary, vocabulary);
    Stream stream(keys, steps, site, blockIdx.x);
    Output out(blockIdx.x, tokens, log_probabilities, ids, counts, capacity, weights);
    draw_top_k(row, scale, k, top_p, min_p, stream, out, inverse_tau);
}

ROW_KERNEL
sampler_fwd_wide_f32(const float *logits, u32 vocabulary, float scale, u32 k, u64 top_p, float min_p, const u32 *keys,
                     const u32 *steps, u32 site, u32 *tokens, float *log_probabilities, u32 *ids, u32 *counts, u32 capacity,
                     float *weights, float inverse_tau) {
    Row row(logits + (u64)blockIdx.x * vocabulary, vocabulary);
    Stream stream(keys, steps, site, blockIdx.x);
    Output out(blockIdx.x, tokens, log_probabilities, ids, counts, capacity, weights);
    draw_wide(row, scale, k, top_p, min_p, stream, out, inverse_tau, dynamic_room);
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
    Row row(logits + (u64)blockIdx.x * vocabulary, vocabulary);
    dlogits += (u64)blockIdx.x * vocabulary;
    u32 token = tokens[blockIdx.x];
    Support support = support_of_row(row, scale, token, ids + (u64)blockIdx.x * capacity, counts[blockIdx.x], capacity,
                                     reinterpret_cast<float *>(dynamic_room), room);
    if (!support.sound) return fill(dlogits, vocabulary, __int_as_float(0x7fc00000));
    float slope = __fmul_rn(scale, dy[blockIdx.x]);
    auto gradient = [&](float logit, u32 id) {
        float p = exponential(log_probability(__fmul_rn(logit, scale), support.maximum, support.log_sum));
        float d = __fmul_rn(p, -slope);
        return id == token ? __fadd_rn(d, slope) : d;
    };
    if (support.count) {
        fill(dlogits, vocabulary, 0.0f);
        __syncthreads();
        for (u32 i = threadIdx.x; i < support.count; i += BLOCK) {
            u32 id = support.ids[i];
            dlogits[id] = gradient(row.start[id], id);
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

ROW_KERNEL
sampler_bwd_mixture_f32(const float *dweights, const float *weights, const u32 *ids, const u32 *counts, u32 capacity,
                        float factor, u32 vocabulary, float *dlogits) {
    __shared__ u64 room[WARPS];
    u32 count = counts[blockIdx.x];
    u64 at = (u64)blockIdx.x * capacity;
    ids += at;
    weights += at;
    dweights += at;
    dlogits += (u64)blockIdx.x * vocabulary;
    bool wrong = count > capacity;
    float inner = 0.0f;
    for (u32 i = threadIdx.x; i < count && !wrong; i += BLOCK) {
        wrong = ids[i] >= vocabulary;
        inner = __fmaf_rn(weights[i], dweights[i], inner);
    }
    if (__syncthreads_or(wrong)) return fill(dlogits, vocabulary, __int_as_float(0x7fc00000));
    inner = block_sum<WARPS>(inner, reinterpret_cast<float *>(room));
    fill(dlogits, vocabulary, 0.0f);
    __syncthreads();
    for (u32 i = threadIdx.x; i < count; i += BLOCK)
        dlogits[ids[i]] = __fmul_rn(factor, __fmul_rn(weights[i], __fsub_rn(dweights[i], inner)));
}

ROW_KERNEL
sampler_noise_f32(const u32 *words, u32 count, float *noise) {
    u32 i = blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) noise[i] = gumbel_noise(words[i]);
}
