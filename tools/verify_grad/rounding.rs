//! `verify_grad --dtype bf16` and `bf16-activations`: whole models in a lower precision, in norm, as a table.

use crate::output;
use latch::base::{Error, Result};
use latch::model::Precision;
use latch::verify::models::FAMILIES;
use latch::verify::rounding::{Distance, Planted, distances};
use latch::verify::suite::{Options, group};
use serde_json::json;

/// Width of the first column.
const NAME: usize = 54;

/// The checks: every family with a shared prompt and without.
fn checks(options: &Options) -> Vec<(String, &'static str, bool)> {
    let all = FAMILIES.into_iter().flat_map(|family| {
        [(true, "latent scope, shared prompt"), (false, "all scope, own prompts")]
            .map(|(share, how)| (format!("model {family}, {how}"), family, share))
    });
    let wanted = |name: &str| options.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    all.filter(|(name, ..)| wanted(name)).collect()
}

/// The names of the checks, a line each.
pub fn list(options: &Options) -> String {
    checks(options).iter().map(|(name, ..)| format!("  {name}\n")).collect()
}

/// Runs the checks and prints them; whether all passed.
///
/// # Errors
/// Options that these checks do not have, or a device that does not compute in this precision.
pub fn run(options: &Options, precision: Precision, json: bool, quiet: bool, tensors: bool) -> Result<bool> {
    let other = match (&options.model, &options.fault) {
        (Some(_), _) => Some("--model"),
        (_, Some(_)) => Some("--plant OPERATION/VARIABLE"),
        _ => None,
    };
    if let Some(option) = other {
        return Err(Error::input(
            option,
            format!("--dtype {precision} compares small models, in norm"),
            "leave it out, or leave out --dtype; `--plant recurrence` and `--plant cache` work with both",
        ));
    }
    let checks = checks(options);
    if checks.is_empty() {
        return Err(Error::input("--only", "no check's name contains it", "see the names with --list"));
    }
    let tell = !json && !quiet;
    if tell {
        let (what, found, single, bound) = ("what, by norms", precision.to_string(), "f32", "bound");
        output::write(&format!("{what:NAME$} {found:>10} {single:>10} {bound:>10}  verdict\n"))?;
    }
    let (mut failed, count) = (0, checks.len());
    for (name, family, share) in checks {
        let planted = Planted { truncation: options.truncation, ..Planted::default() };
        let found = distances(family, &group(options, share), &options.device, precision, planted)?;
        let passed = found.iter().all(Distance::passed);
        failed += usize::from(!passed);
        if json {
            for distance in &found {
                output::write(&format!("{}\n", line(&name, distance)))?;
            }
            continue;
        }
        if tell || !passed {
            let worst = |of: fn(&Distance) -> f64| found.iter().map(of).fold(0.0, f64::max);
            row(&name, worst(|d| d.found), worst(|d| d.single), worst(|d| d.bound), passed)?;
        }
        for distance in found.iter().filter(|distance| (tensors && tell) || !distance.passed()) {
            let name = format!("  {}", distance.name);
            row(&name, distance.found, distance.single, distance.bound, distance.passed())?;
        }
    }
    output::write(&match (json, failed) {
        (true, _) => format!("{}\n", json!({"summary": {"checks": count, "failed": failed}})),
        (false, 0) => format!("all agree with f64 ({count} models in {precision})\n"),
        (false, _) => format!("FAILED: {failed} of {count} models in {precision}\n"),
    })?;
    Ok(failed == 0)
}

fn row(name: &str, found: f64, single: f64, bound: f64, passed: bool) -> Result<()> {
    let verdict = if passed { "ok" } else { "FAILED" };
    output::write(&format!("{name:NAME$} {found:>10.1e} {single:>10.1e} {bound:>10.1e}  {verdict}\n"))
        .map(drop)
}

fn line(check: &str, distance: &Distance) -> serde_json::Value {
    json!({"check": check, "what": distance.name, "distance": distance.found, "distance_f32": distance.single,
        "bound": distance.bound, "passed": distance.passed()})
}
