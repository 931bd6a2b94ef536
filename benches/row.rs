//! One row of the comparison: both sides of one name in turns.

use crate::machine::{Times, triad_once};
use crate::ours::{Count, Ours, caught, parts};
use crate::peer::{Failure, Theirs};
use crate::roofline::Roofline;
use crate::workloads::Run;
use latch::device::Device;
use std::time::Instant;

/// When a row ends.
pub struct Limits {
    pub rounds: usize,
    /// Rounds that are run whatever they take.
    pub least: usize,
    pub seconds: f64,
    /// Whether the seconds count from the beginning of the preparation.
    pub from_preparation: bool,
}

impl Limits {
    /// Whether another round follows `done` rounds, in a row whose seconds count from `start`.
    pub fn go_on(&self, done: usize, start: Instant) -> bool {
        done < self.rounds && (done < self.least || start.elapsed().as_secs_f64() < self.seconds)
    }
}

/// The two lines above all rows.
pub fn heading(on_cpu: bool) -> String {
    let triad = if on_cpu { format!("{:>14}", "triad GB/s") } else { String::new() };
    let columns = if on_cpu { format!("{:>7}{:>7}", "best", "median") } else { String::new() };
    format!(
        "{:<38}{:>10}{:>10}{:>10}{:>10}{:>8}{:>7}{triad}\n{:<38}{:>10}{:>10}{:>10}{:>10}{:>8}{:>7}{columns}",
        "",
        "ours",
        "",
        "theirs",
        "",
        "",
        "",
        "shape",
        "median ms",
        "min ms",
        "median ms",
        "min ms",
        "ratio",
        "rounds"
    )
}

/// What the CPU's memory gives in the rounds of a row.
struct Triad {
    arrays: [Vec<f32>; 3],
    times: Times,
}

impl Triad {
    const ELEMENTS: usize = 2 << 20;

    fn new() -> Triad {
        let values = |value| vec![value; Triad::ELEMENTS];
        Triad { arrays: [values(0.0), values(1.0), values(1.0)], times: Times::default() }
    }

    fn round(&mut self) {
        let [a, b, c] = &mut self.arrays;
        self.times.record(|| triad_once(a, b, c));
    }

    fn columns(&self) -> String {
        let bytes = (12 * Triad::ELEMENTS) as f64;
        format!("{:>7.1}{:>7.1}", bytes / self.times.min() / 1e9, bytes / self.times.median() / 1e9)
    }
}

/// The runs of one side, or why there are none.
struct Side {
    times: Vec<f64>,
    failure: Option<Failure>,
}

impl Side {
    fn new() -> Side {
        Side { times: Vec::new(), failure: None }
    }

    /// Adds what `body` measured, unless this side has failed.
    fn take(&mut self, body: impl FnOnce() -> Result<Vec<f64>, Failure>) {
        if self.failure.is_none() {
            match body() {
                Ok(times) => self.times.extend(times),
                Err(failure) => self.failure = Some(failure),
            }
        }
    }

    /// Median and minimum.
    fn columns(&self) -> String {
        match (&self.failure, self.times.get(self.times.len() / 2)) {
            (None, Some(median)) => format!("{median:>10.3}{:>10.3}", self.min()),
            _ => format!("{:>10}{:>10}", "failed", "-"),
        }
    }

    fn min(&self) -> f64 {
        self.times.first().copied().unwrap_or(f64::NAN)
    }
}

/// Runs both sides of `name` in turns. Where one side fails, the row has the other's times and what went wrong.
pub fn timed(
    ours: &mut Ours,
    theirs: &mut Theirs,
    name: &str,
    count: Count,
    limits: &Limits,
) -> Result<String, Failure> {
    let mut start = Instant::now();
    let on_cpu = matches!(ours.device(), Device::Cpu(_));
    let (mut us, mut them) = (Side::new(), Side::new());
    let mut run: Option<Run> = None;
    us.take(|| {
        run = Some(caught(|| ours.prepare(name, count))?);
        Ok(Vec::new())
    });
    them.take(|| theirs.times(name, 1, count).map(|_| Vec::new()));
    let mut roofline = match parts(name)? {
        (work, shape, precision) if on_cpu && work.starts_with("rollout") => {
            Roofline::new(ours.shared(shape, precision)?.as_ref(), work != "rollout", count.rollouts)
        }
        _ => None,
    };
    let mut triad = on_cpu.then(Triad::new);
    if !limits.from_preparation {
        start = Instant::now();
    }
    let (mut each, mut rounds) = (1, 0);
    while limits.go_on(rounds, start) && (us.failure.is_none() || them.failure.is_none()) {
        triad.iter_mut().for_each(Triad::round);
        roofline.iter_mut().for_each(Roofline::round);
        // The first run of a turn finds the caches as the other side left them; short work is run several times.
        us.take(|| {
            let run = run.as_mut().ok_or("nothing was prepared")?;
            caught(|| Ok((0..each).map(|_| run().as_secs_f64() * 1e3).collect()))
        });
        them.take(|| theirs.times(name, each, count));
        let longest = us.times.first().into_iter().chain(them.times.first()).fold(0.0_f64, |a, &b| a.max(b));
        each = ((20.0 / longest) as usize).clamp(1, 20);
        rounds += 1;
    }
    (us.times, them.times) = (sorted(us.times), sorted(them.times));
    let ratio = match us.failure.is_none() && them.failure.is_none() {
        true => format!("{:>8.2}", them.min() / us.min()),
        false => format!("{:>8}", "-"),
    };
    let mut row = format!("{}{}{ratio}{rounds:>7}", us.columns(), them.columns());
    row.extend(triad.iter().map(Triad::columns));
    row.extend(roofline.iter().map(|roofline| format!("\n{}", roofline.line(us.min()))));
    row.extend([("ours", &us), ("theirs", &them)].iter().filter_map(|(side, found)| {
        found.failure.as_ref().map(|failure| format!("\n  {side} failed: {failure}"))
    }));
    if us.failure.is_some() && !on_cpu {
        // Whatever failed may have taken the device with it.
        drop(run);
        ours.reopen()?;
    }
    Ok(row)
}

/// In rising order.
pub fn sorted(mut times: Vec<f64>) -> Vec<f64> {
    times.sort_by(f64::total_cmp);
    times
}
