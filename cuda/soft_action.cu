// Soft actions on stored supports, and the scores of policy gradients. Formulas: src/cpu/soft_action.rs,
// soft_action/dirichlet.rs and soft_action/score.rs.
//
//   s[v] = logit[v] * scale        a = log-softmax of s over the kept ids        y = softmax(g / tau)
//   forward   g = a | a + clamped Gumbel noise | a + strength rms(s) normal | ln of a Dirichlet draw; proxy, entropy
//   score     soft_ce sum y ln p | concrete ln Gamma(n) + (n-1) ln tau + sum (q - ln y) | gumbel_g sum (-e - exp(-e))
//             q = log-softmax of a - g        e = g - a inside its bounds, where a is above the floor
//   backward  dlogit = scale dy (y - (sum y) p) | scale dy (1 - n exp(q)) | scale dy (c - exp(a) sum c), c = 1 - exp(-e)
//
//   kernel                     in                                    out                          moved, bytes a row
//   soft_action_fwd_f32        logits[R,V] ids[R,C] count[R]         g y soft [R,C] proxy entropy 36 n to 44 n, and 4 C each
//   soft_action_fwd_score_f32  the same, g[R,C] y[R,C]               score[R]                     4 V and 12 n (full), 16 n
//   soft_action_bwd_score_f32  the same, dy[R]                       dlogits[R,V]                 12 V (full), 4 V
//
//   grid R blocks, block 512; shared 128 bytes, soft_ce over the full vocabulary also 12 bytes a chunk of 1024 columns
//
// A block owns a row, as in sampler.cu, whose supports these are; a usual support (n = 30) is one warp's work, and the
// full vocabulary, where it is wanted, the whole block's. A thread keeps to its own places i, i + 512, .., so that it
// may read back what it wrote; of its first place, the only one of a usual support, it keeps the id, the logit (a sector
// for itself) and the stored g. Gumbel noise has the bits of the sampler's. The gradient of y is sampler_bwd_mixture_f32.
//
// A row without kept ids, with ids outside the vocabulary or not ascending, or whose kept logits are not finite, gives
// NaN; its proxy is 0xffffffff.
#include "normals.cuh"
#include "sampler_support.cuh"

extern __shared__ u32 dynamic_room[];

// As src/ops/soft_action/kernels.rs numbers them.
enum Kind : u32 { NO_NOISE, GUMBEL, GAUSSIAN, DIRICHLET };
enum Which : u32 { SOFT_CE_KEPT, SOFT_CE_FULL, CONCRETE, GUMBEL_G };

constexpr u32 PROXY_BLOCK = 0xffffffffu;
constexpr u32 ATTEMPTS = 32;

__device__ __forceinline__ float not_a_number() { return __int_as_float(0x7fc00000); }
__device__ __forceinline__ float inside(float value, float low, float high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

// A row's kept ids and their softmax.
struct Kept {
    const float *logits;
    const u32 *ids;
    u32 count;
    float scale, maximum, log_sum;
    u32 largest; // The id of the largest logit, the lower of equals.
    bool sound;
    // Of place threadIdx.x.
    u32 own_id;
    float own;

    // Of the calling thread's places.
    __device__ __forceinline__ u32 id(u32 i) const { return i == threadIdx.x ? own_id : ids[i]; }
    __device__ __forceinline__ float scaled(u32 i) const {
        return i == threadIdx.x ? own : __fmul_rn(logits[ids[i]], scale);
    }
    __device__ __forceinline__ float clean(u32 i) const { return log_probability(scaled(i), maximum, log_sum); }
};

// By the whole block; `room` holds WARPS numbers.
__device__ __forceinline__ Kept kept_of_row(const float *logits, u32 vocabulary, float scale, const u32 *ids, u32 count,
                                            u32 capacity, u64 *room) {
    Kept kept = {logits, ids, count, scale, 0.0f, 0.0f, FAULTY, false, 0, 0.0f};
    bool wrong = count == 0 || count > capacity;
    u64 best = 0;
    for (u32 i = threadIdx.x; i < count && !wrong; i += BLOCK) {
        u32 id = ids[i];
        wrong = id >= vocabulary || (i > 0 && ids[i - 1] >= id);
        if (wrong) break;
        float s = __fmul_rn(logits[id], scale);
        if (i == threadIdx.x) {
            kept.own_id = id;
            kept.own = s;
        }
        wrong = !(fabsf(s) <= FINITE);
        best = max(best, rank_key(s, id));
    }
    if (__syncthreads_or(wrong)) return kept;
    best = block_largest(best, room);
    kept.maximum = logit_of(best);
    kept.largest = id_of(best);
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < count; i += BLOCK)
        sum = __fadd_rn(sum, exponential(__fsub_rn(kept.scaled(i), kept.maximum)));
    kept.log_sum = gumbel_ln(block_sum<WARPS>(sum, reinterpret_cast<float *>(room)));
    kept.sound = true;
    return kept;
}

