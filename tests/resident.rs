//! The memory that a run really takes, as the system counts it, against what `--dry-run` says.

use crate::binaries::{refuses, run, stdout as stdout_of};
use latch::base::Dtype;
use latch::device::{Arena, Device};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A run of seconds whose tensors outweigh the program: 6.3 million parameters of GPT-2's kind. Nothing is learnt, so
/// answers go on to their last token, and lose for that, all alike: without a baseline there is a gradient all the same, and
/// what it needs is touched.
const RUN: &[&str] = &[
    "model.family=gpt2",
    "model.layers=2",
    "model.width=512",
    "model.heads=8",
    "model.kv_heads=8",
    "model.mlp_hidden=2048",
    "data.limit_train=16",
    "data.limit_valid=8",
    "data.limit_test=8",
    "cot.epochs=1",
    "coconut.epochs_per_stage=1",
    "coconut.extra_epochs=0",
    "coconut.max_latent_stage=1",
    "grpo.arms=dropout_all",
    "grpo.preset=dapo",
    "grpo.baseline=none",
    "grpo.updates=1",
    "grpo.prompts=8",
    "grpo.fresh_problems=0",
    "evaluation.every=0",
    "evaluation.modes=det",
    "evaluation.batch=8",
    "run.checkpoint_every=1",
];

/// What changes from run to run: who keeps activations, how numbers are stored, what is trained.
const CASES: &[&[&str]] = &[
    &[],
    &["model.dtype=bf16"],
    &["grpo.tape_mib=50"],
    &["run.recompute=true"],
    &["model.dtype=bf16", "run.recompute=true", "grpo.tape_mib=50", "run.weight_copies_mib=0"],
    &["adapter.rank=4", "grpo.kl_beta=0.1"],
    &["grpo.prompts=2", "cot.batch=4", "coconut.batch=4", "model.layers=5"],
];

fn arguments<'a>(changes: &[&'a str]) -> Vec<&'a str> {
    let sets = RUN.iter().chain(changes).flat_map(|set| ["--set", set]);
    sets.chain(["--device", "cpu", "--threads", "2", "--quiet"]).collect()
}

fn stdout(arguments: &[&str]) -> String {
    stdout_of(&run(env!("CARGO_BIN_EXE_train"), arguments))
}

/// MiB of the table's row that begins with `name`.
fn row(table: &str, name: &str) -> Option<f64> {
    let line = table.lines().find(|line| line.trim_start().starts_with(name))?;
    line[line.find(name)? + name.len()..].split_whitespace().next()?.parse().ok()
}

/// A run in a process of its own: its table, and the most memory that the system saw there, in MiB.
fn table_and_most(changes: &[&str], folder: &Path) -> (String, f64, Value) {
    let mut arguments = arguments(changes);
    arguments.push("--dry-run");
    let text = stdout(&arguments);
    let table = text[text.find("\nmemory").unwrap()..].to_string();
    let out = folder.join("run");
    arguments.pop();
    arguments.extend(["--out", out.to_str().unwrap()]);
    let closing = stdout(&arguments);
    let summary: Value =
        serde_json::from_str(&fs::read_to_string(out.join("summary.json")).unwrap()).unwrap();
    let memory = summary["memory"].clone();
    let most = memory["most_bytes"].as_f64().unwrap() / f64::from(1 << 20);
    assert!(closing.contains(&format!("the program had {most:.0} MiB at most")), "{closing}");
    (table, most, memory)
}

/// How far a table may be above what is taken: it has room for the longest prompt and the longest answer of every rollout,
/// and for the longest examples of a batch, and pages that no sequence reached are never touched. The lowest share that was
/// seen taken is 0.85.
const ABOVE: f64 = 1.3;

/// Both ways: a run must not take more than 1.3 times its table, and the table must not be far above what is taken.
#[test]
#[cfg(target_os = "linux")]
fn a_run_takes_what_its_table_says() {
    for changes in CASES {
        let home = tempfile::tempdir().unwrap();
        let (table, most, memory) = table_and_most(changes, home.path());
        let total = row(&table, "total").unwrap();
        println!("{changes:?}: {most:.1} of {total:.1} MiB: {:.3}", most / total);
        assert!(most <= 1.3 * total, "{changes:?}: {most:.1} MiB, more than 1.3 times\n{table}");
        assert!(total <= ABOVE * most, "{changes:?}: {most:.1} MiB is far below\n{table}");
        // The run forecasts the same of itself.
        let forecast = memory["forecast_bytes"].as_f64().unwrap() / f64::from(1 << 20);
        assert!((forecast - total).abs() < 0.05 * total, "{changes:?}: {forecast:.1} of itself\n{table}");
        // What is no tensor has rows of its own, and is the smaller part here.
        let tensors = memory["most_bytes_of_tensors"].as_f64().unwrap() / f64::from(1 << 20);
        assert!(tensors > total / 2.0 && tensors < total, "{changes:?}: {tensors:.1} of tensors\n{table}");
        assert!(row(&table, "program, tokenizer, problems").unwrap() > 5.0, "{table}");
        assert!(row(&table, "threads and packed operands").unwrap() > 5.0, "{table}");
        let copies = row(&table, "copies of weights").is_some();
        let expected =
            latch::ops::vector_instructions() != "portable" && !changes.contains(&"run.weight_copies_mib=0");
        assert_eq!(copies, expected, "{changes:?}\n{table}");
    }
}

/// What is asked for is refused in a sentence, by kind, with what takes less.
#[test]
#[cfg(target_os = "linux")]
fn a_process_that_gets_no_memory_says_what_for() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("run");
    let large = ["model.width=1024", "model.layers=24", "model.mlp_hidden=4096"];
    let mut list = vec!["-c", "ulimit -v 1048576; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_train")];
    list.extend(arguments(&large));
    list.extend(["--out", out.to_str().unwrap()]);
    refuses(
        &run("sh", &list),
        1,
        &[
            "out of memory on the cpu, for the ",
            "bytes of the machine are free",
            "held by tensors of this program are: weights ",
            "ulimit -v",
            "train --dry-run",
            "grpo.tape_mib",
        ],
    );
}

#[test]
fn more_than_any_machine_has_is_an_error() {
    let device = Device::cpu();
    for elements in [1 << 60, usize::MAX] {
        let _arena = Arena::Tape.enter();
        let message = device.allocate(Dtype::F32, elements).unwrap_err().to_string();
        for words in [
            "out of memory on the cpu, for the tape",
            "by tensors of this program are: none",
            "run.recompute",
        ] {
            assert!(message.contains(words), "{message}");
        }
    }
    assert_eq!(device.traffic().count().bytes_held, 0);
    let kept = device.allocate(Dtype::F32, 1 << 10).unwrap();
    let message = device.allocate(Dtype::F32, 1 << 60).unwrap_err().to_string();
    assert!(message.contains("by tensors of this program are: other 4096"), "{message}");
    assert_eq!(device.traffic().count().bytes_held, kept.elements() * 4);
}

/// Copies of weights are speed, not results.
#[test]
fn text_is_the_same_without_copies_of_weights() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gpt2");
    let lines = |mebibytes: &str| {
        let list =
            ["--model", model, "--prompt-ids", "1,2,3", "-n", "20", "--ignore-eos", "--json", "--quiet"];
        let list = [&list[..], &["--weight-copies-mib", mebibytes]].concat();
        stdout_of(&run(env!("CARGO_BIN_EXE_generate"), &list))
    };
    assert_eq!(lines("0"), lines("1024"));
}
