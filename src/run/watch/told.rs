//! What log.txt says, line by line: which part began with how many updates, accuracies, warnings. A resumed run goes on with
//! the log of the one before, so what is said twice holds as it was said last.

use std::collections::HashMap;

/// Accuracies that are kept.
const EVALUATIONS: usize = 200;
/// Parts whose updates are kept.
const PARTS: usize = 64;

/// Answers to held-out problems.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// After what, in the log's words.
    pub what: String,
    /// Share of right answers, to four places.
    pub accuracy: f64,
    /// Problems.
    pub problems: u64,
}

/// What was told so far.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The part that began last.
    pub part: Option<String>,
    /// Updates of the parts that have begun.
    pub updates: HashMap<String, u64>,
    /// Accuracies, the latest last.
    pub evaluations: Vec<Evaluation>,
    /// Whether the run went on from a checkpoint.
    pub resumed: bool,
    /// The last warning.
    pub warning: Option<String>,
}

impl Told {
    /// Takes a line; those that say something else are passed over.
    pub fn take(&mut self, line: &str) {
        let line = line.trim_end();
        if line.starts_with("going on after step ") {
            self.resumed = true;
        } else if line.starts_with("warning: ") {
            self.warning = Some(line.into());
        } else if let Some((name, updates)) = part(line) {
            self.part = Some(name.into());
            if self.updates.len() < PARTS {
                self.updates.insert(name.into(), updates);
            }
        } else if let Some(evaluation) = evaluation(line) {
            self.evaluations.retain(|earlier| earlier.what != evaluation.what);
            if self.evaluations.len() == EVALUATIONS {
                self.evaluations.remove(0);
            }
            self.evaluations.push(evaluation);
        }
    }
}

/// `temp: 120 updates, 40 done`.
fn part(line: &str) -> Option<(&str, u64)> {
    let (name, rest) = line.rsplit_once(": ")?;
    let (updates, done) = rest.split_once(" updates, ")?;
    done.strip_suffix(" done")?.parse::<u64>().ok()?;
    Some((name, updates.parse().ok()?))
}

/// `after stage 1, validation: accuracy 0.4375 of 16`.
fn evaluation(line: &str) -> Option<Evaluation> {
    let (what, rest) = line.rsplit_once(": accuracy ")?;
    let (accuracy, problems) = rest.split_once(" of ")?;
    Some(Evaluation { what: what.into(), accuracy: accuracy.parse().ok()?, problems: problems.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_read_as_train_writes_it() {
        let mut told = Told::default();
        for line in [
            "words: 62 updates, 0 done",
            "after words, validation: accuracy 0.5000 of 200",
            "saved runs/default-01/checkpoints/step-000062",
            "a note: of no interest, 3 done",
            "all: steps: 7 updates, 3 done",
            "going on after step 65 of runs/default-01/checkpoints/step-000065",
            "after words, validation: accuracy 0.6250 of 200",
        ] {
            told.take(line);
        }
        assert_eq!((told.part.as_deref(), told.updates["all: steps"]), (Some("all: steps"), 7));
        assert_eq!(told.updates["words"], 62);
        assert!(told.resumed && told.warning.is_none());
        let what = "after words, validation".to_string();
        assert_eq!(told.evaluations, [Evaluation { what, accuracy: 0.625, problems: 200 }]);
    }
}
