//! The table of `verify_grad`, as text and as JSON lines.

use latch::verify::gradient::{Outcome, TOLERANCE_F32, TOLERANCE_F64};
use latch::verify::suite::{Kind, Report};
use serde_json::json;
use std::fmt::Write;
use std::time::Instant;

/// Width of the first column: the longest name of the default run.
const NAME: usize = 54;

/// Rows and totals.
pub struct Table {
    json: bool,
    quiet: bool,
    tensors: bool,
    start: Instant,
    last: Option<Kind>,
    checks: usize,
    failed: usize,
    variables: usize,
    probed: usize,
    moved: usize,
    /// Worst errors and where they are.
    worst_f64: (f64, String),
    worst_f32: (f64, String),
}

impl Table {
    pub fn new(json: bool, quiet: bool, tensors: bool) -> Table {
        Table {
            json,
            quiet,
            tensors,
            start: Instant::now(),
            last: None,
            checks: 0,
            failed: 0,
            variables: 0,
            probed: 0,
            moved: 0,
            worst_f64: (0.0, String::new()),
            worst_f32: (0.0, String::new()),
        }
    }

    /// Whether every check passed.
    pub fn passed(&self) -> bool {
        self.failed == 0
    }

    pub fn head(&self) -> String {
        match self.json || self.quiet {
            true => String::new(),
            false => format!(
                "{:NAME$} {:>7} {:>7} {:>10} {:>10}  {}\n",
                "what", "tensors", "probed", "worst f64", "worst f32", "verdict"
            ),
        }
    }

    /// The rows of one check.
    pub fn add(&mut self, report: &Report) -> String {
        self.count(report);
        let mut out = String::new();
        if self.json {
            report.outcomes.iter().for_each(|outcome| out += &json_line(report, outcome));
            return out;
        }
        if self.quiet && report.passed() {
            return out;
        }
        if self.last != Some(report.kind) {
            self.last = Some(report.kind);
            let _ = writeln!(out, "{}", title(report.kind));
        }
        let worst = |f: fn(&Outcome) -> f64| report.outcomes.iter().map(f).fold(0.0, f64::max);
        let probed = report.outcomes.iter().map(|outcome| outcome.probed).sum();
        let tensors = report.outcomes.len() - 1;
        let errors = (worst(|o| o.worst_f64), worst(|o| o.worst_f32));
        out += &row(&report.name, &tensors.to_string(), probed, errors, report.passed());
        for outcome in &report.outcomes {
            if self.tensors {
                let name = format!("  {}", outcome.variable());
                out +=
                    &row(&name, "", outcome.probed, (outcome.worst_f64, outcome.worst_f32), outcome.passed);
            }
            if !outcome.passed {
                out += &witness(outcome);
            }
        }
        out
    }

    fn count(&mut self, report: &Report) {
        self.checks += 1;
        self.failed += usize::from(!report.passed());
        self.variables += report.outcomes.len() - 1;
        for outcome in &report.outcomes {
            self.probed += outcome.probed;
            self.moved += outcome.moved;
            if outcome.worst_f64 > self.worst_f64.0 {
                self.worst_f64 = (outcome.worst_f64, outcome.name.clone());
            }
            if outcome.worst_f32 > self.worst_f32.0 {
                self.worst_f32 = (outcome.worst_f32, outcome.name.clone());
            }
        }
    }

    /// The last lines.
    pub fn close(&self) -> String {
        let seconds = self.start.elapsed().as_secs_f64();
        if self.json {
            let summary = json!({"summary": {"checks": self.checks, "failed": self.failed, "tensors": self.variables,
                "probed": self.probed, "moved": self.moved, "worst_f64": self.worst_f64.0,
                "worst_f64_at": self.worst_f64.1, "worst_f32": self.worst_f32.0, "worst_f32_at": self.worst_f32.1,
                "tolerance_f64": TOLERANCE_F64, "tolerance_f32": TOLERANCE_F32, "seconds": seconds}});
            return format!("{summary}\n");
        }
        let mut out = String::new();
        if !self.quiet {
            let _ = writeln!(out, "worst f64 {:.1e}: {}", self.worst_f64.0, self.worst_f64.1);
            let _ = writeln!(out, "worst f32 {:.1e}: {}", self.worst_f32.0, self.worst_f32.1);
            let _ = writeln!(out, "points moved off a kink: {}", self.moved);
            let _ = writeln!(
                out,
                "Optimiser, gradient norm, mask bits and the sampler's choice have no gradient: tests/parity covers them."
            );
        }
        let verdict = match self.failed {
            0 => "all gradients agree".to_string(),
            failed => format!("FAILED: {failed} of {} checks", self.checks),
        };
        let _ = writeln!(
            out,
            "{verdict} ({} checks, {} tensors, {} entries and directions; f64 within {TOLERANCE_F64:.0e} of differences, f32 within {TOLERANCE_F32:.0e} of f64; {seconds:.1} s)",
            self.checks, self.variables, self.probed
        );
        out
    }
}

fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::Operation => "-- operations",
        Kind::Layer => "-- one layer: all parameters and its input",
        Kind::Model => "-- whole models through latent steps",
    }
}

fn row(name: &str, tensors: &str, probed: usize, (f64, f32): (f64, f64), passed: bool) -> String {
    let verdict = if passed { "ok" } else { "FAILED" };
    format!("{name:NAME$} {tensors:>7} {probed:>7} {f64:>10.1e} {f32:>10.1e}  {verdict}\n")
}

/// Why an outcome failed.
fn witness(outcome: &Outcome) -> String {
    let mut out = String::new();
    if outcome.worst_f64 > TOLERANCE_F64 {
        let (entry, gradient, difference) = outcome.witness;
        let _ = writeln!(
            out,
            "    {}, entry {entry}: gradient {gradient:.9e}, difference {difference:.9e} (error {:.1e}, of the difference about {:.0e})",
            outcome.name, outcome.worst_f64, outcome.uncertainty
        );
    }
    if outcome.worst_f32 > TOLERANCE_F32 {
        let (entry, single, double) = outcome.witness_f32;
        let _ = writeln!(
            out,
            "    {}, entry {entry}: f32 gradient {single:.6e}, f64 gradient {double:.6e} (error {:.1e})",
            outcome.name, outcome.worst_f32
        );
    }
    out
}

fn json_line(report: &Report, outcome: &Outcome) -> String {
    let kind = match report.kind {
        Kind::Operation => "operation",
        Kind::Layer => "layer",
        Kind::Model => "model",
    };
    let line = json!({"check": report.name, "kind": kind, "variable": outcome.variable(), "probed": outcome.probed,
        "moved": outcome.moved, "worst_f64": outcome.worst_f64, "worst_f32": outcome.worst_f32,
        "uncertainty": outcome.uncertainty, "entry": outcome.witness.0, "gradient": outcome.witness.1,
        "difference": outcome.witness.2, "passed": outcome.passed});
    format!("{line}\n")
}

/// Names for `--only` and `--plant`.
pub fn list(checks: &[String], outputs: &[String]) -> String {
    let mut out = String::from("checks (--only):\n");
    checks.iter().for_each(|name| out += &format!("  {name}\n"));
    out += "gradients of operations (--plant):\n";
    outputs.iter().for_each(|name| out += &format!("  {name}\n"));
    out
}
