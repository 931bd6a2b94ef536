//! A run is a folder: what was asked for, where it ran, every step, samples, a log, checkpoints, the result.
//!
//! ```text
//! recipe.toml        as resolved, every key        metrics.jsonl   one object a step
//! environment.json   machine and versions          samples.jsonl   what was sampled
//! checkpoints/       see checkpoints.rs            log.txt         what the terminal showed
//! summary.json       the closing table              models/          the base and each arm's model
//! report.html        all of it in figures (report/)
//! ```

use super::checkpoints::{self, Checkpoints, Keep, Latest};
use super::metrics::{Cut, Lines};
use super::recipe::Recipe;
use crate::base::{Error, Result};
use serde_json::Value;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// The file that tells a run's folder from any other.
const RECIPE: &str = "recipe.toml";
/// Everything a run writes; what `--clean` removes.
const FILES: [&str; 7] = [
    "recipe.toml",
    "environment.json",
    "metrics.jsonl",
    "samples.jsonl",
    "log.txt",
    "summary.json",
    "report.html",
];
pub(super) const CHECKPOINTS: &str = "checkpoints";
/// Looks, 20 ms apart, at a lock that another process has.
const PATIENCE: usize = 4;
/// Finished models, one a folder.
const MODELS: &str = "models";

/// What to do with a folder that holds a run already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Say so and stop.
    Refuse,
    /// Go on with it.
    Resume,
    /// Remove that run and start anew.
    Clean,
}

/// The folder of one run.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    resumed: bool,
    log: File,
    /// Held as long as the run is at work.
    _lock: Option<File>,
}

impl RunFolder {
    /// The folder `path` for a run. `--clean` removes a run's own files and nothing else.
    ///
    /// # Errors
    /// Another run is at work in it; it holds a run and `existing` is `Refuse`; it holds none and `existing` is `Resume`;
    /// it holds other things; or it cannot be written to.
    pub fn create(path: &Path, existing: Existing) -> Result<RunFolder> {
        is_no_file(path)?;
        if existing != Existing::Resume {
            fs::create_dir_all(path).map_err(Error::io(path, "cannot create the folder"))?;
        }
        // What it holds is looked at under the lock, so that of two runs that begin at once one is refused.
        let lock = lock(path)?;
        if may_begin(path, existing)? && existing == Existing::Clean {
            clean(path)?;
        }
        RunFolder::at(path, existing == Existing::Resume, lock)
    }

    /// Whether [`RunFolder::create`] would take `path`, and whether a run is there; nothing is written.
    ///
    /// # Errors
    /// Those of [`RunFolder::create`].
    pub fn look(path: &Path, existing: Existing) -> Result<bool> {
        is_no_file(path)?;
        let above = standing(path);
        is_no_file(above)?;
        // Nothing is left of a file without a name.
        tempfile::tempfile_in(above).map_err(Error::io(above, "cannot write into the folder"))?;
        let _lock = lock(path)?;
        may_begin(path, existing)
    }

    /// The folder that [`RunFolder::numbered`] would take.
    ///
    /// # Errors
    /// `parent` cannot be listed.
    pub fn next(parent: &Path, name: &str) -> Result<PathBuf> {
        let found = if parent.is_dir() { numbers(parent, name)? } else { Vec::new() };
        Ok(parent.join(format!("{name}-{:02}", found.last().map_or(1, |last| last + 1))))
    }

    /// A new folder `runs/NAME-NN` in `parent`, numbered one above all there are.
    ///
    /// # Errors
    /// `parent` cannot be written to.
    pub fn numbered(parent: &Path, name: &str) -> Result<RunFolder> {
        fs::create_dir_all(parent).map_err(Error::io(parent, "cannot create the folder"))?;
        let mut number = numbers(parent, name)?.last().map_or(1, |last| last + 1);
        loop {
            let path = parent.join(format!("{name}-{number:02}"));
            match fs::create_dir(&path) {
                Ok(()) => return RunFolder::at(&path, false, lock(&path)?),
                // Another run took the number in the meantime.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(Error::io(&path, "cannot create the folder")(error)),
            }
        }
    }

    /// The folder of the newest run of that name in `parent`, for `--resume` without a name.
    ///
    /// # Errors
    /// `parent` cannot be listed, or holds no such run.
    pub fn newest(parent: &Path, name: &str) -> Result<PathBuf> {
        let found = if parent.is_dir() { numbers(parent, name)? } else { Vec::new() };
        let folders = found.iter().rev().map(|number| parent.join(format!("{name}-{number:02}")));
        folders.into_iter().find(|path| RunFolder::holds_run(path)).ok_or_else(|| {
            let problem = format!("holds no run {name}-NN to go on with");
            Error::file(parent, problem, "name the folder with --out, or leave --resume away")
        })
    }