// ln of a gamma variate of shape `alpha`, the variate of id `id`.
__device__ __forceinline__ float log_gamma_variate(uint2 key, u32 site, u32 step, u32 id, float alpha) {
    float d = alpha + 2.0f / 3.0f, c = rsqrtf(9.0f * d), boost = 0.0f;
    for (u32 attempt = 0; attempt < ATTEMPTS; attempt++) {
        uint4 words = philox(key, make_uint4(site, step, id, attempt));
        float x = two_normals(words.x, words.y, 1.0f).x, root = 1.0f + c * x;
        boost = -minus_log(words.w) / alpha;
        if (root <= 0.0f) continue;
        float w = root * root * root, log_w = 3.0f * log1pf(c * x);
        if (-minus_log(words.z) < 0.5f * x * x + d * (1.0f - w + log_w)) return logf(d) + log_w + boost;
    }
    return logf(d) + boost;
}

// ln (n-1)!: a product that f32 holds, then Stirling's series.
__device__ __forceinline__ float log_gamma(u32 n) {
    if (n <= 10) {
        float product = 1.0f;
        for (u32 i = 2; i < n; i++) product *= (float)i;
        return logf(product);
    }
    float x = (float)n, inverse = 1.0f / x;
    float tail = inverse * (1.0f / 12.0f - inverse * inverse * (1.0f / 360.0f));
    return (x - 0.5f) * logf(x) - x + (0.918938533f + tail);
}

// Largest value and ln of the sum of exp(value - largest) over f(0) .. f(count - 1).
struct LogSum {
    float maximum, log_sum;
};
template <typename F> __device__ __forceinline__ LogSum log_sum_of(u32 count, u64 *room, F f) {
    float maximum = -infinity(), sum = 0.0f;
    for (u32 i = threadIdx.x; i < count; i += BLOCK) maximum = fmaxf(maximum, f(i));
    maximum = block_max(maximum, room);
    for (u32 i = threadIdx.x; i < count; i += BLOCK) sum = __fadd_rn(sum, exponential(__fsub_rn(f(i), maximum)));
    return {maximum, gumbel_ln(block_sum<WARPS>(sum, reinterpret_cast<float *>(room)))};
}

// The place that `word` draws from y, by whole-numbered masses; every thread gets it.
__device__ __forceinline__ u32 drawn(const float *y, u32 count, u32 word, int fraction, u64 *room, u32 *place) {
    u64 total = 0;
    for (u32 i = threadIdx.x; i < count; i += BLOCK) total += mass_of(y[i], fraction);
    total = block_total(total, room);
    u64 target = __umul64hi(total, (u64)word << 32), before = 0;
    if (threadIdx.x == 0) *place = count - 1;
    for (u32 base = 0; base < count; base += BLOCK) { // The barriers of block_scan stand between both writes.
        u32 i = base + threadIdx.x;
        u64 mass = i < count ? mass_of(y[i], fraction) : 0, tile;
        u64 start = before + block_scan(mass, room, tile);
        if (start <= target && target < start + mass) *place = i;
        before += tile;
    }
    __syncthreads();
    return *place;
}

