//! How binaries end: readers that go away, and exit codes.

use super::{golden, refuses, run, stderr, stdout};
use std::process::{Command, Stdio};

/// `| head`: the reader has what it wanted.
#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let model = golden("gpt2");
    let model = model.to_str().unwrap();
    let begin = |binary: &str, arguments: &[&str]| {
        Command::new(binary)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    };
    let commands: [(&str, &[&str]); 6] = [
        (env!("CARGO_BIN_EXE_generate"), &["--model", model, "--prompt-ids", "1,2", "-n", "20", "--json"]),
        (env!("CARGO_BIN_EXE_generate"), &["--model", model, "--prompt-ids", "1,2", "-n", "20"]),
        (env!("CARGO_BIN_EXE_train"), &["--describe"]),
        (env!("CARGO_BIN_EXE_experiment"), &["list"]),
        (env!("CARGO_BIN_EXE_verify_grad"), &["--list"]),
        (
            env!("CARGO_BIN_EXE_kernel_report"),
            &["--shape", "gpt2-small", "--dtype", "f32", "--only", "elementwise scale"],
        ),
    ];
    for (binary, arguments) in commands {
        for words_too in [false, true] {
            let mut child = begin(binary, arguments).unwrap();
            drop(child.stdout.take());
            if words_too {
                drop(child.stderr.take());
            }
            let output = child.wait_with_output().unwrap();
            let message = stderr(&output);
            assert!(output.status.success(), "{binary} {arguments:?}: {:?} {message}", output.status);
            assert!(!message.contains("panicked"), "{binary} {arguments:?}: {message}");
        }
    }
}

/// 2: the command, or what it names, has to change; 1: what it asked for failed.
#[test]
fn all_binaries_end_with_the_same_codes() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).to_str().unwrap().to_string();
    let (folder, broken, text) = (path("."), path("broken.gguf"), path("text"));
    std::fs::write(&broken, "GGUF").unwrap();
    std::fs::write(&text, "no recipe, no rows, no problems").unwrap();
    let rows = golden("llama_head_dim").join("cases/masked.in.safetensors");
    let (rows, model) = (rows.to_str().unwrap(), golden("llama_head_dim"));
    let (model, out) = (model.to_str().unwrap(), path("out"));
    let [train, evaluate, experiment, generate, inspect, probe, verify_grad, kernel_report] = [
        env!("CARGO_BIN_EXE_train"),
        env!("CARGO_BIN_EXE_evaluate"),
        env!("CARGO_BIN_EXE_experiment"),
        env!("CARGO_BIN_EXE_generate"),
        env!("CARGO_BIN_EXE_inspect"),
        env!("CARGO_BIN_EXE_probe"),
        env!("CARGO_BIN_EXE_verify_grad"),
        env!("CARGO_BIN_EXE_kernel_report"),
    ];
    let small =
        [env!("CARGO_BIN_EXE_completions"), env!("CARGO_BIN_EXE_report"), env!("CARGO_BIN_EXE_watch")];
    let large = [train, evaluate, experiment, generate, inspect, probe, verify_grad, kernel_report];
    for binary in large.into_iter().chain(small) {
        stdout(&run(binary, &["--help"]));
        refuses(&run(binary, &["--no-such-flag"]), 2, &["--no-such-flag"]);
    }
    let wrong: [(&str, &[&str]); 17] = [
        (train, &["--set", "seed=x"]),
        (train, &["no-such-recipe"]),
        (train, &[&text]),
        (train, &["--out", &text]),
        (evaluate, &["--model", &folder]),
        (evaluate, &["--model", "/nonexistent"]),
        (evaluate, &["--model", &broken]),
        (experiment, &["e99"]),
        (experiment, &["e1", "--out", &text]),
        (generate, &["--model", &folder, "--prompt", "a"]),
        (generate, &["--model", &broken, "--prompt", "a"]),
        (generate, &["--model", model, "--prompt-file", &folder]),
        (inspect, &["--model", &folder, "--latents", "1"]),
        (probe, &["--model", model, "--input", &text, "--output", &out]),
        (probe, &["--model", model, "--input", &folder, "--output", &out]),
        (verify_grad, &["--model", &broken]),
        (kernel_report, &["--only", "no such kernel"]),
    ];
    for (binary, arguments) in wrong {
        let output = run(binary, arguments);
        assert_eq!(output.status.code(), Some(2), "{binary} {arguments:?}: {}", stderr(&output));
        refuses(&output, 2, &["error: "]);
    }
    // A card that is not there is no mistake of the command; neither is a gradient that is wrong.
    let card = ["--device", "cuda:4096"];
    let failed: [(&str, &[&str]); 8] = [
        (train, &["--out", &out]),
        (evaluate, &["--model", model]),
        (experiment, &["e1", "--out", &out]),
        (generate, &["--model", model, "--prompt-ids", "1"]),
        (inspect, &["--model", model, "--latents", "1"]),
        (probe, &["--model", model, "--input", rows, "--output", &out]),
        (verify_grad, &[]),
        (verify_grad, &["--only", "rmsnorm", "--plant", "rmsnorm/w:scale", "--device", "cpu"]),
    ];
    for (binary, arguments) in failed {
        let with = if arguments.contains(&"--device") { &[] } else { &card[..] };
        let output = run(binary, &[arguments, with].concat());
        assert_eq!(output.status.code(), Some(1), "{binary} {arguments:?}: {}", stderr(&output));
    }
    assert!(!std::path::Path::new(&out).exists());
}
