//! `generate`: text, samples, prompts, and what it refuses.

use super::{generate, golden, refuses, stderr, stdout};

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
    refuses(&generate(&["--model", model, "--prompt", "text"]), 2, &["tokenizer.json"]);
    refuses(
        &generate(&["--model", "/nonexistent", "--prompt-ids", "1"]),
        2,
        &["/nonexistent", "no such file or folder", "nothing is downloaded"],
    );
    refuses(
        &generate(&["--model", model, "--prompt-ids", "1", "--device", "cuda:4096"]),
        1,
        &["cuda", "--device cpu"],
    );
    refuses(&generate(&["--model", model]), 2, &["--prompt"]);
}

#[test]
fn prompts_come_from_files_as_editors_write_them() {
    let folder = tempfile::tempdir().unwrap();
    let (path, model) = (folder.path().join("präsent.txt"), folder.path().join("model"));
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("gpt2").join(file), model.join(file)).unwrap();
    }
    let tokenizer = r#"{"version": "1.0", "model": {"type": "BPE", "unk_token": "?", "merges": [],
        "vocab": {"a": 0, "b": 1, " ": 2, "?": 3}}}"#;
    std::fs::write(model.join("tokenizer.json"), tokenizer).unwrap();
    let ids = |contents: &[u8]| {
        std::fs::write(&path, contents).unwrap();
        let (model, path) = (model.to_str().unwrap(), path.to_str().unwrap());
        let output = generate(&["--model", model, "--prompt-file", path, "--json", "-n", "1"]);
        let line =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["prompt_ids"].clone();
        stdout(&output).lines().map(line).collect::<Vec<_>>()
    };
    let plain = ids(b"ab\nb a\n");
    assert_eq!(plain, [serde_json::json!([0, 1]), serde_json::json!([1, 2, 0])]);
    assert_eq!(ids(b"\xef\xbb\xbfab\r\n\r\nb a"), plain);
    std::fs::write(&path, b"ab\ncaf\xe9\n").unwrap();
    let arguments = ["--model", model.to_str().unwrap(), "--prompt-file", path.to_str().unwrap()];
    refuses(&generate(&arguments), 2, &["line 2", "not UTF-8"]);
}
