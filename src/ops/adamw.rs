//! AdamW: decoupled weight decay, bias correction. Kernels: cuda/adamw.cu. CPU: cpu/adamw.rs.
//! Parity: tests/parity/adamw.rs.

use super::launch::{ABSENT, arguments, kernels, size};
use super::tensor_list::TensorList;
use super::{Tensor, float_dispatch};
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::cpu::gradient_norm::CHUNK;
use crate::device::{Arena, Argument, Device, Grid};

kernels!("adamw":
    STEP_F32 = "adamw_step_f32",
    STEP_BF16 = "adamw_step_bf16",
    STEP_ALL = "adamw_step_all",
    WIDEN = "adamw_widen",
);

/// Threads of a block, which has one chunk of [`CHUNK`] elements; `__launch_bounds__` of the kernels.
const BLOCK: u32 = 256;

/// What one tensor carries from step to step.
#[derive(Debug)]
pub struct Moments {
    /// Running mean of gradients, of the parameter's shape.
    pub m: Tensor,
    /// Running mean of squared gradients, of the parameter's shape.
    pub v: Tensor,
    /// What a bf16 parameter needs to be a master in f32; absent otherwise.
    master: Option<Master>,
}

/// The f32 values that a bf16 parameter is rounded from.
#[derive(Debug)]
enum Master {
    /// On a GPU: the values.
    Whole(Tensor),
    /// On the CPU: 16 bits of each beside the parameter's (cpu/adamw.rs), two in a word.
    Beside(Tensor),
}

impl Moments {
    /// Zero moments for `parameter`; a bf16 parameter gets an f32 master with its present value.
    ///
    /// # Errors
    /// A parameter that is no float.
    pub fn new(parameter: &Tensor) -> Result<Moments> {
        let _arena = Arena::Optimiser.enter();
        let (device, shape) = (parameter.device(), parameter.shape());
        let state = match parameter.dtype() {
            Dtype::Bf16 => Dtype::F32,
            dtype @ (Dtype::F32 | Dtype::F64) => dtype,
            other => return Err(Error::dtype("adamw parameter", other, "f32, f64 or bf16")),
        };
        let (m, v) = (Tensor::zeros(device, shape, state)?, Tensor::zeros(device, shape, state)?);
        let master = match (parameter.dtype(), device) {
            (Dtype::Bf16, Device::Cpu(_)) => {
                // The parameter's own value lies nothing beside it.
                let words = shape.elements().div_ceil(2);
                Some(Master::Beside(Tensor::zeros(device, [words], Dtype::U32)?))
            }
            (Dtype::Bf16, Device::Gpu(gpu)) => {
                let mut master = Tensor::zeros(device, shape, Dtype::F32)?;
                if shape.elements() > 0 {
                    let count = size("adamw elements", shape.elements())?;
                    let list = arguments![parameter.view().address()?, master.view_mut().address()?, count];
                    gpu.launch(&WIDEN, chunks(count), &list)?;
                }
                Some(Master::Whole(master))
            }
            _ => None,
        };
        Ok(Moments { m, v, master })
    }

    /// Whether there is an f32 master of a bf16 parameter.
    pub fn has_master(&self) -> bool {
        self.master.is_some()
    }

    /// Bytes that the master takes beside the parameter.
    pub fn master_bytes(&self) -> usize {
        match &self.master {
            None => 0,
            Some(Master::Whole(tensor) | Master::Beside(tensor)) => tensor.bytes(),
        }
    }

