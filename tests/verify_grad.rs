//! The gradient checker itself: everything passes, and every planted fault is found.

use crate::parity::gpu;
use latch::base::{Dtype, Result};
use latch::cpu::parallel;
use latch::model::Truncation;
use latch::verify::fault::{Fault, FaultKind};
use latch::verify::gradient::{CaseSubject, Effort, Outcome, Subject, Variable, check_subject};
use latch::verify::models::FAMILIES;
use latch::verify::operations;
use latch::verify::suite::{self, Kind, Options, Report};
use std::collections::HashMap;
use std::process::Command;

/// Entries that differ from the start, by their bits: a point of evaluation.
type Point = Vec<(usize, usize, Vec<u64>)>;

/// A subject that remembers its losses and gradients: a fault changes neither, so that checking every kind of
/// fault in every output costs little more than checking once.
struct Remembering<S> {
    subject: S,
    /// Where it is now.
    moved: Point,
    losses: HashMap<Point, f64>,
    gradients: HashMap<(Dtype, Point), Vec<Vec<f64>>>,
}

impl<S: Subject> Remembering<S> {
    fn new(subject: S) -> Remembering<S> {
        Remembering { subject, moved: Vec::new(), losses: HashMap::new(), gradients: HashMap::new() }
    }
}

impl<S: Subject> Subject for Remembering<S> {
    fn name(&self) -> &str {
        self.subject.name()
    }

    fn variables(&self) -> &[Variable] {
        self.subject.variables()
    }

    fn set(&mut self, variable: usize, at: usize, values: &[f64]) -> Result<()> {
        self.subject.set(variable, at, values)?;
        let start = &self.subject.variables()[variable].values[at..at + values.len()];
        self.moved.retain(|(v, a, _)| (*v, *a) != (variable, at));
        if start != values {
            self.moved.push((variable, at, values.iter().map(|v| v.to_bits()).collect()));
        }
        Ok(())
    }

    fn loss(&mut self) -> Result<f64> {
        if let Some(loss) = self.losses.get(&self.moved) {
            return Ok(*loss);
        }
        let loss = self.subject.loss()?;
        self.losses.insert(self.moved.clone(), loss);
        Ok(loss)
    }

    fn gradient(&mut self, dtype: Dtype) -> Result<Vec<Vec<f64>>> {
        let key = (dtype, self.moved.clone());
        if let Some(gradient) = self.gradients.get(&key) {
            return Ok(gradient.clone());
        }
        let gradient = self.subject.gradient(dtype)?;
        self.gradients.insert(key, gradient.clone());
        Ok(gradient)
    }
}

fn passed(outcomes: &[Outcome]) -> bool {
    outcomes.iter().all(|outcome| outcome.passed)
}

