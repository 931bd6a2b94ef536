//! Rows picked by index. Kernels: cuda/gather.cu, backward cuda/scatter.cu. CPU: cpu/gather.rs.
//! Parity: tests/parity/gather.rs.

use super::index::expect_rows;
use super::launch::{arguments, by_dtype, kernels, row_grid, size};
use super::scatter::{self, Contributions, Order};
use super::{View, ViewMut, float_dispatch};
use crate::base::{Dtype, Result};
use crate::cpu;
use crate::device::Device;

kernels!("gather": FORWARD_F32 = "gather_fwd_f32", FORWARD_BF16 = "gather_fwd_bf16");

/// `y[n] = x[index[n]]`: `x[M, d]`, `index` U32 `[N, 1]`, `y[N, d]`.
///
/// # Errors
/// Shapes or dtypes that do not fit; an index outside `x`.
pub fn forward(x: View, index: View, mut y: ViewMut) -> Result<()> {
    let (rows, cols, dtype) = (index.count(), x.cols(), x.dtype());
    index.expect("gather index", rows, 1, Dtype::U32)?;
    y.expect("gather output", rows, cols, dtype)?;
    match x.device() {
        Device::Cpu(_) => float_dispatch!("gather", dtype, T => {
            let index = index.slice()?;
            expect_rows("gather index", index, x.count())?;
            cpu::gather::forward::<T>(x.slice()?, index, cols, y.slice()?);
        }),
        Device::Gpu(_) if rows * cols == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("gather", dtype, &FORWARD_F32, &FORWARD_BF16)?;
            let sizes = [size("gather rows", rows)?, size("columns", cols)?, size("gather x", x.count())?];
            let [rows, cols, table] = sizes;
            let list = arguments![x.address()?, index.address()?, rows, cols, table, y.address()?];
            gpu.launch(kernel, row_grid("gather rows", index.count(), x.cols())?, &list)?;
        }
    }
    Ok(())
}

/// Gradient of [`forward`], added: `dx[index[n]] += dy[n]`, n ascending.
///
/// # Errors
/// Shapes or dtypes that do not fit; an index outside `dx`.
pub fn backward(dy: View, index: View, mut dx: ViewMut, order: &mut Order) -> Result<()> {
    let (rows, cols, dtype) = (index.count(), dx.cols(), dx.dtype());
    index.expect("gather index", rows, 1, Dtype::U32)?;
    dy.expect("gather dy", rows, cols, dtype)?;
    match dy.device() {
        Device::Cpu(_) => float_dispatch!("gather", dtype, T => {
            let index = index.slice()?;
            expect_rows("gather index", index, dx.count())?;
            cpu::gather::backward::<T>(dy.slice()?, index, cols, dx.slice()?);
        }),
        Device::Gpu(gpu) => scatter::add(&**gpu, Contributions::Rows(index), dy, dx, order)?,
    }
    Ok(())
}
