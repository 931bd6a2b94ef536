//! Whether a GPU has the memory for what is about to be run there, asked before anything is allocated on it.
//!
//! The answer is a rehearsal: the reservations themselves, on the GPU's accountant ([`Device::accountant`]), which has as
//! many bytes to give as the GPU. There is no second formula that could say something else. What does not fit is refused
//! with what would; that, too, was rehearsed.

use crate::base::{Error, Result};
use crate::device::{Arena, Device, Launcher, MemoryPeak};

/// From one plan to the next that takes less.
pub type Weaken<'a, P> = dyn Fn(&P) -> Option<P> + 'a;

/// Makes a plan `P` take less memory.
pub struct Remedy<'a, P> {
    /// The next plan in this direction that takes less; none at the end.
    pub weaken: Box<Weaken<'a, P>>,
    /// What a person has to write for the plan to be so.
    pub say: Box<dyn Fn(&P) -> String + 'a>,
}

impl<'a, P> Remedy<'a, P> {
    /// See the fields.
    pub fn new(weaken: impl Fn(&P) -> Option<P> + 'a, say: impl Fn(&P) -> String + 'a) -> Remedy<'a, P> {
        Remedy { weaken: Box::new(weaken), say: Box::new(say) }
    }
}

/// What a rehearsal takes of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// What was held when most was held.
    pub peak: MemoryPeak,
    /// Bytes that must be free: more than were held, since the pool rounds blocks up and cuts small ones from slabs.
    pub free: usize,
}

/// How closely [`Need::free`] is found.
const CLOSELY: usize = 256;

type Rehearse<'a> = &'a dyn Fn(&Device) -> Result<()>;

/// What `rehearse` takes of `device`, a GPU: the fewest free bytes under which it succeeds, up to a 256th. More than
/// `too_few` are known to be needed.
///
/// # Errors
/// Those of `rehearse` on a device without end.
pub fn need(device: &Device, rehearse: Rehearse, too_few: usize) -> Result<Need> {
    let accountant = device.accountant(None);
    rehearse(&accountant)?;
    let peak = accountant.memory_peak();
    let mut enough = taken(&accountant);
    let mut too_few = too_few.max(peak.total().saturating_sub(1)).min(enough);
    while enough - too_few > 1 + enough / CLOSELY {
        let middle = too_few.midpoint(enough);
        match rehearse(&device.accountant(Some(middle))) {
            Ok(()) => enough = middle,
            // On a device without end it succeeded: this one is full.
            Err(_) => too_few = middle,
        }
    }
    Ok(Need { peak, free: enough })
}

/// Refuses `plan` where `device` is a GPU without the memory for it. `what` is said to need it.
///
/// # Errors
/// Those of `rehearse`; or what is needed of each kind, what is free, and what would fit.
pub fn admit<P: Clone>(
    device: &Device,
    what: &str,
    plan: &P,
    rehearse: &dyn Fn(&P, &Device) -> Result<()>,
    remedies: &[Remedy<P>],
) -> Result<()> {
    let Device::Gpu(gpu) = device else { return Ok(()) };
    let free = gpu.memory_free()?;
    let accountant = device.accountant(None);
    rehearse(plan, &accountant)?;
    let fits = |plan: &P| rehearse(plan, &device.accountant(Some(free))).is_ok();
    if taken(&accountant) <= free || fits(plan) {
        return Ok(());
    }
    let possible = |plan: &P| rehearse(plan, &device.accountant(None)).is_ok();
    let need = need(device, &|device| rehearse(plan, device), free)?;
    // Each alone.
    let mut cures = Vec::new();
    let mut least = plan.clone();
    let mut steps = Vec::new();
    for remedy in remedies {
        if let Some(cured) = first_that_fits(plan, remedy, &fits, &possible).0 {
            cures.push((remedy.say)(&cured));
        }
    }
    // All together, one after another as far as each goes, until it is enough.
    if cures.is_empty() {
        for remedy in remedies {
            let (cured, weakest) = first_that_fits(&least, remedy, &fits, &possible);
            if let Some(weakened) = cured.clone().or(weakest) {
                steps.push((remedy.say)(&weakened));
                least = weakened;
            }
            if cured.is_some() {
                cures.push(steps.join(" and "));
                break;
            }
        }
    }
    let advice = match cures.is_empty() {
        false => format!("enough would be: {}", cures.join("; or ")),
        true => {
            let need = self::need(device, &|device| rehearse(&least, device), free)?.free;
            format!(
                "nothing that can be set is enough{}: that still needs {need} bytes free; take a smaller model, or a device with more memory",
                match steps.is_empty() {
                    true => String::new(),
                    false => format!(", not even {}", steps.join(" and ")),
                }
            )
        }
    };
    Err(Error::device(refusal(&**gpu, what, free, need), advice))
}

/// The first weaker plan that fits, and the weakest that could be run at all.
fn first_that_fits<P: Clone>(
    plan: &P,
    remedy: &Remedy<P>,
    fits: &dyn Fn(&P) -> bool,
    possible: &dyn Fn(&P) -> bool,
) -> (Option<P>, Option<P>) {
    let mut weakest: Option<P> = None;
    while let Some(next) = (remedy.weaken)(weakest.as_ref().unwrap_or(plan)) {
        if fits(&next) {
            return (Some(next), weakest);
        }
        if !possible(&next) {
            break;
        }
        weakest = Some(next);
    }
    (None, weakest)
}

/// Bytes that an accountant's driver gave at most.
fn taken(accountant: &Device) -> usize {
    match accountant {
        Device::Cpu(_) => accountant.memory_peak().total(),
        // On a device without end nothing goes back to the driver.
        Device::Gpu(gpu) => gpu.statistics().driver_bytes,
    }
}

/// The kinds of memory, as people know them, with their bytes.
pub fn kinds(peak: &MemoryPeak) -> Vec<(&'static str, usize)> {
    let name = |arena| match arena {
        Arena::Weights => "weights",
        Arena::Gradients => "gradients",
        Arena::Optimiser => "optimiser moments",
        Arena::Tape => "activations (tape)",
        Arena::KvCache => "KV cache",
        Arena::Masks => "masks",
        Arena::Workspace => "scratch",
        Arena::Other => "other",
    };
    let kinds = Arena::ALL.into_iter().map(|arena| (name(arena), peak.of(arena)));
    kinds.filter(|(_, bytes)| *bytes > 0).collect()
}

/// What is needed and what there is.
fn refusal(gpu: &dyn Launcher, what: &str, free: usize, need: Need) -> String {
    let mut parts: Vec<String> =
        kinds(&need.peak).into_iter().map(|(name, bytes)| format!("{name} {bytes}")).collect();
    parts.push(format!("rounding to blocks {}", need.free.saturating_sub(need.peak.total())));
    format!(
        "{} has {free} of its {} bytes free, and {what} needs {} at once: {}",
        gpu.name(),
        gpu.properties().memory_bytes,
        need.free,
        parts.join(", ")
    )
}
