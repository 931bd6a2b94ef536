// Rows of many tensors appended to longer ones, in one launch: what a step kept goes to the tape.
//   to[place + n] = from[n]     for every pair of tensors, n < rows; rows at or beyond a pair's capacity are dropped
//
//   kernel        in                                        out  grid                              block  shared  bytes
//   append_rows   table[P, 4] (u64) place[1] from[rows, B]  to   ceil(max B / 4096) x rows x P     256    0       2 P rows B
//
// A row of the table (src/ops/append.rs): addresses of `from` and `to`, bytes of a row, rows that `to` holds.
// `place` lies in memory, not among the arguments, so that a captured launch appends behind what it appended before.
// A block has 4096 bytes of one row; its threads take 16 bytes each where addresses and length allow, else 4 or 2.
#include "tensor_list.cuh"

constexpr int BLOCK = 256;
constexpr u64 PIECE = 16 * BLOCK;

// So many bytes, in units. Not unrolled: a thread copies one vector, and few of the smaller units.
template <typename unit>
__device__ __forceinline__ void copy_piece(const u64 *table, u64 from, u64 to, u32 bytes) {
    const unit *source = global<unit>(table, from);
    unit *target = global<unit>(table, to);
#pragma unroll 1
    for (u32 i = threadIdx.x; i < bytes / sizeof(unit); i += BLOCK) target[i] = source[i];
}

KERNEL(BLOCK) append_rows(const u64 *table, const u32 *place, u32 pairs) {
    u64 row = blockIdx.y, to_row = *place + row;
    if (blockIdx.z >= pairs) return;
    const u64 *pair = table + 4 * blockIdx.z;
    u64 bytes = pair[2], first = blockIdx.x * PIECE;
    if (first >= bytes || to_row >= pair[3]) return;
    u64 from = pair[0] + row * bytes + first, to = pair[1] + to_row * bytes + first;
    u32 piece = min(PIECE, bytes - first);
    u64 odd = pair[0] | pair[1] | bytes;
    if (odd % 16 == 0) {
        copy_piece<uint4>(table, from, to, piece);
    } else if (odd % 4 == 0) {
        copy_piece<u32>(table, from, to, piece);
    } else {
        copy_piece<unsigned short>(table, from, to, piece);
    }
}
