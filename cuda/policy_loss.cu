// Terms of a policy loss and their derivatives by the log-probabilities. Formulas: src/ops/policy_loss.rs.
//   x   = ln pi - ln pi_old, or its mean over the row;   rho = exp(clamp(x))
//   forward   term[n] = -surrogate(rho, A) + beta * divergence(ln pi - ln pi_ref)      and five statistics of n
//   backward  coefficient[n] = d(sum_m weight[m] term[m]) / d ln pi[n]
//
//   kernel              in                                       out                     grid   block  shared
//   policy_loss_fwd_f32  lp old ref A [N] starts[R+1]             term[N] statistics[N,5] R      128    6.5 KiB
//   policy_loss_bwd_f32  the same and weight[N]                   coefficient[N]          R      128    4 KiB
//
// Numbers are f32 for every dtype of activations. Bytes: forward 36 or 40 (with a reference) a token, backward 20 or
// 24; with one ratio a row forward reads ln pi twice, backward the operands of its sum.
//
// A block has one row, tokens starts[r]..starts[r+1]. Its threads read tokens from the last multiple of eight before the
// row, so that requests are whole sectors wherever a row begins. Sums over a row must not depend on where it begins:
// their terms are laid into shared memory and added by distance from the row's first token. Statistics leave through
// shared memory as well, because five numbers a token would be five strided stores.
//
// A row whose end lies beyond the N tokens is cut there and its outputs are NaN. One that ends before it starts has no
// tokens. Tokens before the first row or behind the last are not written.
#include "indexed_rows.cuh"

constexpr int BLOCK = 128;
constexpr u32 STATISTICS = 5;
// Tokens of a row that are summed at a time.
constexpr u32 TILE = 1024;
// Floats of a sector.
constexpr u32 SECTOR = 8;

struct Operands {
    const float *log_probability, *old, *reference, *advantage;
};

// Numbers as in cpu/policy_loss.rs; limits that are not used are infinite.
enum Kind : u32 { CLIPPED, WEIGHTED, SOFT, PLAIN };
enum Estimator : u32 { NONE, K1, K2, K3, K3_PLUS };

struct Rule {
    u32 sequence;
    float clamp;
    // CLIPPED: lowest, highest, delta, dual. WEIGHTED: highest is first. SOFT: positive, negative.
    u32 kind;
    float first, second, third, fourth;
    u32 estimator;
    float beta, difference_clamp, cap;
};

#define RULE                                                                                                          \
    u32 sequence, float clamp, u32 kind, float first, float second, float third, float fourth, u32 estimator,         \
        float beta, float difference_clamp, float cap
#define THE_RULE                                                                                                      \
    Rule { sequence, clamp, kind, first, second, third, fourth, estimator, beta, difference_clamp, cap }

// NaN in the first argument stays.
__device__ __forceinline__ float smaller(float a, float b) { return a > b ? b : a; }
__device__ __forceinline__ float at_least(float a, float b) { return a < b ? b : a; }
__device__ __forceinline__ float inside(float value, float bound) { return at_least(smaller(value, bound), -bound); }
__device__ __forceinline__ float flag(bool set) { return set ? 1.0f : 0.0f; }

struct Token {
    float ratio;
    // -surrogate + beta * divergence.
    float term;
    // d(-surrogate): by the log-ratio, or by ln pi itself where the ratio is only a weight.
    float slope;
    // d(beta * divergence) by ln pi.
    float pull;
    bool low, high, capped;
    float divergence;
};

// Value and derivative of the divergence's estimate at the difference of the log-probabilities.
__device__ __forceinline__ void estimate(const Rule &rule, float difference, float &value, float &slope) {
    // e^-D - 1 by itself: as a difference of numbers near 1 it has lost the digits that D leaves of k3.
    float d = inside(difference, rule.difference_clamp), less = expm1f(-d);
    if (rule.estimator == K1) value = d, slope = 1.0f;
    else if (rule.estimator == K2) value = 0.5f * d * d, slope = d;
    else value = less + d, slope = rule.estimator == K3 ? -less : d;
    bool held = fabsf(difference) > rule.difference_clamp || fabsf(value) > rule.cap;
    value = inside(value, rule.cap);
    if (held) slope = 0.0f;
}

