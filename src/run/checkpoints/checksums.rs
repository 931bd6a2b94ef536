//! Checksums of a checkpoint: they tell a torn or changed folder from a whole one.

use super::state_file::write_synced;
use super::{TRAIN_STATE, names};
use crate::base::{Error, Result};
use crate::model::peft;
use crate::model::save::CHECKSUMS;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// Without these a folder is no checkpoint. They stand last in the checksums, so that a cut list lacks one of them.
const REQUIRED: [&str; 3] = ["config.json", "model.safetensors", TRAIN_STATE];
/// The same, where the model is an adapter.
const REQUIRED_OF_ADAPTERS: [&str; 3] = [peft::CONFIG_FILE, peft::WEIGHTS_FILE, TRAIN_STATE];

/// Writes the list of checksums of all files in the folder.
pub(super) fn write_checksums(folder: &Path) -> Result<()> {
    let mut files = Vec::new();
    list_files(folder, "", &mut files)?;
    files.retain(|name| name != CHECKSUMS);
    let required = required(&files);
    files.sort_by_key(|name| (required.iter().position(|required| required == name), name.clone()));
    let mut text = String::new();
    for name in &files {
        text.push_str(&format!("{}  {name}\n", sum(&folder.join(name))?.0));
    }
    let path = folder.join(CHECKSUMS);
    write_synced(&path, |out| out.write_all(text.as_bytes()).map_err(Error::io(&path, "cannot write")))
}

/// All files under `folder`, as paths with `/`.
fn list_files(folder: &Path, inside: &str, files: &mut Vec<String>) -> Result<()> {
    for name in names(folder)? {
        let path = folder.join(&name);
        if path.is_dir() {
            list_files(&path, &format!("{inside}{name}/"), files)?;
        } else {
            files.push(format!("{inside}{name}"));
        }
    }
    Ok(())
}

/// What a checkpoint with these files must have.
fn required<S: AsRef<str>>(names: &[S]) -> [&'static str; 3] {
    let adapter = names.iter().any(|name| name.as_ref() == peft::CONFIG_FILE);
    if adapter { REQUIRED_OF_ADAPTERS } else { REQUIRED }
}

/// SHA-256 of a file in hexadecimal, and its length.
fn sum(path: &Path) -> Result<(String, u64)> {
    let mut file = File::open(path).map_err(Error::io(path, "cannot open"))?;
    let (mut hash, mut length) = (Sha256::new(), 0);
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).map_err(Error::io(path, "cannot read"))? {
            0 => break,
            read => {
                hash.update(&piece[..read]);
                length += read as u64;
            }
        }
    }
    Ok((hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), length))
}

/// Whether all files are what the list says.
pub(super) fn verify(folder: &Path) -> Result<()> {
    let list = folder.join(CHECKSUMS);
    let text = fs::read_to_string(&list).map_err(Error::io(&list, "cannot read"))?;
    let advice = "the checkpoint is damaged; use the one before it";
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(Error::file(&list, "ends in the middle of a line", advice));
    }
    let mut named = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let Some((expected, name)) = line.split_once("  ").filter(|(sum, _)| sum.len() == 64) else {
            let problem = format!("line {} is not a checksum and a name", index + 1);
            return Err(Error::file(&list, problem, advice));
        };
        let path = folder.join(name);
        let (found, length) = sum(&path)?;
        if found != expected {
            let problem = format!(
                "its {length} bytes have checksum {}..., expected {}...",
                &found[..12],
                expected.get(..12).unwrap_or(expected)
            );
            return Err(Error::file(&path, problem, advice));
        }
        named.push(name);
    }
    match required(&named).iter().find(|required| !named.contains(required)) {
        Some(missing) => Err(Error::file(&list, format!("has no checksum of {missing}"), advice)),
        None => Ok(()),
    }
}
