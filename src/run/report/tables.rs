//! The report's tables: what ran, stages, the comparison, time and memory, samples.

use super::markup::{element, number, percent, table};
use super::read::{Part, Run};
use super::recipes::keys;
use super::samples::{Sample, Update};
use super::svg::{self, Interval};
use super::tracks::colour_of;
use crate::run::terminal::{bytes, duration};
use serde_json::Value;

/// What ran, a row a run.
pub fn ran(runs: &[Run]) -> String {
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            let environment = run.environment.as_ref();
            let field = |name: &str| text_of(environment.and_then(|environment| environment.get(name)));
            let state = if run.summary.is_some() { "finished" } else { "not finished" };
            let seed = keys(&run.recipe).and_then(|keys| keys.get("seed").cloned()).unwrap_or_default();
            let on = [field("cpu"), threads(&field("threads")), field("vectors")].join(", ");
            let version = format!("{} ({}, {})", field("latch"), field("build"), short(&field("git_commit")));
            vec![run.label.clone(), state.into(), run.steps.to_string(), seed, field("device"), on, version]
        })
        .collect();
    table(&["run", "state", "updates", "seed", "device", "processor", "latch"], &rows)
}

fn threads(count: &str) -> String {
    let word = if count == "1" { "thread" } else { "threads" };
    format!("{count} {word}")
}

/// A commit's first digits.
fn short(commit: &str) -> String {
    let mark = if commit.ends_with('+') { "+" } else { "" };
    commit.chars().take(10).filter(|c| *c != '+').collect::<String>() + mark
}

fn text_of(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "unknown".into(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// A share of summary.json, in per cent with its interval.
fn share(value: &Value) -> Option<[f64; 3]> {
    let field = |name: &str| value.get(name).and_then(Value::as_f64);
    Some([field("value")?, field("low")?, field("high")?])
}

fn interval(value: &Value) -> String {
    match share(value) {
        Some([value, low, high]) => format!("{} [{}, {}]", percent(value), percent(low), percent(high)),
        None => String::new(),
    }
}

fn list<'a>(run: &'a Run, name: &str) -> &'a [Value] {
    let summary = run.summary.as_ref().and_then(|summary| summary.get(name)).and_then(Value::as_array);
    summary.map_or(&[], Vec::as_slice)
}

fn name_of(value: &Value) -> &str {
    value.get("name").and_then(Value::as_str).unwrap_or("unnamed")
}

/// What stands before the name of a part where there are several runs.
fn of(runs: &[Run], run: &Run, name: &str) -> String {
    if runs.len() > 1 { format!("{} / {name}", run.label) } else { name.to_string() }
}

/// Stages and their accuracy.
pub fn stages(runs: &[Run]) -> String {
    let mut rows = Vec::new();
    for run in runs {
        for stage in list(run, "stages") {
            let count = stage.get("updates").map_or(String::new(), Value::to_string);
            let loss =
                stage.get("loss").and_then(Value::as_f64).map_or(String::new(), |loss| format!("{loss:.4}"));
            rows.push(vec![of(runs, run, name_of(stage)), count, loss, interval(&stage["accuracy"])]);
        }
    }
    match rows.is_empty() {
        true => String::new(),
        false => {
            element("h3", "Stages of supervised training")
                + &table(&["stage", "updates", "last loss", "validation accuracy % [95 %]"], &rows)
        }
    }
}

