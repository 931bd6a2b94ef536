//! The report of runs: one HTML file, drawn from their folders alone, that needs no network and no script.
//!
//! ```text
//! lines, series, samples   reading what may be large, torn, or still being written, in bounded memory
//! read                     the files of a run
//! panels                   what is drawn, and how to read it
//! tracks, curves           which curves share a figure, and how many points they have
//! scale, svg               axes and figures
//! tables, recipes          what is told in rows
//! markup, page             text as markup; the page and its style sheet
//! ```
//!
//! The markup is valid as HTML and as XML. Left out on purpose: what the files do not hold (advantages over groups,
//! latents themselves, quantiles of lengths), and figures of series that never change.

mod curves;
pub(in crate::run) mod lines;
mod markup;
mod page;
mod panels;
mod read;
mod recipes;
pub(in crate::run) mod samples;
mod scale;
pub(in crate::run) mod series;
mod svg;
mod tables;
mod tracks;

pub(in crate::run) use markup::{number, stand_in};
pub use read::Counts;

use super::folder::replace;
use crate::base::{Error, Result};
use read::Run;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The report's name in a run's folder.
pub const FILE: &str = "report.html";

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: usize,
    /// What is missing or could not be read, of all runs together.
    pub counts: Counts,
    /// The same in words.
    pub problems: Vec<String>,
}

impl Written {
    /// As one line for scripts.
    pub fn json(&self) -> Value {
        let Counts { torn, malformed, missing, nonfinite } = self.counts;
        json!({
            "report": self.path.display().to_string(),
            "bytes": self.bytes,
            "torn_files": torn,
            "malformed_lines": malformed,
            "missing_files": missing,
            "values_not_finite": nonfinite,
            "problems": self.problems,
        })
    }
}

/// Writes the report of the runs in `folders` to `out`; none = into the folder of the only run.
///
/// # Errors
/// No folder, one named twice, or several without `out`; `out` is there and is no report; those of a folder that is no
/// run, holds another version's or nothing yet; a disk that refuses.
pub fn write(folders: &[PathBuf], out: Option<&Path>) -> Result<Written> {
    let out = match (out, folders) {
        (Some(out), _) => out.to_path_buf(),
        (None, [folder]) => folder.join(FILE),
        (None, _) => {
            let problem =
                format!("is not given, but {} runs are: none of their folders is the place", folders.len());
            return Err(Error::input(
                "--out",
                problem,
                "name the file to write, e.g. --out runs/compared.html",
            ));
        }
    };
    let mut runs = Vec::new();
    for (folder, label) in folders.iter().zip(labels(folders)?) {
        runs.push(read::run(folder, &label)?);
    }
    spare(&out)?;
    let page = page::page(&mut runs)?;
    replace(&out, page.as_bytes())?;
    let mut counts = Counts::default();
    let mut problems = Vec::new();
    for Run { label, counts: of_run, problems: words, .. } in &runs {
        counts.torn += of_run.torn;
        counts.malformed += of_run.malformed;
        counts.missing += of_run.missing;
        counts.nonfinite += of_run.nonfinite;
        problems.extend(words.iter().map(|words| format!("{label}: {words}")));
    }
    Ok(Written { path: out, bytes: page.len(), counts, problems })
}

/// What the runs are called: their folders' names, or where two are alike, the folders as they were given.
///
/// # Errors
/// A folder that is named twice.
fn labels(folders: &[PathBuf]) -> Result<Vec<String>> {
    let real = |folder: &PathBuf| fs::canonicalize(folder).unwrap_or_else(|_| folder.clone());
    let all: Vec<PathBuf> = folders.iter().map(real).collect();
    if let Some(again) = (1..all.len()).find(|&n| all[..n].contains(&all[n])) {
        let problem = format!("{} is named twice", folders[again].display());
        return Err(Error::input("RUN", problem, "name each run once"));
    }
    let short: Vec<String> = all
        .iter()
        .map(|path| {
            path.file_name()
                .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
        })
        .collect();
    let alike = |n: usize| short.iter().filter(|name| **name == short[n]).count() > 1;
    let label = |n: usize| if alike(n) { folders[n].display().to_string() } else { short[n].clone() };
    Ok((0..folders.len()).map(label).collect())
}

/// Leaves files alone that are no reports.
///
/// # Errors
/// There is such a file, or no folder to write into.
fn spare(out: &Path) -> Result<()> {
    let folder = match out.parent() {
        None => Path::new("/"),
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
    };
    if !folder.is_dir() {
        return Err(Error::file(
            folder,
            "is no folder, expected that of the report",
            "create it, or name another with --out",
        ));
    }
    if !out.exists() {
        return Ok(());
    }
    let advice = "name another file with --out";
    if !out.is_file() {
        return Err(Error::file(out, "is a folder, expected the name of the report", advice));
    }
    let mut head = Vec::new();
    let file = File::open(out).map_err(Error::io(out, "cannot open"))?;
    file.take(1024).read_to_end(&mut head).map_err(Error::io(out, "cannot read"))?;
    match String::from_utf8_lossy(&head).contains(page::MARK) {
        true => Ok(()),
        false => Err(Error::file(out, "is there already and is no report, so it is not replaced", advice)),
    }
}
