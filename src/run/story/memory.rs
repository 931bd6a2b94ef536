//! The memory of a story: what was forecast before it began, and what it came to.

use crate::base::{Result, host_memory};
use crate::device::Device;
use crate::run::dry_run;
use crate::run::problems::Problems;
use crate::run::recipe::Recipe;
use crate::run::terminal::bytes;
use serde_json::{Value, json};

/// Of the host where the story runs there, of the GPU's tensors else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    on_host: bool,
    /// Bytes that the forecast adds up to.
    pub forecast: u64,
    /// On the CPU the most memory that this process ever had (where the system says so), with what it did before or
    /// beside the story; on a GPU the most bytes of tensors. None before a story has ended.
    pub most: Option<u64>,
    /// The most bytes of tensors at once.
    pub tensors: u64,
}

impl MemoryUse {
    /// Before `recipe` runs with its problems on `device`.
    pub(super) fn of_forecast(recipe: &Recipe, problems: &Problems, device: &Device) -> Result<MemoryUse> {
        let forecast = dry_run::bytes(recipe, problems, device)?;
        Ok(MemoryUse { on_host: matches!(device, Device::Cpu(_)), forecast, most: None, tensors: 0 })
    }

    /// Notes what `device` and its host came to.
    pub(super) fn look(&mut self, device: &Device) {
        self.tensors = device.memory_peak().total() as u64;
        self.most = if self.on_host { host_memory::most_resident() } else { Some(self.tensors) };
    }

    /// As summary.json has it.
    pub fn json(&self) -> Value {
        json!({"forecast_bytes": self.forecast, "most_bytes": self.most, "most_bytes_of_tensors": self.tensors})
    }

    /// In words, for the end of a run.
    pub fn sentence(&self) -> String {
        let what = if self.on_host { "the program had" } else { "tensors on the device took" };
        let most = self.most.map_or("unknown (this system does not say)".into(), bytes);
        format!("memory: {what} {most} at most; {} were forecast", bytes(self.forecast))
    }
}