ROW_KERNEL
soft_action_fwd_f32(const float *logits, u32 vocabulary, float scale, const u32 *keys, const u32 *steps, u32 site,
                    const u32 *ids, const u32 *counts, u32 capacity, u32 kind, float first, float second, float inverse_tau,
                    u32 draw, u32 hard, float *perturbed, float *weights, float *soft, u32 *proxies, float *entropies) {
    __shared__ u64 room[WARPS];
    __shared__ u32 place;
    u64 at = (u64)blockIdx.x * capacity;
    float *g = perturbed + at, *y = weights + at;
    Stream stream(keys, steps, site, blockIdx.x);
    Kept kept = kept_of_row(logits + (u64)blockIdx.x * vocabulary, vocabulary, scale, ids + at, counts[blockIdx.x], capacity,
                            room);
    if (!kept.sound) {
        for (u32 i = threadIdx.x; i < capacity; i += BLOCK) {
            g[i] = y[i] = not_a_number();
            if (soft) soft[at + i] = not_a_number();
        }
        if (threadIdx.x == 0) proxies[blockIdx.x] = FAULTY;
        if (threadIdx.x == 0 && entropies) entropies[blockIdx.x] = not_a_number();
        return;
    }
    u32 count = kept.count;
    float deviation = 0.0f;
    if (kind == GAUSSIAN) {
        float square = 0.0f;
        for (u32 i = threadIdx.x; i < count; i += BLOCK) square = __fmaf_rn(kept.scaled(i), kept.scaled(i), square);
        square = block_sum<WARPS>(square, reinterpret_cast<float *>(room));
        deviation = first * sqrtf(square / (float)count);
    }
    float maximum = -infinity();
    for (u32 i = threadIdx.x; i < count; i += BLOCK) {
        u32 id = kept.id(i);
        float value = kept.clean(i);
        if (kind == GUMBEL) value = __fadd_rn(value, inside(stream.noise(id), first, second));
        if (kind == GAUSSIAN) {
            uint4 words = philox(stream.key, make_uint4(site, stream.step, id / 4, 0));
            bool late = id % 4 > 1;
            float2 normals = two_normals(late ? words.z : words.x, late ? words.w : words.y, 1.0f);
            value = __fmaf_rn(deviation, id % 2 ? normals.y : normals.x, value);
        }
        if (kind == DIRICHLET)
            value = log_gamma_variate(stream.key, site, stream.step, id, fmaxf(first * exponential(value), 1e-30f));
        g[i] = value;
        maximum = fmaxf(maximum, value);
    }
    if (kind == DIRICHLET) {
        LogSum whole = log_sum_of(count, room, [&](u32 i) { return g[i]; });
        maximum = -infinity();
        for (u32 i = threadIdx.x; i < count; i += BLOCK) {
            g[i] = log_probability(g[i], whole.maximum, whole.log_sum);
            maximum = fmaxf(maximum, g[i]);
        }
    }
    maximum = block_max(maximum, room);
    float sum = 0.0f, weighted = 0.0f;
    for (u32 i = threadIdx.x; i < count; i += BLOCK) {
        float distance = __fmul_rn(__fsub_rn(g[i], maximum), inverse_tau), weight = exponential(distance);
        y[i] = weight;
        sum = __fadd_rn(sum, weight);
        if (weight > 0.0f) weighted = __fmaf_rn(weight, distance, weighted);
    }
    sum = block_sum<WARPS>(sum, reinterpret_cast<float *>(room));
    weighted = block_sum<WARPS>(weighted, reinterpret_cast<float *>(room));
    if (threadIdx.x == 0 && entropies) entropies[blockIdx.x] = __fsub_rn(gumbel_ln(sum), __fdiv_rn(weighted, sum));
    u64 best = 0;
    for (u32 i = threadIdx.x; i < capacity; i += BLOCK) {
        float weight = i < count ? __fdiv_rn(y[i], sum) : 0.0f;
        y[i] = weight;
        if (soft) soft[at + i] = weight;
        if (i >= count) g[i] = 0.0f;
        else best = max(best, rank_key(g[i], i));
    }
    u32 proxy = kept.largest;
    if (draw) {
        u32 word = philox(stream.key, make_uint4(site, stream.step, PROXY_BLOCK, 0)).x;
        proxy = kept.ids[drawn(y, count, word, fraction_bits(vocabulary), room, &place)];
    }
    if (threadIdx.x == 0) proxies[blockIdx.x] = proxy;
    if (!hard) return;
    u32 winner = id_of(block_largest(best, room));
    for (u32 i = threadIdx.x; i < count; i += BLOCK) y[i] = i == winner ? 1.0f : 0.0f;
}

