//! The folders that transformers wrote (tests/golden): all open, and hold exactly the parameters we expect.

use latch::model::config::Config;
use latch::model::weights::Source;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

/// The folders of tests/golden that hold a model.
fn folders() -> Vec<PathBuf> {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let Ok(entries) = fs::read_dir(&golden) else {
        // Past the capture of test output, so that nobody overlooks it.
        let _ = writeln!(std::io::stderr(), "\nSKIPPED: tests/golden is not in this checkout\n");
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    let folders: Vec<PathBuf> = paths.filter(|path| path.join("config.json").exists()).collect();
    assert!(folders.len() >= 8, "only {} models in {}", folders.len(), golden.display());
    folders
}

#[test]
fn every_folder_opens_and_loads() {
    for folder in folders() {
        let source = Source::open(&folder).unwrap();
        for (index, parameter) in source.parameters().iter().enumerate() {
            let mut out = vec![0f32; parameter.shape.elements()];
            source.load(index, &mut out).unwrap();
            assert!(out.iter().any(|v| *v != 0.0), "{}: {}", folder.display(), parameter.name);
        }
        assert_eq!(source.stop_tokens().unwrap(), source.config().eos);
        assert!(!source.config().eos.is_empty());
    }
}

#[test]
fn both_forms_of_config_mean_the_same() {
    let mut pairs = 0;
    let folders = folders();
    for folder in &folders {
        let config = Config::from_folder(folder).unwrap();
        for other in ["config-v4.json", "config-v5.json"] {
            let Ok(text) = fs::read(folder.join(other)) else { continue };
            let other =
                Config::from_json(serde_json::from_slice(&text).unwrap(), &folder.join(other)).unwrap();
            assert_eq!(
                (config.rope, config.stored, config.head_dim, config.norm_eps, config.tied),
                (other.rope, other.stored, other.head_dim, other.norm_eps, other.tied),
                "{}",
                folder.display()
            );
            pairs += 1;
        }
    }
    assert!(folders.is_empty() || pairs >= 6, "only {pairs} pairs");
}
