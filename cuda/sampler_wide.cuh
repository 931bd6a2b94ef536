// The sampler with filters that may keep any number of ids: top-p or min-p alone, top-k above 128.
//
//   extents  largest and smallest scaled logit (sampler_split.cuh)
//   cut      counts or masses in 2048 buckets of equal width below the largest (at most 16 nats in all): the bucket in
//            which the k-th id, or the mass p, lies. Better buckets are kept whole.
//   draw     keeps and draws; ids of the cut bucket go to a list
//   end      the list is ordered and cut exactly
//
// Extents, cut and draw each read the row once and are launches of many blocks a row; the end is a block a row. min-p
// alone needs no cut. Rows whose cut bucket does not fit the list (thousands of nearly or exactly equal logits), and
// top-k above 128 with top-p, which cuts twice, are cut and drawn by the block that ends them: it refines a bucket by
// the bits of the rank key, 11 a pass, until it fits.
#pragma once
#include "sampler_split.cuh"

constexpr int PASS_QUADS = 4;
constexpr u32 PASS = WARP * 4 * PASS_QUADS; // Columns of a warp's step where a block has a row.
constexpr int PIECE_QUADS = 2;
constexpr u32 RUN = WARP * 4 * PIECE_QUADS; // The same where it has a piece of one.
constexpr u32 NO_BUCKET = 0xffffffffu;

// What is certain, and what is still to be ordered.
struct Cut {
    u32 bucket; // Ids of lower buckets are kept; NO_BUCKET: all are.
    u64 low, high; // Keys of the bucket above `high` are kept, those below `low` are not; between them is the list.
    u64 amount; // What the list must add up to: a number of ids, or a mass.
    u32 members; // Keys from low to high.
    u64 before; // The amount of lower buckets.
};

struct Wide {
    const Row &row;
    float scale, maximum, fineness;
    int fraction;
    u32 first, end, step; // Runs of columns that this warp takes.
    u64 *store;           // Histogram or list, shared: BUCKETS masses and as many counts.
    u64 *room;            // WARPS numbers, shared.
    u32 *shared_bucket, *shared_count;
    u64 *shared_amount;

    __device__ __forceinline__ u32 *counts() const { return reinterpret_cast<u32 *>(store + BUCKETS); }

    // Which bucket a scaled logit falls into: never a lower one than a larger logit.
    __device__ __forceinline__ u32 bucket(float s) const {
        float place = __fmul_rn(__fsub_rn(maximum, s), fineness);
        return place < (float)(BUCKETS - 1) ? (u32)place : BUCKETS - 1;
    }
    __device__ __forceinline__ float weight(float s) const { return exponential(__fsub_rn(s, maximum)); }

    // Calls visit(logit, id) for all ids of the warp's runs above probability 0.
    template <int QUADS, typename Visit>
    __device__ __forceinline__ void pass(Visit visit) const {
        for (u32 run = first; run < end; run += step) {
            float4 quads[QUADS];
            row.load(run / 4, quads);
#pragma unroll
            for (int j = 0; j < QUADS; j++) {
                u32 id = run + 4 * (j * WARP + threadIdx.x % WARP);
                if (quads[j].x > -infinity()) visit(quads[j].x, id);
                if (quads[j].y > -infinity()) visit(quads[j].y, id + 1);
                if (quads[j].z > -infinity()) visit(quads[j].z, id + 2);
                if (quads[j].w > -infinity()) visit(quads[j].w, id + 3);
            }
        }
    }

    // The same one column after the other: less code for what few rows need.
    template <typename Visit>
    __device__ __forceinline__ void pass_again(Visit visit) const {
#pragma unroll 1
        for (u32 id = threadIdx.x; id < row.cols; id += BLOCK)
            if (row.start[id] > -infinity()) visit(row.start[id], id);
    }

    // Largest scaled logit and width of the buckets, of what the chunks left; false where the row has no softmax.
    __device__ __forceinline__ bool extents(const Scratch &scratch) {
        float most = logit_of((u64)scratch.header->top << 32), least = logit_of((u64)~scratch.header->bottom << 32);
        maximum = __fmul_rn(most, scale);
        float range = fminf(__fsub_rn(maximum, __fmul_rn(least, scale)), 16.0f);
        fineness = range > 0.0f ? __fdiv_rn((float)(BUCKETS - 1), range) : 0.0f;
        return maximum > -infinity() && maximum <= FINITE;
    }

