//! AdamW over a model's parameters, with the gradient clipped to a global norm first.
//!
//! Weight decay acts on every parameter, as in torch.optim.AdamW and Coconut's training code; nothing is excluded.

use crate::base::{Dtype, Error, Result, Shape};
use crate::device::Device;
use crate::model::{Gradients, Model};
use crate::ops::Tensor;
use crate::ops::adamw::{self, Batch, Hyper, Moments};
use crate::ops::gradient_norm::{self, GradientNorm};
use std::ops::Range;

/// Settings that stay for a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global gradient norm; none = no clipping.
    pub clip: Option<f64>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, clip: Some(1.0) }
    }
}

/// Neighbouring parameters with a learning rate in common.
#[derive(Debug)]
struct Group {
    parameters: Range<usize>,
    /// Their learning rate over that of the update.
    factor: f64,
    batch: Batch,
}

/// A tensor of an optimiser's state.
#[derive(Clone, Copy, Debug)]
pub enum State<'a> {
    /// A moment, as it is held.
    Moment(&'a Tensor),
    /// The f32 master of a bf16 parameter, which the CPU keeps in parts.
    Master(&'a Moments, &'a Tensor),
}

/// Elements of a master that are put together at a time on the CPU; a GPU's comes in one download.
const PIECE: usize = 1 << 18;

impl State<'_> {
    /// Its shape.
    pub fn shape(&self) -> Shape {
        match self {
            State::Moment(tensor) | State::Master(_, tensor) => tensor.shape(),
        }
    }

    /// What its numbers are.
    pub fn dtype(&self) -> Dtype {
        match self {
            State::Moment(tensor) => tensor.dtype(),
            State::Master(..) => Dtype::F32,
        }
    }

    /// Bytes of its numbers.
    pub fn bytes(&self) -> usize {
        self.shape().elements() * self.dtype().size()
    }

    /// Calls `body` with its numbers, piece by piece, each a tensor.
    ///
    /// # Errors
    /// A device that fails, and those of `body`.
    pub fn pieces(&self, mut body: impl FnMut(&Tensor) -> Result<()>) -> Result<()> {
        let (moments, parameter) = match self {
            State::Moment(tensor) => return body(tensor),
            State::Master(moments, parameter) => (moments, parameter),
        };
        let elements = parameter.shape().elements();
        let most = if matches!(parameter.device(), Device::Cpu(_)) { PIECE } else { elements.max(1) };
        for at in (0..elements).step_by(most) {
            let mut piece = vec![0.0; most.min(elements - at)];
            moments.read_master(parameter, at, &mut piece)?;
            body(&Tensor::from_host(&Device::cpu(), [piece.len()], &piece)?)?;
        }
        Ok(())
    }
}

/// Optimiser state of what one model trains: its adapter, or all its parameters.
#[derive(Debug)]
pub struct Optimizer {
    settings: Settings,
    moments: Vec<Moments>,
    norm: GradientNorm,
    /// All parameters, in their order.
    groups: Vec<Group>,
    step: u64,
}

impl Optimizer {
    /// Zero moments for what `model` trains.
    pub fn new(model: &Model, settings: Settings) -> Result<Optimizer> {
        let elements: Vec<usize> = model.trained().iter().map(|p| p.shape().elements()).collect();
        let moments = model.trained().iter().map(Moments::new).collect::<Result<Vec<_>>>()?;
        let batch = Batch::reserve(&moments)?;
        Ok(Optimizer {
            settings,
            moments,
            norm: GradientNorm::reserve(model.device(), &elements, model.dtype().accumulation())?,
            groups: vec![Group { parameters: 0..elements.len(), factor: 1.0, batch }],
            step: 0,
        })
    }

    /// Goes on under other settings.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Gives parameters learning rates of their own: ranges that rise and do not meet, with their rate over that of an
    /// update. The others take the update's.
    ///
    /// # Errors
    /// Ranges that are not so, or a factor that is no learning rate.
    pub fn set_rates(&mut self, rates: &[(Range<usize>, f64)]) -> Result<()> {
        let all = self.moments.len();
        let mut groups = Vec::new();
        let mut push = |parameters: Range<usize>, factor| -> Result<()> {
            if !parameters.is_empty() {
                let batch = Batch::reserve(&self.moments[parameters.clone()])?;
                groups.push(Group { parameters, factor, batch });
            }
            Ok(())
        };
        let mut done = 0;
        for (range, factor) in rates {
            if range.start < done || range.end > all || !(factor.is_finite() && *factor >= 0.0) {
                return Err(Error::input(
                    "learning rates of parameters",
                    format!("{factor} times for {range:?} after {done} of {all}"),
                    "give rising ranges and factors of at least 0",
                ));
            }
            push(done..range.start, 1.0)?;
            push(range.clone(), *factor)?;
            done = range.end;
        }
        push(done..all, 1.0)?;
        self.groups = groups;
        Ok(())
    }

