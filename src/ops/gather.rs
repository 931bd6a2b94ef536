//! Rows picked by index. CPU: cpu/gather.rs. Parity: tests/parity/gather.rs.

use super::index::expect_rows;
use super::{View, ViewMut, float_dispatch};
use crate::base::{Dtype, Result};
use crate::cpu;
use crate::device::Device;

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
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("gather")),
    }
    Ok(())
}

/// Gradient of [`forward`], added: `dx[index[n]] += dy[n]`, n ascending.
///
/// # Errors
/// Shapes or dtypes that do not fit; an index outside `dx`.
pub fn backward(dy: View, index: View, mut dx: ViewMut) -> Result<()> {
    let (rows, cols, dtype) = (index.count(), dx.cols(), dx.dtype());
    index.expect("gather index", rows, 1, Dtype::U32)?;
    dy.expect("gather dy", rows, cols, dtype)?;
    match dy.device() {
        Device::Cpu(_) => float_dispatch!("gather", dtype, T => {
            let index = index.slice()?;
            expect_rows("gather index", index, dx.count())?;
            cpu::gather::backward::<T>(dy.slice()?, index, cols, dx.slice()?);
        }),
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("gather")),
    }
    Ok(())
}
