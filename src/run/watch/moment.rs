//! What is known of a run at a moment, of all that was read so far.

use super::facts::{CheckpointFacts, Facts, Left, PartFacts, State};
use super::measured::{Curve, Part, Step};
use super::{Watch, age};
use crate::run::report::series::Series;
use crate::run::terminal::duration;
use std::time::SystemTime;

impl Watch {
    /// What is known at `now`, as far as [`Watch::poll`] has read.
    pub fn facts(&self, now: SystemTime) -> Facts {
        let last_line = if self.measured.updates > 0 { age(now, self.metrics.modified()) } else { None };
        let until = if self.ended() { self.activity().unwrap_or(now) } else { now };
        let of_environment = |key: &str| {
            let value = self.environment.value.as_ref().and_then(|all| all.get(key))?;
            Some(value.as_str()?.to_string())
        };
        let part = self.part();
        let (reached, length) = self.metrics.reached();
        let reading = (reached < length && !self.metrics.torn()).then_some((reached, length));
        let arms = self.measured.parts.iter().filter(|part| part.rewarded);
        let name = self.current().0.unwrap_or_default();
        let update = self.samples.parts.get(name).and_then(|updates| updates.back());
        let mut facts = Facts {
            run: self.label.clone(),
            folder: self.path.clone(),
            device: of_environment("device"),
            version: of_environment("latch"),
            state: self.state,
            sentence: String::new(),
            left: if self.ended() { Left::default() } else { self.left(part.as_ref()) },
            part,
            step: self.measured.step,
            last_line,
            elapsed: age(until, self.environment.modified()),
            resumed: self.told.resumed,
            updates_seconds: self.measured.seconds,
            curves: self.curves(),
            evaluations: self.told.evaluations.clone(),
            samples: update.map(|update| (update.update, update.best.clone(), update.worst.clone())),
            checkpoint: self.checkpoint.as_ref().map(|(step, path, written)| CheckpointFacts {
                step: *step,
                path: path.clone(),
                age: age(now, *written),
            }),
            disk: self.disk,
            tallies: arms.map(|part| (part.name.clone(), part.tally)).collect(),
            problems: self.problems(),
            reading,
            summary: self.summary.value.clone().filter(|_| self.state == State::Ended),
        };
        facts.sentence = self.sentence(&facts, age(now, self.activity()));
        facts
    }

    fn part(&self) -> Option<PartFacts> {
        let (name, part) = self.current();
        let name = name?;
        let plan = self.recipe.value.as_ref();
        let place = plan.and_then(|plan| plan.place(name));
        let updates = match (plan, place) {
            (Some(plan), Some(place)) => plan.updates(place, &self.told.updates),
            _ => self.told.updates.get(name).copied(),
        };
        let complete = |step: &Step| match plan {
            Some(plan) => plan.complete(*step, name, updates.unwrap_or(0)),
            None => *step,
        };
        Some(PartFacts {
            name: name.into(),
            rewarded: match (part, plan, place) {
                (Some(part), ..) => part.rewarded,
                (None, Some(plan), Some(place)) => plan.parts[place].rewarded,
                _ => false,
            },
            place: plan.and_then(|plan| Some((place? + 1, plan.parts.len()))),
            update: part.map_or(0, |part| part.update),
            updates,
            seconds: part.map_or(0.0, |part| part.seconds),
            last: part.and_then(|part| part.last.as_ref().map(complete)),
            printed: part.map_or_else(Vec::new, |part| part.printed.iter().map(complete).collect()),
            accuracy: part.and_then(|part| part.accuracy),
        })
    }