    /// Starts afresh under `settings` in the memory that is there: zero moments, no updates. The f32 masters of bf16
    /// weights stay.
    ///
    /// # Errors
    /// A device that fails.
    pub fn restart(&mut self, settings: Settings) -> Result<()> {
        for moments in &mut self.moments {
            moments.m.clear()?;
            moments.v.clear()?;
        }
        (self.settings, self.step) = (settings, 0);
        Ok(())
    }

    /// Updates so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Everything that goes on from step to step besides the count of updates, by name: `m.NAME`, `v.NAME` and, where a
    /// parameter is bf16, `master.NAME`, for each NAME that `model` trains.
    ///
    /// # Errors
    /// `model` is not the one the optimiser was made for.
    pub fn state<'a>(&'a self, model: &'a Model) -> Result<Vec<(String, State<'a>)>> {
        let mut list = Vec::with_capacity(3 * self.moments.len());
        let names = names(model, self.moments.len())?;
        for ((name, parameter), moments) in names.into_iter().zip(model.trained()).zip(&self.moments) {
            list.push((format!("m.{name}"), State::Moment(&moments.m)));
            list.push((format!("v.{name}"), State::Moment(&moments.v)));
            if moments.has_master() {
                list.push((format!("master.{name}"), State::Master(moments, parameter)));
            }
        }
        Ok(list)
    }

    /// Goes on after `step` updates: `fill(name, tensor)` writes each tensor that [`Optimizer::state`] names.
    ///
    /// # Errors
    /// Another model, or what `fill` finds; the optimiser is then of no further use.
    pub fn restore(
        &mut self,
        model: &Model,
        step: u64,
        mut fill: impl FnMut(&str, &mut Tensor) -> Result<()>,
    ) -> Result<()> {
        let names = names(model, self.moments.len())?;
        for ((name, parameter), moments) in names.into_iter().zip(model.trained()).zip(&mut self.moments) {
            fill(&format!("m.{name}"), &mut moments.m)?;
            fill(&format!("v.{name}"), &mut moments.v)?;
            if moments.has_master() {
                let mut master = Tensor::zeros(&Device::cpu(), parameter.shape(), Dtype::F32)?;
                fill(&format!("master.{name}"), &mut master)?;
                moments.write_master(parameter, &master.download()?)?;
            }
        }
        self.step = step;
        Ok(())
    }

    /// Clips `gradients` and updates `model`; returns the norm before clipping (one download).
    ///
    /// # Errors
    /// A norm that is not finite, or gradients of a backward pass that failed: nothing is updated then.
    pub fn update(
        &mut self,
        model: &mut Model,
        gradients: &mut Gradients,
        learning_rate: f64,
    ) -> Result<f64> {
        let list: Vec<&Tensor> = gradients.tensors()?.iter().collect();
        gradient_norm::forward(&list, self.settings.clip.unwrap_or(f64::INFINITY), &mut self.norm)?;
        let norm = match self.norm.norm().dtype() {
            Dtype::F64 => self.norm.norm().download::<f64>()?[0],
            _ => f64::from(self.norm.norm().download::<f32>()?[0]),
        };
        if !norm.is_finite() {
            return Err(Error::NotFinite {
                what: "the gradient's norm".into(),
                found: format!("{norm} at step {}", self.step + 1),
                advice: "lower the learning rate, or look for overflow in the loss; nothing was updated"
                    .into(),
            });
        }
        self.step += 1;
        let Settings { beta1, beta2, eps, weight_decay, .. } = self.settings;
        let scale = self.norm.scale();
        for Group { parameters, factor, batch } in &mut self.groups {
            let lr = *factor * learning_rate;
            let hyper = Hyper { lr, beta1, beta2, eps, weight_decay, step: self.step };
            let (list, moments) = (&list[parameters.clone()], &mut self.moments[parameters.clone()]);
            let own = &mut model.trained_mut()[parameters.clone()];
            adamw::step_all(own, list, moments, &hyper, scale, batch)?;
        }
        Ok(norm)
    }
}

/// Names of the parameters that moments belong to.
fn names(model: &Model, expected: usize) -> Result<Vec<&str>> {
    let names = model.trained_names();
    if names.len() != expected {
        let found = format!("a model that trains {} tensors", names.len());
        return Err(Error::shape("optimiser state", found, format!("the one that trains {expected}")));
    }
    Ok(names)
}
