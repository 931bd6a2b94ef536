//! What metrics.jsonl says, line by line, in bounded memory: of each part its curves, its last updates, and what they add up
//! to.

use crate::run::report::series::Series;
use crate::run::story::Tally;
use crate::run::terminal::{Cell, GrpoStep, SUPERVISED_EVERY, SupervisedStep};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::collections::VecDeque;

/// Parts that are kept; what is beyond is counted.
const PARTS: usize = 64;
/// Step lines that a surprising value is compared with, as `train` does.
const LINES: usize = 128;
/// Updates whose times say how long the next ones will take.
const RECENT: usize = 32;

/// A number of a line: not there, null (not finite), or a number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Number {
    #[default]
    Absent,
    Null,
    Is(f64),
}

impl Number {
    fn get(self) -> Option<f64> {
        match self {
            Number::Is(value) => Some(value),
            _ => None,
        }
    }

    /// For a step line: NaN where it was not finite, 0 where there is none.
    fn shown(self) -> f64 {
        match self {
            Number::Absent => 0.0,
            Number::Null => f64::NAN,
            Number::Is(value) => value,
        }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Number, D::Error> {
        Ok(Option::<f64>::deserialize(from)?.map_or(Number::Null, Number::Is))
    }
}

/// One number, or a list of them, of which the last one counts.
#[derive(Deserialize)]
#[serde(untagged)]
enum Last {
    One(Number),
    List(Vec<Number>),
}

impl Default for Last {
    fn default() -> Last {
        Last::One(Number::Absent)
    }
}

impl Last {
    fn number(&self) -> Number {
        match self {
            Last::One(number) => *number,
            Last::List(list) => list.last().copied().unwrap_or_default(),
        }
    }
}

/// The keys that are used; the others are passed over without being built.
#[derive(Deserialize)]
struct Line<'a> {
    step: u64,
    #[serde(borrow, default)]
    part: Cow<'a, str>,
    update: Option<u64>,
    #[serde(default)]
    reward: Number,
    #[serde(default, rename = "groups/live")]
    live: u64,
    #[serde(default, rename = "groups/all_wrong")]
    all_wrong: u64,
    #[serde(default, rename = "groups/all_right")]
    all_right: u64,
    #[serde(default)]
    entropy: Number,
    #[serde(default)]
    kl: Number,
    #[serde(default, rename = "completions/mean_length")]
    length: Number,
    #[serde(default)]
    latent_norm: Number,
    #[serde(default)]
    latent_similarity: Number,
    #[serde(default)]
    grad_norm: Last,
    #[serde(default)]
    loss: Number,
    #[serde(default)]
    learning_rate: Number,
    #[serde(default)]
    positions: u64,
    #[serde(default)]
    tokens: u64,
    #[serde(default)]
    audited: u64,
    #[serde(default)]
    replay_gap: Number,
    #[serde(default, rename = "timing_s/step")]
    seconds: Number,
    #[serde(default, rename = "eval/accuracy")]
    accuracy: Number,
}

/// One update, as `train` prints it; what its line does not hold (updates in all, an arm's learning rate) is 0.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Of reinforcement learning.
    Rewarded(GrpoStep),
    /// Of a school.
    Supervised(SupervisedStep),
}

impl Step {
    /// The cells of its step line.
    pub fn cells(&self) -> Vec<Cell> {
        match self {
            Step::Rewarded(step) => step.cells(),
            Step::Supervised(step) => step.cells(),
        }
    }
}

/// A curve of a part.
#[derive(Clone, Debug)]
pub struct Curve {
    /// What it is called.
    pub name: &'static str,
    /// Its values.
    pub series: Series,
    /// The last one, where it is finite.
    pub last: Option<f64>,
}

/// A part of the story as far as it was measured.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Whether it is reinforcement learning.
    pub rewarded: bool,
    /// Its last update.
    pub update: u64,
    /// Its curves.
    pub curves: Vec<Curve>,
    /// Its last update.
    pub last: Option<Step>,
    /// Updates that `train` prints, the last ones.
    pub printed: VecDeque<Step>,
    /// The last held-out accuracy, and after which update.
    pub accuracy: Option<(u64, f64)>,
    /// What its updates added up to.
    pub tally: Tally,
    /// Seconds of all its updates.
    pub seconds: f64,
    recent: VecDeque<f64>,
    printed_reward: Option<f64>,
}

/// Everything that was measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Parts that have begun, in their order.
    pub parts: Vec<Part>,
    /// The last step.
    pub step: u64,
    /// Updates, of all parts.
    pub updates: u64,
    /// Seconds of all updates.
    pub seconds: f64,
    /// Lines that could not be read.
    pub malformed: u64,
    /// Lines of parts beyond those that are kept.
    pub beyond: u64,
    /// Values that are not finite, of those that are shown.
    pub nonfinite: u64,
}

