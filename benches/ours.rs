//! Our side of the comparison with PyTorch: the device, the models on it, and the work that a name means.

use crate::peer::Failure;
use crate::reinforcement::{GrpoStep, Plan, Rollout, masked};
use crate::workloads::{self, Decode, Prefill, Run, TrainStep};
use half::bf16;
use latch::base::Dtype;
use latch::cpu::gemm::{Accumulate, Bf16Operand, Matrix, MatrixMut, gemm, gemm_bf16};
use latch::device::Device;
use latch::model::{Model, Precision, Record};
use latch::rollout::masks::{Masking, Scope};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// How many rollouts there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Of a group.
    pub rollouts: usize,
    /// Groups of an update.
    pub prompts: usize,
}

impl Count {
    /// One group; `rollout_masked` shares its prompt, `rollout_shared` all that rollouts without masks have in common.
    fn rollout(self, work: &str) -> Plan {
        let plan = match work {
            "rollout_masked" => Plan::new(1, masked(Scope::Latent), true),
            _ => Plan::new(1, Masking::NONE, work == "rollout_shared"),
        };
        Plan { group: self.rollouts, ..plan }
    }

    /// An update; beside framework dropout, which is everywhere, masks are too.
    pub fn update(self, work: &str) -> Plan {
        let scope = if work == "grpo_step_dropout" { Scope::All } else { Scope::Latent };
        Plan { group: self.rollouts, ..Plan::new(self.prompts, masked(scope), true) }
    }
}

/// Splits WORK/SHAPE/DTYPE.
pub fn parts(name: &str) -> Result<(&str, &str, Precision), Failure> {
    let wrong = || format!("`{name}` is not WORK/SHAPE/DTYPE");
    let (rest, dtype) = name.rsplit_once('/').ok_or_else(wrong)?;
    let (work, shape) = rest.rsplit_once('/').ok_or_else(wrong)?;
    let precision = match dtype {
        "f32" => Precision::F32,
        "bf16" => Precision::Bf16,
        "bf16a" => Precision::Bf16Activations,
        other => return Err(format!("`{name}`: dtype `{other}`; known: f32, bf16, bf16a").into()),
    };
    Ok((work, shape, precision))
}

/// A panic of `body`, an assertion of prepared work for one, as a failure: one row's, not the run's.
pub fn caught<T>(body: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| text.to_string()));
        Err(text.unwrap_or_else(|| "a panic".into()).into())
    })
}

/// The device by its name, and the model used last: prefill, decode and rollouts of one shape share it.
pub struct Ours {
    name: String,
    device: Device,
    model: Option<(String, Arc<Model>)>,
}