    /// Elements of a master from `at` on, as many as `out` has, where the parameter is the one that these belong to.
    ///
    /// # Errors
    /// No master, or more elements than it has.
    pub fn read_master(&self, parameter: &Tensor, at: usize, out: &mut [f32]) -> Result<()> {
        let end = at + out.len();
        self.expect_master(parameter, end)?;
        match &self.master {
            Some(Master::Beside(beside)) => {
                let (p, beside) = (parameter.view(), beside.view());
                let beside: &[u16] = bytemuck::cast_slice(beside.slice::<u32>()?);
                cpu::adamw::join_all(&p.slice()?[at..end], &beside[at..end], out);
                Ok(())
            }
            Some(Master::Whole(master)) => {
                out.copy_from_slice(&master.download::<f32>()?[at..end]);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Makes `values` the master of `parameter`, which is rounded from them already.
    ///
    /// # Errors
    /// No master, another number of elements; on the CPU a parameter that is not rounded from `values`.
    pub fn write_master(&mut self, parameter: &Tensor, values: &[f32]) -> Result<()> {
        self.expect_master(parameter, values.len())?;
        match &mut self.master {
            Some(Master::Beside(beside)) => {
                let (p, mut beside) = (parameter.view(), beside.view_mut());
                let beside: &mut [u16] = bytemuck::cast_slice_mut(beside.slice::<u32>()?);
                match cpu::adamw::split_all(values, p.slice()?, beside) {
                    true => Ok(()),
                    false => Err(Error::input(
                        "the f32 master of a bf16 parameter",
                        "does not round to the parameter",
                        "take both from one checkpoint",
                    )),
                }
            }
            Some(Master::Whole(master)) => master.upload(values),
            None => Ok(()),
        }
    }

    fn expect_master(&self, parameter: &Tensor, elements: usize) -> Result<()> {
        parameter.expect_shape("adamw parameter", self.m.shape())?;
        parameter.expect_dtype("adamw parameter", Dtype::Bf16)?;
        match self.master.is_some() && elements <= self.m.shape().elements() {
            true => Ok(()),
            false => Err(Error::shape("adamw master", format!("{elements} elements"), self.m.shape())),
        }
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
    check(parameter, gradient, moments, hyper, scale)?;
    let dtype = moments.m.dtype();
    match &parameter.device().clone() {
        Device::Cpu(_) => match moments.master.as_mut() {
            Some(Master::Whole(master) | Master::Beside(master)) => {
                let (mut p, mut beside) = (parameter.view_mut(), master.view_mut());
                let (mut m, mut v) = (moments.m.view_mut(), moments.v.view_mut());
                let step = numbers::<f32>(hyper, scale.view().slice()?[0]);
                let p = p.slice()?;
                let beside: &mut [u16] = bytemuck::cast_slice_mut(beside.slice::<u32>()?);
                let beside = &mut beside[..p.len()];
                let both = (p, beside);
                cpu::adamw::step_bf16(step, gradient.view().slice()?, both, m.slice()?, v.slice()?);
            }
            None => float_dispatch!("adamw", dtype, T => {
                let (mut p, mut m, mut v) =
                    (parameter.view_mut(), moments.m.view_mut(), moments.v.view_mut());
                let step = numbers::<T>(hyper, scale.view().slice()?[0]);
                cpu::adamw::step(step, gradient.view().slice()?, p.slice()?, m.slice()?, v.slice()?);
            }),
        },
        Device::Gpu(_) if parameter.shape().elements() == 0 => {}
        Device::Gpu(gpu) => {
            let count = size("adamw elements", parameter.shape().elements())?;
            let [p, master, gradient, m, v] = addresses(parameter, gradient, moments)?;
            let (kernel, mut list) = match moments.master {
                Some(_) => (&STEP_BF16, vec![p, master, gradient, m, v]),
                None => (&STEP_F32, vec![p, gradient, m, v]),
            };
            list.push(count.into());
            list.extend(number_arguments(hyper));
            list.push(scale.view().address()?);
            gpu.launch(kernel, chunks(count), &list)?;
        }
    }
    Ok(())
}

/// What [`step_all`] keeps from call to call: where the tensors are, on a GPU.
#[derive(Debug, Default)]
pub struct Batch {
    list: Option<TensorList>,
}

/// Addresses of a tensor in the list: parameter, master, gradient and moments.
const OPERANDS: usize = 5;

impl Batch {
    /// Room for the parameters that `moments` belong to. A call with others makes room for those.
    ///
    /// # Errors
    /// A device without the memory.
    pub fn reserve(moments: &[Moments]) -> Result<Batch> {
        let elements: Vec<usize> = moments.iter().map(|of| of.m.shape().elements()).collect();
        let list = match moments.first().map(|of| of.m.device()) {
            Some(device @ Device::Gpu(_)) => {
                let _arena = Arena::Workspace.enter();
                Some(TensorList::reserve(device, &elements, OPERANDS)?)
            }
            _ => None,
        };
        Ok(Batch { list })
    }
}

/// [`step`] for many tensors, in one launch on a GPU: `gradients[i]` and `moments[i]` belong to `parameters[i]`.
///
/// # Errors
/// As [`step`], or lists of different lengths. Nothing is updated then.
pub fn step_all(
    parameters: &mut [Tensor],
    gradients: &[&Tensor],
    moments: &mut [Moments],
    hyper: &Hyper,
    scale: &Tensor,
    batch: &mut Batch,
) -> Result<()> {
    let (tensors, found) = (parameters.len(), (gradients.len(), moments.len()));
    if found != (tensors, tensors) {
        let found = format!("{} gradients and {} moments", found.0, found.1);
        return Err(Error::shape("adamw lists", found, format!("{tensors}, one for each parameter")));
    }
    for ((parameter, gradient), moments) in parameters.iter().zip(gradients).zip(&*moments) {
        check(parameter, gradient, moments, hyper, scale)?;
    }
    match scale.device() {
        Device::Cpu(_) => {
            for ((parameter, gradient), moments) in parameters.iter_mut().zip(gradients).zip(moments) {
                step(parameter, gradient, moments, hyper, scale)?;
            }
        }
        device @ Device::Gpu(gpu) => {
            let elements: Vec<usize> = parameters.iter().map(|p| p.shape().elements()).collect();
            let kept = batch.list.take().filter(|list| list.is_for(elements.iter().copied()));
            let list = match kept {
                Some(list) => list,
                None => TensorList::reserve(device, &elements, OPERANDS)?,
            };
            let list = batch.list.insert(list);
            let mut operands = Vec::with_capacity(OPERANDS * tensors);
            for ((parameter, gradient), moments) in parameters.iter().zip(gradients).zip(&*moments) {
                operands.extend(addresses(parameter, gradient, moments)?);
            }
            let mut arguments = list.arguments(operands.into_iter())?.to_vec();
            arguments.extend(number_arguments(hyper));
            arguments.push(scale.view().address()?);
            if list.chunks() > 0 {
                gpu.launch(&STEP_ALL, Grid::linear(list.chunks(), BLOCK), &arguments)?;
            }
        }
    }
    Ok(())
}

/// Fails unless the operands of a step fit each other.
fn check(
    parameter: &Tensor,
    gradient: &Tensor,
    moments: &Moments,
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
    match (parameter.dtype(), &moments.master) {
        (Dtype::Bf16, Some(Master::Whole(master))) => {
            master.expect_shape("adamw master", shape)?;
            master.expect_dtype("adamw master", dtype)
        }
        (Dtype::Bf16, Some(Master::Beside(beside))) => {
            beside.expect_shape("adamw master", [shape.elements().div_ceil(2)])?;
            beside.expect_dtype("adamw master", Dtype::U32)
        }
        (found, None) if found == dtype && found.is_float() && found != Dtype::Bf16 => {
            match (parameter.device(), found) {
                (Device::Gpu(_), Dtype::F64) => {
                    Err(Error::dtype("adamw parameter", found, "f32 or bf16 on a GPU"))
                }
                _ => Ok(()),
            }
        }
        (found, master) => {
            let state = if master.is_some() { "a master" } else { "no master" };
            Err(Error::dtype(
                "adamw parameter",
                format!("{found} with {dtype} moments and {state}"),
                "bf16 with f32 moments and a master, or the moments' type without one",
            ))
        }
    }
}

/// Addresses of parameter, master (absent beside an f32 parameter), gradient, m, v: the order of the kernels.
fn addresses(parameter: &Tensor, gradient: &Tensor, moments: &Moments) -> Result<[Argument; 5]> {
    Ok([
        parameter.view().address()?,
        match &moments.master {
            Some(Master::Whole(master) | Master::Beside(master)) => master.view().address()?,
            None => ABSENT,
        },
        gradient.view().address()?,
        moments.m.view().address()?,
        moments.v.view().address()?,
    ])
}

/// A block for each chunk of `count` elements.
fn chunks(count: u32) -> Grid {
    Grid::linear(count.div_ceil(CHUNK as u32), BLOCK)
}

/// The constants of a step as kernels take them; the scale is read on the device.
fn number_arguments(hyper: &Hyper) -> [Argument; 7] {
    let step = numbers::<f32>(hyper, 1.0);
    arguments![step.keep, step.first, step.beta2, step.second, step.size, step.root, step.eps]
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
