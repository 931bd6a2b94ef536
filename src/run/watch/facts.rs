//! What is known of a run at a moment: what the view shows, and the same for scripts.

use super::measured::{Curve, Step};
use super::told::Evaluation;
use crate::run::report::samples::Sample;
use crate::run::story::Tally;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Whether a run is alive, as far as its folder says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Its process holds the folder, or lines come; no update was measured yet.
    #[default]
    Waiting,
    /// Its process holds the folder.
    AtWork,
    /// Not known: no process of this machine is seen to hold the folder, and its last line is not old.
    Unknown,
    /// No process is at work, and the story is not over.
    Stopped,
    /// The story is over.
    Ended,
}

impl State {
    /// For scripts.
    pub fn name(self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::AtWork => "at work",
            State::Unknown => "unknown",
            State::Stopped => "stopped",
            State::Ended => "ended",
        }
    }
}

/// The part under way, or the last one.
#[derive(Clone, Debug)]
pub struct PartFacts {
    /// Its name.
    pub name: String,
    /// Reinforcement learning, or school.
    pub rewarded: bool,
    /// Its number from 1, and how many there are.
    pub place: Option<(usize, usize)>,
    /// Updates done.
    pub update: u64,
    /// Updates in all.
    pub updates: Option<u64>,
    /// Seconds of its updates.
    pub seconds: f64,
    /// Its last update.
    pub last: Option<Step>,
    /// Those before that `train` printed.
    pub printed: Vec<Step>,
    /// The last held-out accuracy, and after which update.
    pub accuracy: Option<(u64, f64)>,
}

/// Seconds that are left, by the pace of the last updates; asking held-out problems and writing checkpoints is not counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Left {
    /// Of the part under way.
    pub part: Option<f64>,
    /// Of all parts.
    pub all: Option<f64>,
    /// Parts whose updates were never measured, so that nothing can be said of the whole.
    pub unmeasured: Vec<String>,
}

/// A checkpoint.
#[derive(Clone, Debug)]
pub struct CheckpointFacts {
    /// Its step.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// Seconds since it was written.
    pub age: Option<f64>,
}

/// What is known of a run.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What the run is called.
    pub run: String,
    /// Its folder, as it was named.
    pub folder: PathBuf,
    /// What it ran on, from environment.json.
    pub device: Option<String>,
    /// The version of latch.
    pub version: Option<String>,
    /// Whether it is alive.
    pub state: State,
    /// The same in words.
    pub sentence: String,
    /// The part.
    pub part: Option<PartFacts>,
    /// Updates of all parts.
    pub step: u64,
    /// Seconds since the last line of metrics.
    pub last_line: Option<f64>,
    /// Seconds since the process that is, or was, at work began; for one that has ended, until its end.
    pub elapsed: Option<f64>,
    /// Whether that process went on from a checkpoint.
    pub resumed: bool,
    /// Seconds of all updates.
    pub updates_seconds: f64,
    /// What is left.
    pub left: Left,
    /// Curves of the part.
    pub curves: Vec<Curve>,
    /// Held-out accuracies so far, the latest last.
    pub evaluations: Vec<Evaluation>,
    /// Update of the samples, the best and the worst.
    pub samples: Option<(u64, Sample, Sample)>,
    /// The newest checkpoint.
    pub checkpoint: Option<CheckpointFacts>,
    /// Bytes of the folder, and those that are free where it lies.
    pub disk: (u64, Option<u64>),
    /// What parts of reinforcement learning added up to, by name.
    pub tallies: Vec<(String, Tally)>,
    /// What could not be read, in words.
    pub problems: Vec<String>,
    /// Bytes of metrics that were read, and that there are, where some are left.
    pub reading: Option<(u64, u64)>,
    /// summary.json of a run that has ended.
    pub summary: Option<Value>,
}