impl Ours {
    /// Opens `cpu`, `cuda`, `cuda:N` or `sim`.
    pub fn open(name: &str) -> Result<Ours, Failure> {
        Ok(Ours { name: name.into(), device: Device::open(name)?, model: None })
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Gives everything back and opens the device again: one that failed is lost to whoever holds it.
    pub fn reopen(&mut self) -> Result<(), Failure> {
        self.model = None;
        self.device = Device::cpu();
        self.device = Device::open(&self.name)?;
        Ok(())
    }

    fn is_cpu(&self) -> bool {
        matches!(self.device, Device::Cpu(_))
    }

    /// A model that nobody else has; on the CPU with a device of its own, whose counters show what the work holds.
    pub fn fresh(&self, name: &str, precision: Precision) -> Result<Model, Failure> {
        let config =
            workloads::config(name).ok_or_else(|| format!("latch's side knows no model `{name}`"))?;
        let device = if self.is_cpu() { Device::cpu() } else { self.device.clone() };
        precision.check(&device)?;
        Ok(workloads::model(config, precision, &device))
    }

    /// The model that work without training shares.
    pub fn shared(&mut self, name: &str, precision: Precision) -> Result<Arc<Model>, Failure> {
        let key = format!("{name}/{precision}");
        if let Some((kept, model)) = &self.model
            && *kept == key
        {
            return Ok(model.clone());
        }
        self.model = None;
        let model = Arc::new(self.fresh(name, precision)?);
        self.model = Some((key, model.clone()));
        Ok(model)
    }

    /// Prepares our side of `name`. What is returned has run: its results were checked, and on a GPU its kernels are
    /// loaded and the steps that repeat are graphs.
    pub fn prepare(&mut self, name: &str, count: Count) -> Result<Run, Failure> {
        let (work, shape, precision) = parts(name)?;
        let mut run: Run = match work {
            "gemm" if self.is_cpu() => return product(shape, precision),
            "train_step" => {
                let mut step = TrainStep::new(self.fresh(shape, precision)?, Record::Everything)?;
                Box::new(move || step.run())
            }
            "prefill" => {
                let mut prefill = Prefill::new(self.shared(shape, precision)?)?;
                Box::new(move || prefill.run())
            }
            "decode" => {
                let mut decode = Decode::new(self.shared(shape, precision)?)?;
                Box::new(move || decode.run())
            }
            "rollout" | "rollout_shared" | "rollout_masked" => {
                let mut rollout = Rollout::new(self.shared(shape, precision)?, &count.rollout(work))?;
                Box::new(move || rollout.run())
            }
            "grpo_step" | "grpo_step_dropout" => {
                let mut step = GrpoStep::new(self.fresh(shape, precision)?, &count.update(work))?;
                Box::new(move || step.run())
            }
            other => return Err(format!("latch's side knows no work `{other}` on {}", self.name).into()),
        };
        if !self.is_cpu() {
            (0..2).for_each(|_| {
                run();
            });
        }
        Ok(run)
    }

    /// Most bytes of tensors that were ever alive at once, in three steps of `name` (WORK/SHAPE/DTYPE) on a device that
    /// nothing else runs on.
    pub fn bytes(&self, name: &str, count: Count) -> Result<usize, Failure> {
        let (work, shape, precision) = parts(name)?;
        let alone = Ours::open(&self.name)?;
        let model = alone.fresh(shape, precision)?;
        match work {
            "train_step" => {
                let mut step = TrainStep::new(model, Record::Everything)?;
                step.run();
                Ok(step.bytes())
            }
            "grpo_step" => {
                let mut step = GrpoStep::new(model, &count.update(work))?;
                (0..2).for_each(|_| {
                    step.run();
                });
                Ok(step.bytes())
            }
            other => Err(format!("memory is measured of train_step and grpo_step, not of `{other}`").into()),
        }
    }
}

/// `x[m, k] w[n, k]^T` into a buffer; bf16 rounds x as it packs it, as the runtime does.
fn product(shape: &str, precision: Precision) -> Result<Run, Failure> {
    let sizes: Vec<usize> = shape.split('x').map(str::parse).collect::<Result<_, _>>()?;
    let [m, k, n] = sizes[..] else { return Err(format!("`{shape}` is not MxKxN").into()) };
    let values =
        |count: usize| (0..count).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5).collect::<Vec<_>>();
    let (x, w, mut y) = (values(m * k), values(n * k), vec![0.0; m * n]);
    if precision.matrices() == Dtype::Bf16 {
        let w: Vec<bf16> = w.into_iter().map(bf16::from_f32).collect();
        return Ok(Box::new(move || {
            let start = Instant::now();
            let a = Matrix::row_major(&x, m, k);
            let b = Bf16Operand::Stored(Matrix::row_major(&w, n, k).transposed());
            gemm_bf16(a, b, MatrixMut::row_major(&mut y, m, n), Accumulate::Assign, None);
            start.elapsed()
        }));
    }
    Ok(Box::new(move || {
        let start = Instant::now();
        let (a, b) = (Matrix::row_major(&x, m, k), Matrix::row_major(&w, n, k).transposed());
        gemm(a, b, MatrixMut::row_major(&mut y, m, n), Accumulate::Assign, None);
        start.elapsed()
    }))
}