    fn at(path: &Path, resumed: bool, lock: Option<File>) -> Result<RunFolder> {
        let log = path.join("log.txt");
        let opened = OpenOptions::new().append(true).create(true).open(&log);
        Ok(RunFolder {
            path: path.to_path_buf(),
            resumed,
            log: opened.map_err(Error::io(&log, "cannot open"))?,
            _lock: lock,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where finished models are kept.
    pub fn models(&self) -> PathBuf {
        self.path.join(MODELS)
    }

    /// Whether the run goes on from an earlier one.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Takes back what a new run that could not begin has written, so that the folder is free again. A resumed run, and
    /// what is not a run's own, stays.
    pub fn abandon(self) {
        if !self.resumed && clean(&self.path).is_ok() {
            // Succeeds where the folder is empty now.
            let _ = fs::remove_dir(&self.path);
        }
    }

    /// Writes the resolved recipe. It is written last of a new run's first files, since it marks the folder as a run.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write_recipe(&self, recipe: &Recipe) -> Result<()> {
        replace(&self.path.join(RECIPE), recipe.to_toml().as_bytes())
    }

    /// The recipe that the run was started with.
    ///
    /// # Errors
    /// None there, or of another version.
    pub fn recipe(&self) -> Result<Recipe> {
        RunFolder::recipe_of(&self.path)
    }

    /// Refuses what is not the folder of a run, for who reads one.
    ///
    /// # Errors
    /// No folder, or none that a run wrote.
    pub fn expect_run(path: &Path) -> Result<()> {
        let problem = match path.is_dir() {
            true if RunFolder::holds_run(path) => return Ok(()),
            true => "holds no run (it has no recipe.toml)",
            false if path.exists() => "is a file, expected the folder of a run",
            false => "is not there, expected the folder of a run",
        };
        Err(Error::file(path, problem, "name a folder that train wrote, e.g. runs/default-01"))
    }

    /// Whether `folder` is that of a run.
    pub fn holds_run(folder: &Path) -> bool {
        folder.join(RECIPE).is_file()
    }

    /// The recipe of the run in `folder`.
    ///
    /// # Errors
    /// None there, or of another version.
    pub fn recipe_of(folder: &Path) -> Result<Recipe> {
        let path = folder.join(RECIPE);
        let text = fs::read_to_string(&path).map_err(Error::io(&path, "cannot read the recipe"))?;
        Recipe::parse(&text, &path.display().to_string())
    }

    /// Writes environment.json ([`super::environment::capture`]).
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write_environment(&self, environment: &Value) -> Result<()> {
        replace(&self.path.join("environment.json"), &pretty(environment))
    }

    /// Writes summary.json.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write_summary(&self, summary: &Value) -> Result<()> {
        replace(&self.path.join("summary.json"), &pretty(summary))
    }

    /// metrics.jsonl; cut back to the restored step when there is one, to nothing when the run starts at its beginning.
    ///
    /// # Errors
    /// Those of [`Lines::create`] and [`Lines::resume`].
    pub fn metrics(&self, restored: Option<u64>) -> Result<(Lines, Cut)> {
        self.lines("metrics", restored)
    }

    /// samples.jsonl, likewise.
    ///
    /// # Errors
    /// Those of [`Lines::create`] and [`Lines::resume`].
    pub fn samples(&self, restored: Option<u64>) -> Result<(Lines, Cut)> {
        self.lines("samples", restored)
    }

    fn lines(&self, what: &str, restored: Option<u64>) -> Result<(Lines, Cut)> {
        let path = self.path.join(format!("{what}.jsonl"));
        match restored {
            Some(step) => Lines::resume(&path, what, step),
            None => {
                // A run that was resumed before its first checkpoint starts over.
                if self.resumed && path.exists() {
                    fs::remove_file(&path).map_err(Error::io(&path, "cannot remove"))?;
                }
                Ok((Lines::create(&path, what)?, Cut::default()))
            }
        }
    }

    /// Refuses to go on, with another recipe, with the run in `folder`.
    ///
    /// # Errors
    /// The first key that differs; or the run's recipe cannot be read.
    pub fn refuse_other_recipe(folder: &Path, recipe: &Recipe) -> Result<()> {
        let differences = RunFolder::recipe_of(folder)?.differences(recipe);
        match differences.first() {
            None => Ok(()),
            Some((key, before, now)) => Err(Error::input(
                "--resume",
                format!(
                    "the run in {} has {key} = {before}, now it is {now} ({} keys differ)",
                    folder.display(),
                    differences.len()
                ),
                format!("resume with {}/recipe.toml, or start a new run", folder.display()),
            )),
        }
    }

    /// The newest checkpoint of the run in `folder`; reads only ([`checkpoints::latest`]).
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn latest(folder: &Path) -> Result<Latest> {
        checkpoints::latest(&folder.join(CHECKPOINTS))
    }

    /// The run's checkpoints.
    ///
    /// # Errors
    /// Those of [`Checkpoints::open`].
    pub fn checkpoints(&self, keep: Keep) -> Result<Checkpoints> {
        Checkpoints::open(&self.path.join(CHECKPOINTS), keep)
    }

    /// Appends a line to log.txt.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn log(&self, line: &str) -> Result<()> {
        let path = self.path.join("log.txt");
        (&self.log).write_all(format!("{line}\n").as_bytes()).map_err(Error::io(&path, "cannot write"))
    }
}