impl Measured {
    /// Takes a line, counting it where it is none; `log_every` is the recipe's.
    pub fn take(&mut self, text: &[u8], log_every: u64) {
        let Ok(line) = serde_json::from_slice::<Line>(text) else {
            self.malformed += 1;
            return;
        };
        self.step = self.step.max(line.step);
        let name: &str = if line.part.is_empty() { "run" } else { &line.part };
        let place = match self.parts.iter().rposition(|part| part.name == name) {
            Some(place) => place,
            None if self.parts.len() == PARTS => {
                self.beyond += 1;
                return;
            }
            None => {
                self.parts.push(Part { name: name.into(), ..Part::default() });
                self.parts.len() - 1
            }
        };
        let part = &mut self.parts[place];
        if line.accuracy != Number::Absent {
            let update = line.update.unwrap_or(part.update);
            part.accuracy = line.accuracy.get().map(|value| (update, value));
            self.nonfinite += part.put("held-out", update, line.accuracy);
            return;
        }
        self.updates += 1;
        self.seconds += line.seconds.get().unwrap_or(0.0);
        self.nonfinite += part.take(&line, log_every.max(1));
    }

    /// The part of the last line.
    pub fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().rfind(|part| part.name == name)
    }
}

impl Part {
    /// Mean seconds of the last updates.
    pub fn pace(&self) -> Option<f64> {
        let count = self.recent.len();
        (count > 0).then(|| self.recent.iter().sum::<f64>() / count as f64)
    }

    /// Takes an update; how many of the values that are shown are not finite.
    fn take(&mut self, line: &Line, log_every: u64) -> u64 {
        let update = line.update.unwrap_or(line.step);
        self.update = self.update.max(update);
        if let Some(seconds) = line.seconds.get() {
            self.seconds += seconds;
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(seconds);
        }
        let seconds = line.seconds.shown();
        let a_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        self.rewarded |= line.reward != Number::Absent;
        let (step, every, gaps) = if self.rewarded {
            self.count(line);
            let reward = line.reward.shown();
            let step = GrpoStep {
                step: update,
                reward,
                change: self.printed_reward.map(|before| reward - before),
                live: line.live as usize,
                all_wrong: line.all_wrong as usize,
                all_right: line.all_right as usize,
                entropy: line.entropy.shown(),
                kl: line.kl.get(),
                length: line.length.shown(),
                latent_norm: line.latent_norm.shown(),
                latent_similarity: line.latent_similarity.shown(),
                gradient_norm: line.grad_norm.number().shown(),
                seconds,
                tokens_per_second: a_second(line.tokens),
                ..GrpoStep::default()
            };
            let gaps = self.put("reward", update, line.reward)
                + self.put("live groups", update, Number::Is(line.live as f64))
                + self.put("entropy", update, line.entropy);
            (Step::Rewarded(step), log_every, gaps)
        } else {
            let step = SupervisedStep {
                step: update,
                loss: line.loss.shown(),
                gradient_norm: line.grad_norm.number().shown(),
                learning_rate: line.learning_rate.shown(),
                seconds,
                tokens_per_second: a_second(line.positions),
                ..SupervisedStep::default()
            };
            let gaps =
                self.put("loss", update, line.loss) + self.put("gradient", update, line.grad_norm.number());
            (Step::Supervised(step), SUPERVISED_EVERY as u64 * log_every, gaps)
        };
        self.last = Some(step);
        if update.is_multiple_of(every) {
            if let Step::Rewarded(step) = step {
                self.printed_reward = Some(step.reward);
            }
            if self.printed.len() == LINES {
                self.printed.pop_front();
            }
            self.printed.push_back(step);
        }
        gaps
    }

    /// Adds an update to what they come to. How many rollouts it sampled no line says.
    fn count(&mut self, line: &Line) {
        let reward = line.reward.shown();
        self.tally.add(Tally {
            updates: 1,
            rollouts: 0,
            dead_low: line.all_wrong as usize,
            dead_high: line.all_right as usize,
            live: line.live as usize,
            replay_gap: line.replay_gap.shown(),
            audited: line.audited as usize,
            first_reward: reward,
            last_reward: reward,
        });
    }

    /// Adds a value to a curve; 1 where it is not finite.
    fn put(&mut self, name: &'static str, update: u64, value: Number) -> u64 {
        if value == Number::Absent {
            return 0;
        }
        let place = match self.curves.iter().position(|curve| curve.name == name) {
            Some(place) => place,
            None => {
                self.curves.push(Curve { name, series: Series::default(), last: None });
                self.curves.len() - 1
            }
        };
        let curve = &mut self.curves[place];
        curve.last = value.get();
        curve.series.push(update as f64, value.get());
        u64::from(value == Number::Null)
    }
}
