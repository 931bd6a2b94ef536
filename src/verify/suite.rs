//! Everything that has a gradient, as one list of checks, run on several workers.
//!
//! Without a gradient, and so not here: the optimiser, the gradient norm, masks' bits and the sampler's choice
//! (tests/parity holds them against independent formulas).

use super::codi::CodiSubject;
use super::fault::Fault;
use super::gradient::{CaseSubject, Effort, LARGEST_PROBES, Outcome, RANDOM_PROBES, Subject, check_subject};
use super::models::{FAMILIES, ModelSubject, small_config, small_model, with_adapter};
use super::operations;
use super::script::Group;
use crate::base::{Error, Result};
use crate::cpu::parallel;
use crate::device::Device;
use crate::model::{Model, Precision, Projector, Record, Truncation};
use crate::ops::mask::SiteKind;
use crate::rollout::masks::{Masking, Mode, Scope};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Tokens of the small models.
const VOCABULARY: usize = 29;

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One operation.
    Operation,
    /// One layer of a family: its parameters and its input.
    Layer,
    /// A whole model through latent steps.
    Model,
}

/// What is checked, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// An existing model (folder or GGUF) in place of the small random ones, of operations and layers.
    pub model: Option<PathBuf>,
    /// Where the f32 gradients of layers and models are computed.
    pub device: Device,
    /// Latent steps.
    pub steps: usize,
    /// Masked sites.
    pub sites: Vec<SiteKind>,
    /// Tokens of the shared prompt, and half of them for prompts that are not shared; the default crosses the
    /// first block of 64 keys.
    pub prompt: usize,
    /// Random entries per tensor.
    pub probes: usize,
    /// Only checks whose name contains this.
    pub only: Option<String>,
    /// Chooses small models' weights, tokens, masks, probed entries and directions.
    pub seed: u64,
    /// Threads: checks run side by side, each on one of them; fewer checks share them all.
    pub threads: usize,
    /// A planted fault, to see that it is found.
    pub fault: Option<Fault>,
    /// A planted truncation of every whole model's backward walk.
    pub truncation: Truncation,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            model: None,
            device: Device::cpu(),
            steps: 3,
            sites: SiteKind::ALL.to_vec(),
            prompt: 66,
            probes: RANDOM_PROBES,
            only: None,
            seed: 0,
            threads: 1,
            fault: None,
            truncation: Truncation::default(),
        }
    }
}

/// The outcome of one check.
#[derive(Clone, Debug)]
pub struct Report {
    /// Name of the check.
    pub name: String,
    /// What it is about.
    pub kind: Kind,
    /// One a variable, and one for the random direction over all of them.
    pub outcomes: Vec<Outcome>,
    /// Wall time.
    pub seconds: f64,
}

impl Report {
    /// Whether every outcome is within tolerance.
    pub fn passed(&self) -> bool {
        self.outcomes.iter().all(|outcome| outcome.passed)
    }
}