/// Where a folder is wanted, no file is in its place.
fn is_no_file(path: &Path) -> Result<()> {
    match path.exists() && !path.is_dir() {
        true => Err(Error::file(path, "is a file, expected a folder for the run", "choose another name")),
        false => Ok(()),
    }
}

/// The nearest folder above `path`, or itself, that is there.
pub(super) fn standing(path: &Path) -> &Path {
    let named = path.ancestors().find(|above| above.exists() && !above.as_os_str().is_empty());
    named.unwrap_or(Path::new("."))
}

/// Whether `path` holds a run, where one may begin or go on there.
fn may_begin(path: &Path, existing: Existing) -> Result<bool> {
    let holds_run = RunFolder::holds_run(path);
    let empty =
        !path.exists() || fs::read_dir(path).map_err(Error::io(path, "cannot list"))?.next().is_none();
    match existing {
        _ if !holds_run && !empty => {
            let problem = "is not empty and holds no run (it has no recipe.toml)";
            Err(Error::file(path, problem, "choose another name"))
        }
        Existing::Refuse if holds_run => {
            let advice = "--resume goes on with it, --clean starts it anew, --out names another folder";
            Err(Error::file(path, "holds a run already", advice))
        }
        Existing::Resume if !holds_run => {
            let advice = "check the name, or leave --resume away to start a run";
            Err(Error::file(path, "holds no run to go on with", advice))
        }
        _ => Ok(holds_run),
    }
}

/// The folder, locked: the system frees it however the process ends. Nothing where folders cannot be locked (other
/// systems than Unix, some network file systems), or where there is no folder.
///
/// # Errors
/// Another process has it.
pub(super) fn lock(path: &Path) -> Result<Option<File>> {
    let Some(folder) = File::open(path).ok().filter(|_| cfg!(unix)) else { return Ok(None) };
    for patience in (0..PATIENCE).rev() {
        match folder.try_lock() {
            Ok(()) => return Ok(Some(folder)),
            // Who only asks whether it is held (`held`) has it for a moment.
            Err(TryLockError::WouldBlock) if patience > 0 => thread::sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) => break,
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
    let advice = "wait until it has ended or stop it, or name another folder with --out";
    Err(Error::file(path, "is in use: another run is at work in it", advice))
}

/// Whether a run is at work in the folder; nothing where that cannot be known (see [`lock`]). A run on another machine is
/// seen only where the file system carries locks between machines.
pub(super) fn held(path: &Path) -> Option<bool> {
    let folder = File::open(path).ok().filter(|_| cfg!(unix))?;
    match folder.try_lock() {
        Ok(()) => Some(false),
        Err(TryLockError::WouldBlock) => Some(true),
        Err(TryLockError::Error(_)) => None,
    }
}

/// Numbers of the runs `name-NN` in `parent`, rising.
fn numbers(parent: &Path, name: &str) -> Result<Vec<u64>> {
    let entries = fs::read_dir(parent).map_err(Error::io(parent, "cannot list"))?;
    let mut list = Vec::new();
    for entry in entries {
        let file = entry.map_err(Error::io(parent, "cannot list"))?.file_name();
        let digits = file.to_str().and_then(|file| file.strip_prefix(name)?.strip_prefix('-'));
        list.extend(digits.and_then(|digits| digits.parse::<u64>().ok()));
    }
    list.sort_unstable();
    Ok(list)
}

/// Removes what runs write. The recipe goes last: until then the folder is known to be a run.
fn clean(path: &Path) -> Result<()> {
    for folder in [CHECKPOINTS, MODELS].map(|name| path.join(name)) {
        if folder.is_dir() {
            fs::remove_dir_all(&folder).map_err(Error::io(&folder, "cannot remove"))?;
        }
    }
    for name in FILES.iter().rev() {
        let file = path.join(name);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io(&file, "cannot remove")(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// Replaces a small file in one step.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".latch-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(Error::io(folder, "cannot write into the folder"))?;
    file.write_all(bytes).map_err(Error::io(path, "cannot write"))?;
    file.as_file().sync_all().map_err(Error::io(path, "cannot write"))?;
    file.persist(path).map(|_| ()).map_err(|error| Error::io(path, "cannot replace")(error.error))
}
