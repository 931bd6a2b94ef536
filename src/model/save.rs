//! Writing a model as a Hugging Face folder that transformers opens. An existing folder survives every failure.
//!
//! Everything is written beside its destination first and then renamed: a new folder appears in one step; into an
//! existing one the complete files are moved one by one, weights before the config, and nothing else in it is touched
//! but the weights of an older save. A full disk or a crash while writing therefore leaves the old model as it was.

use super::config::Config;
use super::families::Parameter;
use super::gguf_model::pretty;
use super::projector_file::{PROJECTOR_CONFIG, PROJECTOR_WEIGHTS};
use super::safetensors_file::{self, TensorHeader, TensorWriter};
use super::stored::Stored;
use super::weights::Source;
use crate::base::{Error, Result};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The files beside the weights: tokenizer, templates, generation settings, licence, read-me.
#[derive(Clone, Debug, Default)]
pub struct Companions {
    files: Vec<(String, Contents)>,
}

#[derive(Clone, Debug)]
enum Contents {
    Copy(PathBuf),
    Bytes(Vec<u8>),
}

/// Weights in any format; never copied along, since the new ones replace them.
const WEIGHTS: [&str; 9] = ["safetensors", "bin", "pt", "pth", "gguf", "h5", "msgpack", "onnx", "ot"];

/// Checksums of a folder's files as `sha256sum` writes them; they hold for no other folder and are not copied along.
pub const CHECKSUMS: &str = "checksums.sha256";

impl Companions {
    /// Every file of a model folder but config.json and the model's weights. Of folders inside, only `additional_chat_templates`.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn of_folder(folder: &Path) -> Result<Companions> {
        let mut files = Vec::new();
        for (inside, sub) in [
            ("", folder.to_path_buf()),
            ("additional_chat_templates/", folder.join("additional_chat_templates")),
        ] {
            if !sub.is_dir() {
                continue;
            }
            for entry in fs::read_dir(&sub).map_err(Error::io(&sub, "cannot list"))? {
                let entry = entry.map_err(Error::io(&sub, "cannot list"))?;
                let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
                let weights = path.extension().and_then(OsStr::to_str).is_some_and(|e| WEIGHTS.contains(&e));
                // A projector's weights belong to its configuration, which is copied; a model that has one writes both.
                let weights = weights && name != PROJECTOR_WEIGHTS;
                let hidden = name.starts_with('.');
                if path.is_file()
                    && !weights
                    && !hidden
                    && name != "config.json"
                    && name != "adapter_config.json"
                    && name != CHECKSUMS
                    && !name.ends_with(".index.json")
                {
                    files.push((format!("{inside}{name}"), Contents::Copy(path)));
                }
            }
        }
        files.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Companions { files })
    }

    /// Files with these contents.
    pub fn of_contents(files: Vec<(String, Vec<u8>)>) -> Companions {
        let files = files.into_iter().map(|(name, bytes)| (name, Contents::Bytes(bytes))).collect();
        Companions { files }
    }

    /// Adds a file, or replaces the one of that name: a tokenizer that got new tokens, latent_config.json.
    pub fn set(&mut self, name: &str, contents: Vec<u8>) {
        self.files.retain(|(other, _)| other != name);
        self.files.push((name.to_string(), Contents::Bytes(contents)));
    }

    /// Leaves a file out.
    pub fn remove(&mut self, name: &str) {
        self.files.retain(|(other, _)| other != name);
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        let of = |contents: &Contents| match contents {
            Contents::Copy(path) => fs::metadata(path).map_or(0, |found| found.len()),
            Contents::Bytes(bytes) => bytes.len() as u64,
        };
        self.files.iter().map(|(_, contents)| of(contents)).sum()
    }

    /// Names of all files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|(name, _)| name.as_str())
    }
}