    fn left(&self, part: Option<&PartFacts>) -> Left {
        let pace = |rewarded: bool| {
            let like = |of: &&Part| of.rewarded == rewarded && of.pace().is_some();
            self.current().1.filter(like).or_else(|| self.measured.parts.iter().rfind(like))?.pace()
        };
        let rest = part.and_then(|part| Some(part.updates?.saturating_sub(part.update)));
        let own = part.and_then(|part| Some(rest? as f64 * self.measured.part(&part.name)?.pace()?));
        let Some(plan) = &self.recipe.value else { return Left { part: own, ..Left::default() } };
        let (mut all, mut unmeasured) = (own, Vec::new());
        let next = part.and_then(|part| part.place).map_or(0, |(number, _)| number);
        for place in next..plan.parts.len() {
            let planned = &plan.parts[place];
            let updates = plan.updates(place, &self.told.updates);
            match (updates, pace(planned.rewarded)) {
                (Some(updates), Some(pace)) => all = all.map(|all| all + updates as f64 * pace),
                _ => unmeasured.push(planned.name.clone()),
            }
        }
        Left { part: own, all: all.filter(|_| unmeasured.is_empty()), unmeasured }
    }

    fn curves(&self) -> Vec<Curve> {
        let (_, part) = self.current();
        let mut curves = part.map_or_else(Vec::new, |part| part.curves.clone());
        // What a school comes to is asked at its end alone: a value a school.
        let validated: Vec<f64> = (self.told.evaluations.iter())
            .filter(|asked| asked.what.starts_with("after ") && !asked.what.contains(" updates of "))
            .map(|asked| asked.accuracy)
            .collect();
        if part.is_none_or(|part| !part.rewarded) && !validated.is_empty() {
            let mut series = Series::default();
            for (place, value) in validated.iter().enumerate() {
                series.push(place as f64, Some(*value));
            }
            curves.insert(
                curves.len().min(1),
                Curve { name: "accuracy", series, last: validated.last().copied() },
            );
        }
        curves
    }

    fn problems(&self) -> Vec<String> {
        let mut all = Vec::new();
        all.extend(self.told.warning.clone());
        for small in [&self.recipe.problem, &self.environment.problem, &self.summary.problem] {
            all.extend(small.clone());
        }
        for (name, count) in
            [("metrics.jsonl", self.measured.malformed), ("samples.jsonl", self.samples.faults.malformed)]
        {
            if count > 0 {
                all.push(format!("{name}: {count} malformed lines left out"));
            }
        }
        for (name, file) in [("metrics.jsonl", &self.metrics), ("samples.jsonl", &self.rollouts)] {
            if file.torn() && self.ended() {
                all.push(format!("{name}: its last line is torn; left out"));
            }
        }
        if self.measured.nonfinite > 0 {
            all.push(format!("{} values are not finite; shown as gaps", self.measured.nonfinite));
        }
        if self.measured.beyond > 0 {
            all.push(format!("{} lines of too many parts left out", self.measured.beyond));
        }
        all
    }

    /// Whether the run is alive, in words.
    fn sentence(&self, facts: &Facts, quiet: Option<f64>) -> String {
        let ago = |seconds: Option<f64>| {
            seconds.map_or("at an unknown time".into(), |s| format!("{} ago", duration(s)))
        };
        let goes_on = || match facts.checkpoint {
            Some(_) => format!("go on with train --resume --out {}", self.path.display()),
            None => "it left no checkpoint".into(),
        };
        let done =
            facts.part.as_ref().is_some_and(|part| part.updates == Some(part.update) && part.update > 0);
        let silent = quiet.is_some_and(|quiet| quiet > self.long());
        match self.state {
            State::Waiting if self.held == Some(true) => {
                "at work: no update yet, waiting for the first".into()
            }
            State::Waiting => "no update yet: waiting for the first".into(),
            State::AtWork if done => {
                format!(
                    "at work: these updates are done, problems are asked; last line {}",
                    ago(facts.last_line)
                )
            }
            State::AtWork if silent => {
                format!("at work, but nothing was written for {}", quiet.map_or_else(String::new, duration))
            }
            State::AtWork => format!("at work; last line {}", ago(facts.last_line)),
            State::Unknown => {
                format!(
                    "last line {}; no process of this machine is seen to hold the folder",
                    ago(facts.last_line)
                )
            }
            State::Stopped => {
                format!("not at work: stopped or killed, last sign {}; {}", ago(quiet), goes_on())
            }
            State::Ended => format!("ended {}", ago(quiet)),
        }
    }
}