// What both kernels of scores take.
#define SCORED                                                                                                        \
    const float *logits, u32 vocabulary, float scale, const u32 *ids, const u32 *counts, u32 capacity,                \
        const float *perturbed, const float *weights, u32 which, float first, float low, float high, u32 mean

// A row's stored numbers, read by the calling thread's places; that of the first stays with it.
struct Held {
    const float *from;
    float own;

    __device__ __forceinline__ Held(const float *from, u32 count)
        : from(from), own(threadIdx.x < count ? from[threadIdx.x] : 0.0f) {}
    __device__ __forceinline__ float operator()(u32 i) const { return i == threadIdx.x ? own : from[i]; }
};

// The law of a soft label: over the kept ids, or the vocabulary, whose statistics need `parts`.
__device__ __forceinline__ LogSum label_law(const Kept &kept, u32 vocabulary, u32 which, bool &sound) {
    if (which == SOFT_CE_KEPT) return {kept.maximum, kept.log_sum};
    Part part = part_of_row(Row(kept.logits, vocabulary), kept.scale, reinterpret_cast<float *>(dynamic_room));
    sound = part.sound();
    return {part.maximum, part.log_sum()};
}

ROW_KERNEL
soft_action_fwd_score_f32(SCORED, float *scores) {
    __shared__ u64 room[WARPS];
    float *floats = reinterpret_cast<float *>(room);
    u64 at = (u64)blockIdx.x * capacity;
    const float *y = weights + at;
    Kept kept = kept_of_row(logits + (u64)blockIdx.x * vocabulary, vocabulary, scale, ids + at, counts[blockIdx.x], capacity,
                            room);
    bool sound = kept.sound;
    u32 count = sound ? kept.count : 0;
    Held g(perturbed + at, count);
    float sum = 0.0f, score = 0.0f;
    if (!sound) {
    } else if (which <= SOFT_CE_FULL) {
        LogSum law = label_law(kept, vocabulary, which, sound);
        for (u32 i = threadIdx.x; i < count; i += BLOCK)
            sum = __fmaf_rn(y[i], log_probability(kept.scaled(i), law.maximum, law.log_sum), sum);
        score = block_sum<WARPS>(sum, floats);
    } else if (count == 1) {
    } else if (which == CONCRETE) {
        float inverse_tau = 1.0f / first;
        LogSum q = log_sum_of(count, room, [&](u32 i) { return __fsub_rn(kept.clean(i), g(i)); });
        LogSum log_y = log_sum_of(count, room, [&](u32 i) { return __fmul_rn(g(i), inverse_tau); });
        for (u32 i = threadIdx.x; i < count; i += BLOCK) {
            float of_q = log_probability(__fsub_rn(kept.clean(i), g(i)), q.maximum, q.log_sum);
            float of_y = log_probability(__fmul_rn(g(i), inverse_tau), log_y.maximum, log_y.log_sum);
            sum = __fadd_rn(sum, __fsub_rn(of_q, of_y));
        }
        score = block_sum<WARPS>(sum, floats) + (log_gamma(count) + (float)(count - 1) * logf(first));
        if (mean) score = score / (float)count;
    } else {
        u64 counted = 0;
        for (u32 i = threadIdx.x; i < count; i += BLOCK) {
            float a = kept.clean(i), held = inside(__fsub_rn(g(i), a), low, high);
            if (!(a > first)) continue;
            counted++;
            sum = __fadd_rn(sum, __fsub_rn(-held, exponential(-held)));
        }
        score = block_sum<WARPS>(sum, floats);
        counted = block_total(counted, room);
        if (mean && counted) score = score / (float)counted;
    }
    if (threadIdx.x == 0) scores[blockIdx.x] = sound ? score : not_a_number();
}

