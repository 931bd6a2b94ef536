//! Whether latch works on this machine: which devices there are, and small models on each of them against f64.

use super::devices;
use super::terminal::{bytes, duration};
use crate::base::{Error, Result, host_memory};
use crate::cpu::parallel;
use crate::device::Device;
use crate::ops;
use crate::verify::fault::Fault;
use crate::verify::suite::{self, Report};
use serde_json::{Value, json};

/// The checks of a self-test (names of `verify_grad --list`). Between them they run both kinds of norm, MLP and positions,
/// grouped queries, masks, latent steps and a shared prompt, forward and backward.
const CHECKS: [&str; 2] =
    ["model gpt2, latent scope, shared prompt", "model qwen3, latent scope, shared prompt"];

/// What an examination is asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Names of devices; none = the CPU, the simulator, and every CUDA device.
    pub devices: Vec<String>,
    /// Find out what there is, and run nothing on it.
    pub no_test: bool,
    /// A planted fault, to see that it is found.
    pub fault: Option<Fault>,
}

/// What was found of one device.
#[derive(Debug)]
pub struct Examined {
    /// The name it was asked for by.
    pub name: String,
    /// What it is, or why it cannot be used.
    pub device: Result<Found>,
    /// Whether nobody asked for it, so that a machine without it is in order.
    pub optional: bool,
}

/// A device that can be opened.
#[derive(Debug)]
pub struct Found {
    /// What it calls itself.
    pub name: String,
    /// What there is to know of it, a value a name.
    pub facts: Vec<(&'static str, String)>,
    /// Its self-test; none where that was not wanted.
    pub test: Option<Result<Test>>,
    /// What it had to say when it was closed.
    pub notes: Vec<String>,
}

/// A self-test that could run.
#[derive(Clone, Debug, Default)]
pub struct Test {
    /// Tensors whose gradients were compared.
    pub tensors: usize,
    /// The largest error of an f32 gradient against f64, as `verify_grad` reckons it.
    pub worst_f32: f64,
    /// The tensors that are wrong.
    pub wrong: Vec<String>,
    /// Wall time.
    pub seconds: f64,
}

impl Examined {
    /// Whether there is nothing to mend: the device does what it should, or nobody asked for one that is not there.
    pub fn is_well(&self) -> bool {
        match &self.device {
            Ok(found) => match &found.test {
                None => true,
                Some(test) => test.as_ref().is_ok_and(|test| test.wrong.is_empty()),
            },
            Err(_) => self.optional,
        }
    }

    /// Whether its self-test ran and found something wrong.
    pub fn is_wrong(&self) -> bool {
        let test = self.device.as_ref().ok().and_then(|found| found.test.as_ref());
        matches!(test, Some(Ok(test)) if !test.wrong.is_empty())
    }

    /// The device in lines for people.
    pub fn lines(&self) -> Vec<String> {
        let told = |words: &str, error: &Error| -> Vec<String> {
            format!("{words}: {error}").lines().map(|line| line.trim().to_string()).collect()
        };
        let found = match &self.device {
            Ok(found) => found,
            Err(error) if self.optional => return told("not here", error),
            Err(error) => return told("error", error),
        };
        let mut lines = vec![found.name.clone()];
        lines.extend(found.facts.iter().map(|(name, value)| format!("{}: {value}", name.replace('_', " "))));
        lines.extend(found.notes.iter().cloned());
        match &found.test {
            None => {}
            Some(Err(error)) => lines.extend(told("self-test could not run", error)),
            Some(Ok(test)) => {
                let Test { tensors, worst_f32, wrong, seconds } = test;
                let verdict = if wrong.is_empty() { "passed" } else { "FAILED" };
                lines.push(format!(
                    "self-test {verdict}: gradients of {tensors} tensors through latent steps, worst error of f32 \
                     {worst_f32:.1e} ({})",
                    duration(*seconds)
                ));
                lines.extend(wrong.iter().map(|tensor| format!("  wrong: {tensor}")));
            }
        }
        lines
    }

