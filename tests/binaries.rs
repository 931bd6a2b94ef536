//! The binaries as a user meets them: output, files, exit codes, messages.

use safetensors::SafeTensors;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(model)
}

fn run(binary: &str, arguments: &[&str]) -> Output {
    Command::new(binary).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn generate(arguments: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_generate"), arguments)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The command fails with `code` and says all of `words`.
#[track_caller]
fn refuses(output: &Output, code: i32, words: &[&str]) {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is missing in: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
}

#[test]
fn generate_prints_one_json_line_a_prompt() {
    let model = golden("gpt2");
    let text = std::fs::read_to_string(model.join("greedy.json")).unwrap();
    let greedy: serde_json::Value = serde_json::from_str(&text).unwrap();
    let case = &greedy["plain"];
    let ids: Vec<String> = case["prompt"].as_array().unwrap().iter().map(|id| id.to_string()).collect();
    let ids = ids.join(",");
    let output = generate(&[
        "--model",
        model.to_str().unwrap(),
        "--prompt-ids",
        &ids,
        "--prompt-ids",
        "1,2",
        "--greedy",
        "--json",
        "--max-new-tokens",
        "12",
        "--ignore-eos",
    ]);
    let lines: Vec<serde_json::Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["ids"], case["tokens"]);
    assert_eq!(lines[0]["logprobs"].as_array().unwrap().len(), 12);
    assert!(stderr(&output).contains("tokens/s"));
}

#[test]
fn generate_gives_the_same_sample_for_the_same_seed_and_another_for_another() {
    let model = golden("qwen3");
    let sample = |seed: &str| {
        let model = model.to_str().unwrap();
        stdout(&generate(&[
            "--model",
            model,
            "--prompt-ids",
            "5,6",
            "--temperature",
            "1",
            "--seed",
            seed,
            "--latents",
            "2",
            "-q",
        ]))
    };
    assert_eq!(sample("1"), sample("1"));
    assert_ne!(sample("1"), sample("2"));
}

#[test]
fn generate_refuses_what_cannot_be_done() {
    let folder = golden("gpt2");
    let model = folder.to_str().unwrap();
    let long = vec!["1"; 70].join(",");
    refuses(&generate(&["--model", model, "--prompt-ids", &long]), 2, &["positions", "exceed the model's"]);
    refuses(&generate(&["--model", model, "--prompt-ids", "1,x"]), 2, &["`x` is no token id", "1,2,3"]);
    refuses(&generate(&["--model", model, "--prompt-ids", "9999"]), 2, &["token id 9999", "vocabulary"]);
    refuses(
        &generate(&["--model", model, "--prompt-ids", "1", "--temperature", "0"]),
        2,
        &["temperature", "greedy"],
    );
    refuses(&generate(&["--model", model, "--prompt", "text"]), 1, &["tokenizer.json"]);
    refuses(
        &generate(&["--model", "/nonexistent", "--prompt-ids", "1"]),
        1,
        &["/nonexistent", "cannot open"],
    );
    refuses(
        &generate(&["--model", model, "--prompt-ids", "1", "--device", "cuda"]),
        1,
        &["cuda", "--device cpu"],
    );
    refuses(&generate(&["--model", model]), 2, &["--prompt"]);
}

#[test]
fn probe_writes_what_golden_files_hold() {
    let folder = golden("llama_head_dim");
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out.safetensors");
    let input = folder.join("cases/masked.in.safetensors");
    let output = run(
        env!("CARGO_BIN_EXE_probe"),
        &[
            "--model",
            folder.to_str().unwrap(),
            "--input",
            input.to_str().unwrap(),
            "--output",
            out.to_str().unwrap(),
        ],
    );
    stdout(&output);
    let (found, expected) =
        (std::fs::read(&out).unwrap(), std::fs::read(folder.join("cases/masked.out.safetensors")).unwrap());
    let (found, expected) =
        (SafeTensors::deserialize(&found).unwrap(), SafeTensors::deserialize(&expected).unwrap());
    let mut names: Vec<&str> = found.names();
    let mut golden: Vec<&str> = expected.names();
    names.sort_unstable();
    golden.sort_unstable();
    assert_eq!(names, golden);
    for name in names {
        assert_eq!(found.tensor(name).unwrap().shape(), expected.tensor(name).unwrap().shape(), "{name}");
    }
    let missing =
        run(env!("CARGO_BIN_EXE_probe"), &["--model", "x", "--input", "/nonexistent", "--output", "y"]);
    refuses(&missing, 1, &["/nonexistent", "cannot read"]);
    let unwritable = run(
        env!("CARGO_BIN_EXE_probe"),
        &[
            "--model",
            folder.to_str().unwrap(),
            "--input",
            input.to_str().unwrap(),
            "--output",
            "/nonexistent/out",
        ],
    );
    refuses(&unwritable, 1, &["/nonexistent/out", "cannot write"]);
}

#[test]
fn train_shows_its_result_and_saves_a_model_that_opens() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("model");
    let train = env!("CARGO_BIN_EXE_train");
    let output = run(train, &["--steps", "2", "--quiet", "--out", out.to_str().unwrap()]);
    let table = stdout(&output);
    assert!(
        table.contains("held-out accuracy over 500 problems") && table.contains("latents left away"),
        "{table}"
    );
    stdout(&generate(&["--model", out.to_str().unwrap(), "--prompt-ids", "1,10,2,11", "--latents", "2"]));
    refuses(&run(train, &["--out", out.to_str().unwrap()]), 2, &["exists"]);
    let json = stdout(&run(train, &["--steps", "2", "--json"]));
    let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert!(first["loss"].as_f64().unwrap() > 0.0);
    // The same seed gives the same losses, whatever the threads.
    assert_eq!(json, stdout(&run(train, &["--steps", "2", "--json", "--threads", "1"])));

    let recipe = work.path().join("mine.toml");
    let mut file = std::fs::File::create(&recipe).unwrap();
    writeln!(file, "sed = 1").unwrap();
    refuses(&run(train, &[recipe.to_str().unwrap()]), 2, &["mine.toml", "sed", "seed"]);
}