/// A check before it is made.
enum Check {
    Operation(usize, String),
    Layer(&'static str, bool),
    Group(String, GroupOf),
    /// CODI's loss on a small model of this family.
    Codi(&'static str, Record),
}

/// Which model runs which kind of group.
#[derive(Clone, Copy)]
struct GroupOf {
    /// A small model of this family; otherwise the model of [`Options::model`].
    family: Option<&'static str>,
    share: bool,
    /// Whether latents pass through a projector.
    projected: bool,
    adapted: bool,
}

impl Check {
    fn name(&self) -> String {
        match self {
            Check::Operation(_, name) | Check::Group(name, _) => name.clone(),
            Check::Layer(family, false) => format!("layer {family}"),
            Check::Layer(family, true) => format!("layer {family}, adapted"),
            Check::Codi(family, Record::LayerInputs) => format!("codi {family}, layers run again"),
            Check::Codi(family, _) => format!("codi {family}"),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Check::Operation(..) => Kind::Operation,
            Check::Layer(..) => Kind::Layer,
            Check::Group(..) | Check::Codi(..) => Kind::Model,
        }
    }

    fn run(&self, options: &Options) -> Result<Vec<Outcome>> {
        let effort = Effort {
            random: options.probes,
            largest: LARGEST_PROBES.min(options.probes),
            seed: options.seed,
        };
        let check = |subject: &mut dyn Subject| check_subject(subject, effort, options.fault.as_ref());
        match self {
            Check::Operation(index, _) => check(&mut CaseSubject::new(&operations::all()[*index])),
            Check::Codi(family, record) => {
                check(&mut CodiSubject::new(family, *record, options.seed, &options.device)?)
            }
            Check::Layer(family, adapted) => {
                let make = if *adapted { ModelSubject::adapted_layer } else { ModelSubject::layer };
                check(&mut make(family, options.seed, &options.device)?)
            }
            Check::Group(name, of) => {
                let group = group(options, of.share);
                let model = match (of.family, &options.model) {
                    (Some(family), _) => small_model(
                        small_config(family, 2, VOCABULARY, group.length(), false)?,
                        options.seed,
                    )?,
                    (None, Some(path)) => Model::load(path, &Device::cpu(), Precision::F64)?,
                    (None, None) => unreachable!("listed for an existing model alone"),
                };
                let model = match of.projected {
                    false => model,
                    true => model.with_random_projector(Projector::of(9), options.seed)?,
                };
                let model = if of.adapted { with_adapter(model, options.seed)? } else { model };
                let mut subject = ModelSubject::group(name.clone(), model, group, &options.device)?;
                subject.truncate(options.truncation);
                check(&mut subject)
            }
        }
    }
}

/// Scope `latent` with the prompt shared under one mask, or scope `all` with each row on its own under a mask a
/// step.
pub fn group(options: &Options, share: bool) -> Group {
    let (scope, mode) = if share { (Scope::Latent, Mode::Shared) } else { (Scope::All, Mode::PerStep) };
    let masking = Masking { p: 0.2, sites: options.sites.clone(), scope, mode };
    // Rows with prompts of their own pay for them twice; that a row crosses a block of its own is what layers check.
    let prompt = if share { options.prompt } else { options.prompt.div_ceil(2).max(2) };
    Group { prompt, rollouts: 2, latents: options.steps, answer: 3, share, masking, seed: options.seed }
}

/// The checks that `options` ask for.
fn checks(options: &Options) -> Vec<Check> {
    let groups_of = |family: Option<&'static str>, name: &str, projected: bool| {
        let both = [(true, "latent scope, shared prompt"), (false, "all scope, own prompts")];
        both.map(|(share, how)| {
            let of = GroupOf { family, share, projected, adapted: false };
            Check::Group(format!("model {name}, {how}"), of)
        })
    };
    let groups = |family, name: &str| groups_of(family, name, false);
    let mut all: Vec<Check> = Vec::new();
    match &options.model {
        Some(path) => {
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
            all.extend(groups(None, &name));
        }
        None => {
            let cases = operations::all();
            all.extend(
                cases.iter().enumerate().map(|(index, case)| Check::Operation(index, case.name.clone())),
            );
            let codi =
                [("gpt2", Record::Everything), ("llama", Record::Everything), ("qwen3", Record::LayerInputs)];
            all.extend(codi.map(|(family, record)| Check::Codi(family, record)));
            all.extend(groups_of(Some("gpt2"), "gpt2 with a projector", true));
            all.extend(FAMILIES.map(|family| Check::Layer(family, false)));
            all.extend(FAMILIES.map(|family| Check::Layer(family, true)));
            all.extend(FAMILIES.into_iter().flat_map(|family| groups(Some(family), family)));
            all.extend(FAMILIES.map(|family| {
                let of = GroupOf { family: Some(family), share: true, projected: false, adapted: true };
                Check::Group(format!("model {family}, adapted, latent scope, shared prompt"), of)
            }));
        }
    }
    let wanted =
        |check: &Check| options.only.as_ref().is_none_or(|only| check.name().contains(only.as_str()));
    all.retain(wanted);
    all
}

/// Names of the checks that `options` ask for.
pub fn names(options: &Options) -> Vec<String> {
    checks(options).iter().map(Check::name).collect()
}

/// Every gradient output of every operation, `stem/variable`: what a fault can be planted in.
pub fn gradient_outputs() -> Vec<String> {
    let mut outputs: Vec<String> = Vec::new();
    for case in operations::all() {
        let stem = case.name.split([' ', '/']).next().unwrap_or_default();
        for variable in &case.variables {
            let output = format!("{stem}/{}", variable.name);
            if !outputs.contains(&output) {
                outputs.push(output);
            }
        }
    }
    outputs
}

/// Runs the checks; `done` hears of each in the order of the list, as soon as it and those before it are known.
///
/// # Errors
/// No check has the wanted name, or a check could not run; what other workers have begun is finished first.
pub fn run(options: &Options, done: &mut (dyn FnMut(Report) + Send)) -> Result<()> {
    let all = checks(options);
    if all.is_empty() {
        return Err(Error::input(
            "--only",
            format!("no check's name contains `{}`", options.only.as_deref().unwrap_or_default()),
            "see the names with --list",
        ));
    }
    if options.prompt < 2 {
        return Err(Error::input("--prompt", format!("{} tokens", options.prompt), "use at least 2"));
    }
    let workers = options.threads.clamp(1, all.len());
    let kernel_threads = (options.threads / workers).max(1);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let planted = AtomicBool::new(options.fault.is_none());
    let board = Mutex::new(Board { waiting: Vec::new(), told: 0, failed: None, done });
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(check) = all.get(index) else { return };
                    let start = std::time::Instant::now();
                    let outcomes = parallel::with_threads(kernel_threads, || check.run(options));
                    let result = outcomes.map(|outcomes| Report {
                        name: check.name(),
                        kind: check.kind(),
                        outcomes,
                        seconds: start.elapsed().as_secs_f64(),
                    });
                    if let (Some(fault), Ok(report)) = (&options.fault, &result) {
                        let hit = report.outcomes.iter().any(|o| fault.concerns(&report.name, o.variable()));
                        planted.fetch_or(hit, Ordering::Relaxed);
                    }
                    stop.fetch_or(result.is_err(), Ordering::Relaxed);
                    board.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).put(index, result);
                }
            });
        }
    });
    match board.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).failed {
        Some(error) => Err(error),
        None if !planted.into_inner() => Err(Error::input(
            "--plant",
            "no gradient of the checks that ran has this name",
            "see the names with --list",
        )),
        None => Ok(()),
    }
}

/// Results that wait for their turn.
struct Board<'d> {
    waiting: Vec<Option<Report>>,
    told: usize,
    failed: Option<Error>,
    done: &'d mut (dyn FnMut(Report) + Send),
}

impl Board<'_> {
    fn put(&mut self, index: usize, result: Result<Report>) {
        match result {
            Err(error) => {
                self.failed.get_or_insert(error);
            }
            Ok(report) => {
                if self.waiting.len() <= index {
                    self.waiting.resize_with(index + 1, || None);
                }
                self.waiting[index] = Some(report);
                while let Some(report) = self.waiting.get_mut(self.told).and_then(Option::take) {
                    self.told += 1;
                    (self.done)(report);
                }
            }
        }
    }
}