/// Models on the test problems, as a figure and a table.
pub fn models(runs: &[Run], id: &str) -> String {
    let (mut rows, mut intervals) = (Vec::new(), Vec::new());
    let mut asked: Vec<(&str, &str)> = Vec::new();
    for model in runs.iter().flat_map(|run| list(run, "models")) {
        for kind in ["modes", "shifted"] {
            for name in model.get(kind).and_then(Value::as_object).into_iter().flat_map(serde_json::Map::keys)
            {
                if !asked.contains(&(kind, name)) {
                    asked.push((kind, name));
                }
            }
        }
    }
    let mut header: Vec<String> =
        ["model", "greedy % [95 %]", "gain % [95 %]", "p", "right alone: base / this"]
            .map(String::from)
            .into();
    for (kind, name) in &asked {
        match *kind {
            "modes" => {
                let k = only_k(runs, name).map_or("k".into(), |k| k.to_string());
                header.extend([format!("{name} mean"), format!("{name} pass@{k}")]);
            }
            _ => header.push(name.to_string()),
        }
    }
    header.extend(["no latents", "shuffled", "dead groups %", "rollouts"].map(String::from));
    for run in runs {
        for model in list(run, "models") {
            let name = of(runs, run, name_of(model));
            if let Some(value) = share(&model["det"]["accuracy"]) {
                intervals.push(Interval {
                    name: name.clone(),
                    colour: colour_of(runs, run, name_of(model)),
                    value,
                });
            }
            let against = &model["against_coconut"];
            let gain =
                match share(&against["difference"]).map(|difference| difference.map(|value| 100.0 * value)) {
                    Some([value, low, high]) => format!("{value:+.1} [{low:+.1}, {high:+.1}]"),
                    None => String::new(),
                };
            let p = against["mcnemar_p"].as_f64().map_or(String::new(), |p| format!("{p:.3}"));
            let only = match (against["only_coconut_right"].as_u64(), against["only_this_right"].as_u64()) {
                (Some(base), Some(this)) => format!("{base} / {this}"),
                _ => String::new(),
            };
            let mut row = vec![name, interval(&model["det"]["accuracy"]), gain, p, only];
            let value = |value: &Value| value.as_f64().map_or(String::new(), percent);
            for (kind, name) in &asked {
                let scores = &model[*kind][*name];
                match *kind {
                    "modes" => {
                        let pass = match (only_k(runs, name), scores["k"].as_u64()) {
                            (None, Some(k)) => format!("{} (k = {k})", value(&scores["pass_at_k"])),
                            _ => value(&scores["pass_at_k"]),
                        };
                        row.extend([value(&scores["accuracy"]["value"]), pass]);
                    }
                    _ => row.push(value(&scores["value"])),
                }
            }
            row.extend([value(&model["removed"]["value"]), value(&model["shuffled"]["value"])]);
            let rollouts = model["tally"]["rollouts"].as_u64().filter(|rollouts| *rollouts > 0);
            row.push(rollouts.map_or(String::new(), |_| value(&model["dead_group_share"])));
            row.push(rollouts.map_or(String::new(), |rollouts| rollouts.to_string()));
            rows.push(row);
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    element("h3", "Models on the test problems")
        + &svg::intervals(&intervals, "Greedy accuracy on the test problems, with 95 % intervals", id)
        + &table(&header, &rows)
        + "<p class=\"reading\">Gain and p compare each model with the first one of its run on the same problems (paired \
           bootstrap; McNemar's exact test): overlapping intervals above do not say that a paired difference is chance. The \
           best of several arms looks better than it is. \u{201c}no latents\u{201d} or \u{201c}shuffled\u{201d} (another \
           problem's latents) close to the greedy column means that the latents are not used. Mean and pass@k: a pass@k that \
           falls while the mean rises is sharpening, not new ability.</p>\n"
}

/// The k of pass@k in a mode, where all models of all runs have the same.
fn only_k(runs: &[Run], mode: &str) -> Option<u64> {
    let models = runs.iter().flat_map(|run| list(run, "models"));
    let mut all = models.filter_map(|model| model["modes"][mode]["k"].as_u64());
    let first = all.next()?;
    all.all(|k| k == first).then_some(first)
}

/// The largest replay gap of a part; one that is no number is larger than any.
fn largest_gap(part: &Part) -> String {
    let Some(series) = part.series("replay_gap") else { return String::new() };
    match (series.gaps(), series.whole()) {
        (0, whole) => whole.map_or(String::new(), |gap| number(gap.high)),
        (gaps, _) => format!("not finite in {gaps} of {}", series.values()),
    }
}

/// What log.txt says of accuracies, of runs without a summary.
pub fn evaluations(runs: &[Run]) -> String {
    let rows: Vec<Vec<String>> = runs
        .iter()
        .flat_map(|run| run.evaluations.iter().map(move |line| (run, line)))
        .filter_map(|(run, line)| {
            let (what, found) = line.split_once(": accuracy ")?;
            Some(vec![of(runs, run, what), found.to_string()])
        })
        .collect();
    match rows.is_empty() {
        true => String::new(),
        false => {
            element("h3", "Accuracy so far (log.txt)") + &table(&["asked", "share right, of problems"], &rows)
        }
    }
}

/// Arms at a glance, from the metrics.
pub fn arms(runs: &[Run]) -> String {
    let mut rows = Vec::new();
    for run in runs {
        for part in run.parts.iter().filter(|part| part.rewarded()) {
            let whole = |key: &str| part.series(key).and_then(|series| series.whole());
            let ends = |key: &str| match part.series(key).and_then(|series| series.ends()) {
                Some((first, last)) => format!("{} → {}", number(first), number(last)),
                None => String::new(),
            };
            rows.push(vec![
                of(runs, run, &part.name),
                part.updates.to_string(),
                ends("reward"),
                live(part).map_or(String::new(), percent),
                ends("entropy"),
                ends("completions/mean_length"),
                largest_gap(part),
                whole("timing_s/step").map_or(String::new(), |step| duration(step.mean)),
            ]);
        }
    }
    let header = [
        "arm",
        "updates",
        "reward",
        "live groups %",
        "entropy",
        "length",
        "largest replay gap",
        "an update takes",
    ];
    match rows.is_empty() {
        true => String::new(),
        false => {
            element("h3", "Arms at a glance (means of the first and the last tenth of the updates)")
                + &table(&header, &rows)
        }
    }
}

/// The share of live groups of all updates.
fn live(part: &Part) -> Option<f64> {
    let total =
        |key: &str| part.series(key).and_then(|series| series.whole()).map(|all| all.mean * all.count as f64);
    let live = total("groups/live")?;
    let all = live + total("groups/all_wrong")? + total("groups/all_right")?;
    (all > 0.0).then_some(live / all)
}

/// Time and memory of finished runs.
pub fn costs(runs: &[Run]) -> String {
    let (mut times, mut memory) = (Vec::new(), Vec::new());
    for run in runs {
        let Some(summary) = &run.summary else { continue };
        let seconds = summary.get("seconds").and_then(Value::as_object);
        let mut spent: Vec<(&String, f64)> =
            seconds.into_iter().flatten().filter_map(|(what, value)| Some((what, value.as_f64()?))).collect();
        spent.sort_by(|a, b| b.1.total_cmp(&a.1));
        let total: f64 = spent.iter().map(|(_, seconds)| seconds).sum();
        for (what, seconds) in spent {
            times.push(vec![of(runs, run, what), duration(seconds), percent(seconds / total.max(1e-9))]);
        }
        let size = |name: &str| match summary["memory"][name].as_u64() {
            Some(size) => bytes(size),
            None => "unknown".into(),
        };
        if summary["memory"].is_object() {
            let [forecast, most, tensors] =
                ["forecast_bytes", "most_bytes", "most_bytes_of_tensors"].map(size);
            memory.push(vec![run.label.clone(), forecast, most, tensors]);
        }
    }
    let mut out = String::new();
    if !times.is_empty() {
        out += &element("h3", "Time of the whole run");
        out += &table(&["spent on", "time", "%"], &times);
    }
    if !memory.is_empty() {
        out += &element("h3", "Memory");
        out += &table(&["run", "forecast", "most in use", "most in tensors"], &memory);
    }
    out
}

/// Best and worst rollouts of the last updates.
pub fn samples(runs: &[Run]) -> String {
    let mut out = String::new();
    for run in runs {
        // In the order in which the parts ran; of some there may be samples and no metrics yet.
        let ran: Vec<&str> = run.parts.iter().map(|part| part.name.as_str()).collect();
        let mut parts: Vec<_> = run.samples.parts.iter().collect();
        parts.sort_by_key(|(name, _)| ran.iter().position(|part| part == name).unwrap_or(usize::MAX));
        for (name, updates) in parts {
            let rows: Vec<Vec<String>> = updates.iter().rev().flat_map(pair).collect();
            out += &element("h3", &of(runs, run, name));
            out += &table(
                &["update", "which", "reward", "advantage", "question", "gold", "answer", "line"],
                &rows,
            );
        }
    }
    if out.is_empty() {
        return out;
    }
    let note = "Of each of the last updates the rollout with the highest and the one with the lowest reward (the first, where \
                several have it): extremes, not typical answers. `generate --replay RUN/samples.jsonl:LINE` runs one again, \
                to the bit.";
    format!(
        "{}<p class=\"reading\">{}</p>\n<div class=\"samples\">\n{out}</div>\n",
        element("h2", "Samples"),
        super::markup::escape(note)
    )
}

fn pair(update: &Update) -> Vec<Vec<String>> {
    let row = |which: &str, sample: &Sample| {
        vec![
            update.update.to_string(),
            which.to_string(),
            number(sample.reward),
            sample.advantage.map_or(String::new(), |advantage| format!("{advantage:+.2}")),
            sample.question.clone(),
            sample.gold.clone(),
            sample.answer.clone(),
            sample.line.to_string(),
        ]
    };
    match update.best.reward == update.worst.reward {
        true => vec![row(&format!("all {} equal", update.rollouts), &update.best)],
        false => vec![row("✓ best", &update.best), row("✗ worst", &update.worst)],
    }
}

/// The report in a few sentences.
pub fn sentence(run: &Run) -> String {
    let mut out = match (&run.summary, run.parts.last()) {
        (Some(_), _) => format!("finished after {} updates.", run.steps),
        (None, Some(part)) => format!(
            "not finished: {} updates so far, the last one is update {} of {}.",
            run.steps, part.updates, part.name
        ),
        (None, None) => "not finished.".into(),
    };
    let models = list(run, "models");
    let accuracy = |model: &Value| share(&model["det"]["accuracy"]);
    let Some((base, [start, ..])) = models.first().and_then(|base| Some((base, accuracy(base)?))) else {
        return out;
    };
    let found = models[1..].iter().filter_map(|model| Some((model, accuracy(model)?)));
    match found.max_by(|a, b| a.1[0].total_cmp(&b.1[0])) {
        None => {
            out += &format!(" {} answers {} % of the test problems right.", name_of(base), percent(start))
        }
        Some((_, [value, ..])) if value <= start => {
            let (name, start) = (name_of(base), percent(start));
            out += &format!(
                " No arm answers more test problems right than {name}, where they began: {start} %."
            );
        }
        Some((best, [value, low, high])) => {
            let p = best["against_coconut"]["mcnemar_p"]
                .as_f64()
                .map_or(String::new(), |p| format!(", p = {p:.3}"));
            out += &format!(
                " Test problems answered right: {} {} % [{}, {}], the highest of {}; {}, where they began, {} %{p}.",
                name_of(best),
                percent(value),
                percent(low),
                percent(high),
                if models.len() == 2 { "one model".into() } else { format!("{} models", models.len() - 1) },
                name_of(base),
                percent(start)
            );
        }
    }
    out
}