    __device__ __forceinline__ void clear_histogram() const {
        __syncthreads();
        for (u32 i = threadIdx.x; i < BUCKETS; i += BLOCK) {
            store[i] = 0;
            counts()[i] = 0;
        }
        __syncthreads();
    }

    // Adds to a bucket. The last one takes what most ids fall into: its sums stay with the thread.
    __device__ __forceinline__ void add(u32 bucket, u64 mass, u32 &last_count, u64 &last_mass) const {
        if (bucket == BUCKETS - 1) {
            last_count++;
            last_mass += mass;
        } else {
            atomicAdd(counts() + bucket, 1);
            atomicAdd(store + bucket, mass);
        }
    }
    __device__ __forceinline__ void add_last(u32 count, u64 mass) const {
        u64 mass_total = block_total(mass, room), count_total = block_total(count, room);
        if (threadIdx.x == 0) {
            counts()[BUCKETS - 1] = (u32)count_total;
            store[BUCKETS - 1] = mass_total;
        }
        __syncthreads();
    }

    // Number or mass of all buckets.
    __device__ __forceinline__ u64 histogram_total(bool by_mass) const {
        u64 sum = 0;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < BUCKETS; i += BLOCK) sum += by_mass ? store[i] : counts()[i];
        return block_total(sum, room);
    }

    // The bucket in which `amount`, at most the total, is reached; what is left of it there, and the bucket's count.
    __device__ __forceinline__ u32 reach(bool by_mass, u64 &amount, u32 &members) const {
        u64 carried = 0;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < BUCKETS; i += BLOCK) {
            u64 here = by_mass ? store[i] : counts()[i], total;
            u64 before = carried + block_scan(here, room, total);
            if (before < amount && amount <= before + here) {
                *shared_bucket = i;
                *shared_count = counts()[i];
                *shared_amount = amount - before;
            }
            carried += total;
        }
        __syncthreads();
        amount = *shared_amount;
        members = *shared_count;
        return *shared_bucket;
    }

    // Among the keys from `floor` on: those that make up k ids (p = 0), or the mass p. By the whole block.
    __device__ __forceinline__ Cut cut(u64 floor, u32 k, u64 p) const {
        bool by_mass = p != 0;
        u32 last_count = 0;
        u64 last_mass = 0;
        clear_histogram();
        pass<PASS_QUADS>([&](float logit, u32 id) {
            if (floor && rank_key(logit, id) < floor) return;
            float s = __fmul_rn(logit, scale);
            add(bucket(s), by_mass ? mass_of(weight(s), fraction) : 0, last_count, last_mass);
        });
        add_last(last_count, last_mass);
        Cut cut = {NO_BUCKET, floor, ~0ull, k, 0, 0};
        u64 total = histogram_total(by_mass);
        if (by_mass) cut.amount = share(p, total);
        else if (total <= k) return cut;
        cut.bucket = reach(by_mass, cut.amount, cut.members);
#pragma unroll 1
        for (int shift = 53; cut.members > LIST; shift = shift > 11 ? shift - 11 : 0) {
            last_count = 0;
            last_mass = 0;
            clear_histogram();
            pass_again([&](float logit, u32 id) {
                float s = __fmul_rn(logit, scale);
                u64 key = rank_key(logit, id);
                if (bucket(s) != cut.bucket || key < cut.low || key > cut.high) return;
                u32 digit = (u32)(key >> shift) % BUCKETS;
                add(BUCKETS - 1 - digit, by_mass ? mass_of(weight(s), fraction) : 0, last_count, last_mass);
            });
            add_last(last_count, last_mass);
            u64 digit = BUCKETS - 1 - reach(by_mass, cut.amount, cut.members);
            // Bits above the digit are common to all members from the second round on, and 0 in the first.
            u64 above = shift == 53 ? 0 : cut.high >> (shift + 11) << (shift + 11);
            u64 low = above | digit << shift;
            cut.high = low | ((1ull << shift) - 1);
            cut.low = max(low, cut.low);
        }
        return cut;
    }

    // Makes the list empty.
    __device__ __forceinline__ void clear_list() const {
        __syncthreads();
        if (threadIdx.x == 0) *shared_count = 0;
        __syncthreads();
    }

    // Orders the `members` keys of the list, which stand in `store`, and says by bits which of a thread's keys make up
    // `amount`.
    __device__ __forceinline__ u32 kept_of_list(u32 members, u64 amount, bool by_mass, u64 (&key)[LIST / BLOCK]) const {
        u32 kept = 0;
#pragma unroll
        for (u32 e = 0; e < LIST / BLOCK; e++) {
            u32 i = e * BLOCK + threadIdx.x;
            key[e] = i < members ? store[i] : 0;
        }
        if (members == 0) return 0;
        if (members <= FEW) key[0] = order_few(members, store);
        else sort_descending(key, store);
        u64 carried = 0;
#pragma unroll
        for (u32 e = 0; e < LIST / BLOCK; e++) {
            if (e * BLOCK >= members) break;
            u64 part = !key[e] ? 0 : by_mass ? mass_of(weight(__fmul_rn(logit_of(key[e]), scale)), fraction) : 1, total;
            u64 before = carried + block_scan(part, room, total);
            if (key[e] && before < amount) kept |= 1u << e;
            carried += total;
        }
        return kept;
    }

    // The least key that a cut keeps.
    __device__ __forceinline__ u64 last_key(const Cut &cut) const {
        if (cut.bucket == NO_BUCKET) return cut.low;
        clear_list();
        pass_again([&](float logit, u32 id) {
            u64 key = rank_key(logit, id);
            bool member = key >= cut.low && key <= cut.high && bucket(__fmul_rn(logit, scale)) == cut.bucket;
            if (member) store[atomicAdd(shared_count, 1)] = key;
        });
        __syncthreads();
        u64 key[LIST / BLOCK], last = 0;
        u32 kept = kept_of_list(*shared_count, cut.amount, false, key);
#pragma unroll
        for (u32 e = 0; e < LIST / BLOCK; e++)
            if (kept >> e & 1) last = max(last, ~key[e]);
        return ~block_largest(last, room);
    }
};

