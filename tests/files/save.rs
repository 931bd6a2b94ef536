//! Saving: what comes back is what was written, nothing beside it is lost, and a failure loses nothing.

use super::{Raw, folder, llama_json, message, parse, says, sharded, tensors};
use latch::base::{Error, Result};
use latch::model::safetensors_file::{SafetensorsFile, TensorHeader, TensorWriter};
use latch::model::save::{Companions, Saving, save};
use latch::model::stored::Stored;
use latch::model::weights::Source;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Headers for all parameters, stored as f32.
fn headers(source: &Source) -> Vec<TensorHeader> {
    let header = |p: &latch::model::families::Parameter| TensorHeader {
        name: p.name.clone(),
        shape: p.shape.dims().to_vec(),
        stored: Stored::F32,
    };
    source.parameters().iter().map(header).collect()
}

/// Saves what `source` holds, each value plus `add`, row by row.
fn copy(source: &Source, to: &Path, add: f32, companions: &Companions) -> Result<()> {
    let tensors = headers(source);
    let saving = Saving { config: source.config(), stored: Stored::F32, companions, tensors: &tensors };
    save(to, saving, &mut |index, writer: &mut TensorWriter| {
        let (rows, cols) = source.parameters()[index].shape.as_matrix();
        let mut row = vec![0f32; cols];
        for i in 0..rows {
            source.load_rows(index, i..i + 1, &mut row)?;
            let bytes: Vec<u8> = row.iter().flat_map(|v| (v + add).to_le_bytes()).collect();
            writer.write(&bytes)?;
        }
        Ok(())
    })
}

fn values(path: &Path) -> Vec<f32> {
    let source = Source::open(path).unwrap();
    let mut all = Vec::new();
    for (index, parameter) in source.parameters().iter().enumerate() {
        let mut out = vec![0f32; parameter.shape.elements()];
        source.load(index, &mut out).unwrap();
        all.extend(out);
    }
    all
}

/// Every file of a folder with its contents.
fn contents(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap_or_default())).collect()
}

fn llama_tensors() -> Vec<Raw> {
    tensors(&parse(llama_json()).unwrap())
}

/// A model with companions, in shards.
fn original() -> tempfile::TempDir {
    let folder = sharded(&llama_json(), &llama_tensors());
    for name in
        ["tokenizer.json", "LICENSE", "chat_template.jinja", "generation_config.json", ".hidden", "old.bin"]
    {
        fs::write(folder.path().join(name), format!("contents of {name}")).unwrap();
    }
    folder
}

#[test]
fn a_new_folder_holds_everything() {
    let (from, place) = (original(), tempfile::tempdir().unwrap());
    let to = place.path().join("deep/er/model");
    let source = Source::open(from.path()).unwrap();
    let mut companions = source.companions().unwrap();
    companions.set("latent_config.json", b"{}".to_vec());
    copy(&source, &to, 0.0, &companions).unwrap();
    assert_eq!(values(&to), values(from.path()));
    let files = contents(&to);
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    let expected = [
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "latent_config.json",
        "model.safetensors",
        "tokenizer.json",
    ];
    assert_eq!(names, expected);
    assert_eq!(files["LICENSE"], b"contents of LICENSE");
    let config: serde_json::Value = serde_json::from_slice(&files["config.json"]).unwrap();
    assert_eq!(config, llama_json());
    assert_eq!(contents(place.path().join("deep/er").as_path()).len(), 1, "a temporary folder was left");
    let file = SafetensorsFile::open(&to.join("model.safetensors")).unwrap();
    assert_eq!(file.metadata().unwrap()["format"], "pt");
}

