//! The binaries as a user meets them: output, files, exit codes, messages. Here is what starts and reads them.

mod endings;
mod experiments;
mod flags;
mod generate;
mod probe;
mod simulated;
mod training;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(model)
}

pub fn run(binary: &str, arguments: &[&str]) -> Output {
    Command::new(binary).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn generate(arguments: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_generate"), arguments)
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The command fails with `code` and says all of `words`.
#[track_caller]
pub fn refuses(output: &Output, code: i32, words: &[&str]) {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is missing in: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
}

/// A run of a second: the whole story on a few problems.
const TINY: [&str; 34] = [
    "--set",
    "data.limit_train=64",
    "--set",
    "grpo.fresh_problems=64",
    "--set",
    "data.limit_valid=16",
    "--set",
    "data.limit_test=16",
    "--set",
    "model.layers=1",
    "--set",
    "model.width=32",
    "--set",
    "model.mlp_hidden=32",
    "--set",
    "cot.epochs=1",
    "--set",
    "coconut.extra_epochs=1",
    "--set",
    "grpo.updates=3",
    "--set",
    "grpo.prompts=2",
    "--set",
    "grpo.group=4",
    "--set",
    "evaluation.masks=2",
    "--set",
    "evaluation.k=2",
    "--set",
    "evaluation.every=2",
    "--set",
    "run.checkpoint_every=1",
    "--set",
    "grpo.arms=[\"temp\", \"dropout_latent\", \"dropout_all\", \"sft\"]",
];

pub fn train(more: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_train"), &TINY.iter().chain(more).copied().collect::<Vec<_>>())
}

pub fn experiment(more: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_experiment"), &TINY.iter().chain(more).copied().collect::<Vec<_>>())
}
