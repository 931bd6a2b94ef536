//! AdamW: decoupled weight decay, bias correction. CPU: cpu/adamw.rs. Parity: tests/parity/adamw.rs.

use super::{Tensor, float_dispatch};
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::device::Device;

/// What one tensor carries from step to step. Checkpoints download and upload the parts.
#[derive(Debug)]
pub struct Moments {
    /// Running mean of gradients, of the parameter's shape.
    pub m: Tensor,
    /// Running mean of squared gradients, of the parameter's shape.
    pub v: Tensor,
    /// The f32 value that a bf16 parameter is rounded from; absent otherwise.
    pub master: Option<Tensor>,
}

impl Moments {
    /// Zero moments for `parameter`; a bf16 parameter gets an f32 master with its present value.
    ///
    /// # Errors
    /// A parameter that is no float.
    pub fn new(parameter: &Tensor) -> Result<Moments> {
        let (device, shape) = (parameter.device(), parameter.shape());
        let state = match parameter.dtype() {
            Dtype::Bf16 => Dtype::F32,
            dtype @ (Dtype::F32 | Dtype::F64) => dtype,
            other => return Err(Error::dtype("adamw parameter", other, "f32, f64 or bf16")),
        };
        let mut moments = Moments {
            m: Tensor::zeros(device, shape, state)?,
            v: Tensor::zeros(device, shape, state)?,
            master: None,
        };
        if parameter.dtype() == Dtype::Bf16 {
            let mut master = Tensor::zeros(device, shape, Dtype::F32)?;
            match device {
                Device::Cpu(_) => cpu::adamw::widen(parameter.view().slice()?, master.view_mut().slice()?),
                gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("adamw")),
            }
            moments.master = Some(master);
        }
        Ok(moments)
    }
}

/// The numbers of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the denominator after bias correction, outside the root.
    pub eps: f64,
    /// Decoupled: a step multiplies the parameter by `1 - lr * weight_decay`.
    pub weight_decay: f64,
    /// Which step this is, counted from 1.
    pub step: u64,
}

/// Updates `parameter` and `moments` with `gradient * scale`, in the order of PyTorch's AdamW (cpu/adamw.rs).
///
/// `scale[1]` stays on the device: see [`super::gradient_norm`]. A bf16 parameter takes an f32 gradient.
///
/// # Errors
/// Shapes or dtypes that do not fit; step 0.
pub fn step(
    parameter: &mut Tensor,
    gradient: &Tensor,
    moments: &mut Moments,
    hyper: &Hyper,
    scale: &Tensor,
) -> Result<()> {
    let (shape, dtype) = (parameter.shape(), moments.m.dtype());
    for (what, tensor) in
        [("adamw gradient", gradient), ("adamw moment m", &moments.m), ("adamw moment v", &moments.v)]
    {
        tensor.expect_shape(what, shape)?;
        tensor.expect_dtype(what, dtype)?;
    }
    scale.expect_shape("adamw scale", [1])?;
    scale.expect_dtype("adamw scale", dtype)?;
    if hyper.step == 0 {
        return Err(Error::input("adamw step", "found 0", "count steps from 1"));
    }
    match parameter.device() {
        Device::Cpu(_) => match (parameter.dtype(), moments.master.as_mut()) {
            (Dtype::Bf16, Some(master)) => {
                master.expect_shape("adamw master", shape)?;
                let (mut p, mut master) = (parameter.view_mut(), master.view_mut());
                let (mut m, mut v) = (moments.m.view_mut(), moments.v.view_mut());
                let step = numbers::<f32>(hyper, scale.view().slice()?[0]);
                let both = (p.slice()?, master.slice()?);
                cpu::adamw::step_bf16(step, gradient.view().slice()?, both, m.slice()?, v.slice()?);
            }
            (found, None) if found == dtype => float_dispatch!("adamw", dtype, T => {
                let (mut p, mut m, mut v) =
                    (parameter.view_mut(), moments.m.view_mut(), moments.v.view_mut());
                let step = numbers::<T>(hyper, scale.view().slice()?[0]);
                cpu::adamw::step(step, gradient.view().slice()?, p.slice()?, m.slice()?, v.slice()?);
            }),
            (found, master) => {
                let state = if master.is_some() { "a master" } else { "no master" };
                return Err(Error::dtype(
                    "adamw parameter",
                    format!("{found} with {dtype} moments and {state}"),
                    "bf16 with f32 moments and a master, or the moments' type without one",
                ));
            }
        },
        gpu @ Device::Gpu(_) => return Err(gpu.no_kernel("adamw")),
    }
    Ok(())
}

/// The constants of a step, computed in f64 and rounded once.
fn numbers<T: cpu::Float>(hyper: &Hyper, scale: T) -> cpu::adamw::Step<T> {
    let steps = hyper.step as f64;
    cpu::adamw::Step {
        keep: T::from_f64(1.0 - hyper.lr * hyper.weight_decay),
        first: T::from_f64(1.0 - hyper.beta1),
        beta2: T::from_f64(hyper.beta2),
        second: T::from_f64(1.0 - hyper.beta2),
        size: T::from_f64(hyper.lr / (1.0 - hyper.beta1.powf(steps))),
        root: T::from_f64((1.0 - hyper.beta2.powf(steps)).sqrt()),
        eps: T::from_f64(hyper.eps),
        scale,
    }
}