/// Every gradient output of every operation, with every kind of fault: seen by at least one of the operation's
/// checks, and without the fault all of them pass.
#[test]
fn a_fault_in_any_gradient_of_any_operation_is_found() {
    let cases = operations::all();
    let outputs = suite::gradient_outputs();
    let stems: Vec<&str> = outputs.iter().map(|output| output.split('/').next().unwrap()).collect();
    let expected = [
        "attention",
        "embedding",
        "gated_mixture",
        "gelu",
        "latent",
        "layernorm",
        "linear",
        "log_probability",
        "masked_residual",
        "policy_loss",
        "rmsnorm",
        "rope",
        "sampler",
        "soft_action",
        "swiglu",
    ];
    for stem in expected {
        assert!(stems.contains(&stem), "{stem} has no gradient check");
    }
    let faults: Vec<Fault> = outputs
        .iter()
        .flat_map(|output| FaultKind::ALL.map(|kind| format!("{output}:{}", kind.name()).parse().unwrap()))
        .collect();
    let mut found = vec![false; faults.len()];
    for case in &cases {
        let mut subject = Remembering::new(CaseSubject::new(case));
        let clean = check_subject(&mut subject, Effort::default(), None).unwrap();
        assert!(passed(&clean), "{}: {clean:?}", case.name);
        for (found, fault) in found.iter_mut().zip(&faults) {
            if !*found && case.variables.iter().any(|variable| fault.concerns(&case.name, &variable.name)) {
                *found = !passed(&check_subject(&mut subject, Effort::default(), Some(fault)).unwrap());
            }
        }
    }
    let missed: Vec<&Fault> =
        faults.iter().zip(&found).filter(|(_, found)| !**found).map(|(fault, _)| fault).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// Reports of a quick run of some checks.
fn reports(options: Options) -> Vec<Report> {
    let mut reports = Vec::new();
    let options = Options { threads: parallel::threads(), ..options };
    suite::run(&options, &mut |report| reports.push(report)).unwrap();
    reports
}

fn quick(only: &str) -> Options {
    Options { only: Some(only.into()), probes: 4, ..Options::default() }
}

#[test]
fn every_family_has_a_layer_and_two_models() {
    let names = suite::names(&Options::default());
    for family in FAMILIES {
        let count =
            |start: &str| names.iter().filter(|name| name.starts_with(&format!("{start} {family}"))).count();
        assert!(count("layer") >= 1 && count("model") >= 2, "{family}: {names:?}");
    }
}

#[test]
fn layers_and_models_agree_with_differences() {
    for report in reports(quick("layer ")).into_iter().chain(reports(quick("model"))) {
        assert!(report.passed(), "{}: {:?}", report.name, report.outcomes);
        assert!(report.kind != Kind::Operation && report.outcomes.len() >= 10);
    }
}

#[test]
fn other_steps_sites_and_prompts_agree_too() {
    for steps in [0, 1, 7] {
        let options = Options { steps, prompt: 9, sites: Vec::new(), seed: 5, ..quick("model llama,") };
        for report in reports(options) {
            assert!(report.passed(), "{steps} steps: {:?}", report.outcomes);
        }
    }
}

#[test]
fn a_backward_pass_that_forgets_a_route_is_found() {
    let routes = [
        Truncation { detach_latent: true, ..Truncation::default() },
        Truncation { detach_kv: true, ..Truncation::default() },
        // One latent step of three: the faintest of them.
        Truncation { latent_steps: Some(2), ..Truncation::default() },
    ];
    for truncation in routes {
        let reports = reports(Options { truncation, prompt: 9, ..quick("model") });
        // Every family's, and one with a projector.
        assert_eq!(reports.len(), 3 * FAMILIES.len() + 2);
        for report in reports {
            assert!(!report.passed(), "{truncation:?}: {}", report.name);
        }
    }
}

#[test]
fn results_depend_on_neither_workers_nor_their_order() {
    let errors = |threads| -> Vec<(String, u64, u64)> {
        let mut all = Vec::new();
        let options = Options { threads, prompt: 9, ..quick("model q") };
        suite::run(&options, &mut |report| {
            all.extend(
                report
                    .outcomes
                    .iter()
                    .map(|o| (o.name.clone(), o.worst_f64.to_bits(), o.worst_f32.to_bits())),
            );
        })
        .unwrap();
        all
    };
    assert_eq!(errors(1), errors(3));
}

fn binary(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_verify_grad")).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_binary_compares_models_with_bf16_activations() {
    let asked = [
        "--device",
        gpu::name(),
        "--dtype",
        "bf16-activations",
        "--only",
        "model llama, latent",
        "--tensors",
    ];
    let (code, table, _) = binary(&asked);
    assert_eq!(code, Some(0), "{table}");
    for expected in
        ["bf16-activations", "bound", "log-probabilities", "q_proj", "all agree with f64 (1 models"]
    {
        assert!(table.contains(expected), "no `{expected}` in\n{table}");
    }
    let (code, table, _) = binary(&[&asked[..], &["--plant", "recurrence"]].concat());
    assert_eq!(code, Some(1), "{table}");
    assert!(table.contains("FAILED: 1 of 1 models"), "{table}");
    let (code, _, message) = binary(&["--dtype", "bf16-activations"]);
    assert_eq!(code, Some(2));
    assert!(message.contains("--dtype") && message.contains("cpu"), "{message}");
}

#[test]
fn the_binary_prints_a_table_and_exits_with_zero() {
    let (code, table, _) = binary(&["--only", "norm"]);
    assert_eq!(code, Some(0), "{table}");
    for expected in
        ["worst f64", "rmsnorm 5x123", "layernorm", " ok\n", "all gradients agree", "tests/parity covers"]
    {
        assert!(table.contains(expected), "no `{expected}` in\n{table}");
    }
    assert!(!table.contains("FAILED"));
}

#[test]
fn the_binary_exits_with_one_on_a_planted_fault() {
    let (code, table, _) = binary(&["--only", "rmsnorm", "--plant", "rmsnorm/w:scale"]);
    assert_eq!(code, Some(1), "{table}");
    for expected in ["FAILED: ", "rmsnorm 5x123 / w, entry ", "gradient ", "difference "] {
        assert!(table.contains(expected), "no `{expected}` in\n{table}");
    }
    let (code, table, _) = binary(&[
        "--only",
        "model gpt2, latent",
        "--prompt",
        "5",
        "--probes",
        "1",
        "--plant",
        "recurrence",
        "--quiet",
    ]);
    assert_eq!(code, Some(1), "{table}");
    assert!(table.contains("FAILED: 1 of 1 checks"), "{table}");
}

#[test]
fn json_lines_hold_what_the_table_holds() {
    let (code, lines, _) = binary(&["--only", "swiglu", "--json", "--threads", "1"]);
    assert_eq!(code, Some(0), "{lines}");
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (summary, outcomes) = lines.split_last().unwrap();
    assert!(outcomes.iter().all(|o| o["passed"] == true && o["worst_f64"].as_f64().unwrap() <= 1e-6));
    let probed: u64 = outcomes.iter().map(|o| o["probed"].as_u64().unwrap()).sum();
    assert_eq!(summary["summary"]["probed"].as_u64(), Some(probed));
    assert_eq!(summary["summary"]["failed"], 0);
}

#[test]
fn an_existing_model_is_checked() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/qwen3");
    let (code, table, error) = binary(&[
        "--model",
        folder,
        "--prompt",
        "6",
        "--steps",
        "2",
        "--probes",
        "2",
        "--sites",
        "attn_out,latent",
    ]);
    assert_eq!(code, Some(0), "{table}{error}");
    assert!(table.contains("model qwen3, latent scope, shared prompt"), "{table}");
}

#[test]
fn bad_requests_are_sentences() {
    for (arguments, expected) in [
        (&["--only", "nothing like it"][..], "no check's name contains `nothing like it`"),
        (&["--sites", "attn_out,knee"], "unknown site `knee`"),
        (&["--device", "tpu"], "unknown device `tpu`"),
        (&["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (&["--plant", "rmsnorm/w:loud"], "unknown kind of fault `loud`"),
        (&["--only", "rope", "--plant", "rope/knee"], "see the names with --list"),
        (&["--only", "model gpt2", "--prompt", "1"], "use at least 2"),
    ] {
        let (code, table, error) = binary(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {table}{error}");
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
    let (code, help, _) = binary(&["--help"]);
    assert!(code == Some(0) && help.contains("Examples:") && help.contains("--plant"));
}
