//! What several seeds say together: means with intervals over seeds, paired tests over seeds' problems.

use super::{Finding, Variation};
use crate::base::Result;
use crate::learn::intervals;
use crate::rollout::audit::worse;
use crate::run::evaluation::Share;
use crate::run::terminal::table;
use serde::Serialize;

/// One variation over all seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Name of the variation; `before` for the base.
    pub name: String,
    /// Seeds.
    pub seeds: usize,
    /// Mean accuracy with Student's 95 % interval over seeds.
    pub accuracy: Share,
    /// Mean gain over the base, likewise.
    pub gain: Share,
    /// Mean difference from the first variation, with the paired bootstrap's interval over all seeds' problems.
    pub difference: Share,
    /// McNemar's exact test of that difference over all seeds' problems.
    pub p: f64,
    /// Mean share of dead groups.
    pub dead_groups: f64,
    /// Mean deviation of rewards in a group.
    pub reward_deviation: f64,
    /// Mean number of different answers in a group.
    pub distinct_answers: f64,
    /// Largest |log ratio| on the first pass.
    pub log_ratio: f64,
    /// Largest replay gap.
    pub replay_gap: f64,
    /// Mean accuracy on other distributions, in the order of their names.
    pub shifted: Vec<(String, f64)>,
    /// Mean seconds of training.
    pub seconds: f64,
}

/// Resamples of the paired bootstrap.
const RESAMPLES: u32 = 2000;

/// Compares variations; `findings[seed]` holds the base and then each variation.
///
/// # Errors
/// Seeds with different numbers of problems.
pub fn compare(variations: &[Variation], findings: &[Vec<Finding>]) -> Result<Vec<Comparison>> {
    let names = std::iter::once("before").chain(variations.iter().map(Variation::name));
    // What each variation started from.
    let words = variations.iter().position(|variation| matches!(variation, Variation::Words(_)));
    let base = |index: usize| match words {
        Some(words) if index > 0 && variations[index - 1].words() => words + 1,
        _ => 0,
    };
    names.enumerate().map(|(index, name)| comparison(name, index, base(index), findings)).collect()
}

fn comparison(name: &str, index: usize, base: usize, findings: &[Vec<Finding>]) -> Result<Comparison> {
    let of: Vec<&Finding> = findings.iter().map(|seed| &seed[index]).collect();
    let mean = |value: &dyn Fn(&Finding) -> f64| of.iter().map(|f| value(f)).sum::<f64>() / of.len() as f64;
    let interval = |values: Vec<f64>| -> Share {
        match intervals::mean(&values) {
            Ok(interval) => Share { value: interval.estimate, low: interval.low, high: interval.high },
            // One seed has no interval.
            Err(_) => Share { value: values[0], low: f64::NEG_INFINITY, high: f64::INFINITY },
        }
    };
    let rights = |index: usize| -> Vec<bool> {
        findings.iter().flat_map(|seed| seed[index].right.chars().map(|mark| mark == '1')).collect()
    };
    let number = |rights: &[bool]| rights.iter().map(|&right| f64::from(u8::from(right))).collect::<Vec<_>>();
    let (first, own) = (rights(1.min(findings[0].len() - 1)), rights(index));
    let paired = intervals::paired_bootstrap(&number(&first), &number(&own), RESAMPLES, 0)?.difference;
    let (only_first, only_own) = intervals::discordant(&first, &own)?;
    Ok(Comparison {
        name: name.into(),
        seeds: of.len(),
        accuracy: interval(of.iter().map(|f| f.accuracy).collect()),
        gain: interval(findings.iter().map(|seed| seed[index].accuracy - seed[base].accuracy).collect()),
        difference: Share { value: paired.estimate, low: paired.low, high: paired.high },
        p: intervals::mcnemar(only_first, only_own),
        dead_groups: mean(&|f| f.dead_groups),
        reward_deviation: mean(&|f| f.reward_deviation),
        distinct_answers: mean(&|f| f.distinct_answers),
        log_ratio: of.iter().map(|f| f.log_ratio).fold(0.0, worse),
        replay_gap: of.iter().map(|f| f.replay_gap).fold(0.0, worse),
        shifted: of[0]
            .shifted
            .keys()
            .map(|name| (name.clone(), mean(&|f| f.shifted.get(name).copied().unwrap_or(0.0))))
            .collect(),
        seconds: mean(&|f| f.seconds),
    })
}

/// The comparisons as a table.
pub fn text(comparisons: &[Comparison]) -> String {
    let percent = |value: f64| format!("{:.1}", 100.0 * value);
    let share = |share: &Share| match share.low.is_finite() {
        true => format!("{} [{}, {}]", percent(share.value), percent(share.low), percent(share.high)),
        false => percent(share.value),
    };
    let first = comparisons.get(1).map_or("", |comparison| comparison.name.as_str());
    let versus = format!("against {first}");
    let mut header =
        vec!["variation", "accuracy % [95 %, seeds]", "gain % [95 %, seeds]", versus.as_str(), "p"];
    header.extend(["dead groups", "reward sd", "answers", "log ratio", "gap"]);
    let shifted: Vec<String> = comparisons
        .first()
        .map(|c| c.shifted.iter().map(|(name, _)| name.clone()).collect())
        .unwrap_or_default();
    header.extend(shifted.iter().map(String::as_str));
    header.push("s");
    let rows: Vec<Vec<String>> = comparisons
        .iter()
        .enumerate()
        .map(|(index, comparison)| {
            let trained = index > 0;
            let when = |text: String| if trained { text } else { String::new() };
            let mut row = vec![
                comparison.name.clone(),
                share(&comparison.accuracy),
                when(share(&comparison.gain)),
                when(share(&comparison.difference)),
                when(format!("{:.4}", comparison.p)),
                when(percent(comparison.dead_groups)),
                when(format!("{:.3}", comparison.reward_deviation)),
                when(format!("{:.2}", comparison.distinct_answers)),
                when(format!("{:.3}", comparison.log_ratio)),
                when(format!("{:.0e}", comparison.replay_gap)),
            ];
            row.extend(comparison.shifted.iter().map(|(_, value)| percent(*value)));
            row.push(when(format!("{:.0}", comparison.seconds)));
            row
        })
        .collect();
    table(&header, &rows)
}
