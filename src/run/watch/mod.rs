//! A run as it goes on, seen from the files in its folder alone: nothing is written there, and no run is disturbed.
//!
//! ```text
//! follow, small          files that grow, and small ones that are replaced: what is new is read, once
//! measured, told, plan   what metrics, log and recipe say
//! moment, facts          what is known at a moment, also as JSON
//! text, sparkline, view  the same in the cells of a terminal
//! ```

mod facts;
mod follow;
mod measured;
mod moment;
mod plan;
mod small;
mod sparkline;
mod text;
mod told;
mod view;

pub use facts::{CheckpointFacts, Facts, Left, PartFacts, State};
pub use measured::{Curve, Part, Step};
pub use sparkline::{dots, sparkline};
pub use told::Evaluation;
pub use view::draw;

use super::checkpoints;
use super::folder::{self, RunFolder};
use super::recipe::Recipe;
use super::report::lines;
use super::report::samples::Samples;
use super::story;
use crate::base::{Error, Result, disk};
use follow::{Came, Follower, Piece};
use measured::Measured;
use plan::Plan;
use serde_json::Value;
use small::Small;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use told::Told;

/// Bytes of a file that are read before anything else is looked at.
const BUDGET: u64 = 32 << 20;
/// Bytes from the end of samples.jsonl at which reading begins: the last updates' rollouts.
const WINDOW: u64 = 16 << 20;
/// How long the size of the folder holds.
const DISK: Duration = Duration::from_secs(10);
/// Files and folders that are counted for it.
const FILES: usize = 100_000;
/// Looks at a folder that nobody holds, after which the process that held it is gone.
const LOOKS: u32 = 3;
/// A run is silent after so many times the time of an update, and no less than so many seconds.
const SILENT: (f64, f64) = (20.0, 60.0);

/// A run that is watched.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    label: String,
    metrics: Follower,
    log: Follower,
    rollouts: Follower,
    recipe: Small<Plan>,
    environment: Small<Value>,
    summary: Small<Value>,
    measured: Measured,
    told: Told,
    samples: Samples,
    checkpoint: Option<(u64, PathBuf, Option<SystemTime>)>,
    disk: (u64, Option<u64>),
    weighed: Option<SystemTime>,
    held: Option<bool>,
    seen_at_work: bool,
    free: u32,
    state: State,
}

