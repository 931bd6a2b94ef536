//! Flags of all binaries: numbers out of range, and help.

use super::{generate, golden, refuses, run, stdout, train};

#[test]
fn numbers_below_zero_and_beyond_reason_are_refused_by_name() {
    let model = golden("gpt2");
    let model = model.to_str().unwrap();
    let generate = |flag: &str, value: &str| generate(&["--model", model, "--prompt-ids", "1", flag, value]);
    refuses(&generate("--latents", "-3"), 2, &["'-3' for '--latents"]);
    refuses(&generate("-n", "-1"), 2, &["'-1' for '--max-new-tokens"]);
    refuses(&generate("-n", "0"), 2, &["'0' for '--max-new-tokens"]);
    refuses(&generate("--temperature", "nan"), 2, &["temperature", "NaN"]);
    refuses(&generate("--top-k", "0"), 2, &["top_k", "found 0", "leave top_k out"]);
    refuses(&generate("--top-p", "2"), 2, &["top_p", "found 2"]);
    refuses(&generate("--min-p", "nan"), 2, &["min_p", "found NaN"]);
    refuses(&generate("--temperature", "-1"), 2, &["temperature", "-1"]);
    refuses(&generate("--threads", "5000"), 2, &["--threads", "5000", "1024"]);
    // Before a model is opened.
    let evaluate = |flag: &str, value: &str| {
        run(env!("CARGO_BIN_EXE_evaluate"), &["--model", "/nonexistent", flag, value])
    };
    for (flag, value, range) in [
        ("--k", "0", "1..=4096"),
        ("--k", "5000", "1..=4096"),
        ("--masks", "0", "1..=4096"),
        ("--batch", "0", "1.."),
        ("--max-new-tokens", "0", "1.."),
    ] {
        refuses(&evaluate(flag, value), 2, &[&format!("'{value}' for '{flag}"), range]);
    }
    let experiment = |flag: &str, value: &str| run(env!("CARGO_BIN_EXE_experiment"), &["e1", flag, value]);
    refuses(&experiment("--seeds", "0"), 2, &["'0' for '--seeds", "1..="]);
    let late = u64::MAX.to_string();
    refuses(&experiment("--first-seed", &late), 2, &[&format!("'{late}' for '--first-seed"), "0..="]);
    let last = ((1_u64 << 53) - 1).to_string();
    let beyond = ["e1", "--first-seed", &last, "--seeds", "2", "--dry-run"];
    refuses(&run(env!("CARGO_BIN_EXE_experiment"), &beyond), 2, &["--first-seed", "2 seeds from"]);
    refuses(&experiment("--seeds", "1001"), 2, &["'1001' for '--seeds", "1..=1000"]);
    // Also where the mode makes no use of it.
    let greedy = |flag: &str, value: &str| {
        run(env!("CARGO_BIN_EXE_evaluate"), &["--model", model, "--latents", "0", flag, value])
    };
    refuses(&greedy("--p", "1"), 2, &["--p", "found 1", "below 1"]);
    refuses(&greedy("--temperature", "nan"), 2, &["temperature", "found NaN"]);
    for key in ["grpo.prompts", "grpo.group", "grpo.max_new_tokens", "evaluation.masks", "evaluation.k"] {
        let dry = train(&["--dry-run", "--set", &format!("{key}=0")]);
        refuses(&dry, 2, &[&format!("`{key}` is 0"), "from 1 to"]);
    }
    let most = usize::MAX.to_string();
    refuses(&generate("--latents", &most), 2, &["positions", "exceed the model's 40"]);
}

/// A heading holds for all flags that follow it, so what has none of its own comes first.
#[test]
fn flags_stand_under_their_own_headings_in_help() {
    for (binary, headings) in [
        (env!("CARGO_BIN_EXE_generate"), &["Soft thinking:", "Switching (SwiReasoning):"][..]),
        (env!("CARGO_BIN_EXE_evaluate"), &["Problems:", "Masks:", "Soft thinking:"][..]),
        (env!("CARGO_BIN_EXE_inspect"), &["Problems:", "Masks:"][..]),
    ] {
        let help = stdout(&run(binary, &["--help"]));
        let place = |what: &str| help.find(what).unwrap_or_else(|| panic!("{what} in {binary}:\n{help}"));
        for heading in headings {
            for flag in ["--seed", "--device", "--threads", "--json"] {
                assert!(place(&format!("      {flag}")) < place(heading), "{flag} stands under {heading}");
            }
        }
    }
}
