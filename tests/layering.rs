//! The layering rule (ARCHITECTURE.md): a floor uses the floors below it, never those above or beside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each floor may use of our own. A floor that is not listed fails the test, so the list stays complete.
const MAY_USE: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("cpu", &["base"]),
    ("sim", &["base"]),
    ("device", &["sim", "base"]),
    ("ops", &["device", "cpu", "base"]),
    ("model", &["text", "ops", "device", "cpu::parallel", "base"]),
    ("text", &["base"]),
    ("rollout", &["model", "text", "ops", "device", "base"]),
    ("learn", &["rollout", "model", "text", "ops", "device", "base"]),
    ("verify", &["learn", "rollout", "model", "text", "ops", "device", "cpu::parallel", "base"]),
    ("run", &["verify", "learn", "rollout", "model", "text", "ops", "device", "cpu::parallel", "base"]),
];

/// Crates that one file, or the files of one folder, may name.
const ONE_IMPORTER: &[(&str, &[&str])] = &[
    ("cudarc", &["src/device/cuda.rs", "src/device/cuda/"]),
    ("safetensors", &["src/model/", "src/run/", "src/bin/probe.rs"]),
    ("tokenizers", &["src/text/"]),
    ("memmap2", &["src/model/", "src/base/pages.rs"]),
    ("minijinja", &["src/text/"]),
    ("roxmltree", &["src/text/"]),
    ("toml", &["src/run/"]),
    ("sha2", &["src/run/"]),
    ("clap_complete", &["src/bin/completions.rs"]),
    ("clap_mangen", &["src/bin/completions.rs"]),
    ("rustix", &["src/base/disk.rs", "src/base/terminal.rs"]),
];

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The code of a file: comments and string literals' lines that only talk are left out, unit tests stay.
fn code_lines(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(number, line)| (number + 1, line.split(" // ").next().unwrap_or("").to_string()))
        .collect()
}

/// Paths after `crate::`, including each branch of a brace group on one line.
fn crate_paths(line: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut rest = line;
    while let Some(at) = rest.find("crate::") {
        rest = &rest[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            paths.extend(group.split([',', '}']).map(|p| p.trim().to_string()).filter(|p| !p.is_empty()));
        } else {
            paths.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect());
        }
    }
    paths
}

#[test]
fn arrows_point_down() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rules: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let mut found = BTreeSet::new();
    let mut faults = Vec::new();
    for file in rust_files(&source) {
        let relative = file.strip_prefix(&source).unwrap().to_string_lossy().into_owned();
        let Some((floor, _)) = relative.split_once('/') else { continue };
        if floor == "bin" {
            continue;
        }
        let Some(may_use) = rules.get(floor) else {
            panic!("floor `{floor}` is not in the table of this test")
        };
        found.insert(floor.to_string());
        for (number, line) in code_lines(&file) {
            for path in crate_paths(&line) {
                let inside = path == floor || path.starts_with(&format!("{floor}::"));
                let allowed =
                    may_use.iter().any(|used| path == *used || path.starts_with(&format!("{used}::")));
                if !inside && !allowed {
                    faults.push(format!("src/{relative}:{number}: {floor} must not use crate::{path}"));
                }
            }
        }
    }
    assert!(found.contains("ops") && found.contains("model"), "the test found no files");
    assert!(faults.is_empty(), "arrows that point up:\n{}", faults.join("\n"));
}

#[test]
fn outside_crates_have_one_importer() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut faults = Vec::new();
    for file in rust_files(&root.join("src")) {
        let relative = file.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        for (number, line) in code_lines(&file) {
            for (name, importers) in ONE_IMPORTER {
                let named = line.contains(&format!("{name}::")) && !line.contains(&format!("::{name}::"));
                if named && !importers.iter().any(|importer| relative.starts_with(importer)) {
                    faults.push(format!("{relative}:{number}: names {name}; only {importers:?} may"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Invariant 8 of ARCHITECTURE.md; files of tests say what they skip.
#[test]
fn only_commands_print_and_look_at_the_environment() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut faults = Vec::new();
    let mut files = 0;
    for file in rust_files(&source) {
        let relative = file.strip_prefix(&source).unwrap().to_string_lossy().into_owned();
        if relative.starts_with("bin/") || relative.ends_with("tests.rs") {
            continue;
        }
        files += 1;
        for (number, line) in code_lines(&file) {
            for what in ["env::var", "print!(", "println!(", "dbg!("] {
                if line.contains(what) {
                    faults.push(format!("src/{relative}:{number}: {what} belongs to src/bin"));
                }
            }
        }
    }
    assert!(files > 100, "the test found {files} files");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn tensor_data_stays_inside_ops() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tensor = fs::read_to_string(root.join("src/ops/tensor.rs")).unwrap();
    let slices: Vec<&str> = tensor.lines().filter(|line| line.contains("fn slice<")).collect();
    assert_eq!(slices.len(), 2, "the accessors of host slices: {slices:?}");
    for line in slices {
        assert!(line.trim_start().starts_with("pub(in crate::ops) fn"), "{line}");
    }
}

#[test]
fn every_forward_has_its_backward_in_the_same_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Sampling draws a token and the norm only scales gradients; nothing flows back through them. Several linear maps of
    // one input go back one by one.
    let without = ["sampler.rs", "gradient_norm.rs", "each.rs"];
    let mut pairs = 0;
    for file in rust_files(&root.join("src/ops")) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&file).unwrap();
        if text.contains("pub fn forward") && !without.contains(&name.as_str()) {
            assert!(text.contains("pub fn backward"), "src/ops/{name} has a forward and no backward");
            pairs += 1;
        }
    }
    assert!(pairs >= 10, "only {pairs} operations found");
}

#[test]
fn unsafe_code_sits_in_few_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let allowed = [
        "src/base/pages.rs",
        "src/cpu/isa.rs",
        "src/cpu/gemm/",
        "src/cpu/parallel/team.rs",
        "src/device/cuda.rs",
        "src/model/mapped.rs",
    ];
    for file in rust_files(&root.join("src")) {
        let relative = file.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        let permits = fs::read_to_string(&file).unwrap().contains("allow(unsafe_code)");
        assert!(!permits || allowed.iter().any(|a| relative.starts_with(a)), "{relative} allows unsafe code");
    }
}