// Keeps and draws: the pass over the warp's runs of QUADS quads a lane; masses are added up where `weighing`. Bits of `bitmap`, where there is one, are the ids that are certain.
template <int QUADS>
__device__ __forceinline__ void draw_certain(const Wide &wide, const Cut &cut, float min_p, const Stream &stream,
                                             bool drawing, bool weighing, u32 *bitmap, Drawn &drawn) {
    u32 lane = threadIdx.x % WARP;
    // Whoever wins is not below this; ids that cannot reach it need no noise.
    float floor = __fadd_rn(wide.maximum, NOISE_SMALLEST);
    for (u32 run = wide.first; run < wide.end; run += wide.step) {
        float4 quads[QUADS];
        wide.row.load(run / 4, quads);
#pragma unroll
        for (int j = 0; j < QUADS; j++) {
            u32 quad = run / 4 + j * WARP + lane, certain = 0;
            float logit[4] = {quads[j].x, quads[j].y, quads[j].z, quads[j].w}, s[4], best = -infinity();
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[i] = __fmul_rn(logit[i], wide.scale);
                if (!(logit[i] > -infinity())) continue;
                u32 bucket = wide.bucket(s[i]);
                if (bucket > cut.bucket) continue;
                u64 key = rank_key(logit[i], 4 * quad + i);
                if (bucket == cut.bucket && key <= cut.high) {
                    if (key < cut.low) continue;
                    u32 at = atomicAdd(wide.shared_count, 1);
                    if (at < LIST) wide.store[at] = key;
                    continue;
                }
                if (weighing) {
                    float weight = wide.weight(s[i]);
                    if (!(weight >= min_p)) continue;
                    drawn.mass += mass_of(weight, wide.fraction);
                }
                certain |= 1u << i;
                best = fmaxf(best, s[i]);
            }
            if (drawing && certain && __fadd_rn(best, NOISE_LARGEST) >= fmaxf(floor, drawn.value)) {
                float4 noise = stream.noise_of_block(quad);
                if (certain & 1) drawn.take(__fadd_rn(s[0], noise.x), 4 * quad);
                if (certain & 2) drawn.take(__fadd_rn(s[1], noise.y), 4 * quad + 1);
                if (certain & 4) drawn.take(__fadd_rn(s[2], noise.z), 4 * quad + 2);
                if (certain & 8) drawn.take(__fadd_rn(s[3], noise.w), 4 * quad + 3);
            }
            if (!bitmap) continue; // The same for the whole block.
            u32 word = certain << 4 * (lane % 8);
            word |= __shfl_xor_sync(ALL_LANES, word, 1);
            word |= __shfl_xor_sync(ALL_LANES, word, 2);
            word |= __shfl_xor_sync(ALL_LANES, word, 4);
            if (lane % 8 == 0) bitmap[quad / 8] = word;
        }
    }
}

