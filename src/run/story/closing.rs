//! The tables at the end of a story, and the same as JSON.

use super::memory::MemoryUse;
use super::progress::{Entry, Progress};
use crate::learn::intervals;
use crate::run::evaluation::Share;
use crate::run::recipe::{Recipe, Variant};
use crate::run::terminal::{duration, table};
use serde::Deserialize;
use serde_json::{Value, json};

/// How a model compares with the base on the same problems.
struct Against {
    difference: Share,
    only_base: usize,
    only_arm: usize,
    p: f64,
}

/// Resamples of the paired bootstrap.
const RESAMPLES: u32 = 2000;

fn against(base: &Entry, arm: &Entry, seed: u64) -> Option<Against> {
    let (before, after) = (base.rights(), arm.rights());
    let number = |right: &Vec<bool>| right.iter().map(|&r| f64::from(u8::from(r))).collect::<Vec<f64>>();
    let paired = intervals::paired_bootstrap(&number(&before), &number(&after), RESAMPLES, seed).ok()?;
    let (only_base, only_arm) = intervals::discordant(&before, &after).ok()?;
    let difference =
        Share { value: paired.difference.estimate, low: paired.difference.low, high: paired.difference.high };
    Some(Against { difference, only_base, only_arm, p: intervals::mcnemar(only_base, only_arm) })
}

fn percent(value: f64) -> String {
    format!("{:.1}", 100.0 * value)
}

fn share(share: &Share) -> String {
    format!("{} [{}, {}]", percent(share.value), percent(share.low), percent(share.high))
}

/// Accuracy at the end of each stage.
pub fn stage_table(progress: &Progress) -> String {
    let rows: Vec<Vec<String>> = progress
        .stages
        .iter()
        .map(|stage| {
            vec![
                stage.name.clone(),
                stage.updates.to_string(),
                format!("{:.4}", stage.loss),
                share(&stage.accuracy),
            ]
        })
        .collect();
    table(&["stage", "updates", "loss", "validation accuracy % [95 %]"], &rows)
}

/// The comparison: every model on the same test problems, asked in every way of the recipe.
pub fn closing_table(recipe: &Recipe, progress: &Progress) -> String {
    let Some(base) = progress.entries.first() else { return String::new() };
    let modes: Vec<&String> = base.modes.keys().collect();
    let mut header = vec!["model".to_string(), "greedy % [95 %]".into(), "gain".into(), "p".into()];
    header.extend(modes.iter().map(|mode| format!("{mode} avg")));
    header.extend(modes.iter().map(|mode| format!("{mode} pass@{}", base.modes[*mode].k)));
    header.extend(["no latents", "shuffled"].map(String::from));
    header.extend(base.shifted.keys().cloned());
    header.extend(["dead groups", "updates", "rollouts"].map(String::from));
    let rows: Vec<Vec<String>> = progress
        .entries
        .iter()
        .map(|entry| {
            let against = against(base, entry, recipe.seed).filter(|_| entry.name != base.name);
            let mut row = vec![entry.name.clone(), share(&entry.det.accuracy)];
            row.push(
                against.as_ref().map_or(String::new(), |a| format!("{:+.1}", 100.0 * a.difference.value)),
            );
            row.push(against.as_ref().map_or(String::new(), |a| format!("{:.3}", a.p)));
            row.extend(modes.iter().map(|mode| percent(entry.modes[*mode].accuracy.value)));
            row.extend(modes.iter().map(|mode| percent(entry.modes[*mode].pass_at_k)));
            row.extend([percent(entry.removed.value), percent(entry.shuffled.value)]);
            row.extend(entry.shifted.values().map(|share| percent(share.value)));
            let tally = entry.tally;
            row.extend(match tally.rollouts {
                0 if tally.updates == 0 => [String::new(), String::new(), String::new()],
                0 => [String::new(), tally.updates.to_string(), String::new()],
                rollouts => [percent(tally.dead_share()), tally.updates.to_string(), rollouts.to_string()],
            });
            row
        })
        .collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut text = table(&header, &rows);
    if matches!(recipe.coconut.variant, Variant::Coconut | Variant::Codi) {
        text.push_str(&verdict(base));
    }
    text
}

/// Whether the latents are used at all, in words.
fn verdict(base: &Entry) -> String {
    let (own, removed, shuffled) = (base.det.accuracy.value, base.removed.value, base.shuffled.value);
    // Two standard errors of a difference of two such shares.
    let error = |share: &Share| (share.high - share.low) / 2.0;
    let noise = error(&base.det.accuracy).hypot(error(&base.removed));
    match own - removed > noise || own - shuffled > noise {
        true => format!(
            "the latents carry the answer: {} % with them, {} % without, {} % with another problem's\n",
            percent(own),
            percent(removed),
            percent(shuffled)
        ),
        false => format!(
            "removing or shuffling the latents changes little ({}, {}, {} %): this model does not reason in them\n",
            percent(own),
            percent(removed),
            percent(shuffled)
        ),
    }
}

/// Where the time went.
pub fn time_table(progress: &Progress) -> String {
    let total: f64 = progress.seconds.values().sum();
    let mut rows: Vec<(&String, f64)> = progress.seconds.iter().map(|(what, &s)| (what, s)).collect();
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(what, seconds)| vec![what.clone(), duration(seconds), percent(seconds / total.max(1e-9))])
        .collect();
    table(&["time spent on", "", "%"], &rows)
}

/// Everything the tables show, as JSON.
pub fn summary(recipe: &Recipe, progress: &Progress, memory: &MemoryUse) -> Value {
    let base = progress.entries.first();
    let entries: Vec<Value> = progress
        .entries
        .iter()
        .map(|entry| {
            let against = base.filter(|base| base.name != entry.name);
            let against = against.and_then(|base| against_json(base, entry, recipe.seed));
            let mut value = json!(entry);
            value["against_coconut"] = against.unwrap_or(Value::Null);
            value["dead_group_share"] = json!(entry.tally.dead_share());
            value
        })
        .collect();
    json!({
        "schema": 1,
        "seed": recipe.seed,
        "mask": {"p": recipe.mask.p, "mode": format!("{:?}", recipe.mask.mode)},
        "stages": progress.stages,
        "memory": memory.json(),
        "models": entries,
        "seconds": progress.seconds,
        "steps": progress.step,
    })
}

/// The progress that [`summary`] was made of, but for what only an unfinished story needs.
///
/// # Errors
/// Another program's JSON.
pub fn of_summary(summary: &Value) -> serde_json::Result<Progress> {
    Ok(Progress {
        step: Deserialize::deserialize(&summary["steps"])?,
        stages: Deserialize::deserialize(&summary["stages"])?,
        entries: Deserialize::deserialize(&summary["models"])?,
        seconds: Deserialize::deserialize(&summary["seconds"])?,
        ..Progress::default()
    })
}

fn against_json(base: &Entry, entry: &Entry, seed: u64) -> Option<Value> {
    let against = against(base, entry, seed)?;
    Some(json!({
        "difference": against.difference,
        "only_coconut_right": against.only_base,
        "only_this_right": against.only_arm,
        "mcnemar_p": against.p,
    }))
}