    /// The same for scripts.
    pub fn json(&self) -> Value {
        let mut out = json!({"device": self.name, "well": self.is_well()});
        match &self.device {
            Err(error) => out["error"] = error.to_string().into(),
            Ok(found) => {
                out["name"] = found.name.clone().into();
                for (name, value) in &found.facts {
                    out[*name] = value.clone().into();
                }
                out["test"] = match &found.test {
                    None => Value::Null,
                    Some(Err(error)) => json!({"error": error.to_string()}),
                    Some(Ok(test)) => json!({
                        "tensors": test.tensors,
                        "worst_f32": test.worst_f32,
                        "wrong": test.wrong,
                        "seconds": test.seconds,
                    }),
                };
            }
        }
        out
    }
}

/// Examines devices, one after the other; `done` hears of each.
///
/// # Errors
/// A name that no device has.
pub fn examine(options: &Options, done: &mut dyn FnMut(&Examined)) -> Result<()> {
    for (name, optional) in names(options) {
        let mut notes = Vec::new();
        let mut say = |line: &str| notes.push(line.to_string());
        let device = devices::on(&name, true, &mut say, |device, _| {
            let test = (!options.no_test).then(|| test(device, options.fault.clone()));
            Ok(Found { name: device.name(), facts: facts(device), test, notes: Vec::new() })
        });
        if let Err(error @ Error::Input { .. }) = device {
            return Err(error);
        }
        let device = device.map(|found| Found { notes, ..found });
        done(&Examined { name, device, optional });
    }
    Ok(())
}

/// Devices by name, and whether a machine without them is in order.
fn names(options: &Options) -> Vec<(String, bool)> {
    if !options.devices.is_empty() {
        return options.devices.iter().map(|name| (name.clone(), false)).collect();
    }
    let mut names = vec![("cpu".to_string(), false), ("sim".to_string(), false)];
    match Device::cuda_count() {
        // What keeps it from being used is said when it is opened.
        Err(_) | Ok(0) => names.push(("cuda".to_string(), true)),
        Ok(count) => names.extend((0..count).map(|ordinal| (format!("cuda:{ordinal}"), false))),
    }
    names
}

fn facts(device: &Device) -> Vec<(&'static str, String)> {
    let launcher = match device {
        Device::Cpu(_) => {
            let free = host_memory::free().map_or("unknown".into(), bytes);
            return vec![
                ("vectors", ops::vector_instructions().into()),
                ("threads", parallel::threads().to_string()),
                ("memory_free", free),
            ];
        }
        Device::Gpu(launcher) => launcher,
    };
    let properties = launcher.properties();
    let (major, minor) = properties.compute_capability;
    let mut facts = vec![("compute_capability", format!("{major}.{minor}"))];
    if let Some((major, minor)) = properties.driver {
        facts.push(("driver", format!("CUDA {major}.{minor}")));
        facts.push(("multiprocessors", properties.multiprocessors.to_string()));
        let total = bytes(properties.memory_bytes as u64);
        let free = launcher.memory_free().map_or_else(|error| error.to_string(), |free| bytes(free as u64));
        facts.push(("memory_free", format!("{free} of {total}")));
        let library = match launcher.matmul_library() {
            Ok(Some(library)) => library,
            Ok(None) => "none: gradients' products are latch's own".into(),
            Err(error) => error.to_string(),
        };
        facts.push(("library", library));
    }
    facts
}

/// The checks of [`CHECKS`] on a device.
fn test(device: &Device, fault: Option<Fault>) -> Result<Test> {
    let mut test = Test::default();
    for check in CHECKS {
        let options = suite::Options {
            device: device.clone(),
            steps: 2,
            prompt: 4,
            probes: 1,
            only: Some(check.into()),
            threads: parallel::threads(),
            fault: fault.clone().filter(|fault| check.starts_with(&fault.check)),
            ..suite::Options::default()
        };
        suite::run(&options, &mut |report: Report| {
            test.seconds += report.seconds;
            test.tensors += report.outcomes.len();
            for outcome in &report.outcomes {
                test.worst_f32 = test.worst_f32.max(outcome.worst_f32);
                if !outcome.passed {
                    test.wrong.push(outcome.name.clone());
                }
            }
        })?;
    }
    Ok(test)
}