impl Facts {
    /// As one line for scripts. Numbers that are not finite, or not known, are null.
    pub fn json(&self) -> Value {
        let part = self.part.as_ref().map(|part| {
            json!({
                "name": part.name,
                "kind": if part.rewarded { "arm" } else { "school" },
                "number": part.place.map(|(number, _)| number),
                "parts": part.place.map(|(_, parts)| parts),
                "update": part.update,
                "updates": part.updates,
                "updates_s": part.seconds,
                "last": part.last.as_ref().map(step),
                "held_out": part.accuracy.map(|(update, accuracy)| json!({"update": update, "accuracy": accuracy})),
            })
        });
        let curves = self.curves.iter().map(|curve| {
            let whole = curve.series.whole();
            let shown = json!({
                "last": curve.last,
                "low": whole.map(|whole| whole.low),
                "high": whole.map(|whole| whole.high),
                "mean": whole.map(|whole| whole.mean),
                "values": curve.series.values(),
                "not_finite": curve.series.gaps(),
            });
            (curve.name.to_string(), shown)
        });
        let tallies = self.tallies.iter().map(|(name, tally)| {
            let shown = json!({
                "updates": tally.updates,
                "dead_low": tally.dead_low,
                "dead_high": tally.dead_high,
                "live": tally.live,
                "replay_gap": tally.replay_gap,
                "audited": tally.audited,
                "first_reward": tally.first_reward,
                "last_reward": tally.last_reward,
            });
            (name.clone(), shown)
        });
        let evaluations = self.evaluations.iter().map(|evaluation| {
            json!({"what": evaluation.what, "accuracy": evaluation.accuracy, "problems": evaluation.problems})
        });
        let checkpoint = self.checkpoint.as_ref().map(|checkpoint| {
            json!({"step": checkpoint.step, "path": checkpoint.path.display().to_string(), "age_s": checkpoint.age})
        });
        let samples = self.samples.as_ref().map(
            |(update, best, worst)| json!({"update": update, "best": sample(best), "worst": sample(worst)}),
        );
        json!({
            "run": self.run,
            "folder": self.folder.display().to_string(),
            "state": self.state.name(),
            "sentence": self.sentence,
            "device": self.device,
            "latch": self.version,
            "step": self.step,
            "part": part,
            "elapsed_s": self.elapsed,
            "resumed": self.resumed,
            "updates_s": self.updates_seconds,
            "left": {"part_s": self.left.part, "all_s": self.left.all, "unmeasured": self.left.unmeasured},
            "last_line_age_s": self.last_line,
            "curves": curves.collect::<serde_json::Map<_, _>>(),
            "arms": tallies.collect::<serde_json::Map<_, _>>(),
            "evaluations": evaluations.collect::<Vec<_>>(),
            "samples": samples,
            "checkpoint": checkpoint,
            "disk": {"bytes": self.disk.0, "free_bytes": self.disk.1},
            "problems": self.problems,
            "summary": self.summary,
        })
    }
}

fn step(step: &Step) -> Value {
    match step {
        Step::Rewarded(step) => json!({
            "reward": step.reward,
            "change": step.change,
            "live": step.live,
            "all_wrong": step.all_wrong,
            "all_right": step.all_right,
            "entropy": step.entropy,
            "kl": step.kl,
            "length": step.length,
            "latent_norm": step.latent_norm,
            "latent_similarity": step.latent_similarity,
            "grad_norm": step.gradient_norm,
            "learning_rate": step.learning_rate,
            "seconds": step.seconds,
            "tokens_per_second": step.tokens_per_second,
        }),
        Step::Supervised(step) => json!({
            "loss": step.loss,
            "grad_norm": step.gradient_norm,
            "learning_rate": step.learning_rate,
            "seconds": step.seconds,
            "tokens_per_second": step.tokens_per_second,
        }),
    }
}

fn sample(sample: &Sample) -> Value {
    json!({
        "reward": sample.reward,
        "question": sample.question,
        "gold": sample.gold,
        "answer": sample.answer,
    })
}
