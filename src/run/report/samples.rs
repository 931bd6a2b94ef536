//! What samples.jsonl holds of the last updates: of each part the best and the worst rollout. The file may be larger than
//! memory: it is read once, line by line, and only what is shown is kept.

use super::lines::{self, Faults};
use super::markup::clipped;
use crate::base::Result;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

/// Updates of a part whose samples are kept: the last ones.
const UPDATES: usize = 4;
/// Characters of a text that are kept.
const CHARACTERS: usize = 600;
/// Parts whose samples are kept.
const PARTS: usize = 32;

/// A rollout as it is shown.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Its line in samples.jsonl, as `generate --replay` takes it.
    pub line: u64,
    /// Its reward.
    pub reward: f64,
    /// Its advantage, where there is one.
    pub advantage: Option<f64>,
    /// The question, shortened.
    pub question: String,
    /// The gold answer, shortened.
    pub gold: String,
    /// The answer, shortened.
    pub answer: String,
}

/// The rollouts of one update.
#[derive(Clone, Debug)]
pub struct Update {
    /// Its number in the part.
    pub update: u64,
    /// Rollouts with a reward.
    pub rollouts: u64,
    /// The first of those with the highest reward.
    pub best: Sample,
    /// The first of those with the lowest.
    pub worst: Sample,
}

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// By part, its last updates.
    pub parts: BTreeMap<String, VecDeque<Update>>,
    /// Rollouts in the file.
    pub rollouts: u64,
    /// Rollouts without a reward: not finite, or not there.
    pub unrewarded: u64,
    /// Lines that could not be read.
    pub faults: Faults,
}

/// The keys that are shown; the others are passed over without being built.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, default)]
    part: Cow<'a, str>,
    update: Option<u64>,
    step: Option<u64>,
    reward: Option<f64>,
    advantage: Option<f64>,
    #[serde(borrow)]
    question: Option<Cow<'a, str>>,
    #[serde(borrow)]
    gold: Option<Cow<'a, str>>,
    #[serde(borrow)]
    answer: Option<Cow<'a, str>>,
}

/// Reads a samples.jsonl.
///
/// # Errors
/// Those of [`lines::each`].
pub fn read(path: &Path) -> Result<Samples> {
    let mut samples = Samples::default();
    let faults = lines::each(path, |number, text| samples.read_line(number, text))?;
    samples.faults = faults;
    Ok(samples)
}

impl Samples {
    /// Takes line `number` of the file; false where it is none.
    pub fn read_line(&mut self, number: u64, text: &[u8]) -> bool {
        match serde_json::from_slice::<Line>(text) {
            Ok(line) => {
                self.take(number, &line);
                true
            }
            Err(_) => false,
        }
    }

    fn take(&mut self, number: u64, line: &Line) {
        self.rollouts += 1;
        let Some(reward) = line.reward else {
            self.unrewarded += 1;
            return;
        };
        let name: &str = &line.part;
        if !self.parts.contains_key(name) {
            if self.parts.len() == PARTS {
                return;
            }
            self.parts.insert(name.to_string(), VecDeque::new());
        }
        let Some(updates) = self.parts.get_mut(name) else { return };
        let update = line.update.or(line.step).unwrap_or(0);
        match updates.back_mut() {
            Some(last) if last.update == update => {
                last.rollouts += 1;
                if reward > last.best.reward {
                    last.best = line.sample(number, reward);
                }
                if reward < last.worst.reward {
                    last.worst = line.sample(number, reward);
                }
            }
            _ => {
                if updates.len() == UPDATES {
                    updates.pop_front();
                }
                let one = line.sample(number, reward);
                updates.push_back(Update { update, rollouts: 1, best: one.clone(), worst: one });
            }
        }
    }
}

impl Line<'_> {
    fn sample(&self, number: u64, reward: f64) -> Sample {
        let text =
            |text: &Option<Cow<str>>| text.as_deref().map_or(String::new(), |text| clipped(text, CHARACTERS));
        Sample {
            line: number,
            reward,
            advantage: self.advantage,
            question: text(&self.question),
            gold: text(&self.gold),
            answer: text(&self.answer),
        }
    }
}