/// What a folder is to hold.
#[derive(Clone, Copy, Debug)]
pub struct Saving<'a> {
    /// The model; written as config.json.
    pub config: &'a Config,
    /// Element type named in config.json.
    pub stored: Stored,
    /// Files beside the weights.
    pub companions: &'a Companions,
    /// The tensors, in the order in which they are written.
    pub tensors: &'a [TensorHeader],
}

/// The same with names: a model's folder, or an adapter's.
#[derive(Clone, Copy)]
pub(super) struct FolderOf<'a> {
    /// Name of the file of tensors.
    pub weights: &'a str,
    /// Its metadata.
    pub metadata: &'a [(&'a str, &'a str)],
    pub tensors: &'a [TensorHeader],
    pub companions: &'a Companions,
    /// Name and contents of the configuration; written last.
    pub config: (&'a str, &'a Value),
}

/// Writes `folder`: config.json, model.safetensors and the companions. `fill(i, writer)` writes the bytes of tensor `i`
/// (row-major, little-endian), in pieces if it likes, so that no second copy of a model is needed.
///
/// # Errors
/// The place cannot be written to, the disk is full, or `fill` fails. Whatever was there before is still there.
pub fn save(
    folder: &Path,
    contents: Saving,
    fill: &mut dyn FnMut(usize, &mut TensorWriter) -> Result<()>,
) -> Result<()> {
    let contents = FolderOf {
        weights: "model.safetensors",
        metadata: &[("format", "pt")],
        tensors: contents.tensors,
        companions: contents.companions,
        config: ("config.json", &contents.config.to_json(contents.stored)),
    };
    save_folder(folder, contents, fill)
}

/// Writes a folder as [`save`] does.
pub(super) fn save_folder(
    folder: &Path,
    contents: FolderOf,
    fill: &mut dyn FnMut(usize, &mut TensorWriter) -> Result<()>,
) -> Result<()> {
    let existing = folder.is_dir();
    if !existing && folder.exists() {
        return Err(Error::file(folder, "is a file, expected a folder to save into", "choose another name"));
    }
    let parent = if existing { folder } else { parent(folder) };
    fs::create_dir_all(parent).map_err(Error::io(parent, "cannot create the folder"))?;
    // On the same file system as the destination; removed again when anything below fails.
    let staging = tempfile::Builder::new().prefix(".latch-saving-").tempdir_in(parent);
    let staging = staging.map_err(Error::io(parent, "cannot write into the folder"))?;
    let names = write_all(staging.path(), folder, &contents, fill)?;
    if existing {
        for name in &names {
            let (from, to) = (staging.path().join(name), folder.join(name));
            if let Some(sub) = to.parent() {
                fs::create_dir_all(sub).map_err(Error::io(sub, "cannot create the folder"))?;
            }
            fs::rename(&from, &to).map_err(Error::io(&to, "cannot replace"))?;
        }
        if contents.weights == "model.safetensors" {
            remove_older_weights(folder, &names)?;
        }
        return sync_folder(folder);
    }
    readable_by_others(staging.path(), parent)?;
    fs::rename(staging.path(), folder).map_err(Error::io(folder, "cannot create the folder"))?;
    // The folder has moved; there is nothing left to remove under the old name.
    let _ = staging.keep();
    sync_folder(parent)
}

/// Writes an open model as a Hugging Face folder with weights in `stored` (a plain real type), piece by piece.
///
/// # Errors
/// As [`save`], and what reading the weights may find.
pub fn save_source(source: &Source, folder: &Path, stored: Stored) -> Result<()> {
    let header = |parameter: &Parameter| TensorHeader {
        name: parameter.name.clone(),
        shape: parameter.shape.dims().to_vec(),
        stored,
    };
    let tensors: Vec<TensorHeader> = source.parameters().iter().map(header).collect();
    let companions = source.companions()?;
    let saving = Saving { config: source.config(), stored, companions: &companions, tensors: &tensors };
    save(folder, saving, &mut |index, writer| {
        let (rows, cols) = source.parameters()[index].shape.as_matrix();
        // About a MiB at once.
        let step = ((1 << 17) / cols.max(1)).clamp(1, rows.max(1));
        let mut values = vec![0f64; step * cols];
        for first in (0..rows).step_by(step) {
            let last = rows.min(first + step);
            let piece = &mut values[..(last - first) * cols];
            source.load_rows(index, first..last, piece)?;
            writer.write_values(piece)?;
        }
        Ok(())
    })
}