impl Watch {
    /// Watches the run in `path`; nothing is read yet.
    ///
    /// # Errors
    /// There is no folder, or not that of a run.
    pub fn open(path: &Path) -> Result<Watch> {
        RunFolder::expect_run(path)?;
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.into());
        let label = real.file_name().map(|name| name.to_string_lossy().into_owned());
        let file = |name: &str| path.join(name);
        Ok(Watch {
            path: path.into(),
            label: label.unwrap_or_else(|| path.display().to_string()),
            metrics: Follower::new(&file("metrics.jsonl")),
            log: Follower::new(&file("log.txt")),
            rollouts: Follower::new(&file("samples.jsonl")).in_window(WINDOW),
            recipe: Small::new(&file("recipe.toml")),
            environment: Small::new(&file("environment.json")),
            summary: Small::new(&file("summary.json")),
            measured: Measured::default(),
            told: Told::default(),
            samples: Samples::default(),
            checkpoint: None,
            disk: (0, None),
            weighed: None,
            held: None,
            seen_at_work: false,
            free: 0,
            state: State::Waiting,
        })
    }

    /// Looks at what is new at `now`. Of a large file one call reads a part.
    ///
    /// # Errors
    /// The folder is gone, a file cannot be read, or is of another version.
    pub fn poll(&mut self, now: SystemTime) -> Result<Came> {
        if !self.path.is_dir() {
            let problem = "is not there any more, expected the folder of the run";
            return Err(Error::file(&self.path, problem, "look where it was moved to"));
        }
        let before = (self.state, self.checkpoint.as_ref().map(|(step, ..)| *step));
        let name = self.path.join("recipe.toml").display().to_string();
        let plan = |text: &str| {
            Recipe::parse(text, &name).map(Plan::of).map_err(|error| error.to_string().replace('\n', " "))
        };
        let mut news = self.recipe.look(plan)?;
        news |= self.environment.look(lines::object)?;
        news |= self.summary.look(lines::object)?;
        let mut more = false;
        let told = &mut self.told;
        let mut add = |came: Came| {
            news |= came.news;
            more |= came.more;
        };
        add(self.log.poll(BUDGET, &mut |piece| {
            match piece {
                Piece::Anew => *told = Told::default(),
                Piece::Line(_, line) => told.take(&String::from_utf8_lossy(line)),
            }
            Ok(())
        })?);
        let (measured, path) = (&mut self.measured, self.path.join("metrics.jsonl"));
        let every = self.recipe.value.as_ref().map_or(1, |plan| plan.recipe.run.log_every as u64);
        add(self.metrics.poll(BUDGET, &mut |piece| {
            match piece {
                Piece::Anew => *measured = Measured::default(),
                Piece::Line(Some(1), line) if lines::header(&path, line)? => {}
                Piece::Line(_, line) => measured.take(line, every),
            }
            Ok(())
        })?);
        let (samples, path) = (&mut self.samples, self.path.join("samples.jsonl"));
        add(self.rollouts.poll(WINDOW, &mut |piece| {
            match piece {
                Piece::Anew => *samples = Samples::default(),
                Piece::Line(Some(1), line) if lines::header(&path, line)? => {}
                Piece::Line(number, line) => {
                    samples.faults.malformed += u64::from(!samples.read_line(number.unwrap_or(0), line));
                }
            }
            Ok(())
        })?);
        self.look_at_checkpoints()?;
        if self.weighed.is_none_or(|then| now.duration_since(then).is_ok_and(|past| past >= DISK))
            || before.1 != self.checkpoint.as_ref().map(|(step, ..)| *step)
        {
            self.disk = (bytes(&self.path), disk::free(&self.path));
            self.weighed = Some(now);
        }
        if !more {
            self.held = folder::held(&self.path);
            self.state = self.judge(now);
        }
        news |= before != (self.state, self.checkpoint.as_ref().map(|(step, ..)| *step));
        Ok(Came { news, more })
    }

    /// Whether the run has ended, or its process has: nothing more will come.
    pub fn ended(&self) -> bool {
        matches!(self.state, State::Ended | State::Stopped)
    }

    /// The tables that `train` shows at the end, of a run that has ended.
    pub fn closing(&self) -> Option<String> {
        let (plan, summary) = (self.recipe.value.as_ref()?, self.summary.value.as_ref()?);
        let progress = story::of_summary(summary).ok().filter(|_| self.state == State::Ended)?;
        Some(format!(
            "{}\n{}\n{}",
            story::stage_table(&progress),
            story::closing_table(&plan.recipe, &progress),
            story::time_table(&progress)
        ))
    }

    fn look_at_checkpoints(&mut self) -> Result<()> {
        // A folder that is replaced while it is looked at is there at the next look.
        let found = checkpoints::newest(&self.path.join(folder::CHECKPOINTS)).ok().flatten();
        self.checkpoint = found.map(|(step, path)| {
            let written = fs::metadata(path.join("checksums.sha256")).and_then(|found| found.modified());
            (step, path, written.ok())
        });
        Ok(())
    }

    /// When anything was written last.
    fn activity(&self) -> Option<SystemTime> {
        let all = [
            self.metrics.modified(),
            self.log.modified(),
            self.rollouts.modified(),
            self.recipe.modified(),
            self.environment.modified(),
            self.summary.modified(),
            self.checkpoint.as_ref().and_then(|(.., written)| *written),
        ];
        all.into_iter().flatten().max()
    }

    /// Seconds without a sign that are long for this run.
    fn long(&self) -> f64 {
        let pace = self.current().1.and_then(Part::pace).unwrap_or(0.0);
        (SILENT.0 * pace).max(SILENT.1)
    }

    fn judge(&mut self, now: SystemTime) -> State {
        if self.held == Some(true) {
            (self.seen_at_work, self.free) = (true, 0);
            let begun = self.measured.updates > 0 || self.told.part.is_some();
            return if begun { State::AtWork } else { State::Waiting };
        }
        self.free += 1;
        // Without locks, a summary that is younger than all updates.
        let over = self.summary.value.is_some()
            && (self.held.is_some() || self.summary.modified() >= self.metrics.modified());
        if over {
            return State::Ended;
        }
        let old = age(now, self.activity()).is_some_and(|age| age > self.long());
        match self.held.is_some() && (old || self.seen_at_work && self.free >= LOOKS) {
            true => State::Stopped,
            false if self.measured.updates == 0 => State::Waiting,
            false => State::Unknown,
        }
    }

    /// Name of the part that began last, and what was measured of it.
    fn current(&self) -> (Option<&str>, Option<&Part>) {
        let measured = self.measured.parts.last().map(|part| part.name.as_str());
        let name = self.told.part.as_deref().or(measured);
        (name, name.and_then(|name| self.measured.part(name)))
    }
}

/// Seconds from `then` to `now`.
fn age(now: SystemTime, then: Option<SystemTime>) -> Option<f64> {
    // A clock that was set back, or another machine's, is no reason for an odd number.
    then.map(|then| now.duration_since(then).unwrap_or_default().as_secs_f64())
}

/// Bytes of all files below a folder; links are not followed, and what is removed meanwhile does not count.
fn bytes(folder: &Path) -> u64 {
    let (mut bytes, mut seen, mut open) = (0, 0, vec![folder.to_path_buf()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            seen += 1;
            if seen > FILES {
                return bytes;
            }
            match entry.metadata() {
                Ok(found) if found.is_dir() => open.push(entry.path()),
                Ok(found) if found.is_file() => bytes += found.len(),
                _ => {}
            }
        }
    }
    bytes
}