#[test]
fn saving_over_the_folder_that_was_loaded() {
    let from = original();
    fs::write(from.path().join("notes.txt"), "mine").unwrap();
    let before = values(from.path());
    let source = Source::open(from.path()).unwrap();
    for round in 1..=2 {
        copy(&source, from.path(), round as f32, &source.companions().unwrap()).unwrap();
        let expected: Vec<f32> = before.iter().map(|v| v + round as f32).collect();
        assert_eq!(values(from.path()), expected);
    }
    let files = contents(from.path());
    assert!(!files.contains_key("model.safetensors.index.json"), "the shards' index is still there");
    assert!(
        !files.keys().any(|name| name.starts_with("model-") || name.starts_with(".latch")),
        "{:?}",
        files.keys()
    );
    for name in ["notes.txt", "LICENSE", "tokenizer.json", ".hidden", "old.bin"] {
        assert!(files.contains_key(name), "{name} was lost");
    }
}

#[test]
fn a_failure_while_writing_leaves_the_old_folder() {
    let from = folder(&llama_json(), &llama_tensors());
    let source = Source::open(from.path()).unwrap();
    let (before, tensors) = (contents(from.path()), headers(&source));
    let companions = Companions::default();
    let saving =
        Saving { config: source.config(), stored: Stored::F32, companions: &companions, tensors: &tensors };
    let full = |index: usize, writer: &mut TensorWriter| {
        if index == 3 {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(Error::io(Path::new("model.safetensors"), "cannot write")(full));
        }
        writer.write(&vec![0; tensors[index].shape.iter().product::<usize>() * 4])
    };
    says(&message(save(from.path(), saving, &mut { full })), &["model.safetensors: cannot write"]);
    assert_eq!(contents(from.path()), before);
    let new = from.path().join("new");
    says(&message(save(&new, saving, &mut { full })), &["cannot write"]);
    assert_eq!(contents(from.path()), before);
    // Fewer or more bytes than promised are noticed.
    says(
        &message(save(&new, saving, &mut |_, w| w.write(&[0; 4]))),
        &["model.embed_tokens.weight", "4", "1152"],
    );
    says(&message(save(&new, saving, &mut |_, w| w.write(&[0; 4000]))), &["4000", "at most 1152"]);
    assert_eq!(contents(from.path()), before);
}

/// Runs by itself only in the process that [`a_disk_that_is_full`] starts.
#[test]
#[ignore = "started by a_disk_that_is_full"]
fn in_a_process_with_a_small_limit() {
    let Some(path) = std::env::var_os("LATCH_TEST_FULL_DISK") else { return };
    let path = Path::new(&path);
    let source = Source::open(path).unwrap();
    let before = contents(path);
    let text = message(copy(&source, path, 1.0, &Companions::default()));
    says(&text, &["model.safetensors: cannot write", "large"]);
    assert_eq!(contents(path), before);
    println!("the old files are intact");
}

#[cfg(unix)]
#[test]
fn a_disk_that_is_full() {
    // The system itself refuses to write more than 16 KiB a file; with the signal ignored, write() fails in the middle
    // of the weights as it does on a full disk.
    let from = folder(&llama_json(), &llama_tensors());
    assert!(fs::metadata(from.path().join("model.safetensors")).unwrap().len() > 32 << 10);
    let script = "trap '' XFSZ; ulimit -f 16; exec \"$0\" --exact files::save::in_a_process_with_a_small_limit --ignored --nocapture";
    let output = Command::new("bash")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .env("LATCH_TEST_FULL_DISK", from.path())
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("the old files are intact"), "{text}");
}

#[test]
fn places_that_cannot_be_written_to() {
    let from = folder(&llama_json(), &llama_tensors());
    let source = Source::open(from.path()).unwrap();
    let file = from.path().join("config.json");
    let none = Companions::default();
    says(&message(copy(&source, &file, 0.0, &none)), &["config.json", "is a file, expected a folder"]);
    says(
        &message(copy(&source, &file.join("inside"), 0.0, &none)),
        &["config.json", "cannot create the folder"],
    );
    // The root user may write anywhere but here.
    if Path::new("/proc/self").exists() {
        says(
            &message(copy(&source, Path::new("/proc/latch"), 0.0, &none)),
            &["/proc", "cannot write into the folder"],
        );
    }
}
