// Rows picked by index.
//   forward   y[n] = x[index[n]]                        an index outside x: y[n] = NaN
//   backward  dx[index[n]] += dy[n], n ascending: scatter.cu
//
//   kernel       in                out      grid                               block  shared  bytes (f32 4, bf16 2)
//   gather_fwd_* x[M,C] index[N]   y[N,C]   (ceil(N / 4), ceil(C / 1024))      128    0       2 N C each + 4 N
//
// A warp has one row, or 1024 columns of it, so that an index is read once for many columns. Rows whose width is a
// multiple of 16 bytes move in 16-byte vectors, others element by element.
#include "indexed_rows.cuh"

template <int V, typename act>
__device__ __forceinline__ void forward(const act *x, const u32 *index, u32 rows, u32 cols, u32 table_rows, act *y) {
    Run run(cols);
    if (run.row >= rows) return;
    u32 from = index[run.row];
    y += (u64)run.row * cols;
    x += (u64)from * cols;
    bool exists = from < table_rows;
    run.move<V>([&](u32 c) { return exists ? read<V>(x + c) : all<V>(nan()); },
                [&](u32 c, Numbers<V> v) { write(y + c, v); });
}

template <typename act>
__device__ __forceinline__ void forward(const act *x, const u32 *index, u32 rows, u32 cols, u32 table_rows, act *y) {
    constexpr int V = vector<act>();
    if (cols % V == 0) forward<V>(x, index, rows, cols, table_rows, y);
    else forward<1>(x, index, rows, cols, table_rows, y);
}

#define ENTRY(dtype, act)                                                                                             \
    KERNEL(ROW_BLOCK)                                                                                                 \
    gather_fwd_##dtype(const act *x, const u32 *index, u32 rows, u32 cols, u32 table_rows, act *y) {                  \
        forward(x, index, rows, cols, table_rows, y);                                                                 \
    }
ENTRY(f32, float)
ENTRY(bf16, bf16)