// Words of a row's bitmap: whole runs of a piece.
__device__ __forceinline__ u32 bitmap_words(u32 cols) { return (cols + RUN - 1) / RUN * (RUN / 32); }

// Writes the ids of a bitmap, ascending, as far as there is room; returns their number.
__device__ __forceinline__ u32 write_ids(const u32 *bitmap, u32 words, u64 *room, const Output &out) {
    u32 carried = 0;
    for (u32 first = 0; first < words; first += BLOCK) {
        u32 word = first + threadIdx.x, bits = word < words ? bitmap[word] : 0;
        u64 total, at = carried + block_scan(__popc(bits), room, total);
        for (; bits && at < out.capacity; bits &= bits - 1, at++) out.ids[at] = 32 * word + __ffs(bits) - 1;
        carried += (u32)total;
    }
    return carried;
}

// The row's kept ids are those of the whole passes above and the list's: the end of a row. `k` 0, `top_p` (by its bits)
// 0, `min_p` 0: none. `split` says that other blocks have made cut and draw.
__device__ __forceinline__ void end_wide(const Row &row, const Scratch &scratch, bool split, float scale, u32 k, u64 top_p,
                                         float min_p, const Stream &stream, const Output &out, float inverse_tau) {
    __shared__ u64 store[BUCKETS + BUCKETS / 2];
    __shared__ u64 room[WARPS];
    __shared__ u32 shared_bucket, shared_count;
    __shared__ u64 shared_amount;
    u32 warp = threadIdx.x / WARP;
    Wide wide = {row, scale, 0.0f, 0.0f, fraction_bits(row.cols), warp * PASS, row.cols, WARPS * PASS,
                 store, room, &shared_bucket, &shared_count, &shared_amount};
    bool sound = wide.extents(scratch);
    __syncthreads(); // All threads have read them.
    if (threadIdx.x == 0) scratch.header->top = scratch.header->bottom = 0;
    if (!sound) return out.fail(FAULTY);
    u32 *bitmap = out.ids ? scratch.bitmap : nullptr, members = split ? scratch.header->listed : LIST + 1;
    Drawn drawn = {-infinity(), FAULTY, 0};
    u64 best = 0, amount;
    if (members <= LIST) {
        amount = scratch.header->amount;
        if (threadIdx.x == 0) drawn.mass = scratch.header->mass, best = scratch.header->best;
        for (u32 i = threadIdx.x; i < members; i += BLOCK) store[i] = scratch.list[i];
        __syncthreads();
    } else {
        Cut cut = {NO_BUCKET, 0, ~0ull, 0, 0, 0};
#pragma unroll 1
        for (int filter = 0; filter < 2; filter++) {
            if (filter == 0 ? k == 0 : top_p == 0) continue;
            u64 floor = filter == 1 && k ? wide.last_key(cut) : 0;
            cut = wide.cut(floor, k, filter == 1 ? top_p : 0);
        }
        wide.clear_list();
        draw_certain<PASS_QUADS>(wide, cut, min_p, stream, !out.weights, true, bitmap, drawn);
        __syncthreads();
        members = shared_count;
        amount = cut.amount;
        best = drawn.key();
    }

    u64 key[LIST / BLOCK];
    u32 kept = wide.kept_of_list(members, amount, top_p != 0, key);
#pragma unroll
    for (u32 e = 0; e < LIST / BLOCK; e++) {
        if (!(kept >> e & 1)) continue;
        u32 id = id_of(key[e]);
        float s = __fmul_rn(logit_of(key[e]), scale), weight = wide.weight(s);
        if (!(weight >= min_p)) continue;
        drawn.mass += mass_of(weight, wide.fraction);
        if (bitmap) atomicOr(bitmap + id / 32, 1u << id % 32);
        if (!out.weights) best = max(best, rank_key(__fadd_rn(s, stream.noise(id)), id));
    }
    u64 total = block_total(drawn.mass, room);
    if (out.ids) {
        u32 number = write_ids(bitmap, bitmap_words(row.cols), room, out);
        if (number > out.capacity) {
            __syncthreads(); // A mixture's ids are written again.
            return out.fail(number);
        }
        if (threadIdx.x == 0 && out.count) *out.count = number;
        if (out.weights) return mix(row.start, scale, inverse_tau, stream, number, out, room);
    }
    best = block_largest(best, room);
    if (threadIdx.x == 0) {
        u32 token = id_of(best);
        float s = __fmul_rn(row.start[token], scale);
        out.draw(token, log_probability(s, wide.maximum, log_mass(total, wide.fraction)));
    }
}
