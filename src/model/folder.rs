//! Hugging Face folders: one safetensors file, or shards with an index that must agree with them both ways.

use super::config::read_json;
use super::safetensors_file::SafetensorsFile;
use crate::base::{Error, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Opens the weights of a folder, `model.safetensors` before an index, as transformers does.
///
/// # Errors
/// No weights, a shard missing or too many, or an index that disagrees with the shards.
pub fn open(folder: &Path) -> Result<Vec<SafetensorsFile>> {
    let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
    if single.exists() {
        return Ok(vec![SafetensorsFile::open(&single)?]);
    }
    if !index.exists() {
        let advice = if folder.join("pytorch_model.bin").exists() {
            "pytorch_model.bin is not read: save the model from transformers with safe_serialization"
        } else {
            "expected a Hugging Face model folder, or a .gguf file"
        };
        return Err(Error::file(folder, format!("has neither {SINGLE} nor {INDEX}"), advice));
    }
    shards(folder, &index)
}

fn shards(folder: &Path, index: &Path) -> Result<Vec<SafetensorsFile>> {
    let wrong = |problem: String, advice: &str| Error::file(index, problem, advice);
    let json = read_json(index)?;
    let Some(map) = json.get("weight_map").and_then(|map| map.as_object()) else {
        return Err(wrong("has no weight_map".into(), "the index is damaged; fetch it again"));
    };
    let mut listed: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, file) in map {
        let Some(file) = file.as_str().filter(|file| is_plain_name(file)) else {
            return Err(wrong(
                format!("places tensor \"{tensor}\" in {file}, expected a file name without folders"),
                "the index is damaged; fetch it again",
            ));
        };
        listed.entry(file).or_default().insert(tensor);
    }
    let missing: Vec<&str> = listed.keys().copied().filter(|file| !folder.join(file).exists()).collect();
    if !missing.is_empty() {
        let verb = if missing.len() == 1 { "is" } else { "are" };
        return Err(wrong(
            format!(
                "names {} shards, {} {verb} missing: {}",
                listed.len(),
                missing.len(),
                missing.join(", ")
            ),
            "the download looks incomplete",
        ));
    }
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "cannot list"))? {
        let name = entry.map_err(Error::io(folder, "cannot list"))?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("model-") && name.ends_with(".safetensors") && !listed.contains_key(name.as_ref())
        {
            return Err(wrong(
                format!("does not name {name}, which is in the folder"),
                "remove the file if it belongs to another model, or fetch the index again",
            ));
        }
    }
    let mut files = Vec::with_capacity(listed.len());
    let mut home: HashMap<String, &str> = HashMap::new();
    for (name, tensors) in &listed {
        let file = SafetensorsFile::open(&folder.join(name))?;
        let present: BTreeSet<String> = file.names().into_iter().collect();
        if let Some(absent) = tensors.iter().find(|tensor| !present.contains(**tensor)) {
            return Err(wrong(
                format!("places tensor \"{absent}\" in {name}, which does not have it"),
                "index and shards belong to different downloads; fetch them again",
            ));
        }
        for tensor in present {
            if !tensors.contains(tensor.as_str()) {
                let elsewhere =
                    home.get(&tensor).map_or(String::new(), |other| format!(" ({other} has it too)"));
                return Err(wrong(
                    format!("does not list tensor \"{tensor}\", which is in {name}{elsewhere}"),
                    "index and shards belong to different downloads; fetch them again",
                ));
            }
            home.insert(tensor, name);
        }
        files.push(file);
    }
    Ok(files)
}

/// Whether `name` stays inside the folder.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) && !name.contains('\\')
}