fn parent(folder: &Path) -> &Path {
    match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes all files into `staging` and returns their names in the order in which they may be moved. `folder` is where
/// they will stand.
fn write_all(
    staging: &Path,
    folder: &Path,
    contents: &FolderOf,
    fill: &mut dyn FnMut(usize, &mut TensorWriter) -> Result<()>,
) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let weights = contents.weights;
    // Errors name the file the user knows, not the temporary one.
    write_file(&staging.join(weights), &folder.join(weights), &mut |path, out| {
        safetensors_file::write(path, out, contents.tensors, contents.metadata, fill)
    })?;
    names.push(weights.to_string());
    for (name, file) in &contents.companions.files {
        let target = folder.join(name);
        if let Contents::Copy(source) = file
            && same_file(source, &target)
        {
            continue;
        }
        let path = staging.join(name);
        if let Some(sub) = path.parent() {
            fs::create_dir_all(sub).map_err(Error::io(sub, "cannot create the folder"))?;
        }
        write_file(&path, &target, &mut |target, out| match file {
            Contents::Bytes(bytes) => out.write_all(bytes).map_err(Error::io(target, "cannot write")),
            Contents::Copy(source) => {
                let mut input = File::open(source).map_err(Error::io(source, "cannot open"))?;
                std::io::copy(&mut input, out).map(|_| ()).map_err(Error::io(target, "cannot write"))
            }
        })?;
        names.push(name.clone());
    }
    let (name, config) = contents.config;
    write_file(&staging.join(name), &folder.join(name), &mut |target, out| {
        out.write_all(&pretty(config)).map_err(Error::io(target, "cannot write"))
    })?;
    names.push(name.to_string());
    Ok(names)
}

/// Creates `path`, lets `body` write it, and has the system put it on the disk.
fn write_file(
    path: &Path,
    shown: &Path,
    body: &mut dyn FnMut(&Path, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let file = File::create(path).map_err(Error::io(shown, "cannot create"))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    body(shown, &mut out)?;
    let file = out.into_inner().map_err(|error| Error::io(shown, "cannot write")(error.into_error()))?;
    file.sync_all().map_err(Error::io(shown, "cannot write"))
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Shards and index of an older save, which beside the new file would be a second model, and a projector that is not of
/// this one; `names` are the files just written.
fn remove_older_weights(folder: &Path, names: &[String]) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "cannot list"))? {
        let path = entry.map_err(Error::io(folder, "cannot list"))?.path();
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let shard = name.starts_with("model-") && name.ends_with(".safetensors");
        let projector = [PROJECTOR_CONFIG, PROJECTOR_WEIGHTS].contains(&name);
        if shard || name == "model.safetensors.index.json" || (projector && !names.iter().any(|n| n == name))
        {
            fs::remove_file(&path).map_err(Error::io(&path, "cannot remove the older weights"))?;
        }
    }
    Ok(())
}

/// Temporary folders are private; the saved one gets the permissions of the folder it stands in.
fn readable_by_others(folder: &Path, like: &Path) -> Result<()> {
    let permissions =
        fs::metadata(like).map_err(Error::io(like, "cannot read the permissions"))?.permissions();
    fs::set_permissions(folder, permissions).map_err(Error::io(folder, "cannot set the permissions"))
}

/// Renames are on the disk only when their folder is.
fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        let opened = File::open(folder).map_err(Error::io(folder, "cannot open"))?;
        opened.sync_all().map_err(Error::io(folder, "cannot write"))?;
    }
    Ok(())
}