ROW_KERNEL
soft_action_bwd_score_f32(SCORED, const float *dy, float *dlogits) {
    __shared__ u64 room[WARPS];
    float *floats = reinterpret_cast<float *>(room);
    u64 at = (u64)blockIdx.x * capacity;
    const float *y = weights + at;
    dlogits += (u64)blockIdx.x * vocabulary;
    Row row(logits + (u64)blockIdx.x * vocabulary, vocabulary);
    Kept kept = kept_of_row(row.start, vocabulary, scale, ids + at, counts[blockIdx.x], capacity, room);
    bool sound = kept.sound;
    LogSum law = {0.0f, 0.0f};
    if (sound && which <= SOFT_CE_FULL) law = label_law(kept, vocabulary, which, sound);
    if (!sound) return fill(dlogits, vocabulary, not_a_number());
    u32 count = kept.count;
    Held g(perturbed + at, count);
    float slope = __fmul_rn(scale, dy[blockIdx.x]);
    if (which <= SOFT_CE_FULL) {
        float sum = 0.0f;
        for (u32 i = threadIdx.x; i < count; i += BLOCK) sum = __fadd_rn(sum, y[i]);
        float factor = -__fmul_rn(slope, block_sum<WARPS>(sum, floats));
        auto pull = [&](float logit) {
            return __fmul_rn(exponential(log_probability(__fmul_rn(logit, scale), law.maximum, law.log_sum)), factor);
        };
        if (which == SOFT_CE_FULL) {
            // Reads and writes are aligned alike, since both rows have the same width.
            u32 head = min((4 - row.shift) % 4, vocabulary), body = (vocabulary - head) / 4, tail = head + 4 * body;
            if (threadIdx.x < head) dlogits[threadIdx.x] = pull(row.start[threadIdx.x]);
            for (u32 i = threadIdx.x; i < body; i += BLOCK) {
                float4 x = *reinterpret_cast<const float4 *>(row.start + head + 4 * i);
                *reinterpret_cast<float4 *>(dlogits + head + 4 * i) = make_float4(pull(x.x), pull(x.y), pull(x.z), pull(x.w));
            }
            u32 id = tail + threadIdx.x;
            if (id < vocabulary) dlogits[id] = pull(row.start[id]);
        } else {
            fill(dlogits, vocabulary, 0.0f);
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < count; i += BLOCK) {
            u32 id = kept.id(i);
            dlogits[id] = __fmaf_rn(slope, y[i], pull(row.start[id]));
        }
        return;
    }
    fill(dlogits, vocabulary, 0.0f);
    if (count == 1) return;
    if (which == CONCRETE) {
        LogSum q = log_sum_of(count, room, [&](u32 i) { return __fsub_rn(kept.clean(i), g(i)); });
        float n = (float)count;
        if (mean) slope = slope / n;
        for (u32 i = threadIdx.x; i < count; i += BLOCK) {
            float of_q = log_probability(__fsub_rn(kept.clean(i), g(i)), q.maximum, q.log_sum);
            dlogits[kept.id(i)] = __fmul_rn(slope, __fmaf_rn(-n, exponential(of_q), 1.0f));
        }
        return;
    }
    auto part = [&](u32 i, float a) {
        float noise = __fsub_rn(g(i), a);
        return !(a > first) || noise < low || noise > high ? 0.0f : __fsub_rn(1.0f, exponential(-noise));
    };
    float sum = 0.0f;
    u64 counted = 0;
    for (u32 i = threadIdx.x; i < count; i += BLOCK) {
        float a = kept.clean(i);
        counted += a > first;
        sum = __fadd_rn(sum, part(i, a));
    }
    sum = block_sum<WARPS>(sum, floats);
    counted = block_total(counted, room);
    if (mean && counted) slope = slope / (float)counted;
    for (u32 i = threadIdx.x; i < count; i += BLOCK) {
        float a = kept.clean(i);
        dlogits[kept.id(i)] = __fmul_rn(slope, __fmaf_rn(-exponential(a), sum, part(i, a)));
    }
}