// Token n; `mean` is its row's mean log-ratio where the rule asks for it.
__device__ __forceinline__ Token token_at(const Operands &in, const Rule &rule, u32 n, float mean) {
    float advantage = in.advantage[n], log_probability = 0.0f;
    if (!rule.sequence || rule.kind == WEIGHTED || rule.kind == PLAIN || rule.estimator != NONE) log_probability = in.log_probability[n];
    float free = 0.0f;
    if (rule.kind != PLAIN) free = rule.sequence ? mean : log_probability - in.old[n];
    float ratio = expf(inside(free, rule.clamp));
    // A bound stops the gradient.
    float moves = flag(!(fabsf(free) > rule.clamp));
    bool positive = advantage > 0.0f, negative = advantage < 0.0f;
    Token token = {ratio, 0.0f, 0.0f, 0.0f, false, false, false, 0.0f};
    float gain;
    if (rule.kind == CLIPPED) {
        float lowest = rule.first, highest = rule.second, delta = rule.third, dual = rule.fourth;
        token.low = negative && ratio < lowest;
        token.high = positive && ratio > highest;
        token.capped = negative && (ratio > delta || ratio > dual);
        float unclipped = smaller(ratio, delta) * advantage;
        float clipped = at_least(smaller(ratio, highest), lowest) * advantage;
        gain = smaller(unclipped, clipped);
        if (negative) gain = at_least(gain, dual * advantage);
        token.slope = token.low || token.high || token.capped ? 0.0f : ratio * advantage * moves;
    } else if (rule.kind == WEIGHTED) {
        token.high = positive && ratio > rule.first;
        token.capped = negative && ratio > rule.first;
        token.slope = smaller(ratio, rule.first) * advantage;
        gain = token.slope * log_probability;
    } else if (rule.kind == PLAIN) {
        // What is no number reaches the coefficient too.
        token.slope = fmaf(0.0f, log_probability, advantage);
        gain = advantage * log_probability;
    } else {
        float temperature = positive ? rule.first : rule.second;
        float gate = 1.0f / (1.0f + expf(-(temperature * (ratio - 1.0f))));
        token.slope = 4.0f * gate * (1.0f - gate) * ratio * advantage * moves;
        gain = 4.0f / temperature * gate * advantage;
    }
    token.slope = -token.slope;
    token.term = -gain;
    if (rule.estimator != NONE) {
        float slope;
        estimate(rule, log_probability - in.reference[n], token.divergence, slope);
        token.pull = rule.beta * slope;
        token.term = fmaf(rule.beta, token.divergence, token.term);
    }
    return token;
}

// The block's row, cut at the number of tokens.
struct Row {
    u32 start, end;
    bool cut;

    __device__ __forceinline__ Row(const u32 *starts, u32 tokens) {
        u32 from = starts[blockIdx.x], to = starts[blockIdx.x + 1];
        cut = to > tokens;
        end = min(to, tokens);
        start = min(from, end);
    }
    __device__ __forceinline__ float length() const { return (float)(end - start); }
};

// Sum over the row of f(n), the same in all threads. Thread t adds tokens t, t + 128, .. of the row, whatever its start.
template <typename F>
__device__ __forceinline__ float row_sum(Row row, float *room, F f) {
    __shared__ float warps[BLOCK / WARP];
    float sum = 0.0f;
    for (u32 tile = row.start; tile < row.end; tile += TILE) {
        u32 end = min(tile + TILE, row.end);
        for (u32 n = tile / SECTOR * SECTOR + threadIdx.x; n < end; n += BLOCK) {
            if (n >= tile) room[n - tile] = f(n);
        }
        __syncthreads();
        for (u32 k = threadIdx.x; k < end - tile; k += BLOCK) sum += room[k];
        __syncthreads();
    }
    return block_sum<BLOCK / WARP>(sum, warps);
}

__device__ __forceinline__ float mean_log_ratio(const Operands &in, const Rule &rule, Row row, float *room) {
    if (!rule.sequence || rule.kind == PLAIN) return 0.0f;
    return row_sum(row, room, [&](u32 n) { return in.log_probability[n] - in.old[n]; }) / row.length();
}

KERNEL(BLOCK)
policy_loss_fwd_f32(const float *log_probability, const float *old, const float *reference, const float *advantage,
                const u32 *starts, u32 tokens, RULE, float *term, float *statistics) {
    __shared__ float room[TILE];
    __shared__ float held[BLOCK * STATISTICS];
    Row row(starts, tokens);
    Rule rule = THE_RULE;
    Operands in = {log_probability, old, reference, advantage};
    float mean = mean_log_ratio(in, rule, row, room);
    for (u32 base = row.start / SECTOR * SECTOR; base < row.end; base += BLOCK) {
        u32 n = base + threadIdx.x;
        if (n >= row.start && n < row.end) {
            Token token = token_at(in, rule, n, mean);
            float *mine = held + threadIdx.x * STATISTICS;
            mine[0] = row.cut ? nan() : token.ratio;
            mine[1] = flag(token.low);
            mine[2] = flag(token.high);
            mine[3] = flag(token.capped);
            mine[4] = token.divergence;
            term[n] = row.cut ? nan() : token.term;
        }
        __syncthreads();
        u32 first = max(base, row.start) * STATISTICS, end = min(base + BLOCK, row.end) * STATISTICS;
        for (u32 i = base * STATISTICS + threadIdx.x; i < end; i += BLOCK) {
            if (i >= first) statistics[i] = held[i - base * STATISTICS];
        }
        __syncthreads();
    }
}

KERNEL(BLOCK)
policy_loss_bwd_f32(const float *log_probability, const float *old, const float *reference, const float *advantage,
                const u32 *starts, u32 tokens, RULE, const float *weight, float *coefficient) {
    __shared__ float room[TILE];
    Row row(starts, tokens);
    Rule rule = THE_RULE;
    Operands in = {log_probability, old, reference, advantage};
    float mean = mean_log_ratio(in, rule, row, room);
    // The ratio of a sequence is moved by all of its tokens; a weight is moved by none.
    bool shared = rule.sequence && rule.kind != WEIGHTED && rule.kind != PLAIN;
    float each = 0.0f;
    if (shared) {
        each = row_sum(row, room, [&](u32 n) { return weight[n] * token_at(in, rule, n, mean).slope; }) / row.length();
    }
    for (u32 n = row.start / SECTOR * SECTOR + threadIdx.x; n < row.end; n += BLOCK) {
        if (n < row.start) continue;
        Token token = token_at(in, rule, n, mean);
        float value = shared ? fmaf(weight[n], token.pull, each) : weight[n] * (token.slope + token.pull);
        coefficient[n] = row.cut ? nan() : value;
    }
}
