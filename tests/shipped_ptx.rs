//! What ships in `ptx/` is what `cuda/` compiles to, for drivers from CUDA 12.1 on, without spills.

use latch::sim::Program;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Whether a file is for Hopper alone (compute capability 9.0).
fn is_hopper(stem: &str) -> bool {
    stem.ends_with("_sm90a")
}

/// Version and flags of the compiler, as tools/ptx.py hashes them.
fn compiler(stem: &str) -> String {
    let architecture = if is_hopper(stem) { "compute_90a" } else { "compute_80" };
    format!("nvrtc 12.1.105 --gpu-architecture={architecture} --std=c++17")
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Stem and text of every shipped file.
fn shipped() -> Vec<(String, String)> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(root().join("ptx")).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "ptx"));
    files.sort();
    assert!(files.len() >= 20, "only {} files", files.len());
    let stem = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
    files.iter().map(|path| (stem(path), fs::read_to_string(path).unwrap())).collect()
}

/// A source and the headers of ours that it includes, directly or not, in order of name.
fn sources(stem: &str) -> BTreeSet<String> {
    let (mut found, mut open) = (BTreeSet::new(), vec![format!("{stem}.cu")]);
    while let Some(name) = open.pop() {
        let text = fs::read_to_string(root().join("cuda").join(&name))
            .unwrap_or_else(|e| panic!("cuda/{name}: {e}"));
        if found.insert(name) {
            let included = text.lines().filter_map(|line| line.strip_prefix("#include \""));
            open.extend(included.map(|rest| rest.trim_end().trim_end_matches('"').to_string()));
        }
    }
    found
}

#[test]
fn every_file_is_made_from_its_sources() {
    for (stem, text) in shipped() {
        let mut digest = Sha256::new();
        digest.update(compiler(&stem));
        for name in sources(&stem) {
            digest.update(name.as_bytes());
            digest.update([0]);
            digest.update(fs::read(root().join("cuda").join(&name)).unwrap());
        }
        let hash: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = format!("// sources {hash}");
        assert_eq!(
            text.lines().next(),
            Some(expected.as_str()),
            "ptx/{stem}.ptx is older than cuda/{stem}.cu or its headers; run python tools/ptx.py"
        );
    }
}

#[test]
fn every_source_has_its_file() {
    let stems: BTreeSet<String> = shipped().into_iter().map(|(stem, _)| stem).collect();
    for entry in fs::read_dir(root().join("cuda")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "cu") {
            let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
            assert!(
                stems.contains(&stem),
                "cuda/{stem}.cu has no ptx/{stem}.ptx; run python tools/ptx.py {stem}"
            );
        }
    }
}

#[test]
fn every_header_asks_for_no_more_than_cuda_12_1() {
    for (stem, text) in shipped() {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("ptx/{stem}.ptx has no {name}")).trim().to_string()
        };
        let version: Vec<u32> = field(".version").split('.').map(|n| n.parse().unwrap()).collect();
        assert!(
            version <= vec![8, 1],
            "ptx/{stem}.ptx is version {version:?}; drivers of CUDA 12.1 take 8.1"
        );
        let target = if is_hopper(&stem) { "sm_90a" } else { "sm_80" };
        assert_eq!(field(".target"), target, "ptx/{stem}.ptx");
        assert_eq!(field(".address_size"), "64", "ptx/{stem}.ptx");
    }
}

#[test]
fn every_kernel_is_in_the_report_and_none_spills() {
    let report = fs::read_to_string(root().join("ptx/REPORT.md")).unwrap();
    let mut listed = BTreeSet::new();
    for line in report.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| file")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [stem, kernel, .., stack, spills] = cells[..] else { panic!("ptx/REPORT.md: {line}") };
        assert_eq!((stack, spills), ("0", "0"), "{kernel} uses local memory");
        listed.insert((stem.to_string(), kernel.to_string()));
    }
    let mut shipping = BTreeSet::new();
    for (stem, text) in shipped() {
        let program =
            Program::parse(&format!("ptx/{stem}.ptx"), &text).unwrap_or_else(|fault| panic!("{fault}"));
        shipping.extend(program.entries().iter().map(|entry| (stem.clone(), entry.name.clone())));
    }
    assert_eq!(listed, shipping, "run python tools/ptx.py --report");
}
